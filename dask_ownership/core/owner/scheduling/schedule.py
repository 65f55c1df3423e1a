"""Scheduling: ready rows go to workers that want more, and come back for idle workers."""

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
"""Number of a worker's latest tasks to look at before the worker is asked to give tasks back."""


class Scheduling:
    """Decides when tasks are handed out, and when workers are asked to give tasks back.

    Parameters
    ----------
    placement : Placement
    dispatch : Dispatch
    infeasible : Infeasible
    broke : callable
        Told of a row that could not be pushed, the error, and which step failed.
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
            # Which slots are kept is decided anew each time.
            placement.let_go_of_kept()
        # Before the unrestricted rows, which would take the free slots.
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
        """Give restricted rows to workers that want more, and end hopeless rows."""
        placement = self._placement
        # Each round takes the first row of each kind, until no kind has a row that can go.
        progress = True
        while progress and placement.any_restricted:
            progress = False
            for row, views in placement.restricted():
                if row.state != READY:
                    progress = True  # ended with an earlier row: the next row of the kind comes
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
        """Push the ready rows among ``rows`` to the worker in this process, which wants no more.

        Parked tasks of the worker wait for these rows, and the worker is full: only tasks that the
        parked tasks need may begin there (`executor.crowd`).
        """
        placement = self._placement
        home = placement.workers.get(placement.home or "")
        if home is None or not home.accepting:
            return
        for row in rows:
            waits = row.state == READY and not row.options.at_most_once
            if waits and home in placement.allowed(row):
                self._dispatch.push(row, home, now)

    def recall(self, now: float) -> bool:
        """Ask workers to give queued tasks back, for idle workers.

        Returns
        -------
        bool
            Whether to call again soon, because some workers are idle and other workers have tasks.
        """
        views = list(self._placement.workers.values())
        idle = sum(1 for view in views if view.idle)
        # Ready rows at the owner go to idle workers first.
        if not idle or self._placement.any_ready:
            return False
        again = False
        for view in views:
            if not view.active or len(views) < 2 or view.suspended:
                continue
            again = True
            # Without a spare task the worker is asked later: its tasks may wait behind tasks of
            # other owners, of which this owner knows nothing.
            spare = max(view.active - view.nthreads, 0)
            if view.recalled or now - view.heard < (STALLED if spare else HELD_UP):
                continue
            last = islice(reversed(view.pushed.values()), LOOKED_AT)
            if all(len(self._placement.allowed(row)) < 2 for row in last):
                continue  # no other worker may run the tasks
            view.recalled = True
            # Half of the spare tasks, and one at least.
            view.outbox.append((m.RECALL, max(1, spare // 2 + spare % 2)))
        return again
