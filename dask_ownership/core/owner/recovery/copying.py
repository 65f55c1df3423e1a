"""Copies of stored values, made at other workers.

A copy is made by running a task there that needs the value and returns nothing: when that
has ended the worker has the value for certain. `recovery.moving` and `recovery.replicas` say what
is copied where.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

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


class Copy:
    """One copy that is being made."""

    __slots__ = ("ended", "row", "target")

    def __init__(
        self, row: Row, target: WorkerView, ended: Callable[[Row, bool], None] | None
    ) -> None:
        self.row = row
        self.target = target
        self.ended = ended


class Copies(RowListener):
    """Copies of one owner's values that are being made.

    Parameters
    ----------
    lifecycle : Lifecycle
    placement : Placement
    functions : BuiltinFunctions
    submit : callable
        Has new rows run.

    Attributes
    ----------
    closed : bool
        The owner ends: no copy is made any more.
    under_way : dict
        The task that makes a copy to that `Copy`.
    when_copied : list of callable
        Told of a row and of the task that was to copy it, when that has ended.
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
        self._going: dict[Row, dict[WorkerView, Row]] = {}

    def places(self) -> list[WorkerView]:
        """Workers that take a copy and stay."""
        if self.closed:
            return []
        workers = self._placement.workers.values()
        return [view for view in workers if view.accepting and not view.leaving]

    def going(self, row: Row) -> Collection[WorkerView]:
        """Where copies of a value are about to be."""
        return self._going.get(row, ())

    @staticmethod
    def there(row: Row) -> list[WorkerView]:
        """Holders that have a value for certain; others were only told to fetch it."""
        key = row.key
        return [v for v in row.locations if key not in v.copies or key in v.arrived]

    @staticmethod
    def best(row: Row, among: Iterable[WorkerView]) -> list[WorkerView]:
        """The best places for a copy first: those that fetch it already, then those that
        were given the least."""
        return sorted(
            among,
            key=lambda v: (v not in row.locations, v.given, v.load / v.nthreads, v.address),
        )

    def make(
        self, row: Row, target: WorkerView, ended: Callable[[Row, bool], None] | None = None
    ) -> None:
        """Copy a stored value to a worker; ``ended(task, made)`` is called when that ended."""
        self._lifecycle.numbers += 1
        key = ("copied", row.key, self._lifecycle.numbers)
        functions = self._functions
        options = Options(workers=(target.address,))
        task = Row(key, functions.nothing, functions.payload, (row,), FIRST, options)
        task.roles |= COPY
        self._lifecycle.table.adopt(task)
        self.under_way[task] = Copy(row, target, ended)
        self._going.setdefault(row, {})[target] = task
        target.given += row.nbytes
        self._submit([task])

    def finished(self, row: Row) -> None:
        """A task that makes a copy has made it."""
        if row in self.under_way:
            self._ended(row, True)

    def ended(self, row: Row) -> None:
        """A task that makes a copy has not made it."""
        if row in self.under_way:
            self._ended(row, False)

    def _ended(self, task: Row, made: bool) -> None:
        copy = self.under_way.pop(task)
        row, target = copy.row, copy.target
        going = self._going.get(row, {})
        if going.get(target) is task:  # else another was begun since
            del going[target]
        if not going:
            self._going.pop(row, None)
        if made and row.state == STORED and target in row.locations:
            target.arrived.add(row.key)
        if copy.ended is not None:
            copy.ended(task, made)
        for copied in self.when_copied:
            copied(row, task)
        self._lifecycle.release([task])

    def call_off(self, row: Row) -> None:
        """A value is not made here again: what was to copy it would wait for ever."""
        for task in list(self._going.get(row, {}).values()):
            detail = f"{row.key!r} is looked for at other processes"
            self._lifecycle.fail(task, CANCELLED, Failure("cancelled", task.key, detail))

    def not_to(self, view: WorkerView) -> None:
        """A worker takes nothing any more: what was to go there goes elsewhere."""
        for task, copy in list(self.under_way.items()):
            if copy.target is view:
                detail = f"{view.address} takes no more tasks"
                self._lifecycle.fail(task, CANCELLED, Failure("cancelled", task.key, detail))
