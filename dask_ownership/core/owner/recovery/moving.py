"""Moving: stored values go away from leaving workers, and to workers that a client chooses.

The owner copies a value to the other worker. When the copy has arrived, the owner frees the copy
at the first worker.
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
    """Moves stored values of one owner between workers.

    Parameters
    ----------
    lifecycle : Lifecycle
        Drops the locations that a value has left.
    placement : Placement
        Knows the workers.
    copies : Copies
        Makes the copies at the target workers.
    replicas : Replicas
        Looks for missing copies when a worker leaves or stays.

    Attributes
    ----------
    under_way : set of tuple
        Pairs of a row and a leaving worker: a copy of the row is on its way to another worker.
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
        """Handle ACCEPTING: a worker accepts tasks from now on, or accepts none any more."""
        view.accepting = yes
        view.nthreads = nthreads
        if yes:
            view.leaving = False  # the worker stays after all
            self._replicas.look_at_all()
        else:
            self._copies.not_to(view)

    def on_leaving(self, view: WorkerView) -> None:
        """Handle LEAVING: give the worker no more tasks, and move all of its values away."""
        view.leaving = True
        view.accepting = False
        self._copies.not_to(view)
        self.all_away(view)
        self._replicas.look_at_all()

    def joined(self) -> None:
        """Move values away from leaving workers again: a worker joined that may take them."""
        for view in list(self._placement.workers.values()):
            if view.leaving:
                self.all_away(view)

    def all_away(self, view: WorkerView) -> None:
        """Move every value of this owner away from a leaving worker."""
        for row in self._lifecycle.table.all():
            if view in row.locations:
                self.away(row, view)

    def away(self, row: Row, view: WorkerView) -> None:
        """Move one value away from a leaving worker, unless the value is on its way already.

        When no worker accepts copies, the value stays; `joined` tries again.
        """
        if row.state != STORED:
            # The copy belongs to an inline value, which is safe at the owner. Tasks on their way
            # to the worker may name the copy, so the copy is not freed.
            return
        if row.borrowed:
            # The owner of the value moves the value. This process only drops the copy that its
            # own tasks had there.
            self._lifecycle.drop_locations(row, {view}, "leaves")
            return
        places = self._copies.places()
        if (row, view) in self.under_way or not places:
            return
        self.under_way.add((row, view))
        target = self._copies.best(row, places)[0]
        self._copies.make(row, target, partial(self._ended, row, view))

    def _ended(self, row: Row, view: WorkerView, task: Row, made: bool) -> None:
        """Free the copy at a leaving worker when another copy is there, or try another worker."""
        self.under_way.discard((row, view))
        if view.leaving and view in row.locations:
            if made and len(row.locations) > 1:
                self._lifecycle.drop_locations(row, {view}, "left")
            elif made or not isinstance(task.value, bytes):
                # The target is gone, or accepts no more tasks. After a pickled error the value
                # stays, because it cannot be copied anywhere.
                self.away(row, view)

    def to(
        self, row: Row, source: WorkerView, target: WorkerView, settled: Callable[[Row], None]
    ) -> None:
        """Move one value from a worker to another, both of which stay.

        ``settled(task)`` is called when the task that copies has ended.
        """

        def ended(task: Row, made: bool) -> None:
            if made and row.state == STORED and source in row.locations:
                # The source keeps its copy when tasks on their way there may name the copy.
                needed = any(row in other.dependencies for other in source.pushed.values())
                if target in self._copies.there(row) and not needed:
                    self._lifecycle.drop_locations(row, {source}, "has given it to another worker")
            settled(task)

        self._copies.make(row, target, ended)
