"""Moving values away from workers that leave.

A value is moved by running a task that needs it and returns nothing at another worker:
when that has ended the other worker has a copy for certain, and the first one's is freed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dask_ownership.core.placement import WorkerView
from dask_ownership.core.table import CANCELLED, STORED, Failure, Function, Options, Row

if TYPE_CHECKING:
    from dask_ownership.core.ownership import Ownership

FIRST = -(1 << 62)
"""Place of such a task: before all others."""


class Moves:
    """Values of one owner that are being moved.

    Parameters
    ----------
    core : Ownership

    Attributes
    ----------
    function : Function or None
        Takes a value and returns nothing.
    under_way : dict
        The task that moves a value to that value's row and the worker that leaves.
    """

    def __init__(self, core: Ownership) -> None:
        self.core = core
        self.function: Function | None = None
        self.under_way: dict[Row, tuple[Row, WorkerView]] = {}

    def leaves(self, view: WorkerView) -> None:
        """A worker is about to leave: it gets no more work, and its values go elsewhere."""
        view.leaving = True
        view.accepting = False
        for task, (row, source) in list(self.under_way.items()):
            if task.options.workers == (view.address,):
                # It was to go where nothing starts any more.
                self.core._fail(task, CANCELLED, Failure("cancelled", task.key, "it leaves too"))
                self.away(row, source)
        self.all_away(view)

    def joined(self) -> None:
        """A worker joined: what had nowhere to go has somewhere now."""
        for view in list(self.core.placement.workers.values()):
            if view.leaving:
                self.all_away(view)

    def all_away(self, view: WorkerView) -> None:
        """Move every value away that is not being moved already."""
        moving = {row for row, source in self.under_way.values() if source is view}
        for row in self.core.table.all():
            if view in row.holders and row not in moving:
                self.away(row, view)

    def away(self, row: Row, view: WorkerView) -> None:
        """Move one value away, if there is somewhere to move it to."""
        core = self.core
        if row.state != STORED:
            return  # a copy of what is safe here, which tasks on their way there may name
        if row.borrowed:
            core._drop_holders(row, {view}, "leaves")
            return
        target = self._target(row)
        if target is None or self.function is None:
            return
        core.attempts += 1
        key = ("moved", row.key, core.attempts)
        options = Options(workers=(target.address,))
        task = Row(key, self.function, core.identity_call, (row,), FIRST, options)
        core.table.adopt(task)
        self.under_way[task] = (row, view)
        core.submit([task])

    def _target(self, row: Row) -> WorkerView | None:
        """A worker that stays: one that has a copy, or the one with the least to do."""
        staying = [
            view for view in self.core.placement.workers.values()
            if view.accepting and not view.leaving
        ]  # fmt: skip
        return min(
            staying,
            key=lambda view: (view not in row.holders, view.load / view.nthreads, view.address),
            default=None,
        )

    def ended(self, task: Row, moved: bool) -> None:
        """A task that moves a value ended."""
        row, view = self.under_way.pop(task)
        if view.leaving and view in row.holders:
            if moved and len(row.holders) > 1:
                self.core._drop_holders(row, {view}, "left")
            elif moved or not isinstance(task.value, bytes):
                self.away(row, view)  # where it was to go is gone; else it cannot be moved
        self.core.release([task])
