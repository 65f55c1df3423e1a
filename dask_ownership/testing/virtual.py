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
from dataclasses import dataclass
from heapq import heappop, heappush
from random import Random
from typing import Any

from dask_ownership.core import messages as m
from dask_ownership.core import session as ex
from dask_ownership.core.executor import Executor
from dask_ownership.core.identity import child_key
from dask_ownership.core.invariants import (
    check_empty,
    check_executor,
    check_executor_empty,
    check_ownership,
)
from dask_ownership.core.ownership import Ownership
from dask_ownership.core.placement import WorkerView
from dask_ownership.core.session import Entry
from dask_ownership.core.table import (
    CANCELLED,
    ERROR,
    INLINE,
    LOST,
    STORED,
    Failure,
    Function,
    Options,
    Row,
)
from dask_ownership.testing.network import Faults, Network, Pipe

__all__ = ["Faults", "Task", "VirtualCluster", "VirtualOwner", "VirtualWorker"]


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
        self.alive = True

    def submit(
        self,
        key: str,
        task: Task,
        dependencies: Sequence[Row] = (),
        options: Options | None = None,
        priority: int = 0,
    ) -> Row:
        """A row with one handle, as `Client.submit` makes it."""
        self.order += 1
        row = Row(
            key,
            self.function,
            pickle.dumps(task),
            tuple(dict.fromkeys(dependencies)),
            self.order - priority * 2**40,
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
        if self.alive and self.core.tick(self.cluster.now):
            self.cluster.dirty.add(self)

    def put(self, key: str, value: int, addresses: Sequence[str]) -> Row:
        """A scattered value: it goes to the workers beside the links, as in `scatter`."""
        row = self.core.table.adopt(Row(key, None, None, (), 0))
        if row.state or row.attempt:
            return row
        self.core.attempts += 1
        row.attempt = self.core.attempts
        took: list[WorkerView] = []
        left = len(addresses)

        def arrive(pipe: Pipe) -> None:
            if pipe.worker.alive and pipe in self.cluster.network.pipes:
                entry = Entry(pipe.session, key, row.attempt)
                pipe.worker.put(entry, pickle.dumps(value))
                pipe.worker.core.keep(entry)
                self.cluster.dirty.add(pipe.worker)
                took.append(pipe.view)
            self.cluster.later(self.cluster.delay(), answer)

        def answer() -> None:
            nonlocal left
            left -= 1
            if not left:
                self.core.put(row, took, 100_000)
                if not any(view.address in self.cluster.workers for view in took):
                    self.cluster.lost.add((self.name, key))
                self.cluster.dirty.add(self)

        for address in addresses:
            pipe = self.pipes[address]
            self.cluster.later(self.cluster.delay(), lambda pipe=pipe: arrive(pipe))  # type: ignore[misc]
        return row

    def when_done(self, row: Row, wake: Callable[[], None]) -> None:
        """Call when the row ends; at once when it has."""
        if row.done:
            wake()
        else:
            row.waiters = [*(row.waiters or ()), wake]


class VirtualWorker:
    """An executor, its store and the owner of what its tasks submit."""

    def __init__(
        self,
        cluster: VirtualCluster,
        address: str,
        slots: int,
        resources: dict[str, float] | None = None,
    ) -> None:
        self.cluster = cluster
        self.address = address
        self.slots = slots
        self.core = Executor(slots, resources)
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
            self.cluster.later(self.cluster.delay(), lambda e=entry: self._fetch(e, 0))  # type: ignore[misc]
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

    def accept(self, yes: bool) -> None:
        """Pause, or go on."""
        self.core.set_accepting(yes, self.slots)
        self.cluster.dirty.add(self)

    def forget_functions(self) -> None:
        """Lose what owners sent once, as when there are too many to keep."""
        for session in self.core.sessions.values():
            session.functions.clear()

    def _start(self, entry: Entry) -> None:
        if entry.function not in entry.session.functions:
            self.core.give_back(entry, m.UNKNOWN_FUNCTION)
            self.core.released_slot()
            self.cluster.dirty.add(self)
            return
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

        def run() -> None:
            if self.alive:
                after(entry, task, inputs)

        self.cluster.later(task.duration, run)

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
                value = self.cluster.outcome(self.owner, row)
                if isinstance(value, int):
                    values.append(value)
                else:
                    failed = True
                    if (self.owner.name, row.key) in self.cluster.lost or value == "lost":
                        self.cluster.lost.add((entry.session.owner, entry.key))
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
            message: m.Message = (m.STORED, entry.key, entry.attempt, 100_000, None, task.duration)
            self.core.succeeded(entry, message, ex.KEPT, None)
        else:
            pickled = pickle.dumps(value)
            if value % 3 == 0:
                pickled += bytes(1000)  # long enough to be sent once for several tasks
            message = (m.DONE, entry.key, entry.attempt, pickled, task.duration)
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

    def _fetch(self, entry: Entry, index: int, absent: tuple[str, ...] = ()) -> None:
        if entry.state != ex.FETCHING or not self.alive:
            return
        if index >= len(entry.addresses):
            self.core.fetch_failed(entry, absent)
            self.cluster.dirty.add(self)
            return
        address = entry.addresses[index]
        peer = self.cluster.workers.get(address)
        value = peer.stored(entry.session.owner, entry.key) if peer is not None else None

        def arrive() -> None:
            if not self.alive:
                return
            if value is None:
                # A dead one does not answer, and so says nothing of the value.
                said = absent if peer is None else (*absent, address)
                self._fetch(entry, index + 1, said)
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
        resources: Sequence[dict[str, float]] = (),
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
        self.lost: set[Any] = set()
        self.killed = False
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
        for owner in self.owners:
            self._link(owner, worker)
        for other in list(self.workers.values()):
            if other is not worker:
                self._link(worker.owner, other)
        return worker

    def _link(self, owner: VirtualOwner, worker: VirtualWorker) -> None:
        view = WorkerView(
            worker.address, nthreads=worker.slots, resources=dict(worker.core.resources)
        )
        session = worker.core.open(owner.name)
        pipe = Pipe(owner, view, worker, session)
        owner.core.add_worker(view)
        owner.pipes[worker.address] = pipe
        worker.pipes[owner.name] = pipe
        self.network.pipes.append(pipe)
        self.dirty.update((owner, worker))

    def kill(self, address: str) -> None:
        """A worker dies: its tasks, values and owner are gone; all others hear of it."""
        self.killed = True
        worker = self.workers.pop(address)
        worker.alive = worker.owner.alive = False
        self.dirty -= {worker, worker.owner}
        for owner in self.owners:
            for row in owner.core.table.rows.values():
                if row.state == STORED and not self.copies(owner, row):
                    self.lost.add((owner.name, row.key))
        self.network.pipes[:] = [
            p for p in self.network.pipes if p.worker is not worker and p.owner is not worker.owner
        ]
        for owner in self.owners:
            pipe = owner.pipes.pop(address, None)
            if pipe is not None:
                self.later(self.delay(), lambda o=owner, p=pipe: self._bury(o, p.view))  # type: ignore[misc]
        for other in self.workers.values():
            other.pipes.pop(worker.owner.name, None)
            self.later(self.delay(), lambda o=other: self._orphan(o, worker.owner.name))  # type: ignore[misc]

    def _bury(self, owner: VirtualOwner, view: WorkerView) -> None:
        if owner.alive:
            owner.core.remove_worker(view, "died")
            self.dirty.add(owner)

    def _orphan(self, worker: VirtualWorker, owner: str) -> None:
        if worker.alive:
            worker.core.close(owner)
            self.dirty.add(worker)

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
                if thing.alive:
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
        copies = self.copies(owner, row)
        assert copies, f"{row} is with none of {row.holders}"
        return int(pickle.loads(copies[0]))

    def copies(self, owner: VirtualOwner, row: Row) -> list[bytes]:
        """What its holders have of a stored row; for one that dies soon, what the rest has."""
        found = []
        for view in row.holders:
            worker = self.workers.get(view.address)
            value = worker.stored(owner.name, row.key) if worker is not None else None
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
                return "lost" if row.value.kind == "lost-data" else row.value.kind
            return "error"
        return repr(row)

    def assert_unwanted(self, owner: str, entry: Entry, dependency: Entry) -> None:
        """A task that finds its dependency gone must itself be given up at its owner."""
        for found in self.owners:
            row = found.core.table.rows.get(entry.key)
            if found.name != owner or row is None or row.attempt != entry.attempt:
                continue
            for needed in row.dependencies:
                assert needed.key != dependency.key or needed.state not in (INLINE, STORED), (
                    f"{needed} was freed early for {entry}"
                )

    def validate(self) -> None:
        """Check the invariants everywhere."""
        for owner in self.owners:
            check_ownership(owner.core)
            for row in owner.core.table.rows.values():
                if row.state == STORED and (owner.name, row.key) not in self.lost:
                    assert self.copies(owner, row), f"{row} was freed early everywhere"
                    primary = self.workers.get(row.holders[0].address)
                    # After a death the first holder may be one that still fetches.
                    assert self.killed or primary is None or primary.stored(owner.name, row.key), (
                        f"{row} was freed early at its first holder"
                    )
        for worker in self.workers.values():
            check_executor(worker.core)

    def assert_empty(self) -> None:
        """Every table is empty, in every process (rule R6)."""
        for owner in self.owners:
            check_empty(owner.core)
        for worker in self.workers.values():
            check_executor_empty(worker.core)
            assert worker.core.busy == 0, worker.core.busy
            assert not worker.store, worker.store
