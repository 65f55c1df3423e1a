"""Copies of stored values, made at other workers.

To copy a value, the owner runs a task at the target worker. The task needs the value and returns
nothing; when the task has ended, the worker certainly has the value. `recovery.moving` and
`recovery.replicas` decide which values are copied, and to which workers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from dask_ownership.core.owner.rows.lifecycle import Lifecycle
from dask_ownership.core.owner.rows.listener import RowListener
from dask_ownership.core.owner.rows.options import Options
from dask_ownership.core.owner.rows.row import COPY, Row
from dask_ownership.core.owner.rows.worker_view import WorkerView
from dask_ownership.core.owner.scheduling.builtin import BuiltinFunctions
from dask_ownership.core.owner.scheduling.placement import Placement
from dask_ownership.core.protocol.failure import Failure
from dask_ownership.core.protocol.order import FIRST
from dask_ownership.core.protocol.states import CANCELLED, STORED


@dataclass(slots=True, eq=False, repr=False)
class Copy:
    """One copy on its way to a worker."""

    #: The row of the copied value.
    row: Row
    #: The worker that gets the copy.
    target: WorkerView
    #: Called with the task and whether the copy was made, when the task has ended.
    ended: Callable[[Row, bool], None] | None


class Copies(RowListener):
    """Copies one owner's stored values to other workers.

    Parameters
    ----------
    lifecycle : Lifecycle
        Adopts, fails and releases the tasks that copy.
    placement : Placement
        Knows the workers.
    functions : BuiltinFunctions
        Has the function of the tasks that copy.
    submit : callable
        Has new rows run.

    Attributes
    ----------
    closed : bool
        Whether the owner has ended: then nothing is copied any more.
    under_way : dict of Row to Copy
        The task of each copy on its way, and the copy.
    latest : dict
        Row to target to the task of the latest copy on its way there.
    when_copied : list of callable
        Each is called with a row and the task that copied the row, when the task has ended.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        placement: Placement,
        functions: BuiltinFunctions,
        submit: Callable[[Iterable[Row]], None],
    ) -> None:
        self._lifecycle = lifecycle
        self._placement = placement
        self._functions = functions
        self._submit = submit
        self.closed = False
        self.when_copied: list[Callable[[Row, Row], None]] = []
        self.under_way: dict[Row, Copy] = {}
        self.latest: dict[Row, dict[WorkerView, Row]] = {}

    def places(self) -> list[WorkerView]:
        """Return the workers that accept copies: they accept tasks and do not leave."""
        if self.closed:
            return []
        workers = self._placement.workers.values()
        return [view for view in workers if view.accepting and not view.leaving]

    def going(self, row: Row) -> Collection[WorkerView]:
        """Return the workers to which a copy of the row's value is on its way."""
        return self.latest.get(row, ())

    @staticmethod
    def there(row: Row) -> list[WorkerView]:
        """Return the locations of a row where the value has arrived for certain."""
        key = row.key
        # A worker with the key in ``copies`` was only told to fetch the value, until the key is in
        # ``arrived`` too. All other locations made the value, or had the value scattered to them.
        return [v for v in row.locations if key not in v.copies or key in v.arrived]

    @staticmethod
    def best(row: Row, among: Iterable[WorkerView]) -> list[WorkerView]:
        """Sort workers by how well each suits a copy of the row's value, the best first.

        First come workers that fetch the value already, then workers that got the fewest bytes of
        copies, then the least loaded workers.
        """
        return sorted(
            among,
            key=lambda v: (v not in row.locations, v.given, v.load / v.nthreads, v.address),
        )

    def make(
        self, row: Row, target: WorkerView, ended: Callable[[Row, bool], None] | None = None
    ) -> None:
        """Copy a stored value to a worker.

        ``ended(task, made)`` is called when the task that copies has ended; ``made`` says whether
        the task succeeded.
        """
        self._lifecycle.numbers += 1
        # With the number, the key of each copy is used once.
        key = ("copied", row.key, self._lifecycle.numbers)
        functions = self._functions
        options = Options(workers=(target.address,))
        task = Row(key, functions.nothing, functions.payload, (row,), FIRST, options)
        task.roles |= COPY
        self._lifecycle.table.adopt(task)
        self.under_way[task] = Copy(row, target, ended)
        self.latest.setdefault(row, {})[target] = task
        target.given += row.nbytes
        self._submit([task])

    def finished(self, row: Row) -> None:
        """Take note that a task has made its copy."""
        if row in self.under_way:
            self._ended(row, True)

    def ended(self, row: Row) -> None:
        """Take note that a task has ended without its copy."""
        if row in self.under_way:
            self._ended(row, False)

    def _ended(self, task: Row, made: bool) -> None:
        """Forget a copy whose task has ended, and call what waits for the copy."""
        copy = self.under_way.pop(task)
        row, target = copy.row, copy.target
        going = self.latest.get(row, {})
        if going.get(target) is task:  # else a later copy is on its way there
            del going[target]
        if not going:
            self.latest.pop(row, None)
        # Meanwhile the value may have been freed, or the target may have lost its copy.
        if made and row.state == STORED and target in row.locations:
            target.arrived.add(row.key)
        if copy.ended is not None:
            copy.ended(task, made)
        for copied in self.when_copied:
            copied(row, task)
        self._lifecycle.release([task])

    def call_off(self, row: Row) -> None:
        """Cancel all copies of a row that waits for another process.

        The value is not made here again, so the tasks that copy the row would wait for ever.
        """
        for task in list(self.latest.get(row, {}).values()):
            detail = f"{row.key!r} is looked for at other processes"
            self._lifecycle.fail(task, CANCELLED, Failure("cancelled", task.key, detail))

    def not_to(self, view: WorkerView) -> None:
        """Cancel all copies to a worker that accepts no more tasks.

        `Moves.away` and `Replicas` then choose other workers.
        """
        for task, copy in list(self.under_way.items()):
            if copy.target is view:
                detail = f"{view.address} takes no more tasks"
                self._lifecycle.fail(task, CANCELLED, Failure("cancelled", task.key, detail))
