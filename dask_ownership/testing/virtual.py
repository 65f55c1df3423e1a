"""A cluster in one thread: the real core over a virtual network and clock.

Every owner, executor and link state is the one that runs on a real cluster. Only
what surrounds them is virtual: messages travel through a seeded network that
delays them, reorders them between links, delivers them twice and breaks
connections; tasks are small descriptions that "run" for a virtual time. The same
seed gives the same run, so a failure is replayed by its seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
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
from dask_ownership.core.messages import Origin
from dask_ownership.core.ownership import Ownership
from dask_ownership.core.placement import WorkerView
from dask_ownership.core.session import Entry
from dask_ownership.core.table import (
    CANCELLED,
    ERROR,
    INLINE,
    LOST,
    STORED,
    Borrowed,
    Failure,
    Function,
    Options,
    Row,
)
from dask_ownership.testing import travel
from dask_ownership.testing.network import Faults, Network, Pipe
from dask_ownership.testing.travel import VirtualFuture

WINDOW = 50_000.0
"""Virtual microseconds for which a dead borrower still counts."""

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
    carries : tuple of VirtualFuture
        Futures inside its arguments.
    uses : str
        What it does with futures that came to it: ``read`` their values and add them,
        have a ``child`` add them, ``return`` them inside its value, ``raise`` an error with
        them inside, or ``drop`` them.
    escape : bool
        It does not wait for its children but returns their futures inside its value.
    """

    constant: int = 1
    duration: float = 10.0
    large: bool = False
    fails: int = 0
    children: tuple[Task, ...] = ()
    carries: tuple[Any, ...] = ()
    uses: str = "drop"
    escape: bool = False

    def value(self, inputs: Sequence[int]) -> int:
        """What a sequential program would get."""
        return self.constant + sum(inputs) + sum(c.value(()) for c in self.children)


@dataclass
class Frame:
    """What a running task has: its inputs, and the futures that came to it."""

    task: Task
    inputs: list[int]
    came: list[VirtualFuture]
    looks: int = 0
    made: list[VirtualFuture] = field(default_factory=list)
    waited: list[Row] = field(default_factory=list)
    returned: list[VirtualFuture] = field(default_factory=list)


