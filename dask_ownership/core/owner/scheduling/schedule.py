"""Scheduling: ready rows go to workers that want more, and come back for workers that idle."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice

from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.owner.scheduling.dispatch import Dispatch
from dask_ownership.core.owner.scheduling.infeasible import Infeasible
from dask_ownership.core.owner.scheduling.placement import HELD_UP, STALLED, Placement
from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol.states import READY

LOOKED_AT = 16
"""Tasks of a worker that are looked at before it is asked to give some back."""


class Scheduling:
    """Decides when tasks are handed out, and when workers are asked to give some back.

    Parameters
    ----------
    placement : Placement
    dispatch : Dispatch
    infeasible : Infeasible
    broke : callable
        Told of a row that could not be pushed, the error, and what was tried.
    """

    def __init__(
        self,
        placement: Placement,
        dispatch: Dispatch,
        infeasible: Infeasible,
        broke: Callable[[Row, Exception, str], None],
    ) -> None:
        self._placement = placement
        self._dispatch = dispatch
        self._infeasible = infeasible
        self._broke = broke

    def schedule(self, now: float) -> None:
        """Give ready rows to workers that want more."""
        placement = self._placement
        if not placement.workers:
            return
        if placement.kept:
            placement.let_go_of_kept()
        if placement.any_restricted:
            self._schedule_restricted(now)
        take_ready = placement.take_ready
        push = self._dispatch.push
        while (taken := take_ready()) is not None:
            try:
                push(taken[0], taken[1], now)
            except Exception as error:
                self._broke(taken[0], error, f"it could not be pushed to {taken[1].address}")

    def _schedule_restricted(self, now: float) -> None:
        """The same for rows that only some workers may run; those of no worker may end here."""
        placement = self._placement
        progress = True
        while progress and placement.any_restricted:
            progress = False
            for row, views in placement.restricted():
                if row.state != READY:
                    progress = True  # it went with one before it; the next of its kind is looked at
                elif not views:
                    if self._infeasible.hopeless(row):
                        self._infeasible.fail(row)
                        progress = True
                elif (view := placement.choose(row, views)) is not None:
                    placement.take_restricted(row)
                    try:
                        self._dispatch.push(row, view, now)
                    except Exception as error:
                        self._broke(row, error, f"it could not be pushed to {view.address}")
                    progress = True
        if placement.any_restricted:
            placement.keep_for_waiting()

    def hurry(self, rows: Iterable[Row], now: float) -> None:
        """Parked tasks of the worker in this process wait for these, and nothing else may begin
        there: the ready ones go there though it wants no more (`executor.crowd`)."""
        placement = self._placement
        home = placement.workers.get(placement.home or "")
        if home is None or not home.accepting:
            return
        for row in rows:
            waits = row.state == READY and not row.options.at_most_once
            if waits and home in placement.allowed(row):
                self._dispatch.push(row, home, now)

    def recall(self, now: float) -> bool:
        """Ask workers for queued tasks back, for idle workers; whether to look again soon."""
        views = list(self._placement.workers.values())
        idle = sum(1 for view in views if view.idle)
        if not idle or self._placement.any_ready:
            return False
        again = False
        for view in views:
            if not view.active or len(views) < 2 or view.suspended:
                continue
            again = True
            # What it has may wait for tasks of other owners, of which nothing is known here.
            spare = max(view.active - view.nthreads, 0)
            if view.recalled or now - view.heard < (STALLED if spare else HELD_UP):
                continue
            last = islice(reversed(view.pushed.values()), LOOKED_AT)
            if all(len(self._placement.allowed(row)) < 2 for row in last):
                continue  # no other worker may run them
            view.recalled = True
            view.outbox.append((m.RECALL, max(1, spare // 2 + spare % 2)))
        return again
