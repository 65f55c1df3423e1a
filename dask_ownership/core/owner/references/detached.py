"""DetachedObjects: one process holds what others own, and goes on with it when those are gone.

What lies in a queue, a variable or a dataset belongs to the cluster, whatever becomes of the
client that put it there. So one process of the cluster, the *holder*, takes it over as an
heir does (`references.transfer`), at once and not when its owner leaves. It also takes the owner's
*bequest*: the tasks that make it and what they need. While the owner lives it waits for the
owner's value and takes that over where it lies. When the owner is gone before that, or
the last copy is lost later and the owner cannot help, it runs the tasks itself.

The name of an object that is held says so: its heir is the object's own place at the
holder (`held_at`), and whoever meets the name borrows there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from dask_ownership.core.owner.references.borrowing import Borrowing
from dask_ownership.core.owner.rows import restarts
from dask_ownership.core.owner.rows.lifecycle import Lifecycle
from dask_ownership.core.owner.rows.listener import RowListener
from dask_ownership.core.owner.rows.options import Options, Replication
from dask_ownership.core.owner.rows.row import REPLICATED, Function, Row
from dask_ownership.core.owner.scheduling.builtin import BuiltinFunctions
from dask_ownership.core.protocol.messages import Key, Origin, Process
from dask_ownership.core.protocol.names import adopted_key, is_adopted, place_held
from dask_ownership.core.protocol.states import CANCELLED, INLINE, LOST, STORED

Reference: TypeAlias = "int | Origin"
"""Another task of the same bequest by its number, or what is owned elsewhere."""

Task: TypeAlias = tuple[Any, ...]
"""``(key, life, function, payload, order, dependencies, contains, options, value)``: of msgpack
types only. ``function`` is a number in the bequest's list; for a value that is there it is -1."""

OPTIONS = ("workers", "loose", "retries", "resources", "timeout", "depth", "within")


class LineageSpec:
    """How to make what one process owns.

    Parameters
    ----------
    owner : Process
    functions : list of Function
    tasks : sequence of Task
        Each after those that it refers to by number.
    """

    __slots__ = ("functions", "numbers", "owner", "tasks")

    def __init__(self, owner: Process, functions: list[Function], tasks: Sequence[Task]) -> None:
        self.owner = owner
        self.functions = functions
        self.tasks = tasks
        self.numbers: dict[Key, int] = {self.key(n): n for n in range(len(tasks))}

    def key(self, number: int) -> Key:
        """The key of a task in the table of whoever takes it over, as by `adopted_key`."""
        name, life = self.tasks[number][:2]
        return name if is_adopted(name) else ("adopted", self.owner[0], name, life)


NOTHING = LineageSpec(("", "", ""), [], ())


