"""Detached objects: one process holds objects for the cluster, which outlive their owners.

An object in a queue, a variable or a dataset belongs to the cluster, also when the client that put
the object there is gone. So one process of the cluster, the *holder*, takes the object over as an
heir does (`references.transfer`): at once, and not when the owner leaves. The holder also gets a
`LineageSpec` from the owner: the tasks that make the object, and what the tasks need. While the
owner lives, the holder waits for the owner's value and takes the value over where it lies. The
owner may be gone before, or the last copy may be lost later when the owner cannot help: then the
holder runs the tasks itself.

The name of a detached object says where the object is held: the heir in the name is the object's
own key at the holder (`held_at`). A process that meets the name borrows there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from dask_ownership.core.owner.references.borrowing import Borrowing
from dask_ownership.core.owner.rows import restarts
from dask_ownership.core.owner.rows.lifecycle import Lifecycle
from dask_ownership.core.owner.rows.listener import RowListener
from dask_ownership.core.owner.rows.options import Options, Replication
from dask_ownership.core.owner.rows.row import REPLICATED, Function, Row
from dask_ownership.core.owner.scheduling.builtin import BuiltinFunctions
from dask_ownership.core.protocol.messages import Key, Origin, Process
from dask_ownership.core.protocol.names import (
    INCARNATION,
    LIFE,
    NAME,
    adopted_key,
    holder_ref,
    is_adopted,
    owner_ref_of,
)
from dask_ownership.core.protocol.states import CANCELLED, INLINE, LOST, STORED

Reference: TypeAlias = "int | Origin"
"""An input of a task: another task of the same `LineageSpec` by number, or the name of an object
with an owner of its own."""

Task: TypeAlias = tuple[Any, ...]
"""``(key, life, function, payload, order, dependencies, contains, options, value)``, of msgpack
types only. ``function`` is a number in the list of functions; -1 says that ``value`` is the task's
inline value."""

OPTIONS = (
    "workers", "loose", "retries", "resources", "timeout", "executor", "span", "stays", "depth",
    "within",
)  # fmt: skip
"""Options of a task that another owner needs to run the task, beside ``replicas``."""

NOT_NEEDED = ("at_most_once", "parent", "heir", "repeats", "adopted", "lineage_spec")
"""The others: a task that runs at most once is not made again; the rest says which task of which
process submitted the task, or is about objects that change their owner."""


@dataclass(slots=True, eq=False, repr=False)
class LineageSpec:
    """How to make some objects of one owner: their tasks, and the tasks' inputs."""

    #: The owner of the tasks.
    owner: Process
    #: The functions that the tasks call.
    functions: list[Function]
    #: Each task comes after the tasks that it refers to by number.
    tasks: Sequence[Task]
    #: The number of each task, by its key at the holder.
    numbers: dict[Key, int] = field(init=False)

    def __post_init__(self) -> None:
        self.numbers = {self.key(number): number for number in range(len(self.tasks))}

    def key(self, number: int) -> Key:
        """Return the key of a task at the holder, as `adopted_key` makes it."""
        name, life = self.tasks[number][:2]
        return name if is_adopted(name) else ("adopted", self.owner[INCARNATION], name, life)


NOTHING = LineageSpec(("", "", ""), [], ())
"""The spec of an object whose tasks are not known."""


