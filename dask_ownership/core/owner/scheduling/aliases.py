"""Aliases: rows whose value is the value of another row, the source.

A task that delegates becomes an alias, and an object that was taken over from another owner is an
alias of the borrowed object. An alias takes no slot: an inline value is passed on here, and for a
stored value the alias goes to a location.
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
    """Gives ready aliases their values.

    Parameters
    ----------
    lifecycle : Lifecycle
    placement : Placement
    dispatch : Dispatch
    broke : callable
        Told of an alias that met an unexpected error: the row, the error, and which step failed.
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
        """Give a ready alias an inline value, or find a worker for the alias."""
        source = row.dependencies[0]
        if source.state == INLINE:
            self._ready.append(row)
            # With more than one alias, the loop of `_pass_on` runs already and takes this alias.
            if len(self._ready) == 1:
                self._pass_on()
            return
        if row.options.workers is None and (view := self._location_of(source)) is not None:
            # No queue: at a location the alias takes no slot, and no bytes have to be moved.
            self._dispatch.push(row, view, view.heard)
            return
        self._placement.add_ready(row)

    def _pass_on(self) -> None:
        """End the ready aliases with the values of their sources.

        An alias may be the source of the next alias, which joins the list then. So a chain of any
        length ends in this loop, without recursion.
        """
        for row in self._ready:
            if row.state != READY:
                continue  # the row has ended together with an earlier row
            try:
                self._lifecycle.finish_as(row, row.dependencies[0])
            except Exception as error:
                self._broke(row, error, "it could not get the value of another")
        self._ready.clear()

    def _location_of(self, source: Row) -> WorkerView | None:
        """Return a location of a stored value that takes tasks; None when there is none."""
        workers = self._placement.workers
        addresses = source.addresses if isinstance(source, Borrowed) else ()
        views = [workers.get(address) for address in addresses] or source.locations
        return next((v for v in views if v is not None and v.accepting and not v.suspended), None)
