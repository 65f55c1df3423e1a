"""A cluster in one thread: the real core over a virtual network and clock.

Every owner, executor and link state is the one that runs on a real cluster. Only
what surrounds them is virtual: messages travel through a seeded network that
delays them, reorders them between links, delivers them twice and breaks
connections; tasks are small descriptions that "run" for a virtual time. The same
seed gives the same run, so a failure is replayed by its seed.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from heapq import heappop, heappush
from random import Random
from typing import Any

from dask_ownership.core import executor as ex
from dask_ownership.core import messages as m
from dask_ownership.core.executor import Entry, Executor, Session
from dask_ownership.core.identity import child_key
from dask_ownership.core.invariants import (
    check_empty,
    check_executor,
    check_executor_empty,
    check_ownership,
)
from dask_ownership.core.link import LinkState
from dask_ownership.core.ownership import Ownership
from dask_ownership.core.placement import WorkerView
from dask_ownership.core.table import (
    CANCELLED,
    ERROR,
    INLINE,
    STORED,
    Failure,
    Function,
    Options,
    Row,
)


@dataclass(frozen=True)
class Task:
    """What a virtual task does.

    It adds its constant and the values of its dependencies; then it submits its
    children, waits for them (without its slot) and adds their values.

    Attributes
    ----------
    constant : int
    duration : float
        Virtual microseconds before the children and again after them.
    large : bool
        The value stays at the worker.
    fails : int
        How many of its attempts end with an error.
    children : tuple of Task
    """

    constant: int = 1
    duration: float = 10.0
    large: bool = False
    fails: int = 0
    children: tuple[Task, ...] = ()

    def value(self, inputs: Sequence[int]) -> int:
        """What a sequential program would get."""
        return self.constant + sum(inputs) + sum(c.value(()) for c in self.children)


@dataclass
class Faults:
    """How bad the network is; each is a probability per batch or per event."""

    duplicate: float = 0.1
    disconnect: float = 0.02
    longest_delay: float = 2_000.0


@dataclass
class Pipe:
    """One link: an owner's end and an executor's end."""

    owner: VirtualOwner
    view: WorkerView
    worker: VirtualWorker
    session: Session
    there: LinkState = field(default_factory=LinkState)
    here: LinkState = field(default_factory=LinkState)
    epoch: int = 0
    to_worker_at: float = 0.0
    to_owner_at: float = 0.0


class VirtualOwner:
    """An owner with its links."""

    def __init__(self, cluster: VirtualCluster, name: str, home: str | None = None) -> None:
        self.cluster = cluster
        self.name = name
        self.core = Ownership(nullcontext(), home)
        self.function = Function(1, b"run", "run")
        self.pipes: dict[str, Pipe] = {}
        self.order = 0
        self.ticking = False

    def submit(
        self,
        key: str,
        task: Task,
        dependencies: Sequence[Row] = (),
        options: Options | None = None,
    ) -> Row:
        """A row with one handle, as `Client.submit` makes it."""
        self.order += 1
        row = Row(
            key,
            self.function,
            pickle.dumps(task),
            tuple(dict.fromkeys(dependencies)),
            self.order,
            options or Options(),
        )
        adopted = self.core.table.adopt(row)
        if adopted is row:
            self.core.submit([row])
        self.cluster.dirty.add(self)
        return adopted

    def step(self) -> None:
        """Schedule, flush the links and wake who waits, as the runtime does after each event."""
        core = self.core
        core.schedule(self.cluster.now)
        completed, core.completed = core.completed, []
        for row in completed:
            waiters, row.waiters = row.waiters, None
            for wake in waiters or ():
                wake()
        for pipe in self.pipes.values():
            if pipe.view.outbox:
                messages, pipe.view.outbox = pipe.view.outbox, []
                self.cluster.send(pipe, pipe.here.pack(messages), to_worker=True)
            elif pipe.here.unsaid:
                self.cluster.send(pipe, pipe.here.pack([]), to_worker=True)
        if not self.ticking and len(core.placement.workers) > 1:
            self.ticking = True
            self.cluster.later(5_000.0, self._tick)

    def _tick(self) -> None:
        self.ticking = False
        if self.core.tick(self.cluster.now):
            self.cluster.dirty.add(self)

    def when_done(self, row: Row, wake: Callable[[], None]) -> None:
        """Call when the row ends; at once when it has."""
        if row.done:
            wake()
        else:
            row.waiters = [*(row.waiters or ()), wake]


class VirtualWorker:
    """An executor, its store and the owner of what its tasks submit."""

    def __init__(self, cluster: VirtualCluster, address: str, slots: int) -> None:
        self.cluster = cluster
        self.address = address
        self.slots = slots
        self.core = Executor(slots)
        self.store: dict[Any, bytes] = {}
        self.owner = VirtualOwner(cluster, f"owner-of-{address}", home=address)
        self.pipes: dict[str, Pipe] = {}
        self.watching = False
        self.alive = True

    def step(self) -> None:
        """Start what can start, fetch, free and flush, as the runtime does."""
        core = self.core
        while (work := core.next_work()) is not None:
            if isinstance(work, Entry):
                self._start(work)
            else:
                work()
        fetches, core.fetches = core.fetches, []
        for entry in fetches:
            self.cluster.later(self.cluster.delay(), lambda entry=entry: self._fetch(entry, 0))
        freed, core.freed = core.freed, []
        for name in freed:
            self.store.pop(name, None)
        interrupted, core.interrupted = core.interrupted, []
        for entry in interrupted:
            parent = (entry.session.owner, entry.key, entry.attempt)
            self.owner.core.cancel_children(parent, "its parent was cancelled")
            self.cluster.dirty.add(self.owner)
        for pipe in self.pipes.values():
            session = pipe.session
            if session.outbox:
                messages, session.outbox = session.outbox, []
                batch = pipe.there.pack(messages)
                core.packed(session, batch[0])
                self.cluster.send(pipe, batch, to_worker=False)
            elif pipe.there.unsaid:
                self.cluster.send(pipe, pipe.there.pack([]), to_worker=False)
        assert core.busy <= core.slots, (self.address, core.busy)
        if core.crowded and not self.watching:
            self.watching = True
            self.cluster.later(100_000.0, self._watch)

    def _watch(self) -> None:
        self.watching = False
        self.core.relieve()
        self.cluster.dirty.add(self)

    def _start(self, entry: Entry) -> None:
        task: Task = pickle.loads(entry.payload)
        inputs = []
        for dependency in entry.dependencies:
            if isinstance(dependency, bytes):
                inputs.append(pickle.loads(dependency))
            elif dependency.state == ex.HELD:
                inputs.append(dependency.value)
            elif dependency.state == ex.COPIED:
                inputs.append(pickle.loads(dependency.value))
            elif dependency.state == ex.KEPT:
                inputs.append(pickle.loads(self.store[dependency.stored]))
            else:
                self.cluster.assert_unwanted(entry.session.owner, entry, dependency)
                self.core.give_back(entry, m.MISSING, ((dependency.key, ()),))
                self.core.released_slot()
                self.cluster.dirty.add(self)
                return
        after = self._finish if not task.children else self._descend
        self.cluster.later(task.duration, lambda: after(entry, task, inputs))

    def _descend(self, entry: Entry, task: Task, inputs: list[int]) -> None:
        """Submit the children and wait for them without a slot."""
        parent = (entry.session.owner, entry.key, entry.attempt)
        seen: dict[bytes, int] = {}
        rows = []
        for child in task.children:
            fingerprint = pickle.dumps(child)
            occurrence = seen[fingerprint] = seen.get(fingerprint, -1) + 1
            key = child_key("child", f"{entry.key}-{entry.attempt}", fingerprint, occurrence)
            options = Options(depth=entry.depth + 1, parent=parent)
            rows.append(self.owner.submit(key, child, (), options))
        left = sum(1 for row in rows if not row.done)

        def finish() -> None:
            values: list[int] = []
            failed = False
            for row in rows:
                if row.state in (INLINE, STORED):
                    values.append(self.cluster.read(self.owner, row))
                else:
                    failed = True
            self.owner.core.release(rows)
            self.cluster.dirty.add(self.owner)
            if failed:
                self._fail(entry, "a child failed")
            else:
                total = task.constant + sum(inputs) + sum(values)
                self._finish(entry, Task(constant=total, large=task.large), [])

        if not left:
            finish()
            return
        self.core.parked(entry)

        def one_done() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                self.core.wants_slot(finish, entry)
                self.cluster.dirty.add(self)

        for row in rows:
            if not row.done:
                self.owner.when_done(row, one_done)
        self.cluster.dirty.add(self)

    def _finish(self, entry: Entry, task: Task, inputs: list[int]) -> None:
        name = (entry.session.owner, entry.key)
        if self.cluster.runs(name) <= task.fails:
            self._fail(entry, "it is meant to fail")
            return
        value = task.constant + sum(inputs)
        if task.large:
            self.put(entry, pickle.dumps(value))
            message = (m.STORED, entry.key, entry.attempt, 100_000, None, task.duration)
            self.core.succeeded(entry, message, ex.KEPT, None)
        else:
            message = (m.DONE, entry.key, entry.attempt, pickle.dumps(value), task.duration)
            self.core.succeeded(entry, message, ex.HELD, value)
        self.core.released_slot()
        self.cluster.dirty.add(self)

    def _fail(self, entry: Entry, why: str) -> None:
        message = (m.FAILED, entry.key, entry.attempt, pickle.dumps(why), 1.0)
        self.core.failed(entry, message)
        self.core.released_slot()
        self.cluster.dirty.add(self)

    def put(self, entry: Entry, value: bytes) -> None:
        """Keep a value under a name that no other value ever has."""
        entry.stored = (entry.session.owner, entry.key, self.cluster.number())
        self.store[entry.stored] = value

    def stored(self, owner: str, key: Any) -> bytes | None:
        """The value of an owner that is kept here, or None."""
        session = self.core.sessions.get(owner)
        entry = session.entries.get(key) if session is not None else None
        if entry is None or entry.state != ex.KEPT:
            return None
        return self.store[entry.stored]

    def _fetch(self, entry: Entry, index: int) -> None:
        if entry.state != ex.FETCHING:
            return
        if index >= len(entry.addresses):
            self.core.fetch_failed(entry, entry.addresses)
            self.cluster.dirty.add(self)
            return
        peer = self.cluster.workers.get(entry.addresses[index])
        value = peer.stored(entry.session.owner, entry.key) if peer is not None else None

        def arrive() -> None:
            if value is None:
                self._fetch(entry, index + 1)
            else:
                if entry.state == ex.FETCHING:
                    self.put(entry, value)
                self.core.fetched(entry)
            self.cluster.dirty.add(self)

        self.cluster.later(self.cluster.delay(), arrive)


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
    """

    def __init__(
        self,
        seed: int = 0,
        workers: int = 2,
        slots: int = 1,
        clients: int = 1,
        faults: Faults | None = None,
        check: bool = True,
    ) -> None:
        self.random = Random(seed)
        self.faults = faults or Faults()
        self.check = check
        self.now = 0.0
        self.dirty: set[Any] = set()
        self.steps = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._runs: dict[Any, int] = {}
        self.pipes: list[Pipe] = []
        self.workers: dict[str, VirtualWorker] = {}
        self.clients = [VirtualOwner(self, f"client-{i}") for i in range(clients)]
        for i in range(workers):
            self.add_worker(f"worker-{i}", slots)

    # ---- members ----

    def add_worker(self, address: str, slots: int) -> VirtualWorker:
        """A worker joins and everyone links to it, and it to everyone."""
        worker = self.workers[address] = VirtualWorker(self, address, slots)
        for owner in [*self.clients, *(w.owner for w in self.workers.values())]:
            self._link(owner, worker)
        for other in list(self.workers.values()):
            if other is not worker:
                self._link(worker.owner, other)
        return worker

    def _link(self, owner: VirtualOwner, worker: VirtualWorker) -> None:
        view = WorkerView(worker.address, nthreads=worker.slots)
        session = worker.core.open(owner.name)
        pipe = Pipe(owner, view, worker, session)
        owner.core.add_worker(view)
        owner.pipes[worker.address] = pipe
        worker.pipes[owner.name] = pipe
        self.pipes.append(pipe)
        self.dirty.update((owner, worker))

    def kill(self, address: str) -> None:
        """A worker dies: its tasks, values and owner are gone; all others hear of it."""
        worker = self.workers.pop(address)
        worker.alive = False
        self.pipes = [
            p for p in self.pipes if p.worker is not worker and p.owner is not worker.owner
        ]
        for owner in [*self.clients, *(w.owner for w in self.workers.values())]:
            pipe = owner.pipes.pop(address, None)
            if pipe is not None:
                self.later(self.delay(), lambda o=owner, p=pipe: self._bury(o, p.view))
        for other in self.workers.values():
            other.pipes.pop(worker.owner.name, None)
            self.later(self.delay(), lambda o=other: self._orphan(o, worker.owner.name))

    def _bury(self, owner: VirtualOwner, view: WorkerView) -> None:
        owner.core.remove_worker(view, "died")
        self.dirty.add(owner)

    def _orphan(self, worker: VirtualWorker, owner: str) -> None:
        worker.core.close(owner)
        self.dirty.add(worker)

    # ---- the network ----

    def delay(self) -> float:
        """How long the next message takes, in microseconds."""
        return self.random.expovariate(1.0) * self.faults.longest_delay / 5

    def send(self, pipe: Pipe, batch: Any, to_worker: bool) -> None:
        """Deliver a batch after a while: in order on this link, perhaps twice, or
        never, when the connection breaks and both ends resume."""
        at = self.now + self.delay()
        at = max(at, (pipe.to_worker_at if to_worker else pipe.to_owner_at) + 0.001)
        if to_worker:
            pipe.to_worker_at = at
        else:
            pipe.to_owner_at = at
        epoch = pipe.epoch
        times = 2 if self.random.random() < self.faults.duplicate else 1
        for _ in range(times):
            self.later(at - self.now, lambda: self._deliver(pipe, batch, to_worker, epoch))
        if self.random.random() < self.faults.disconnect:
            self.later(self.delay(), lambda: self._disconnect(pipe, epoch))

    def _deliver(self, pipe: Pipe, batch: Any, to_worker: bool, epoch: int) -> None:
        if epoch != pipe.epoch or not pipe.worker.alive or pipe not in self.pipes:
            return
        if to_worker:
            messages = pipe.there.receive(batch)
            pipe.worker.core.acknowledged(pipe.session, pipe.there.acknowledged)
            pipe.worker.core.receive(pipe.session, messages)
            self.dirty.add(pipe.worker)
        else:
            messages = pipe.here.receive(batch)
            pipe.owner.core.receive(pipe.view, messages, self.now)
            self.dirty.add(pipe.owner)

    def _disconnect(self, pipe: Pipe, epoch: int) -> None:
        if epoch != pipe.epoch or pipe not in self.pipes:
            return
        pipe.epoch += 1
        for batch in pipe.here.resume(pipe.there.received):
            self.send(pipe, batch, to_worker=True)
        for batch in pipe.there.resume(pipe.here.received):
            self.send(pipe, batch, to_worker=False)

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
                thing.step()
        if self.check:
            self.validate()

    # ---- looking ----

    def runs(self, name: Any) -> int:
        """How often a task came to its end, this time included."""
        self._runs[name] = self._runs.get(name, 0) + 1
        return self._runs[name]

    def read(self, owner: VirtualOwner, row: Row) -> int:
        """The value of a row that has one, fetched from a holder when it is stored."""
        if row.state == INLINE:
            assert isinstance(row.value, bytes)
            return int(pickle.loads(row.value))
        for view in row.holders:
            worker = self.workers.get(view.address)
            value = worker.stored(owner.name, row.key) if worker is not None else None
            if value is not None:
                return int(pickle.loads(value))
        raise AssertionError(f"{row} is with none of {row.holders}")

    def outcome(self, owner: VirtualOwner, row: Row) -> Any:
        """The value, ``"error"`` or ``"cancelled"``."""
        if row.state in (INLINE, STORED):
            return self.read(owner, row)
        if row.state == CANCELLED:
            return "cancelled"
        if row.state == ERROR:
            return "error"
        return repr(row.value if isinstance(row.value, Failure) else row)

    def assert_unwanted(self, owner: str, entry: Entry, dependency: Entry) -> None:
        """A task that finds its dependency gone must itself be cancelled at its owner."""
        owners = [*self.clients, *(w.owner for w in self.workers.values())]
        for found in owners:
            row = found.core.table.rows.get(dependency.key)
            if found.name == owner and row is not None:
                assert row.state not in (INLINE, STORED), f"{row} was freed early for {entry}"

    def validate(self) -> None:
        """Check the invariants everywhere."""
        for owner in [*self.clients, *(w.owner for w in self.workers.values())]:
            check_ownership(owner.core)
            for row in owner.core.table.rows.values():
                if row.state == STORED:
                    primary = self.workers.get(row.holders[0].address)
                    assert primary is None or primary.stored(owner.name, row.key), (
                        f"{row} was freed early at {primary.address}"
                    )
        for worker in self.workers.values():
            check_executor(worker.core)

    def assert_empty(self) -> None:
        """Every table is empty, in every process (rule R6)."""
        for owner in [*self.clients, *(w.owner for w in self.workers.values())]:
            check_empty(owner.core)
        for worker in self.workers.values():
            check_executor_empty(worker.core)
            assert worker.core.busy == 0, worker.core.busy
            assert not worker.store, worker.store