class DetachedObjects(RowListener):
    """What one process tells of how its objects are made, and holds of others.

    Parameters
    ----------
    lifecycle : Lifecycle
    borrowing : Borrowing
    functions : BuiltinFunctions
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
        """How these rows are made.

        Returns
        -------
        list of Function, list of Task
            See `LineageSpec`.
        list of Origin
            What cannot be made from those and unfinished tasks need: to be held as well.
        """
        functions: dict[Function, int] = {}
        tasks: list[Task] = []
        numbers: dict[Row, int] = {}
        also: dict[Row, None] = {}
        seen: set[Row] = set()
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
        """What knows how a row is made: itself, its lineage, or None."""
        if row.borrowed:
            return None
        if row.state == INLINE:
            return row
        if not restarts.may(restarts.REPEATED, row.options):
            return None
        return row if row.function is not None else row.lineage

    def _no_more(self, row: Row) -> bool:
        """Whether it has a value, or will have, and nothing that could make it again."""
        return row.state <= STORED and self._source(row) is None

    # ---- the holder ----

    def hold(self, origins: Iterable[Origin], bequest: LineageSpec) -> list[Row]:
        """Take objects over; their rows, with one handle more each."""
        rows: list[Row] = []
        for origin in origins:
            key = adopted_key(origin)
            known = self._table.find(key)
            if known is not None:
                if known.options.lineage_spec is not None and key in bequest.numbers:
                    known.options = replace(known.options, lineage_spec=bequest)
                rows.append(known)
                continue
            if place_held(origin) is not None:
                origin = (*origin[:4], None, origin[5])  # it was held once
            taken = self._borrowing.rows_of([origin])
            options = Options(adopted=origin, lineage_spec=bequest)
            row = self._functions.alias(key, taken, options)
            self._table.adopt(row)
            self._submit([row])
            self._lifecycle.release_uses(taken)  # the row has its own
            rows.append(row)
        return rows

    def hold_inside(self, origins: Iterable[Origin]) -> tuple[Row, ...] | None:
        """As `hold`, for what is inside of a value that is taken over; one use each.

        None when this process is not the holder.
        """
        if not self.holds:
            return None
        rows = self.hold(origins, NOTHING)
        self._table.handles_to_uses(rows)
        return tuple(rows)

    def settled(self, row: Row) -> bool:
        """Whether all is taken over that there is by now, so that the owner may go."""
        if row.state >= INLINE:
            return True
        return all(
            source.state < INLINE and (not source.borrowed or source.acknowledged)  # type: ignore[attr-defined]
            for source in row.dependencies
        )

    def recover(self, row: Row) -> bool:
        """The last copy of what is held is gone: take it over anew; whether that can be."""
        if row.options.lineage_spec is None:
            return False
        self._lifecycle.withdraw(row)
        source = self._borrowing.rows_of([row.options.adopted])
        functions = self._functions
        self._lifecycle.become(row, functions.identity, functions.payload, source, row.contains)
        had = row.options.adopted[2]
        self._lifecycle.log(row, "recovered", f"it is asked for at {had}, which had it")
        self._lifecycle.wait(row)
        return True

    def instead(self, row: Row, state: int) -> bool:
        """What a row was to be taken over from has ended so: run its tasks here instead.

        False when it has another end, or nobody said how.
        """
        bequest = row.options.lineage_spec
        taken_over = row.function is self._functions.identity
        if bequest is None or not taken_over or state not in (LOST, CANCELLED):
            return False
        origin = row.options.adopted
        number = bequest.numbers.get(adopted_key(origin))
        if number is None or bequest.owner[0] != origin[0]:
            return False
        made = []
        for one in sorted(self._needed(bequest, number)):
            if one != number:
                made.append(self._row(bequest, one))
        _, _, function, payload, order, dependencies, contains, options, _ = bequest.tasks[number]
        old = self._lifecycle.become(
            row,
            bequest.functions[function],
            payload,
            self._rows(bequest, dependencies),
            self._rows(bequest, contains),
        )
        row.order = order
        _give_options(row, options, origin, bequest)
        self._submit(made)
        self._lifecycle.release(made)  # those that need them count them
        self._lifecycle.release_uses(old)
        self._lifecycle.log(row, "repeated", f"{origin[2]}, which owned it, is gone or freed it")
        self._lifecycle.wait(row)
        return True

    def _needed(self, bequest: LineageSpec, number: int) -> set[int]:
        """The tasks that make one, but for what is here already."""
        rows = self._table.rows
        needed: set[int] = set()
        stack = [number]
        while stack:
            one = stack.pop()
            if one in needed or (one != number and bequest.key(one) in rows):
                continue
            needed.add(one)
            _, _, _, _, _, dependencies, contains, _, _ = bequest.tasks[one]
            stack.extend(r for r in (*dependencies, *contains) if isinstance(r, int))
        return needed

    def _row(self, bequest: LineageSpec, number: int) -> Row:
        """A new row for a task of a bequest, with one handle."""
        _, _, function, payload, order, dependencies, contains, options, value = bequest.tasks[
            number
        ]
        key = bequest.key(number)
        taken = self._rows(bequest, dependencies)
        inside = self._rows(bequest, contains)
        if function < 0:
            row = Row.with_value(key, value)
        else:
            row = Row(key, bequest.functions[function], payload, taken, order)
            _give_options(row, options, None, None)
        row.contains = inside
        self._table.adopt(row)
        self._lifecycle.release_uses((*taken, *inside))  # the row has its own
        return row

    def _rows(self, bequest: LineageSpec, references: Iterable[Reference]) -> tuple[Row, ...]:
        """What a task refers to, with one use more each."""
        rows: list[Row] = []
        for reference in references:
            if isinstance(reference, int):
                origin: Any = None
                key = bequest.key(reference)
            else:
                origin = reference
                key = adopted_key(origin)
            row = self._table.use(key)
            if row is not None:
                self._lifecycle.wake(row)
                rows.append(row)
            else:
                rows.extend(self._borrowing.rows_of([origin]))
        return tuple(rows)


def _options_of(options: Options) -> dict[str, Any]:
    """What of a task's options matters at another owner."""
    told = {name: value for name in OPTIONS if (value := getattr(options, name))}
    if options.replicas is not None:
        told["replicas"] = tuple(options.replicas)
    return told


def _give_options(row: Row, told: dict[str, Any], adopted: Any, bequest: Any) -> None:
    """Give a row that the holder makes its options."""
    given = dict(told)
    if given.get("workers"):
        given["workers"] = tuple(given["workers"])
    if "replicas" in given:
        number, workers, branching = given["replicas"]
        given["replicas"] = Replication(number, workers and tuple(workers), branching)
        row.roles |= REPLICATED
    row.options = Options(adopted=adopted, lineage_spec=bequest, **given)
