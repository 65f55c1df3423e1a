"""Aliases: rows whose value is that of another row.

A task that delegates becomes one, and so does what is taken over from another owner. An alias
takes no slot: when the value is inline, it is passed on here; when the value is stored, the
alias goes to a worker that has it.
"""

from __future__ import annotations

from collections.abc import Callable

from dask_ownership.core.owner.rows.lifecycle import Lifecycle
from dask_ownership.core.owner.rows.row import Borrowed, Row
from dask_ownership.core.owner.rows.worker_view import WorkerView
from dask_ownership.core.owner.scheduling.dispatch import Dispatch
from dask_ownership.core.owner.scheduling.placement import Placement
from dask_ownership.core.protocol.states import INLINE, READY


class Aliases:
    """Gives aliases that are ready their values.

    Parameters
    ----------
    lifecycle : Lifecycle
    placement : Placement
    dispatch : Dispatch
    broke : callable
        Told of a row that could not be dealt with, the error, and what was tried.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        placement: Placement,
        dispatch: Dispatch,
        broke: Callable[[Row, Exception, str], None],
    ) -> None:
        self._lifecycle = lifecycle
        self._placement = placement
        self._dispatch = dispatch
        self._broke = broke
        self._ready: list[Row] = []

    def place(self, row: Row) -> None:
        """Deal with an alias that is ready."""
        source = row.dependencies[0]
        if source.state == INLINE:
            self._ready.append(row)
            if len(self._ready) == 1:
                self._pass_on()
            return
        if row.options.workers is None and (view := self._holder_of(source)) is not None:
            # It takes no slot there, and nothing is to be moved.
            self._dispatch.push(row, view, view.heard)
            return
        self._placement.add_ready(row)

    def _pass_on(self) -> None:
        """Give aliases the value of what they are aliases of.

        Each may be what the next one waits for: a chain of any length ends in this loop.
        """
        for row in self._ready:
            if row.state != READY:
                continue  # it was ended together with one before it
            try:
                self._lifecycle.finish_as(row, row.dependencies[0])
            except Exception as error:
                self._broke(row, error, "it could not get the value of another")
        self._ready.clear()

    def _holder_of(self, source: Row) -> WorkerView | None:
        """A worker that has a stored value and takes tasks."""
        workers = self._placement.workers
        addresses = source.addresses if isinstance(source, Borrowed) else ()
        views = [workers.get(address) for address in addresses] or source.locations
        return next((v for v in views if v is not None and v.accepting and not v.suspended), None)
