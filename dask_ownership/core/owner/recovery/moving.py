"""Moving values: away from workers that leave, and where a client wants them.

A value is copied to another worker, and when it is there the first one's is freed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from dask_ownership.core.owner.recovery.copying import Copies
from dask_ownership.core.owner.recovery.replicas import Replicas
from dask_ownership.core.owner.rows.lifecycle import Lifecycle
from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.owner.rows.worker_view import WorkerView
from dask_ownership.core.owner.scheduling.placement import Placement
from dask_ownership.core.protocol.states import STORED


class Moves:
    """Values of one owner that are being moved.

    Parameters
    ----------
    lifecycle : Lifecycle
    placement : Placement
    copies : Copies
    replicas : Replicas

    Attributes
    ----------
    under_way : set of tuple
        Rows, each with a worker that leaves, for which another copy is being made.
    """

    def __init__(
        self, lifecycle: Lifecycle, placement: Placement, copies: Copies, replicas: Replicas
    ) -> None:
        self._lifecycle = lifecycle
        self._placement = placement
        self._copies = copies
        self._replicas = replicas
        self.under_way: set[tuple[Row, WorkerView]] = set()

    def on_accepting(self, view: WorkerView, yes: bool, nthreads: int) -> None:
        """A worker takes tasks from now on, or takes none any more."""
        view.accepting = yes
        view.nthreads = nthreads
        if yes:
            view.leaving = False  # it stayed after all
            self._replicas.look_at_all()
        else:
            self._copies.not_to(view)

    def on_leaving(self, view: WorkerView) -> None:
        """A worker is about to leave: it gets no more work, and its values go elsewhere."""
        view.leaving = True
        view.accepting = False
        self._copies.not_to(view)
        self.all_away(view)
        self._replicas.look_at_all()

    def joined(self) -> None:
        """A worker joined: what had nowhere to go has somewhere now."""
        for view in list(self._placement.workers.values()):
            if view.leaving:
                self.all_away(view)

    def all_away(self, view: WorkerView) -> None:
        """Move every value away that is not being moved already."""
        for row in self._lifecycle.table.all():
            if view in row.locations:
                self.away(row, view)

    def away(self, row: Row, view: WorkerView) -> None:
        """Move one value away, if there is somewhere to move it to."""
        if row.state != STORED:
            return  # a copy of what is safe here, which tasks on their way there may name
        if row.borrowed:
            self._lifecycle.drop_locations(row, {view}, "leaves")
            return
        places = self._copies.places()
        if (row, view) in self.under_way or not places:
            return
        self.under_way.add((row, view))
        target = self._copies.best(row, places)[0]
        self._copies.make(row, target, partial(self._ended, row, view))

    def _ended(self, row: Row, view: WorkerView, task: Row, made: bool) -> None:
        self.under_way.discard((row, view))
        if view.leaving and view in row.locations:
            if made and len(row.locations) > 1:
                self._lifecycle.drop_locations(row, {view}, "left")
            elif made or not isinstance(task.value, bytes):
                self.away(row, view)  # where it was to go is gone; else it cannot be moved

    def to(
        self, row: Row, source: WorkerView, target: WorkerView, settled: Callable[[Row], None]
    ) -> None:
        """Move one value between workers that stay; ``settled(task)`` is called at the end.

        A copy that tasks on their way to its worker may name stays, too.
        """

        def ended(task: Row, made: bool) -> None:
            if made and row.state == STORED and source in row.locations:
                needed = any(row in other.dependencies for other in source.pushed.values())
                if target in self._copies.there(row) and not needed:
                    self._lifecycle.drop_locations(row, {source}, "has given it to another worker")
            settled(task)

        self._copies.make(row, target, ended)
