"""An owner of the virtual cluster: the real core, its links and what surrounds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from dask_ownership.core.builtin import BuiltinFunctions
from dask_ownership.core.membership import Asked
from dask_ownership.core.messages import Origin
from dask_ownership.core.ownership import Ownership
from dask_ownership.core.placement import WorkerView
from dask_ownership.core.places import ordered
from dask_ownership.core.roster import CLIENT
from dask_ownership.core.row import LOST, STORED, Borrowed, Function, Options, Row
from dask_ownership.core.session import Entry
from dask_ownership.testing import travel
from dask_ownership.testing.network import Pipe, packable
from dask_ownership.testing.task import Task
from dask_ownership.testing.travel import VirtualFuture

if TYPE_CHECKING:
    from dask_ownership.testing.virtual import VirtualCluster
    from dask_ownership.testing.worker import VirtualWorker

SILENCE = 40_000.0
"""Virtual microseconds without a sign of life after which a worker is suspended."""

LOOK = SILENCE / 10

NO_WORKERS_TIMEOUT = 100_000.0
"""Virtual microseconds between looks for tasks that no worker may run; the second ends them."""

SECOND = 100_000.0
"""Virtual microseconds that what the core counts in seconds takes here."""

WINDOW = 50_000.0
"""Virtual microseconds within which what the scheduler finds out is told."""


class VirtualOwner:
    """An owner with its links."""

    def __init__(self, cluster: VirtualCluster, name: str, home: str | None = None) -> None:
        self.cluster = cluster
        self.name = name
        self.home = home
        self.told_at = 0.0
        self.asking = False
        self.process = (name, home or "", name)
        functions = BuiltinFunctions(
            Function(2, b"run", "identity"),
            Function(3, b"run", "nothing"),
            # Called for stored values only; aliases take inline ones over as they are.
            travel.dumps(Task(0, large=True, uses="return"))[0],
        )
        self.core = Ownership(nullcontext(), home, process=self.process, functions=functions)
        self.dropped: list[Row] = []
        self.function = Function(1, b"run", "run")
        self.pipes: dict[str, Pipe] = {}
        self.order = 0
        self.ticking = False
        self.looking = False
        self.expiring = False
        self.looked_at = 0.0
        self.alive = True
        self.frozen_until = 0.0
        self.postponed: list[Callable[[], None]] = []

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
            ordered(self.order, priority, options.depth if options else 0),
            options or Options(),
        )
        row.contains = tuple(dict.fromkeys(future.row for future in found))
        adopted = self.core.table.adopt(row)
        if adopted is row:
            self.core.submit([row])
        else:
            self.core.lifecycle.wake(adopted)
        self.cluster.dirty.add(self)
        return adopted

    def step(self) -> None:
        """Schedule, flush the links and wake who waits, as the runtime does after each event."""
        core = self.core
        dropped, self.dropped = self.dropped, []
        core.release(dropped)
        core.peers.say_to_itself()
        core.schedule(self.cluster.now)
        core.posting.flush(acknowledge=True)
        if any(core.posting.waiting) and not self.asking:
            self.asking = True
            self.later(WINDOW / 10, self.ask)
        if core.posting.posts and self.home in self.cluster.workers:
            self.cluster.dirty.add(self.cluster.workers[self.home])
        timers, core.timers = core.timers, []
        for seconds, function, args in timers:
            self.later(seconds * SECOND, partial(self._due, function, args))
        completed, core.lifecycle.completed = core.lifecycle.completed, []
        for row in completed:
            waiters, row.waiters = row.waiters, None
            for wake in waiters or ():
                wake()
        for pipe in self.pipes.values():
            if pipe.view.outbox:
                messages, pipe.view.outbox = pipe.view.outbox, []
                cannot: list[Any] = []
                batch = pipe.here.pack(packable(messages, cannot))
                self.cluster.send(pipe, batch, to_worker=True)
                for message in cannot:
                    core.unsendable(pipe.view, message, travel.dumps("it cannot be packed")[0])
                    self.cluster.dirty.add(self)
            elif pipe.here.unsaid:
                self.cluster.send(pipe, pipe.here.pack([]), to_worker=True)
        if not self.ticking and len(core.placement.workers) > 1:
            self.ticking = True
            self.later(5_000.0, self._tick)
        timeout = self.cluster.no_workers_timeout
        if not self.expiring and timeout is not None and core.placement.infeasible():
            self.expiring = True
            self.later(timeout, self._expire)
        if self.cluster.watchful and not self.looking and self._expects():
            self.looking = True
            self.looked_at = self.cluster.now
            self.later(LOOK, self._look)

    def later(self, delay: float, call: Callable[[], None]) -> None:
        """Do something in this process after a while, when it is not frozen then."""

        self.cluster.later(delay, lambda: self.postponed.append(call) if self.frozen else call())

    @property
    def frozen(self) -> bool:
        """Whether this process is stopped."""
        return self.frozen_until > self.cluster.now

    def when_awake(self, call: Callable[[], None]) -> None:
        """Do something now, or after all that this process has slept through."""
        if self.frozen or self.postponed:
            self.postponed.append(call)
        else:
            call()

    def thaw(self) -> None:
        """Go on, with what happened to this process meanwhile, unless it was stopped again.

        One thing after the other, each with a step.
        """
        if self.postponed and not (self.alive and self.frozen):
            self.postponed[0]()
            del self.postponed[0]
            self.cluster.dirty.add(self)
            self.cluster.later(0.0, self.thaw)

    def _expects(self) -> bool:
        return any(
            p.view.pushed or p.here.unacknowledged or p.view.suspended for p in self.pipes.values()
        )

    def _expire(self) -> None:
        """End what has waited too long for a worker that may run it."""
        self.expiring = False
        timeout = self.cluster.no_workers_timeout
        if self.alive and timeout is not None:
            self.core.infeasible.expire(self.cluster.now, timeout / 2)
            self.cluster.dirty.add(self)

    def _look(self) -> None:
        """Look for signs of life, as the runtime does."""
        self.looking = False
        if not self.alive:
            return
        passed = min(self.cluster.now - self.looked_at, 2 * LOOK)
        for pipe in self.pipes.values():
            wanted = pipe.view.pushed or pipe.view.suspended
            ask_after = SILENCE / 4 if wanted else None
            owes = bool(pipe.here.unacknowledged)
            if pipe.heartbeat.look(passed, pipe.heard, owes, ask_after):
                self.cluster.send(pipe, pipe.here.pack([], ask=True), to_worker=True)
            if pipe.heard:
                self.core.suspensions.heard(pipe.view)
            pipe.heard = False
        self.core.suspensions.silent(
            (p.view, p.heartbeat.owed / SILENCE) for p in self.pipes.values()
        )
        self.cluster.dirty.add(self)

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
        self.core.lifecycle.numbers += 1
        row.attempt = self.core.lifecycle.numbers
        took: list[WorkerView] = []
        left = len(addresses)

        def arrive(pipe: Pipe) -> None:
            if pipe.worker.leaving or not pipe.worker.alive:
                # It does not take it: another one is asked, as soon as there is one.
                there = [p for p in self.pipes.values() if p.worker.alive and not p.worker.leaving]
                if there:
                    there[0].worker.later(self.cluster.delay(), partial(arrive, there[0]))
                elif self.alive:
                    self.later(WINDOW, partial(arrive, pipe))
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
                if not any(self.cluster.is_there(view) for view in took):
                    self.cluster.lost.add((self.name, key))
                self.cluster.dirty.add(self)

        for address in addresses:
            pipe = self.pipes[address]
            pipe.worker.later(self.cluster.delay(), lambda pipe=pipe: arrive(pipe))  # type: ignore[misc]
        return row

    def arrive(self, origin: Origin, wanted: bool = True) -> Row:
        """A future was unpickled here: its row with one handle more.

        ``wanted`` is False in a task that was given up, which does not keep it.
        """
        row, new = self.core.borrowing.arrive(origin)
        if new:
            # A thread left it in the inbox; the loop takes it in a little later.
            self.later(self.cluster.random.random() * 50, lambda: self._take_in(row))
        elif not row.borrowed:
            self.core.lifecycle.wake(row)
            # Only what a dead process handed on may be freed before it gets here.
            early = wanted and row.state == LOST and not self.cluster.lax
            assert not early, f"{origin} was freed early"
        return row

    def _due(self, function: Callable[..., None], args: tuple[Any, ...]) -> None:
        if self.alive:
            function(*args)
            self.cluster.dirty.add(self)

    def ask(self) -> None:
        """Ask the scheduler who is there."""
        if not self.alive:
            return
        cluster = self.cluster
        asked = self.core.membership.ask()

        def asks() -> None:
            if self.home is not None and cluster.roster.workers.get(self.home) != self.name:
                return  # it is taken for dead, and will hear so
            if self.home is None and self.alive:
                cluster.roster.join(self.name, CLIENT, self.name, asked.clients, cluster.seconds)
                cluster._look_at_roster()
            workers = list(cluster.workers.values())
            cluster.tell(self, partial(self._answered, asked, workers, cluster.roster.clients))

        if cluster.random.random() < cluster.faults.unanswered:
            self.later(WINDOW, self.ask)
        else:
            cluster.later(cluster.delay(), asks)

    def _answered(
        self, asked: Asked, workers: Sequence[VirtualWorker], clients: Sequence[str]
    ) -> None:
        self.asking = False
        there = {worker.owner.name for worker in workers}
        for incarnation in sorted(asked.workers - there):
            view = self.core.membership.view_of(incarnation)
            address = view.address if view is not None else ""
            self.cluster._hears_of_death(self, address, incarnation)
        for incarnation in sorted(asked.clients.difference(clients)):
            self.cluster._hears_of_client(self, incarnation)
        for worker in workers:
            if worker.owner is not self:
                self.cluster.meet(self, worker)

    def _take_in(self, row: Row) -> None:
        if self.alive:
            self.core.submit([row])
            self.cluster.dirty.add(self)

    def open(self, row: Row) -> list[VirtualFuture]:
        """The futures inside the value of a row, as `Future.result` gives them."""
        data = self.cluster.copies(self, row)[0] if row.state == STORED else row.value
        _, futures = travel.loads(self, data)
        self.core.borrowing.hold_until_counted(row, [f.row for f in futures])
        return futures

    def look_again(self, row: Row) -> None:
        """No holder of a stored row gave its value when it was read, as in `Owner.fetch`."""
        if row.state == STORED:
            if isinstance(row, Borrowed):
                addresses = list(row.addresses)
            else:
                addresses = [view.address for view in row.holders]
                if row.lineage is None:
                    self.cluster.lost.add((self.name, row.key))
            workers = self.cluster.workers
            name = self.core.table.value_name(row)
            absent = [a for a in addresses if a in workers and not workers[a].stored(name)]
            self.core.missed(row, absent)
            self.cluster.dirty.add(self)

    def when_done(self, row: Row, wake: Callable[[], None]) -> None:
        """Call when the row ends; at once when it has."""
        if row.done:
            wake()
        else:
            row.waiters = [*(row.waiters or ()), wake]