class DetachedObjects(RowListener):
    """Describes how objects of an owner are made, and holds objects, in the holder.

    Parameters
    ----------
    lifecycle : Lifecycle
        Turns rows into other tasks, and counts references.
    borrowing : Borrowing
        Borrows the objects to hold from their owners.
    functions : BuiltinFunctions
        Makes the alias that takes a value over.
    submit : callable
        Has new rows run.

    Attributes
    ----------
    holds : bool
        Whether this process is the holder.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        borrowing: Borrowing,
        functions: BuiltinFunctions,
        submit: Callable[[Iterable[Row]], None],
    ) -> None:
        self._lifecycle = lifecycle
        self._table = lifecycle.table
        self._borrowing = borrowing
        self._functions = functions
        self._submit = submit
        self.holds = False

    # ---- the owner ----

    def describe(self, rows: Iterable[Row]) -> tuple[list[Function], list[Task], list[Origin]]:
        """Return how rows of this owner are made, and which objects are to be held with them.

        Returns
        -------
        list of Function, list of Task
            The parts of a `LineageSpec`.
        list of Origin
            Objects that unfinished tasks among these need and that none of these tasks makes. They
            have to be held as well.
        """
        functions: dict[Function, int] = {}
        tasks: list[Task] = []
        numbers: dict[Row, int] = {}
        also: dict[Row, None] = {}
        seen: set[Row] = set()
        # The holder borrows an inline value at once, so nothing has to make it. Each row is looked
        # at twice: inputs come between, so that they get lower numbers.
        stack = [(row, False) for row in rows if row.state != INLINE]
        while stack:
            row, complete = stack.pop()
            if not complete:
                if row in seen:
                    continue
                seen.add(row)
            source: Any = self._source(row)
            if source is None:
                continue
            needed = (*source.dependencies, *source.contains)
            if not complete:
                stack.append((row, True))
                stack.extend((one, False) for one in needed)
                if row.state < INLINE:
                    also.update((r, None) for r in needed if r.borrowed or self._no_more(r))
                continue
            refer = [numbers.get(one, self._table.origin_of(one)) for one in needed]
            count = len(source.dependencies)
            parts = tuple(refer[:count]), tuple(refer[count:])
            numbers[row] = len(tasks)
            # The life is part of the key at the holder, see `LineageSpec.key`.
            life = self._table.named(row)
            if row.state == INLINE:
                tasks.append((row.key, life, -1, None, 0, *parts, None, row.value))
                continue
            number = functions.setdefault(source.function, len(functions))
            options = _options_of(source.options)
            tasks.append((row.key, life, number, source.payload, row.order, *parts, options, None))
        names = [self._table.origin_of(row) for row in also]
        return list(functions), tasks, names

    @staticmethod
    def _source(row: Row) -> Any:
        """Return what says how a row is made: the row itself, its lineage, or None.

        The row of an inline input is its own source, because its value is sent.
        """
        if row.borrowed:
            return None
        if row.state == INLINE:
            return row
        if not restarts.may(restarts.REPEATED, row.options):
            return None
        return row if row.function is not None else row.lineage

    def _no_more(self, row: Row) -> bool:
        """Return whether no task can make a row's value, which is or will be there, again."""
        return row.state <= STORED and self._source(row) is None

    # ---- the holder ----

    def hold(self, origins: Iterable[Origin], spec: LineageSpec) -> list[Row]:
        """Take objects over for the cluster. Return their rows, with one local reference more each.

        ``spec`` says how the objects are made. A later spec for an object replaces an earlier one.
        """
        rows: list[Row] = []
        for origin in origins:
            key = adopted_key(origin)
            known = self._table.find(key)
            if known is not None:
                if known.options.lineage_spec is not None and key in spec.numbers:
                    with self._table.lock:
                        known.options = known.options._replace(lineage_spec=spec)
                rows.append(known)
                continue
            if holder_ref(origin) is not None:
                # This process held the object once and has let go. Only the first owner is asked.
                origin = (*owner_ref_of(origin), None, origin[LIFE])
            taken = self._borrowing.rows_of([origin])
            options = Options(adopted=origin, lineage_spec=spec)
            row = self._functions.alias(key, taken, options)
            self._table.adopt(row)
            self._submit([row])
            self._lifecycle.release_task_refs(taken)  # the row has its own references
            rows.append(row)
        return rows

    def hold_inside(self, origins: Iterable[Origin]) -> tuple[Row, ...] | None:
        """Take over objects whose futures are inside a value that is taken over, as `hold` does.

        Return their rows with one task reference more each; None when this process is not the
        holder.
        """
        if not self.holds:
            return None
        rows = self.hold(origins, NOTHING)
        self._table.local_to_task_refs(rows)
        return tuple(rows)

    def settled(self, row: Row) -> bool:
        """Return whether the owner of a held object may go: what there is by now is taken over.

        That is the value, or else the acknowledged borrowing of an object that has no value yet.
        """
        if row.state >= INLINE:
            return True
        return all(
            source.state < INLINE and (not source.borrowed or source.acknowledged)  # type: ignore[attr-defined]
            for source in row.dependencies
        )

    def recover(self, row: Row) -> bool:
        """Take a held object over anew from the process that owned it, after its last copy is gone.

        Return False for a row of another kind.
        """
        if row.options.lineage_spec is None:
            return False
        self._lifecycle.withdraw(row)
        source = self._borrowing.rows_of([row.options.adopted])
        functions = self._functions
        self._lifecycle.become(row, functions.identity, functions.payload, source, row.contains)
        had = row.options.adopted[NAME]
        self._lifecycle.log(row, "recovered", f"it is asked for at {had}, which had it")
        self._lifecycle.wait(row)
        return True

    def instead(self, row: Row, state: int) -> bool:
        """Run the tasks of a held object here, because its owner's object has ended in ``state``.

        Return False when the object is not lost or cancelled, or when the spec does not say how
        to make the object.
        """
        spec = row.options.lineage_spec
        taken_over = row.function is self._functions.identity
        if spec is None or not taken_over or state not in (LOST, CANCELLED):
            return False
        origin = row.options.adopted
        number = spec.numbers.get(adopted_key(origin))
        # A spec knows the tasks of one owner only.
        if number is None or spec.owner[INCARNATION] != origin[INCARNATION]:
            return False
        # In ascending order, because tasks refer to tasks with lower numbers.
        made = []
        for one in sorted(self._needed(spec, number)):
            if one != number:
                made.append(self._row(spec, one))
        _, _, function, payload, order, dependencies, contains, options, _ = spec.tasks[number]
        old = self._lifecycle.become(
            row,
            spec.functions[function],
            payload,
            self._rows(spec, dependencies),
            self._rows(spec, contains),
        )
        row.order = order
        _give_options(row, options, origin, spec)
        self._submit(made)
        self._lifecycle.release(made)  # the rows that need them have references of their own
        self._lifecycle.release_task_refs(old)
        self._lifecycle.log(row, "repeated", f"{origin[NAME]}, which owned it, is gone or freed it")
        self._lifecycle.wait(row)
        return True

    def _needed(self, spec: LineageSpec, number: int) -> set[int]:
        """Return the numbers of the tasks that make a value, but for rows that are here already.

        ``number`` itself is always among them.
        """
        rows = self._table.rows
        needed: set[int] = set()
        stack = [number]
        while stack:
            one = stack.pop()
            if one in needed or (one != number and spec.key(one) in rows):
                continue
            needed.add(one)
            _, _, _, _, _, dependencies, contains, _, _ = spec.tasks[one]
            stack.extend(r for r in (*dependencies, *contains) if isinstance(r, int))
        return needed

    def _row(self, spec: LineageSpec, number: int) -> Row:
        """Return a new row for a task of a spec, with one local reference."""
        _, _, function, payload, order, dependencies, contains, options, value = spec.tasks[number]
        key = spec.key(number)
        taken = self._rows(spec, dependencies)
        inside = self._rows(spec, contains)
        if function < 0:
            row = Row.with_value(key, value)
        else:
            row = Row(key, spec.functions[function], payload, taken, order)
            _give_options(row, options, None, None)
        row.contains = inside
        self._table.adopt(row)
        self._lifecycle.release_task_refs((*taken, *inside))  # the row has its own references
        return row

    def _rows(self, spec: LineageSpec, references: Iterable[Reference]) -> tuple[Row, ...]:
        """Return the rows that a task of a spec refers to, with one task reference more each.

        A name of an object is borrowed, unless this process holds the object.
        """
        rows: list[Row] = []
        for reference in references:
            if isinstance(reference, int):
                origin: Any = None
                key = spec.key(reference)
            else:
                origin = reference
                key = adopted_key(origin)
            row = self._table.find_for_task(key)
            if row is not None:
                self._lifecycle.wake(row)
                rows.append(row)
            else:
                rows.extend(self._borrowing.rows_of([origin]))
        return tuple(rows)


def _options_of(options: Options) -> dict[str, Any]:
    """Return the options of a task that another owner needs, as a dict of msgpack types."""
    told = {name: value for name in OPTIONS if (value := getattr(options, name))}
    if options.replicas is not None:
        told["replicas"] = tuple(options.replicas)
    return told


def _give_options(row: Row, told: dict[str, Any], adopted: Any, spec: Any) -> None:
    """Give a row of the holder its options.

    ``told`` comes from `_options_of`. ``adopted`` and ``spec`` are those of a held object; None
    for an input.
    """
    given = dict(told)
    if given.get("workers"):
        given["workers"] = tuple(given["workers"])
    if "replicas" in given:
        number, workers, branching = given["replicas"]
        given["replicas"] = Replication(number, workers and tuple(workers), branching)
        row.roles |= REPLICATED
    row.options = Options(adopted=adopted, lineage_spec=spec, **given)
