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
from dask_ownership.core.roster import CLIENT, Roster
from dask_ownership.core.row import (
    CANCELLED,
    ERROR,
    INLINE,
    LOST,
    PUSHED,
    STATE_NAMES,
    STORED,
    Borrowed,
    Failure,
    Row,
    version_of,
)
from dask_ownership.core.session import Entry
from dask_ownership.testing import travel
from dask_ownership.testing.locks import Locks
from dask_ownership.testing.network import Faults, Network, Pipe
from dask_ownership.testing.owner import NO_WORKERS_TIMEOUT, SECOND, WINDOW, VirtualOwner
from dask_ownership.testing.task import Task
from dask_ownership.testing.waits import Waits
from dask_ownership.testing.worker import VirtualWorker

GRACE = 3.0
"""Seconds for which a client may be away."""

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
    longest_wait : float, optional
        Virtual microseconds for which a row may wait, see `Waits`.

    Attributes
    ----------
    roster : Roster
        What the scheduler knows.
    no_route : set of tuple
        Names of owners and addresses of workers that those cannot link to.
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
        longest_wait: float | None = None,
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
        self.no_route: set[tuple[str, str]] = set()
        self.roster = Roster("the scheduler", GRACE)
        self._lives: dict[str, int] = {}
        self._cut_off: set[VirtualOwner] = set()
        self.kept: dict[Row, int] = {}
        self.resumed = self.superseded = self.steps_taken = 0
        self.locks = Locks()
        self.network = Network(self.random, self.faults, self.later, self.dirty)
        self.network.clock = lambda: self.now
        self.delay = self.network.delay
        self.send = self.network.send
        self.waits = Waits(self, longest_wait) if longest_wait is not None else None
        self.workers: dict[str, VirtualWorker] = {}
        self.clients = [VirtualOwner(self, f"client{i}") for i in range(clients)]
        for client in self.clients:
            self.roster.join(client.name, CLIENT, client.name, (), 0.0)
        for i in range(workers):
            self.add_worker(f"worker-{i}", slots, resources[i] if i < len(resources) else None)

    # ---- members ----

    @property
    def owners(self) -> list[VirtualOwner]:
        """All that live."""
        return [*self.clients, *(w.owner for w in self.workers.values())]

    def tell(self, owner: VirtualOwner, call: Callable[[], None]) -> None:
        """The scheduler says something to a process: in order, and a little later."""
        at = owner.told_at = max(self.now + self.delay(), owner.told_at + 0.001)

        def told() -> None:
            if owner.alive:
                call()
                self.dirty.add(owner)

        owner.later(at - self.now, told)

    def add_worker(
        self, address: str, slots: int, resources: dict[str, float] | None = None
    ) -> VirtualWorker:
        """A worker joins and everyone hears of it, and links to it.

        It may have the address of one that is gone.
        """
        assert address not in self.workers, address
        life = self._lives[address] = self._lives.get(address, 0) + 1
        worker = self.workers[address] = VirtualWorker(self, address, slots, resources, life)
        self.roster.workers[address] = worker.owner.name
        for other in self.owners if self.meshed else self.clients:
            if other is worker.owner or not self.now:
                self.meet(other, worker)
            elif other not in self._cut_off:
                self.tell(other, partial(self.meet, other, worker))
        for there in list(self.workers.values()) if self.meshed else ():
            if there is not worker:
                self.meet(worker.owner, there)
        return worker

    def unused(self, address: str) -> str:
        """An address like this one where no worker is."""
        while address in self.workers:
            address += address[-1]
        return address

    def meet(self, owner: VirtualOwner, worker: VirtualWorker) -> None:
        """An owner hears of a worker, and links to it if there is a way."""
        view = WorkerView(
            worker.address,
            incarnation=worker.owner.name,
            nthreads=worker.slots,
            resources=dict(worker.core.queue.resources.totals),
        )
        if not owner.core.membership.joined(view):
            return
        self.dirty.add(owner)
        told = worker.owner.core.membership.is_gone(owner.name)
        if told or (owner.name, worker.address) in self.no_route:
            owner.later(WINDOW, partial(self._refused, owner, view))
            return
        if not worker.alive:
            return  # that will be heard soon
        session = worker.core.open(owner.name)
        session.process = owner.process
        pipe = Pipe(owner, view, worker, session)
        owner.pipes[worker.address] = pipe
        worker.pipes[owner.name] = pipe
        self.network.pipes[pipe] = None
        self.dirty.add(worker)

    def cut_route(self, owner: VirtualOwner, address: str) -> None:
        """A process cannot link to a worker any more, and finds that out at once."""
        self.no_route.add((owner.name, address))
        pipe = owner.pipes.pop(address, None)
        if pipe is not None:
            self.network.pipes.pop(pipe, None)
            pipe.worker.pipes.pop(owner.name, None)
            self._refused(owner, pipe.view)

    def _refused(self, owner: VirtualOwner, view: WorkerView) -> None:
        if owner.alive and view.alive:
            owner.core.membership.refuse(view, "there is no way to it", reached=False)
            self.dirty.add(owner)

    def kill(self, address: str, by_force: bool = True) -> None:
        """A worker dies: its tasks, values and owner are gone; all others hear of it."""
        worker = self._remove(address, by_force)
        self._end(worker)

    def replace(self, address: str) -> None:
        """A worker dies, and another one comes at another address, as with a nanny."""
        slots = self.workers[address].slots
        self.kill(address)
        self.add_worker(self.unused(f"{address.partition('~')[0]}~{self.steps}"), slots)

    def disown(self, address: str) -> None:
        """A worker is taken for dead, and works on until it hears so."""
        worker = self._remove(address, by_force=True)
        self.later(self.random.random() * WINDOW, partial(self._end, worker))

    def _remove(self, address: str, by_force: bool) -> VirtualWorker:
        self.killed = self.killed or by_force
        worker = self.workers.pop(address)
        incarnation, _ = self.roster.worker_left(address)
        for owner in self.owners:
            for row in owner.core.table.rows.values():
                self.note_loss(owner, row)
            if owner not in self._cut_off:
                self.tell(owner, partial(self._hears_of_death, owner, address, incarnation))
        return worker

    def _end(self, worker: VirtualWorker) -> None:
        """A process stops."""
        worker.alive = worker.owner.alive = False
        for entry, (_, lock) in worker.has_locks.items():
            self.later(WINDOW, partial(self.locks.release, lock, entry))
        self.dirty -= {worker, worker.owner}
        for pipe in list(self.network.pipes):
            if pipe.worker is worker or pipe.owner is worker.owner:
                del self.network.pipes[pipe]
        worker.owner.thaw()  # whoever waits for it finds out

    def _hears_of_death(self, owner: VirtualOwner, address: str, incarnation: str) -> None:
        """The process of an owner hears that a worker is gone."""
        pipe = owner.pipes.get(address)
        if pipe is not None and pipe.view.incarnation == incarnation:
            del owner.pipes[address]
            self.network.pipes.pop(pipe, None)
        if owner.home is not None:
            self._orphan(self.workers.get(owner.home), owner, incarnation)
        owner.core.membership.left(incarnation, "died")

    def _orphan(self, worker: VirtualWorker | None, owner: VirtualOwner, incarnation: str) -> None:
        """The executor beside an owner drops what it has of another owner."""
        if worker is not None and worker.owner is owner:
            pipe = worker.pipes.pop(incarnation, None)
            if pipe is not None:
                self.network.pipes.pop(pipe, None)
            worker.core.close(incarnation)
            worker.core.undeliverable(incarnation)
            self.dirty.add(worker)

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

    def is_there(self, view: WorkerView) -> bool:
        """Whether a worker is still a member, and not only another one at its address."""
        return self.roster.workers.get(view.address) == view.incarnation

    def _retire(self, worker: VirtualWorker) -> None:
        if self.workers.get(worker.address) is not worker or worker.core.queue.accepting:
            return
        core = worker.core
        unheard = any(p.there.unacknowledged or p.session.outbox for p in worker.pipes.values())
        handed_over = worker.owner.core.adoption.hand_over()
        self.dirty.add(worker.owner)
        unfinished = core.queue.busy or core.queue.crowd or core.keeps_values or unheard
        if unfinished or not handed_over:
            worker.later(1_000.0, partial(self._retire, worker))
        else:
            self.kill(worker.address, by_force=False)

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
        self.roster.client_away(owner.name, self.seconds)
        self._look_at_roster()

    def _look_at_roster(self) -> None:
        """Tell everyone of clients that were away for too long."""
        connected = [client.name for client in self.clients]
        for incarnation, _ in self.roster.look(self.seconds, connected):
            for owner in self.owners:
                self.tell(owner, partial(self._hears_of_client, owner, incarnation))
        if self.roster.absent:
            self.later(GRACE * SECOND, self._look_at_roster)

    def _hears_of_client(self, owner: VirtualOwner, incarnation: str) -> None:
        if owner.home is not None:
            self._orphan(self.workers.get(owner.home), owner, incarnation)
        owner.core.membership.process_gone(incarnation)

    def restart_scheduler(self, workers: Sequence[tuple[str, int]]) -> None:
        """The scheduler dies, and its workers with it; another one starts at its address, with
        other workers, and the clients come back to it one after the other."""
        self.roster, before = Roster(self.roster.holder, GRACE), self.roster
        self._cut_off = set(self.clients)
        for address in list(self.workers):
            self.roster.workers[address] = before.workers[address]
            self.kill(address)
        for address, slots in workers:
            self.add_worker(address, slots)
        for client in self.clients:
            client.asking = True
            client.later(self.random.random() * WINDOW, partial(self._come_back, client))

    def _come_back(self, client: VirtualOwner) -> None:
        """A client connects to a new scheduler."""
        self._cut_off.discard(client)
        client.ask()

    @property
    def seconds(self) -> float:
        """The virtual time, for those who count it in seconds."""
        return self.now / SECOND

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
            self._next_event()
            self.steps += 1
            assert self.steps < limit, "it does not come to rest"

    def run_for(self, microseconds: float) -> None:
        """As `run`, up to a virtual time from now."""
        until = self.now + microseconds
        self._settle()
        while self._events and self._events[0][0] <= until:
            self._next_event()
        self.now = max(self.now, until)

    def _next_event(self) -> None:
        now, _, call = heappop(self._events)
        if self.waits is not None:
            self.waits.passed(now - self.now)
        self.now = now
        call()
        self._settle()

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
            name = owner.core.table.value_name(row)
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
                # It may have been made again meanwhile: then this was another value. Or it was
                # moved from a worker that leaves, which gives what it did not start back, unless
                # it stays after all. Or it never got there, because its holder does not answer.
                assert (
                    ((self.retiring or self.watchful) and row.worker not in needed.holders)
                    or needed.key != dependency.key
                    or needed.state not in (INLINE, STORED)
                    or version_of(needed) != dependency.attempt
                ), f"{needed} was freed early for {entry}"

    def validate(self) -> None:
        """Check the invariants everywhere."""
        for owner in self.owners:
            check_ownership(owner.core)
            for row in owner.core.table.all():
                name = (owner.name, row.key)
                if row.state == STORED and name not in self.lost and name not in self.remade:
                    if row.borrowed:
                        assert self.copies(owner, row) or self.has_moved(row), (
                            f"{row} was freed early"
                        )
                        continue
                    if not all(map(self.is_there, row.holders)):
                        self.note_loss(owner, row)  # one was taken for dead
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
        if (incarnation, key) in self.lost or (incarnation, key) in self.remade:
            return True  # it finds out that there is no copy when somebody misses it
        for owner in self.owners:
            if owner.name == incarnation:
                theirs = owner.core.table.rows.get(key)
                if theirs is None:  # cancelled, which is said soon
                    ends = {event for name, event, *_ in owner.core.history.events if name == key}
                    return STATE_NAMES[CANCELLED] in ends
                return theirs.state != STORED or bool(self.copies(owner, theirs))
        return True  # its owner is gone

    def assert_empty(self) -> None:
        """Every table is empty, in every process (rule R6)."""
        for owner in self.owners:
            check_empty(owner.core)
        for worker in self.workers.values():
            check_executor_empty(worker.core)
            assert worker.core.queue.busy == 0, worker.core.queue.busy
            assert not worker.store, worker.store
