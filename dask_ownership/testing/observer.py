"""An observer of a virtual cluster, which sees all of its processes at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dask_ownership.core.executor.session import Entry
from dask_ownership.core.owner.rows.row import Borrowed, Row, version_of
from dask_ownership.core.protocol.failure import Failure
from dask_ownership.core.protocol.names import owner_ref_of
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
"""Every so many events the invariants are checked everywhere, not only in touched processes."""


class Observer:
    """Looks at all processes of a virtual cluster at one moment, and checks the invariants.

    Parameters
    ----------
    clock : Clock
    record : Record
    scheduler : VirtualScheduler
    workers : mapping of str to WorkerProcess
        The living workers, by address.
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
        """Return the value of a row that has one, as a number; of a stored row from a location."""
        if row.state == INLINE:
            assert isinstance(row.value, bytes)
            return travel.number(travel.loads(owner, row.value)[0])
        copies = self.copies(owner, row)
        assert copies, f"{row} is with none of {row.locations}"
        return travel.number(travel.loads(owner, copies[0])[0])

    def copies(self, owner: OwnerProcess, row: Row) -> list[bytes]:
        """Return the pickled copies of a stored row at the living workers that its row names."""
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
        """Return the value of a row, or ``"error"``, ``"cancelled"``, ``"lost"`` or the like."""
        if row.state == STORED and not self.copies(owner, row):
            return "lost"  # the owner has not heard of the death of the last location yet
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
        """Record a stored value without a copy, which its owner may not know yet."""
        if row.state == STORED and not self.copies(owner, row):
            # A scattered value has no lineage that could make it again.
            scattered = row.lineage is None and not row.borrowed
            (self.record.lost if scattered else self.record.remade).add((owner.name, row.key))

    def has_moved(self, row: Row) -> bool:
        """Return whether the owner of a borrowed row has another copy, or is making one.

        The borrower does not know it yet: the update of the owner is on its way.
        """
        incarnation, _, _, key = owner_ref_of(row.owner_ref)  # type: ignore[attr-defined]
        if (incarnation, key) in self.record.lost or (incarnation, key) in self.record.remade:
            return True  # the owner finds out when a reader misses the value
        for owner in self.scheduler.owners:
            if owner.name == incarnation:
                theirs = owner.core.table.rows.get(key)
                if theirs is None:  # cancelled, of which the update is on its way
                    ends = {event for name, event, *_ in owner.core.history.events if name == key}
                    return STATE_NAMES[CANCELLED] in ends
                return theirs.state != STORED or bool(self.copies(owner, theirs))
        return True  # the owner is gone

    # ---- tasks ----

    def _row_of(self, entry: Entry) -> Row | None:
        """Return the row of a running task, if this is its current attempt."""
        for owner in self.scheduler.owners:
            if owner.name == entry.session.owner:
                row: Row | None = owner.core.table.rows.get(entry.key)
                return row if row is not None and row.attempt == entry.attempt else None
        return None

    def note_kept(self, entry: Entry, step: int) -> None:
        """Record the last step of a task whose checkpoint the owner keeps, as the task heard."""
        row = self._row_of(entry)
        if row is not None:
            self.record.kept[row] = step

    def check_restored(self, entry: Entry, step: int) -> None:
        """Check that an attempt begins with no step before the last kept one.

        A value that was there and got lost is made again from the first step: its row has lineage.
        """
        self.record.resumed += step > 0
        row = self._row_of(entry)
        if row is not None and row.lineage is None:
            kept = self.record.kept.get(row, 0)
            assert step >= kept, f"{row} starts at step {step}, and {kept} were kept"

    def wants(self, entry: Entry) -> bool:
        """Return whether the owner of a task waits for this attempt of it."""
        row = self._row_of(entry)
        return row is not None and row.state == PUSHED

    def assert_unwanted(self, owner: str, entry: Entry, dependency: Entry) -> None:
        """Check that a task whose dependency is gone at a worker was given up by its owner."""
        for found in self.scheduler.owners:
            row = found.core.table.rows.get(entry.key)
            if found.name != owner or row is None or row.attempt != entry.attempt:
                continue
            for needed in row.dependencies:
                # The dependency may have been made again meanwhile, as another value. Or it was
                # moved from a leaving worker, which gives back all tasks that it did not start,
                # unless it stays after all. Or it never arrived, because its location was silent.
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
        """Check the invariants, everywhere or in the touched processes.

        Every `EVERYWHERE` calls all processes are checked anyway: so a change in a process that
        was not marked as touched is found a little later.
        """
        self._checks += 1
        everywhere = everywhere or self._checks % EVERYWHERE == 0
        touched = self.clock.touched
        for owner in self.scheduler.owners:
            known = owner.name in self._stored
            if everywhere or not known or owner.name in touched or owner.home in touched:
                check_ownership(owner.core)
                self._stored[owner.name] = [r for r in rows_of(owner.core) if r.state == STORED]
            # In all processes: a worker elsewhere may have freed the value.
            for row in self._stored[owner.name]:
                self._check_stored(owner, row)
        for worker in self.workers.values():
            if everywhere or worker.owner.name in touched or worker.address in touched:
                check_executor(worker.core)
        touched.clear()

    def _check_stored(self, owner: OwnerProcess, row: Row) -> None:
        """Check that its locations have a stored value, unless the value is recorded as lost."""
        name = (owner.name, row.key)
        if name in self.record.lost or name in self.record.remade:
            return
        if row.borrowed:
            assert self.copies(owner, row) or self.has_moved(row), f"{row} was freed early"
        elif not all(map(self.scheduler.is_there, row.locations)):
            self.note_loss(owner, row)  # a worker was taken for dead, and lives on for a while
        else:
            assert self.copies(owner, row), f"{row} was freed early everywhere"
            primary = self.workers.get(row.locations[0].address)
            # After the death or departure of a location the first one may still be fetching.
            assert (
                self.record.killed
                or self.record.retiring
                or primary is None
                or primary.store.find((owner.name, row.key, version_of(row)))
            ), f"{row} was freed early at its first location"

    def assert_empty(self) -> None:
        """Check that every table is empty, in every process (rule R6)."""
        for owner in self.scheduler.owners:
            check_empty(owner.core)
        for worker in self.workers.values():
            check_executor_empty(worker.core)
            assert worker.core.queue.busy == 0, worker.core.queue.busy
            assert not worker.store.values, worker.store.values
