"""The ownership table: rows by key, and the counts that keep rows.

Each row has three counts:

``local_refs``
    Local references: futures in this process, and pins such as ``fire_and_forget``.
``task_refs``
    Task references: tasks that have the row as an argument and did not end with a value, and rows
    whose arguments, value or error contain a future of the row. All borrowers together are one
    task reference, and so is a handover of the row to another owner.
``lineage_refs``
    Lineage references: rows that were made from the row, see `recovery.lineage`; and processes
    that own children of the row's task, see `references.retention`.

A row is forgotten when all three counts are zero. When only lineage references are left, the value
is freed if the row's task can make it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from dask_ownership.core.owner.rows.row import Borrowed, Row
from dask_ownership.core.protocol.messages import Key, Origin, OwnerRef, Process, ValueName
from dask_ownership.core.protocol.names import INCARNATION, KEY, held_at
from dask_ownership.core.protocol.states import FORGOTTEN

SHARDS = 256
"""Number of dicts in `Rows`."""


class Rows(Mapping[Key, Row]):
    """Rows by key, in many small dicts (``shards``).

    A single dict of a million rows takes a tenth of a second each time the dict grows, which
    happens in the middle of some `submit`. Any thread may iterate: each dict is copied at once.
    """

    __slots__ = ("shards",)

    def __init__(self) -> None:
        self.shards: list[dict[Key, Row]] = [{} for _ in range(SHARDS)]

    def __getitem__(self, key: Key) -> Row:
        return self.shards[hash(key) % SHARDS][key]

    def get(self, key: Key, default: Any = None) -> Any:
        return self.shards[hash(key) % SHARDS].get(key, default)

    def __contains__(self, key: object) -> bool:
        return key in self.shards[hash(key) % SHARDS]

    def remove(self, row: Row) -> None:
        """Take a row out, unless another row has the key."""
        shard = self.shards[hash(row.key) % SHARDS]
        if shard.get(row.key) is row:
            del shard[row.key]

    def __len__(self) -> int:
        return sum(map(len, self.shards))

    def __bool__(self) -> bool:
        return any(self.shards)

    def __iter__(self) -> Iterator[Key]:
        for shard in self.shards:
            yield from list(shard)

    def values(self) -> Any:
        """Return the rows in a new list."""
        return [row for shard in self.shards for row in list(shard.values())]

    def items(self) -> Any:
        """Return pairs of key and row in a new list."""
        return [pair for shard in self.shards for pair in list(shard.items())]


class Table:
    """The rows of one owner by key, and their counts.

    Any thread looks keys up, takes local references and names rows; only the loop counts down and
    takes out rows at zero (`release`, `release_task_refs`, `unneeded`). ``lock`` is held for each
    change of a count, and while rows are taken out. `Lifecycle._forget` then frees the values of
    these rows (``FREE`` to workers), and `Lineages.only_lineage_left` decides about a row that
    lineage still needs.

    Parameters
    ----------
    lock : context manager
    process : Process
        The owner, as other processes know it.

    Attributes
    ----------
    lock : context manager
        Held for each change of a count, and for each lookup that counts.
    process : Process
    rows : Rows
    lives : int
        The last number that was given to `Row.life`.
    moved : dict
        Key of each object that was handed over to the `OwnerRef` of its present owner.
    pinned : set of Row
        Rows that stay as long as this process, or until another owner takes them over: no process
        knows who reads a pickle of their futures, or when.
    """

    __slots__ = ("lives", "lock", "moved", "pinned", "process", "rows")

    def __init__(self, lock: AbstractContextManager[Any], process: Process) -> None:
        self.process = process
        self.lives = 0
        self.lock = lock
        self.rows = Rows()
        self.moved: dict[Key, OwnerRef] = {}
        self.pinned: set[Row] = set()

    def pin(self, row: Row) -> None:
        """Keep a row as in ``pinned``, with one local reference however often it is pinned."""
        with self.lock:
            if row not in self.pinned:
                self.pinned.add(row)
                row.local_refs += 1

    def all(self) -> list[Row]:
        """Return all rows in a new list, because other threads go on adding rows."""
        with self.lock:
            return [row for shard in filter(None, self.rows.shards) for row in shard.values()]

    def adopt(self, row: Row) -> Row:
        """Add a row with one local reference, or count one more of the row that has the key.

        Returns
        -------
        Row
            The row in the table.
        """
        shard = self.rows.shards[hash(row.key) % SHARDS]
        with self.lock:
            known = shard.get(row.key)
            if known is not None:
                known.local_refs += 1
                known.shared_with(row.options.parent)
                return known
            if row.dependencies:
                for dependency in row.dependencies:
                    dependency.task_refs += 1
            if row.contains:
                for inner in row.contains:
                    inner.task_refs += 1
            # The row goes in last: a row in the table has counted its dependencies, also when
            # Ctrl-C comes in between.
            shard[row.key] = row
        return row

    def adopt_for_task(self, row: Row) -> Row:
        """Add a row with one task reference, or count one more of the row that has the key.

        Return the row in the table, as `adopt` does. The row must not have dependencies.
        """
        row.local_refs = 0
        shard = self.rows.shards[hash(row.key) % SHARDS]
        with self.lock:
            known = shard.setdefault(row.key, row)
            known.task_refs += 1
        return known

    def remove(self, row: Row) -> None:
        """Take out a row that has ended, unless another row has the key."""
        with self.lock:
            self.rows.remove(row)

    def hold(self, row: Row) -> None:
        """Count one local reference more of a row."""
        with self.lock:
            row.local_refs += 1

    def add_task_refs(self, rows: Iterable[Row]) -> None:
        """Count one task reference more of each row."""
        with self.lock:
            for row in rows:
                row.task_refs += 1

    def local_to_task_refs(self, rows: Iterable[Row]) -> None:
        """Count one task reference in place of one local reference of each row."""
        with self.lock:
            for row in rows:
                row.local_refs -= 1
                row.task_refs += 1

    def retain(self, rows: Iterable[Row]) -> None:
        """Count one lineage reference more of each row."""
        with self.lock:
            for row in rows:
                row.lineage_refs += 1

    def unretain(self, row: Row) -> None:
        """Count one lineage reference less of a row; `unneeded` takes out a row at zero."""
        with self.lock:
            row.lineage_refs -= 1

    def is_held(self, row: Row) -> bool:
        """Return whether a row has local or task references."""
        with self.lock:
            return row.local_refs > 0 or row.task_refs > 0

    def named(self, row: Row) -> int:
        """Return the life of a row of which other processes are about to hear.

        A row gets its life here. The number tells the row from other rows with the same key, of
        which another process may still hear.
        """
        with self.lock:
            if not row.life:
                self.lives += 1
                row.life = self.lives
        return row.life

    def living(self, key: Key, life: int) -> Row | None:
        """Return the row of a key in one life of the key (0 for any); None when the row is gone."""
        row: Row | None = self.rows.get(key)
        return None if row is None or (life and row.life != life) else row

    def find_for_task(self, key: Key, life: int = 0) -> Row | None:
        """Return the row as `living` does, and count one task reference more."""
        with self.lock:
            row = self.living(key, life)
            if row is not None:
                row.task_refs += 1
        return row

    def find(self, key: Key, parent: Any = None, life: int = 0) -> Row | None:
        """Return the row as `living` does, and count one local reference more.

        ``parent`` is the asking task, as in `Options.parent`.
        """
        with self.lock:
            row = self.living(key, life)
            if row is not None:
                row.local_refs += 1
                row.shared_with(parent)
        return row

    def release(self, rows: Iterable[Row]) -> list[Row]:
        """Count one local reference of each row down.

        Returns
        -------
        list of Row
            Rows without a local and a task reference now. They are taken out of the table, unless
            they have lineage references.
        """
        dead = []
        with self.lock:
            for row in rows:
                row.local_refs -= 1
                if row.local_refs <= 0 and row.task_refs <= 0 and row.state != FORGOTTEN:
                    if not row.lineage_refs:
                        self.rows.remove(row)
                    dead.append(row)
        return dead

    def unneeded(self, rows: Iterable[Row]) -> list[Row]:
        """Take rows that nothing counts out of the table, and return them."""
        dead = []
        with self.lock:
            for row in rows:
                if (
                    row.local_refs <= 0
                    and row.task_refs <= 0
                    and row.lineage_refs <= 0
                    and row.state != FORGOTTEN
                ):
                    self.rows.remove(row)
                    dead.append(row)
        return dead

    def release_task_refs(self, rows: Iterable[Row]) -> list[Row]:
        """Count one task reference of each row down, and return rows as `release` does."""
        dead = []
        with self.lock:
            for row in rows:
                row.task_refs -= 1
                if row.task_refs <= 0 and row.local_refs <= 0 and row.state != FORGOTTEN:
                    if not row.lineage_refs:
                        self.rows.remove(row)
                    dead.append(row)
        return dead

    # ---- names ----

    def origin_of(self, row: Row) -> Origin:
        """Return the origin of a row: the name of the object in all processes."""
        if row.borrowed:
            assert isinstance(row, Borrowed)
            return row.origin
        options = row.options
        if options.adopted is not None:
            # The object keeps the name that its first owner gave it.
            adopted: Origin = options.adopted
            return adopted if options.lineage_spec is None else held_at(adopted, self.process)
        return (*self.process, row.key, options.heir, row.life or self.named(row))

    def value_name(self, row: Row) -> ValueName:
        """Return the name of a row's value at the owner's workers: owner, key and attempt."""
        if isinstance(row, Borrowed):
            return row.owner_ref[INCARNATION], row.owner_ref[KEY], row.made_by
        return self.process[INCARNATION], row.key, row.attempt
