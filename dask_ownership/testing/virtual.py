"""A cluster in one thread: the real core over a virtual network and clock.

Every owner, executor and link state is the one that runs on a real cluster. Only
what surrounds them is virtual: messages travel through a seeded network that
delays them, reorders them between links, delivers them twice and breaks
connections; tasks are small descriptions that "run" for a virtual time. The same
seed gives the same run, so a failure is replayed by its seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from heapq import heappop, heappush
from random import Random
from typing import Any

from dask_ownership.core.invariants import (
    check_empty,
    check_executor,
    check_executor_empty,
    check_ownership,
)
from dask_ownership.core.placement import WorkerView
from dask_ownership.core.session import Entry
from dask_ownership.core.table import (
    CANCELLED,
    ERROR,
    INLINE,
    LOST,
    PUSHED,
    STORED,
    Borrowed,
    Failure,
    Row,
    version_of,
)
from dask_ownership.testing import travel
from dask_ownership.testing.locks import Locks
from dask_ownership.testing.network import Faults, Network, Pipe
from dask_ownership.testing.owner import NO_WORKERS_TIMEOUT, WINDOW, VirtualOwner
from dask_ownership.testing.task import Task
from dask_ownership.testing.worker import VirtualWorker

__all__ = ["Faults", "Task", "VirtualCluster", "VirtualOwner", "VirtualWorker"]


class VirtualCluster:
    """Owners and workers over a seeded network and clock.

    Parameters
    ----------
    seed : int
    workers, slots : int
    clients : int
        Owners that are not workers.
    faults : Faults, optional
    check : bool
        Check the invariants after every event.
    meshed : bool
        Whether workers link to each other; where no task submits any that only costs time.
    """

    def __init__(
        self,
        seed: int = 0,
        workers: int = 2,
        slots: int = 1,
        clients: int = 1,
        faults: Faults | None = None,
        check: bool = True,
        resources: Sequence[dict[str, float]] = (),
        meshed: bool = True,
    ) -> None:
        self.meshed = meshed
        self.no_workers_timeout: float | None = NO_WORKERS_TIMEOUT
        self.random = Random(seed)
        self.faults = faults or Faults()
        self.check = check
        self.now = 0.0
        self.dirty: set[Any] = set()
        self.steps = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._runs: dict[Any, int] = {}
        self.started: Counter[Any] = Counter()
        self.lost: set[Any] = set()
        self.remade: set[Any] = set()
        self.killed = False
        self.cancelled = False
        self.retiring = False
        self.watchful = False
        self.left: set[str] = set()
        self.kept: dict[Row, int] = {}
        self.resumed = self.superseded = self.steps_taken = 0
        self.locks = Locks()
        self.network = Network(self.random, self.faults, self.later, self.dirty)
        self.network.clock = lambda: self.now
        self.delay = self.network.delay
        self.send = self.network.send
        self.workers: dict[str, VirtualWorker] = {}
        self.clients = [VirtualOwner(self, f"client-{i}") for i in range(clients)]
        for i in range(workers):
            self.add_worker(f"worker-{i}", slots, resources[i] if i < len(resources) else None)

    # ---- members ----

    @property
    def owners(self) -> list[VirtualOwner]:
        """All that live."""
        return [*self.clients, *(w.owner for w in self.workers.values())]

    def add_worker(
        self, address: str, slots: int, resources: dict[str, float] | None = None
    ) -> VirtualWorker:
        """A worker joins and everyone links to it, and it to everyone."""
        worker = self.workers[address] = VirtualWorker(self, address, slots, resources)
        for owner in self.owners if self.meshed else self.clients:
            self._link(owner, worker)
        for other in list(self.workers.values()) if self.meshed else ():
            if other is not worker:
                self._link(worker.owner, other)
        return worker

    def _link(self, owner: VirtualOwner, worker: VirtualWorker) -> None:
        view = WorkerView(
            worker.address, nthreads=worker.slots, resources=dict(worker.core.resources.totals)
        )
        session = worker.core.open(owner.name)
        session.process = owner.process
        pipe = Pipe(owner, view, worker, session)
        owner.core.add_worker(view)
        owner.pipes[worker.address] = pipe
        worker.pipes[owner.name] = pipe
        self.network.pipes[pipe] = None
        self.dirty.update((owner, worker))

    def kill(self, address: str, by_force: bool = True) -> None:
        """A worker dies: its tasks, values and owner are gone; all others hear of it."""
        self.killed = self.killed or by_force
        worker = self.workers.pop(address)
        worker.alive = worker.owner.alive = False
        for entry, (_, lock) in worker.has_locks.items():
            self.later(WINDOW, partial(self.locks.release, lock, entry))
        self.dirty -= {worker, worker.owner}
        for owner in self.owners:
            for row in owner.core.table.rows.values():
                self.note_loss(owner, row)
        for pipe in list(self.network.pipes):
            if pipe.worker is worker or pipe.owner is worker.owner:
                del self.network.pipes[pipe]
        for owner in self.owners:
            cut = owner.pipes.pop(address, None)
            if cut is not None:
                owner.later(self.delay(), lambda o=owner, p=cut: self._bury(o, p.view))  # type: ignore[misc]
        for other in self.workers.values():
            other.pipes.pop(worker.owner.name, None)
            other.later(self.delay(), lambda o=other: self._orphan(o, worker.owner.name))  # type: ignore[misc]
        worker.owner.thaw()  # whoever waits for it finds out

    def freeze(self, address: str, microseconds: float) -> None:
        """A worker's process stops for a while: everything of it happens when that is over."""
        self.watchful = True
        worker = self.workers[address]
        owner = worker.owner
        owner.frozen_until = max(owner.frozen_until, self.now + microseconds)
        self.later(microseconds, lambda: self._thaw(worker))
        self.dirty.update(self.owners)

    def partition(self, one: str, other: str, microseconds: float) -> None:
        """Nothing gets from one process to another for a while."""
        self.watchful = True
        self.network.partition(one, other, microseconds)
        self.dirty.update(self.owners)

    def _thaw(self, worker: VirtualWorker) -> None:
        worker.owner.thaw()
        self.dirty.update((worker, worker.owner))

    def note_loss(self, owner: VirtualOwner, row: Row) -> None:
        """Every holder of a stored value may be dead now, whether its owner knows or not."""
        if row.state == STORED and not self.copies(owner, row):
            scattered = row.lineage is None and not row.borrowed
            (self.lost if scattered else self.remade).add((owner.name, row.key))

    def retire(self, address: str) -> None:
        """A worker leaves in good order: when nothing runs there and its values are moved."""
        worker = self.workers[address]
        self.retiring = worker.leaving = True
        worker.core.leave()
        self.dirty.add(worker)
        worker.later(1_000.0, partial(self._retire, worker))

    def _retire(self, worker: VirtualWorker) -> None:
        if not worker.alive or worker.core.accepting:
            return
        core = worker.core
        unheard = any(p.there.unacknowledged or p.session.outbox for p in worker.pipes.values())
        handed_over = worker.owner.core.adoption.hand_over()
        self.dirty.add(worker.owner)
        unfinished = core.busy or core.crowd or core.keeps_values or unheard
        if unfinished or not handed_over:
            worker.later(1_000.0, partial(self._retire, worker))
        else:
            self.kill(worker.address, by_force=False)

    def _bury(self, owner: VirtualOwner, view: WorkerView) -> None:
        if owner.alive:
            owner.core.remove_worker(view, "died")
            self.dirty.add(owner)
            owner.later(WINDOW, lambda: self._forget_process(owner, view.address))

    def _forget_process(self, owner: VirtualOwner, address: str) -> None:
        """What a dead process may have handed on was counted by now, or never will be."""
        if owner.alive:
            owner.core.references.address_gone(address)
            self.dirty.add(owner)
            self._expire_later(owner)

    def _orphan(self, worker: VirtualWorker, owner: str) -> None:
        if worker.alive:
            worker.core.close(owner)
            worker.core.undeliverable(owner)
            self.dirty.add(worker)

    def leave(self, owner: VirtualOwner) -> None:
        """A client ends. What it said last may be lost; after a while all are told."""
        owner.core.close("the client is closed")
        self.clients.remove(owner)
        owner.step()
        self.later(self.delay(), lambda: self._depart(owner))

    def _depart(self, owner: VirtualOwner) -> None:
        owner.alive = False
        self.dirty.discard(owner)
        for pipe in list(self.network.pipes):
            if pipe.owner is owner:
                del self.network.pipes[pipe]
        self.later(WINDOW, lambda: self._departed(owner.name))

    def _departed(self, owner: str) -> None:
        self.left.add(owner)
        for worker in self.workers.values():
            worker.pipes.pop(owner, None)
            self._orphan(worker, owner)
        for other in self.owners:
            other.core.references.process_gone(owner)
            self.dirty.add(other)
            self._expire_later(other)

    def _expire_later(self, owner: VirtualOwner) -> None:
        for incarnation in list(owner.core.climbing.orphans):
            self.later(20 * WINDOW, partial(self._expire, owner, incarnation))

    def _expire(self, owner: VirtualOwner, incarnation: str) -> None:
        if owner.alive:
            owner.core.climbing.expire(incarnation)
            self.dirty.add(owner)

    @property
    def lax(self) -> bool:
        """Whether something happened that may cost a value."""
        return self.killed or self.cancelled

    # ---- the clock ----

    def number(self) -> int:
        """A number that was not given before."""
        self._count += 1
        return self._count

    def later(self, delay: float, call: Callable[[], None]) -> None:
        self._count += 1
        heappush(self._events, (self.now + delay, self._count, call))

    def run(self, limit: int = 200_000) -> None:
        """Until nothing is left to happen.

        Raises
        ------
        AssertionError
            When an invariant breaks, or things go on for more than ``limit`` events.
        """
        self._settle()
        while self._events:
            self.now, _, call = heappop(self._events)
            call()
            self._settle()
            self.steps += 1
            assert self.steps < limit, "it does not come to rest"

    def run_for(self, microseconds: float) -> None:
        """As `run`, up to a virtual time from now."""
        until = self.now + microseconds
        self._settle()
        while self._events and self._events[0][0] <= until:
            self.now, _, call = heappop(self._events)
            call()
            self._settle()
        self.now = max(self.now, until)

    def _settle(self) -> None:
        while self.dirty:
            todo = sorted(self.dirty, key=lambda d: getattr(d, "name", "") or d.address)
            self.dirty.clear()
            for thing in todo:
                if thing.alive and not thing.frozen:
                    thing.step()
        if self.check:
            self.validate()

    # ---- looking ----

    def runs(self, name: Any) -> int:
        """How often a task came to its end, this time included."""
        self._runs[name] = self._runs.get(name, 0) + 1
        return self._runs[name]

    def _row_of(self, entry: Entry) -> Row | None:
        """The row of a running task, if this is its current attempt."""
        for owner in self.owners:
            if owner.name == entry.session.owner:
                row: Row | None = owner.core.table.rows.get(entry.key)
                return row if row is not None and row.attempt == entry.attempt else None
        return None

    def note_kept(self, entry: Entry, step: int) -> None:
        """A task heard that its owner keeps a step."""
        row = self._row_of(entry)
        if row is not None:
            self.kept[row] = step

    def check_restored(self, entry: Entry, step: int) -> None:
        """No step that was kept is taken again, unless the value was there and got lost."""
        self.resumed += step > 0
        row = self._row_of(entry)
        if row is not None and row.lineage is None:
            kept = self.kept.get(row, 0)
            assert step >= kept, f"{row} starts at step {step}, and {kept} were kept"

    def read(self, owner: VirtualOwner, row: Row) -> int:
        """The value of a row that has one, fetched from a holder when it is stored."""
        if row.state == INLINE:
            assert isinstance(row.value, bytes)
            return travel.number(travel.loads(owner, row.value)[0])
        copies = self.copies(owner, row)
        assert copies, f"{row} is with none of {row.holders}"
        return travel.number(travel.loads(owner, copies[0])[0])

    def copies(self, owner: VirtualOwner, row: Row) -> list[bytes]:
        """What its holders have of a stored row; for one that dies soon, what the rest has."""
        found = []
        places = [(view.address, (owner.name, row.key, version_of(row))) for view in row.holders]
        if isinstance(row, Borrowed):
            name = owner.core.references.value_name(row)
            places += [(address, name) for address in row.addresses]
        for address, name in places:
            worker = self.workers.get(address)
            value = worker.stored(name) if worker is not None else None
            if value is not None:
                found.append(value)
        return found

    def outcome(self, owner: VirtualOwner, row: Row) -> Any:
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

    def wants(self, entry: Entry) -> bool:
        """Whether the owner of a task waits for this attempt of it."""
        row = self._row_of(entry)
        return row is not None and row.state == PUSHED

    def assert_unwanted(self, owner: str, entry: Entry, dependency: Entry) -> None:
        """A task that finds its dependency gone must itself be given up at its owner."""
        for found in self.owners:
            row = found.core.table.rows.get(entry.key)
            if found.name != owner or row is None or row.attempt != entry.attempt:
                continue
            for needed in row.dependencies:
                # After a death it may have been lost and made again meanwhile; a worker that
                # leaves gives what it did not start back, unless it stays after all.
                assert (
                    self.killed
                    or self.retiring
                    or needed.key != dependency.key
                    or needed.state not in (INLINE, STORED)
                ), f"{needed} was freed early for {entry}"

    def validate(self) -> None:
        """Check the invariants everywhere."""
        for owner in self.owners:
            check_ownership(owner.core)
            for row in owner.core.table.all():
                name = (owner.name, row.key)
                if row.state == STORED and name not in self.lost and name not in self.remade:
                    if row.borrowed:
                        assert (
                            self.lax
                            or self.retiring
                            or self.copies(owner, row)
                            or self.has_moved(row)
                        ), f"{row} was freed early"
                        continue
                    assert self.copies(owner, row), f"{row} was freed early everywhere"
                    primary = self.workers.get(row.holders[0].address)
                    # After one died or left the first holder may be one that still fetches.
                    assert (
                        self.killed
                        or self.retiring
                        or primary is None
                        or primary.stored((owner.name, row.key, version_of(row)))
                    ), f"{row} was freed early at its first holder"
        for worker in self.workers.values():
            check_executor(worker.core)

    def has_moved(self, row: Row) -> bool:
        """Whether the owner of a borrowed row has, or makes, another copy; it says so soon."""
        incarnation, _, _, key = row.place[:4]  # type: ignore[attr-defined]
        if (incarnation, key) in self.lost:
            return True
        for owner in self.owners:
            theirs = owner.core.table.rows.get(key)
            if owner.name == incarnation and theirs is not None:
                return theirs.state != STORED or bool(self.copies(owner, theirs))
        return False

    def assert_empty(self) -> None:
        """Every table is empty, in every process (rule R6)."""
        for owner in self.owners:
            check_empty(owner.core)
        for worker in self.workers.values():
            check_executor_empty(worker.core)
            assert worker.core.busy == 0, worker.core.busy
            assert not worker.store, worker.store
