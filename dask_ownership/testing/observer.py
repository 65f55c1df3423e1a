"""What can be seen of a virtual cluster by one who sees all of its processes at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dask_ownership.core.executor.session import Entry
from dask_ownership.core.owner.rows.row import Borrowed, Row, version_of
from dask_ownership.core.protocol.failure import Failure
from dask_ownership.core.protocol.states import (
    CANCELLED,
    ERROR,
    INLINE,
    LOST,
    PUSHED,
    STATE_NAMES,
    STORED,
)
from dask_ownership.testing import travel
from dask_ownership.testing.clock import Clock
from dask_ownership.testing.invariants import (
    check_empty,
    check_executor,
    check_executor_empty,
    check_ownership,
    rows_of,
)
from dask_ownership.testing.pipe import OwnerProcess, WorkerProcess
from dask_ownership.testing.record import Record
from dask_ownership.testing.scheduler import VirtualScheduler

EVERYWHERE = 32
"""How many times the invariants are checked where something happened until they are checked
everywhere."""


class Observer:
    """Looks at all processes of a virtual cluster at one moment, and checks what must hold.

    Parameters
    ----------
    clock : Clock
    record : Record
    scheduler : VirtualScheduler
    workers : mapping of str to WorkerProcess
        Those that live, by address.
    """

    def __init__(
        self,
        clock: Clock,
        record: Record,
        scheduler: VirtualScheduler,
        workers: Mapping[str, WorkerProcess],
    ) -> None:
        self.clock = clock
        self.record = record
        self.scheduler = scheduler
        self.workers = workers
        self._checks = 0
        self._stored: dict[str, list[Row]] = {}

    # ---- values ----

    def read(self, owner: OwnerProcess, row: Row) -> int:
        """The value of a row that has one, fetched from a holder when it is stored."""
        if row.state == INLINE:
            assert isinstance(row.value, bytes)
            return travel.number(travel.loads(owner, row.value)[0])
        copies = self.copies(owner, row)
        assert copies, f"{row} is with none of {row.locations}"
        return travel.number(travel.loads(owner, copies[0])[0])

    def copies(self, owner: OwnerProcess, row: Row) -> list[bytes]:
        """What its holders have of a stored row; for one that dies soon, what the rest has."""
        found = []
        places = [(view.address, (owner.name, row.key, version_of(row))) for view in row.locations]
        if isinstance(row, Borrowed):
            name = owner.core.table.value_name(row)
            places += [(address, name) for address in row.addresses]
        for address, name in places:
            worker = self.workers.get(address)
            value = worker.store.find(name) if worker is not None else None
            if value is not None:
                found.append(value)
        return found

    def outcome(self, owner: OwnerProcess, row: Row) -> Any:
        """The value, or ``"error"``, ``"cancelled"``, ``"lost"`` or another kind of failure."""
        if row.state == STORED and not self.copies(owner, row):
            return "lost"  # its owner has not heard of it yet
        if row.state in (INLINE, STORED):
            return self.read(owner, row)
        if row.state == CANCELLED:
            return "cancelled"
        if row.state in (ERROR, LOST):
            if isinstance(row.value, Failure):
                lost = ("lost-data", "owner-lost")
                return "lost" if row.value.kind in lost else row.value.kind
            return "error"
        return repr(row)

    def note_loss(self, owner: OwnerProcess, row: Row) -> None:
        """Every holder of a stored value may be dead now, whether its owner knows or not."""
        if row.state == STORED and not self.copies(owner, row):
            scattered = row.lineage is None and not row.borrowed
            (self.record.lost if scattered else self.record.remade).add((owner.name, row.key))

    def has_moved(self, row: Row) -> bool:
        """Whether the owner of a borrowed row has, or makes, another copy; it says so soon."""
        incarnation, _, _, key = row.owner_ref[:4]  # type: ignore[attr-defined]
        if (incarnation, key) in self.record.lost or (incarnation, key) in self.record.remade:
            return True  # it finds out that there is no copy when somebody misses it
        for owner in self.scheduler.owners:
            if owner.name == incarnation:
                theirs = owner.core.table.rows.get(key)
                if theirs is None:  # cancelled, which is said soon
                    ends = {event for name, event, *_ in owner.core.history.events if name == key}
                    return STATE_NAMES[CANCELLED] in ends
                return theirs.state != STORED or bool(self.copies(owner, theirs))
        return True  # its owner is gone

    # ---- tasks ----

    def _row_of(self, entry: Entry) -> Row | None:
        """The row of a running task, if this is its current attempt."""
        for owner in self.scheduler.owners:
            if owner.name == entry.session.owner:
                row: Row | None = owner.core.table.rows.get(entry.key)
                return row if row is not None and row.attempt == entry.attempt else None
        return None

    def note_kept(self, entry: Entry, step: int) -> None:
        """A task heard that its owner keeps a step."""
        row = self._row_of(entry)
        if row is not None:
            self.record.kept[row] = step

    def check_restored(self, entry: Entry, step: int) -> None:
        """No step that was kept is taken again, unless the value was there and got lost."""
        self.record.resumed += step > 0
        row = self._row_of(entry)
        if row is not None and row.lineage is None:
            kept = self.record.kept.get(row, 0)
            assert step >= kept, f"{row} starts at step {step}, and {kept} were kept"

    def wants(self, entry: Entry) -> bool:
        """Whether the owner of a task waits for this attempt of it."""
        row = self._row_of(entry)
        return row is not None and row.state == PUSHED

    def assert_unwanted(self, owner: str, entry: Entry, dependency: Entry) -> None:
        """A task that finds its dependency gone must itself be given up at its owner."""
        for found in self.scheduler.owners:
            row = found.core.table.rows.get(entry.key)
            if found.name != owner or row is None or row.attempt != entry.attempt:
                continue
            for needed in row.dependencies:
                # It may have been made again meanwhile: then this was another value. Or it was
                # moved from a worker that leaves, which gives what it did not start back, unless
                # it stays after all. Or it never got there, because its holder does not answer.
                assert (
                    (
                        (self.record.retiring or self.record.watchful)
                        and row.worker not in needed.locations
                    )
                    or needed.key != dependency.key
                    or needed.state not in (INLINE, STORED)
                    or version_of(needed) != dependency.attempt
                ), f"{needed} was freed early for {entry}"

    # ---- what must hold ----

    def validate(self, everywhere: bool = True) -> None:
        """Check the invariants, everywhere or where something happened since they were checked.

        Now and then they are checked everywhere all the same, so that what changed unseen is
        found a little later.
        """
        self._checks += 1
        everywhere = everywhere or self._checks % EVERYWHERE == 0
        touched = self.clock.touched
        for owner in self.scheduler.owners:
            known = owner.name in self._stored
            if everywhere or not known or owner.name in touched or owner.home in touched:
                check_ownership(owner.core)
                self._stored[owner.name] = [r for r in rows_of(owner.core) if r.state == STORED]
            for row in self._stored[owner.name]:
                self._check_stored(owner, row)
        for worker in self.workers.values():
            if everywhere or worker.owner.name in touched or worker.address in touched:
                check_executor(worker.core)
        touched.clear()

    def _check_stored(self, owner: OwnerProcess, row: Row) -> None:
        """A stored value is where its owner has it, unless it is known to be lost."""
        name = (owner.name, row.key)
        if name in self.record.lost or name in self.record.remade:
            return
        if row.borrowed:
            assert self.copies(owner, row) or self.has_moved(row), f"{row} was freed early"
        elif not all(map(self.scheduler.is_there, row.locations)):
            self.note_loss(owner, row)  # one was taken for dead
        else:
            assert self.copies(owner, row), f"{row} was freed early everywhere"
            primary = self.workers.get(row.locations[0].address)
            # After one died or left the first holder may be one that still fetches.
            assert (
                self.record.killed
                or self.record.retiring
                or primary is None
                or primary.store.find((owner.name, row.key, version_of(row)))
            ), f"{row} was freed early at its first holder"

    def assert_empty(self) -> None:
        """Every table is empty, in every process (rule R6)."""
        for owner in self.scheduler.owners:
            check_empty(owner.core)
        for worker in self.workers.values():
            check_executor_empty(worker.core)
            assert worker.core.queue.busy == 0, worker.core.queue.busy
            assert not worker.store.values, worker.store.values
