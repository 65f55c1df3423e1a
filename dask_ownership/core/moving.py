"""Moving values: away from workers that leave, and where a client wants them.

A value is copied to another worker, and when it is there the first one's is freed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from dask_ownership.core.placement import WorkerView
from dask_ownership.core.row import STORED, Row

if TYPE_CHECKING:
    from dask_ownership.core.ownership import Ownership


class Moves:
    """Values of one owner that are being moved.

    Parameters
    ----------
    core : Ownership

    Attributes
    ----------
    under_way : set of tuple
        Rows, each with a worker that leaves, for which another copy is being made.
    """

    def __init__(self, core: Ownership) -> None:
        self.core = core
        self.under_way: set[tuple[Row, WorkerView]] = set()

    def leaves(self, view: WorkerView) -> None:
        """A worker is about to leave: it gets no more work, and its values go elsewhere."""
        view.leaving = True
        view.accepting = False
        self.core.copies.not_to(view)
        self.all_away(view)
        self.core.replicas.look_at_all()

    def joined(self) -> None:
        """A worker joined: what had nowhere to go has somewhere now."""
        for view in list(self.core.placement.workers.values()):
            if view.leaving:
                self.all_away(view)

    def all_away(self, view: WorkerView) -> None:
        """Move every value away that is not being moved already."""
        for row in self.core.table.all():
            if view in row.holders:
                self.away(row, view)

    def away(self, row: Row, view: WorkerView) -> None:
        """Move one value away, if there is somewhere to move it to."""
        core = self.core
        if row.state != STORED:
            return  # a copy of what is safe here, which tasks on their way there may name
        if row.borrowed:
            core.lifecycle.drop_holders(row, {view}, "leaves")
            return
        places = core.copies.places()
        if (row, view) in self.under_way or not places:
            return
        self.under_way.add((row, view))
        target = core.copies.best(row, places)[0]
        core.copies.make(row, target, partial(self._ended, row, view))

    def _ended(self, row: Row, view: WorkerView, task: Row, made: bool) -> None:
        self.under_way.discard((row, view))
        if view.leaving and view in row.holders:
            if made and len(row.holders) > 1:
                self.core.lifecycle.drop_holders(row, {view}, "left")
            elif made or not isinstance(task.value, bytes):
                self.away(row, view)  # where it was to go is gone; else it cannot be moved

    def to(
        self, row: Row, source: WorkerView, target: WorkerView, settled: Callable[[Row], None]
    ) -> None:
        """Move one value between workers that stay; ``settled(task)`` is called at the end.

        A copy that tasks on their way to its worker may name stays, too.
        """

        def ended(task: Row, made: bool) -> None:
            core = self.core
            if made and row.state == STORED and source in row.holders:
                needed = any(row in other.dependencies for other in source.pushed.values())
                if target in core.copies.there(row) and not needed:
                    core.lifecycle.drop_holders(row, {source}, "has given it to another worker")
            settled(task)

        self.core.copies.make(row, target, ended)
