"""The ownership table: rows by key, and their counts.

Counts, each with one meaning:

``handles``
    Futures in this process, and pins such as ``fire_and_forget``.
``uses``
    Rows that still need this one: tasks that did not end with a value and have
    it as an argument, and rows whose arguments or value contain its future. All
    borrowers together are one use, and so is what waits to be handed over.
``descendants``
    Rows that keep this one because they were made from it, see `recovery.lineage`; and owners of
    what it submitted, see `references.reconstruction`.

A row is forgotten when all are zero. When only descendants are left its value is freed,
if it can be made again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from dask_ownership.core.owner.rows.row import Borrowed, Row
from dask_ownership.core.protocol.messages import Key, Origin, OwnerRef, Process, ValueName
from dask_ownership.core.protocol.names import held_at
from dask_ownership.core.protocol.states import FORGOTTEN

SHARDS = 256


class Rows(Mapping[Key, Row]):
    """A dict of rows in many small dicts.

    One dict of a million rows takes a tenth of a second each time it grows, and it
    grows in the middle of some `submit`.
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
        """Take a row out, unless another one has its key."""
        shard = self.shards[hash(row.key) % SHARDS]
        if shard.get(row.key) is row:
            del shard[row.key]

    def __len__(self) -> int:
        return sum(map(len, self.shards))

    def __bool__(self) -> bool:
        return any(self.shards)

    def __iter__(self) -> Iterator[Key]:
        for shard in self.shards:
            yield from shard


class Table:
    """Rows by key.

    Threads meet here in two ways only: one looks a key up and takes a handle
    (`adopt`), another counts down and takes out what is at zero (`release`). ``lock``
    covers both.

    Parameters
    ----------
    lock : context manager
    process : Process
        This one, as others know it.

    Attributes
    ----------
    moved : dict
        Key of each object that was handed over to where it is owned now.
    pinned : set of Row
        Those that stay as long as this process: nobody knows who reads what of them is
        pickled somewhere.
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
        """Keep a row, with one handle however often it is pinned."""
        with self.lock:
            if row not in self.pinned:
                self.pinned.add(row)
                row.local_refs += 1

    def all(self) -> list[Row]:
        """Every row, while other threads go on adding some."""
        with self.lock:
            return [row for shard in filter(None, self.rows.shards) for row in shard.values()]

    def adopt(self, row: Row) -> Row:
        """Add a row with one handle, or take a handle on the one that is there."""
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
            # At last: one that is in the table has all its references, also when Ctrl-C comes.
            shard[row.key] = row
        return row

    def adopt_for_use(self, row: Row) -> Row:
        """As `adopt`, with one use in place of a handle."""
        row.local_refs = 0
        shard = self.rows.shards[hash(row.key) % SHARDS]
        with self.lock:
            known = shard.setdefault(row.key, row)
            known.task_refs += 1
        return known

    def remove(self, row: Row) -> None:
        """Take a row out that has ended, unless another one has its key."""
        with self.lock:
            self.rows.remove(row)

    def hold(self, row: Row) -> None:
        """Count one handle more."""
        with self.lock:
            row.local_refs += 1

    def use_all(self, rows: Iterable[Row]) -> None:
        """Count one use more of each row."""
        with self.lock:
            for row in rows:
                row.task_refs += 1

    def handles_to_uses(self, rows: Iterable[Row]) -> None:
        """Count one use in place of one handle of each row."""
        with self.lock:
            for row in rows:
                row.local_refs -= 1
                row.task_refs += 1

    def retain(self, rows: Iterable[Row]) -> None:
        """Count one descendant more of each row."""
        with self.lock:
            for row in rows:
                row.lineage_refs += 1

    def unretain(self, row: Row) -> None:
        """Count one descendant less; `unneeded` takes out what nothing counts then."""
        with self.lock:
            row.lineage_refs -= 1

    def is_held(self, row: Row) -> bool:
        """Whether anything but descendants counts a row."""
        with self.lock:
            return row.local_refs > 0 or row.task_refs > 0

    def named(self, row: Row) -> int:
        """The life of a row that others are about to hear of."""
        with self.lock:
            if not row.life:
                self.lives += 1
                row.life = self.lives
        return row.life

    def living(self, key: Key, life: int) -> Row | None:
        """The row of a key in one of its lives, 0 for any; None when it is gone."""
        row: Row | None = self.rows.get(key)
        return None if row is None or (life and row.life != life) else row

    def use(self, key: Key, life: int = 0) -> Row | None:
        """As `living`, with one more use."""
        with self.lock:
            row = self.living(key, life)
            if row is not None:
                row.task_refs += 1
        return row

    def find(self, key: Key, parent: Any = None, life: int = 0) -> Row | None:
        """As `living`, with one more handle.

        ``parent`` is the task that asks, as in `Options.parent`.
        """
        with self.lock:
            row = self.living(key, life)
            if row is not None:
                row.local_refs += 1
                row.shared_with(parent)
        return row

    def release(self, rows: Iterable[Row]) -> list[Row]:
        """Count one handle of each row down.

        Returns
        -------
        list of Row
            Those that nobody holds now. They are taken out, unless lineage needs them.
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
        """Take those out that nothing counts."""
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

    def release_uses(self, rows: Iterable[Row]) -> list[Row]:
        """As `release`, for one use of each row."""
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
        """How the object of a row is named everywhere."""
        if row.borrowed:
            assert isinstance(row, Borrowed)
            return row.origin
        options = row.options
        if options.adopted is not None:
            adopted: Origin = options.adopted
            return adopted if options.lineage_spec is None else held_at(adopted, self.process)
        return (*self.process, row.key, options.heir, row.life or self.named(row))

    def value_name(self, row: Row) -> ValueName:
        """What workers that have its value, for its owner, know it by."""
        if isinstance(row, Borrowed):
            return row.owner_ref[0], row.owner_ref[3], row.made_by
        return self.process[0], row.key, row.attempt