class VirtualOwner:
    """An owner with its links."""

    def __init__(self, cluster: VirtualCluster, name: str, home: str | None = None) -> None:
        self.cluster = cluster
        self.name = name
        self.process = (name, home or "", name)
        self.core = Ownership(nullcontext(), home, process=self.process)
        self.dropped: list[Row] = []
        self.function = Function(1, b"run", "run")
        # The identity is called for stored values only; inline ones are taken over as they are.
        self.core.identity = self.core.moves.function = Function(2, b"run", "identity")
        self.core.identity_call = travel.dumps(Task(0, large=True, uses="return"))[0]
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
        payload, found = travel.dumps(task)
        row = Row(
            key,
            self.function,
            payload,
            tuple(dict.fromkeys(dependencies)),
            self.order - priority * 2**40,
            options or Options(),
        )
        row.contains = tuple(dict.fromkeys(future.row for future in found))
        adopted = self.core.table.adopt(row)
        if adopted is row:
            self.core.submit([row])
        else:
            self.core.lineages.wake(adopted)
        self.cluster.dirty.add(self)
        return adopted

    def step(self) -> None:
        """Schedule, flush the links and wake who waits, as the runtime does after each event."""
        core = self.core
        dropped, self.dropped = self.dropped, []
        core.release(dropped)
        core.schedule(self.cluster.now)
        core.post(acknowledge=True)
        for address in core.unposted:
            self.cluster.later(WINDOW, lambda a=address: self._give_up(a))  # type: ignore[misc]
        if core.posts:
            self.cluster.dirty.add(self.cluster.workers[self.process[1]])
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

    def put(self, key: str, value: Any, addresses: Sequence[str]) -> Row:
        """A scattered value: it goes to the workers beside the links, as in `scatter`."""
        pickled, found = travel.dumps(value)
        made = Row(key, None, None, (), 0)
        made.contains = tuple(dict.fromkeys(future.row for future in found))
        row = self.core.table.adopt(made)
        if row.state or row.attempt:
            return row
        self.core.attempts += 1
        row.attempt = self.core.attempts
        took: list[WorkerView] = []
        left = len(addresses)

        def arrive(pipe: Pipe) -> None:
            if pipe.worker.leaving or not pipe.worker.alive:
                # It does not take it: another one is asked.
                there = [p for p in self.pipes.values() if p.worker.alive and not p.worker.leaving]
                if there:
                    self.cluster.later(self.cluster.delay(), partial(arrive, there[0]))
                    return
            if pipe.worker.alive and pipe in self.cluster.network.pipes:
                entry = Entry(pipe.session, key, row.attempt)
                pipe.worker.put(entry, pickled)
                pipe.worker.core.keep(entry)
                self.cluster.dirty.add(pipe.worker)
                took.append(pipe.view)
            self.cluster.later(self.cluster.delay(), answer)

        def answer() -> None:
            nonlocal left
            left -= 1
            if not left and self.alive:
                self.core.put(row, took, 100_000)
                if not any(view.address in self.cluster.workers for view in took):
                    self.cluster.lost.add((self.name, key))
                self.cluster.dirty.add(self)

        for address in addresses:
            pipe = self.pipes[address]
            self.cluster.later(self.cluster.delay(), lambda pipe=pipe: arrive(pipe))  # type: ignore[misc]
        return row

    def arrive(self, origin: Origin) -> Row:
        """A future was unpickled here: its row with one handle more."""
        row, new = self.core.references.arrive(origin)
        if new:
            # A thread left it in the inbox; the loop takes it in a little later.
            self.cluster.later(self.cluster.random.random() * 50, lambda: self._take_in(row))
        elif not row.borrowed:
            self.core.lineages.wake(row)
            # Only what a dead process handed on may be freed before it gets here.
            assert row.state != LOST or self.cluster.lax, f"{origin} was freed early"
        return row

    def _give_up(self, address: str) -> None:
        if self.alive and address:
            self.core.unreachable(address)
            self.cluster.dirty.add(self)

    def _take_in(self, row: Row) -> None:
        if self.alive:
            self.core.submit([row])
            self.cluster.dirty.add(self)

    def open(self, row: Row) -> list[VirtualFuture]:
        """The futures inside the value of a row, as `Future.result` gives them."""
        data = self.cluster.copies(self, row)[0] if row.state == STORED else row.value
        _, futures = travel.loads(self, data)
        self.core.references.hold_until_counted(row, [f.row for f in futures])
        return futures

    def look_again(self, row: Row) -> None:
        """No holder of a stored row gave its value when it was read, as in `Owner.fetch`."""
        if row.state == STORED and not row.borrowed:
            if row.lineage is None:
                self.cluster.lost.add((self.name, row.key))
            self.core.missed(row)
            self.cluster.dirty.add(self)

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
        self.core.home = f"owner-of-{address}"
        self.store: dict[Any, bytes] = {}
        self.owner = VirtualOwner(cluster, f"owner-of-{address}", home=address)
        self.pipes: dict[str, Pipe] = {}
        self.watching = False
        self.leaving = False
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
        posts, self.owner.core.posts = self.owner.core.posts, []
        for message in posts:
            core.deliver(message)
        for name in set(core.undelivered) & self.cluster.left:
            core.undeliverable(name)
        posts, core.posts = core.posts, []
        for message in posts:
            self.cluster.network.count_post(self.owner, message)
            self.owner.core.references.receive(message[2], message[3])
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
        task, came = travel.loads(self.owner, entry.payload)
        inputs = []
        for dependency in entry.dependencies:
            if isinstance(dependency, bytes):
                value, futures = travel.loads(self.owner, dependency)
            elif dependency.state == ex.HELD:
                value, futures = dependency.value
            elif dependency.state == ex.COPIED:
                value, futures = travel.loads(self.owner, dependency.value)
            elif dependency.state == ex.KEPT:
                value, futures = travel.loads(self.owner, self.store[dependency.stored])
            else:
                self.cluster.assert_unwanted(entry.session.owner, entry, dependency)
                self.core.give_back(entry, m.MISSING, ((dependency.key, ()),))
                self.core.released_slot()
                self.cluster.dirty.add(self)
                return
            inputs.append(travel.number(value))
            came = [*came, *futures]
        plain = not task.children and not came and task.uses != "raise"
        # The frame of the task: what it still has while it waits.
        frame = Frame(task, inputs, came)

        def run() -> None:
            if self.alive:
                if plain:
                    self._finish(entry, task, inputs)
                else:
                    self._descend(entry, frame)

        self.cluster.later(task.duration, run)

    def _descend(self, entry: Entry, frame: Frame) -> None:
        """Submit the children and wait for them, and for futures, without a slot."""
        task = frame.task
        parent = (entry.session.owner, entry.key, entry.attempt)
        seen: dict[bytes, int] = {}
        rows = []
        children = list(task.children)
        if task.uses == "child" and frame.came:
            children.append(Task(1, 5.0, carries=tuple(frame.came), uses="read"))
        for child in children:
            fingerprint = travel.dumps(child)[0]
            occurrence = seen[fingerprint] = seen.get(fingerprint, -1) + 1
            key = child_key("child", f"{entry.key}-{entry.attempt}", fingerprint, occurrence)
            options = Options(depth=entry.depth + 1, parent=parent, heir=entry.heir)
            rows.append(self.owner.submit(key, child, (), options))
        made = [VirtualFuture(self.owner, row) for row in rows]
        frame.waited = [] if task.escape else rows
        if task.uses == "read":
            frame.waited = [*frame.waited, *(future.row for future in frame.came)]
        frame.returned = [
            *(made if task.escape else ()),
            *(frame.came if task.uses == "return" else ()),
        ]
        frame.made = made
        left = sum(1 for row in frame.waited if not row.done)
        if not left:
            self._ascend(entry, frame)
            return
        self.core.parked(entry)

        def one_done() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                self._go_on(entry, frame)

        for row in frame.waited:
            if not row.done:
                self.owner.when_done(row, one_done)
        self.cluster.dirty.add(self)

    def _go_on(self, entry: Entry, frame: Frame) -> None:
        if self.alive:
            self.core.wants_slot(partial(self._ascend, entry, frame), entry)
            self.cluster.dirty.add(self)

    def _settled(self, row: Row) -> bool:
        """Whether a value can be read, or never will be."""
        if row.state == STORED:
            return bool(self.cluster.copies(self.owner, row))
        return row.done

    def _ascend(self, entry: Entry, frame: Frame) -> None:
        """What was waited for ended: end the task."""
        if not all(map(self._settled, frame.waited)):
            # Lost since it ended: it is made again, and waited for without a slot.
            frame.looks += 1
            if frame.looks % 50 == 0:
                for row in frame.waited:
                    if not self._settled(row):
                        self.owner.look_again(row)
            self.core.parked(entry)
            self.cluster.later(1_000.0, partial(self._go_on, entry, frame))
            return
        values: list[int] = []
        failed = False
        for row in frame.waited:
            value = self.cluster.outcome(self.owner, row)
            if isinstance(value, int):
                values.append(value)
            else:
                failed = True
                if (self.owner.name, row.key) in self.cluster.lost or value == "lost":
                    self.cluster.lost.add((entry.session.owner, entry.key))
        self.cluster.dirty.add(self.owner)
        came, returned = frame.came, frame.returned
        frame.came, frame.returned, frame.made = [], [], []
        arrived = [future.row for future in came]
        task = frame.task
        if failed:
            self._fail(entry, "a child failed", arrived)
        elif task.uses == "raise":
            self._fail(entry, (0, tuple(came)), arrived)
        else:
            total = task.constant + sum(frame.inputs) + sum(values)
            ends = Task(constant=total, large=task.large, fails=task.fails)
            self._finish(entry, ends, [], returned, arrived)

    def _finish(
        self,
        entry: Entry,
        task: Task,
        inputs: list[int],
        returned: Sequence[VirtualFuture] = (),
        arrived: Sequence[Row] = (),
    ) -> None:
        """End a task with its value, once the futures that came to it are counted."""
        name = (entry.session.owner, entry.key)
        if self.cluster.runs(name) <= task.fails:
            self._fail(entry, "it is meant to fail", arrived)
            return
        number = task.constant + sum(inputs)
        value = (number, tuple(returned)) if returned else number
        pickled, found = travel.dumps(value)
        inside = (tuple([self.owner.core.references.origin_of(f.row) for f in found]),)
        entry.contains = found
        state, live = ex.HELD, (value, travel.inside(value))
        if task.large:
            self.put(entry, pickled)
            message: m.Message = (m.STORED, entry.key, entry.attempt, 100_000, None, task.duration)
            state, live = ex.KEPT, None  # type: ignore[assignment]
        else:
            if number % 3 == 0:
                pickled += bytes(1000)  # long enough to be sent once for several tasks
            message = (m.DONE, entry.key, entry.attempt, pickled, task.duration)
            if found:
                message += inside

        def succeed() -> None:
            if self.alive:
                self.core.succeeded(entry, message, state, live)
                self.cluster.dirty.add(self)

        self.core.released_slot()
        self.cluster.dirty.add(self)
        self.owner.core.references.when_counted(arrived, succeed)

    def _fail(self, entry: Entry, why: Any, arrived: Sequence[Row] = ()) -> None:
        """End a task with an error, once the futures that came to it are counted."""
        pickled, found = travel.dumps(why)
        message: m.Message = (m.FAILED, entry.key, entry.attempt, pickled, 1.0)
        if found:
            entry.contains = found
            message += (tuple([self.owner.core.references.origin_of(f.row) for f in found]),)

        def fail() -> None:
            if self.alive:
                self.core.failed(entry, message)
                self.cluster.dirty.add(self)

        self.core.released_slot()
        self.cluster.dirty.add(self)
        self.owner.core.references.when_counted(arrived, fail)

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
        owner, key = entry.origin or (entry.session.owner, entry.key)
        value = peer.stored(owner, key) if peer is not None else None

        def arrive() -> None:
            if not self.alive:
                return
            if value is None:
                # A dead one does not answer, and so says nothing of the value.
                said = absent if peer is None else (*absent, address)
                self._fetch(entry, index + 1, said)
            else:
                _, entry.contains = travel.loads(self.owner, value)
                rows = [future.row for future in entry.contains]
                self.owner.core.references.when_counted(rows, lambda: fetched(value))
            self.cluster.dirty.add(self)

        def fetched(value: bytes) -> None:
            if self.alive:
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
        self.remade: set[Any] = set()
        self.killed = False
        self.cancelled = False
        self.retiring = False
        self.left: set[str] = set()
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
        session.process = owner.process
        pipe = Pipe(owner, view, worker, session)
        owner.core.add_worker(view)
        owner.pipes[worker.address] = pipe
        worker.pipes[owner.name] = pipe
        self.network.pipes.append(pipe)
        self.dirty.update((owner, worker))

    def kill(self, address: str, by_force: bool = True) -> None:
        """A worker dies: its tasks, values and owner are gone; all others hear of it."""
        self.killed = self.killed or by_force
        worker = self.workers.pop(address)
        worker.alive = worker.owner.alive = False
        self.dirty -= {worker, worker.owner}
        for owner in self.owners:
            for row in owner.core.table.rows.values():
                if row.state == STORED and not self.copies(owner, row):
                    scattered = row.lineage is None and not row.borrowed
                    (self.lost if scattered else self.remade).add((owner.name, row.key))
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

    def retire(self, address: str) -> None:
        """A worker leaves in good order: when nothing runs there and its values are moved."""
        worker = self.workers[address]
        self.retiring = worker.leaving = True
        worker.core.leave()
        self.dirty.add(worker)
        self.later(1_000.0, partial(self._retire, worker))

    def _retire(self, worker: VirtualWorker) -> None:
        if not worker.alive or worker.core.accepting:
            return
        core = worker.core
        unheard = any(p.there.unacknowledged or p.session.outbox for p in worker.pipes.values())
        handed_over = worker.owner.core.adoption.hand_over()
        self.dirty.add(worker.owner)
        unfinished = core.busy or core.parked_count or core.keeps_values or unheard
        if unfinished or not handed_over:
            self.later(1_000.0, partial(self._retire, worker))
        else:
            self.kill(worker.address, by_force=False)

    def _bury(self, owner: VirtualOwner, view: WorkerView) -> None:
        if owner.alive:
            owner.core.remove_worker(view, "died")
            self.dirty.add(owner)
            self.later(WINDOW, lambda: self._forget_process(owner, view.address))

    def _forget_process(self, owner: VirtualOwner, address: str) -> None:
        """What a dead process may have handed on was counted by now, or never will be."""
        if owner.alive:
            owner.core.references.address_gone(address)
            self.dirty.add(owner)

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
        self.network.pipes[:] = [p for p in self.network.pipes if p.owner is not owner]
        self.later(WINDOW, lambda: self._departed(owner.name))

    def _departed(self, owner: str) -> None:
        self.left.add(owner)
        for worker in self.workers.values():
            worker.pipes.pop(owner, None)
            self._orphan(worker, owner)
        for other in self.owners:
            other.core.references.process_gone(owner)
            self.dirty.add(other)

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
            return travel.number(travel.loads(owner, row.value)[0])
        copies = self.copies(owner, row)
        assert copies, f"{row} is with none of {row.holders}"
        return travel.number(travel.loads(owner, copies[0])[0])

    def copies(self, owner: VirtualOwner, row: Row) -> list[bytes]:
        """What its holders have of a stored row; for one that dies soon, what the rest has."""
        found = []
        places = [(view.address, owner.name, row.key) for view in row.holders]
        if isinstance(row, Borrowed):
            places += [(address, row.place[0], row.place[3]) for address in row.addresses]
        for address, name, key in places:
            worker = self.workers.get(address)
            value = worker.stored(name, key) if worker is not None else None
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
                # After a death it may have been lost and made again meanwhile.
                assert (
                    self.killed
                    or needed.key != dependency.key
                    or needed.state not in (INLINE, STORED)
                ), f"{needed} was freed early for {entry}"

    def validate(self) -> None:
        """Check the invariants everywhere."""
        for owner in self.owners:
            check_ownership(owner.core)
            for row in owner.core.table.rows.values():
                name = (owner.name, row.key)
                if row.state == STORED and name not in self.lost and name not in self.remade:
                    if row.borrowed:
                        # What its owner does not know yet is said when it is found out.
                        place = row.place  # type: ignore[attr-defined]
                        assert (
                            self.lax or self.retiring or (place[0], place[3]) in self.lost
                            or self.copies(owner, row)
                        ), f"{row} was freed early"  # fmt: skip
                        continue
                    assert self.copies(owner, row), f"{row} was freed early everywhere"
                    primary = self.workers.get(row.holders[0].address)
                    # After one died or left the first holder may be one that still fetches.
                    assert (
                        self.killed
                        or self.retiring
                        or primary is None
                        or primary.stored(owner.name, row.key)
                    ), f"{row} was freed early at its first holder"
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
