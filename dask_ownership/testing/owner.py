"""An owner of the virtual cluster: the real core, its links and what surrounds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

from dask_ownership.core.executor.executor import ExecutorCore
from dask_ownership.core.executor.session import Entry
from dask_ownership.core.owner.membership import Asked
from dask_ownership.core.owner.ownership import OwnerCore
from dask_ownership.core.owner.rows.effects import OwnerEffects
from dask_ownership.core.owner.rows.options import Options
from dask_ownership.core.owner.rows.row import Borrowed, Function, Row
from dask_ownership.core.owner.rows.worker_view import WorkerView
from dask_ownership.core.owner.scheduling.builtin import BuiltinFunctions
from dask_ownership.core.protocol.messages import Message, Origin
from dask_ownership.core.protocol.order import ordered
from dask_ownership.core.protocol.states import LOST, STORED
from dask_ownership.testing import travel
from dask_ownership.testing.clock import SECOND
from dask_ownership.testing.network import packable
from dask_ownership.testing.pipe import Pipe, WorkerProcess
from dask_ownership.testing.process import VirtualProcess
from dask_ownership.testing.task import Task
from dask_ownership.testing.travel import VirtualFuture
from dask_ownership.testing.world import World

SILENCE = 40_000.0
"""Virtual microseconds without a sign of life after which a worker is suspended."""

LOOK = SILENCE / 10

WINDOW = 50_000.0
"""Virtual microseconds within which what the scheduler finds out is told."""


class VirtualOwner(VirtualProcess):
    """An owner with its links: the process of a client, or that of a worker.

    Parameters
    ----------
    world : World
    name : str
        Its incarnation.
    home : str, optional
        The address of the worker in its process.
    """

    def __init__(self, world: World, name: str, home: str | None = None) -> None:
        super().__init__(world.clock, name)
        self.world = world
        self.home = home
        self.process = (name, home or "", name)
        functions = BuiltinFunctions(
            Function(2, b"run", "identity"),
            Function(3, b"run", "nothing"),
            # Called for stored values only; aliases take inline ones over as they are.
            travel.dumps(Task(0, large=True, uses="return"))[0],
        )
        self.core = OwnerCore(nullcontext(), home, process=self.process, functions=functions)
        self.dropped: list[Row] = []
        self.posts: list[Message] = []
        self.function = Function(1, b"run", "run")
        self.pipes: dict[str, Pipe] = {}
        self.order = 0
        self.asking = False
        self.ticking = False
        self.looking = False
        self.expiring = False
        self.looked_at = 0.0

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
        self.wants_step()
        return adopted

    def step(self) -> None:
        """Schedule, flush the links and wake who waits, as the runtime does after each event."""
        core = self.core
        dropped, self.dropped = self.dropped, []
        core.release(dropped)
        core.peers.say_to_itself()
        core.schedule(self.world.clock.now)
        core.posting.flush(acknowledge=True)
        if any(core.posting.waiting) and not self.asking:
            self.asking = True
            self.later(WINDOW / 10, self.ask)
        beside = self.world.workers.get(self.home) if self.home is not None else None
        effects = core.effects.take() or OwnerEffects()
        assert not effects.broken, effects.broken
        self.posts.extend(effects.posts)
        if self.posts and beside is not None:
            beside.wants_step()
        for seconds, function, args in effects.timers:
            self.later(seconds * SECOND, partial(self._due, function, args))
        for row in effects.completed:
            waiters, row.waiters = row.waiters, None
            for wake in waiters or ():
                wake()
        for pipe in self.pipes.values():
            if pipe.view.outbox:
                messages, pipe.view.outbox = pipe.view.outbox, []
                cannot: list[Any] = []
                batch = pipe.here.pack(packable(messages, cannot))
                self.world.network.send(pipe, batch, to_worker=True)
                for message in cannot:
                    core.unsendable(pipe.view, message, travel.dumps("it cannot be packed")[0])
                    self.wants_step()
            elif pipe.here.unsaid:
                self.world.network.send(pipe, pipe.here.pack([]), to_worker=True)
        if not self.ticking and len(core.placement.workers) > 1:
            self.ticking = True
            self.later(5_000.0, self._tick)
        timeout = self.world.no_workers_timeout
        if not self.expiring and timeout is not None and core.placement.infeasible():
            self.expiring = True
            self.later(timeout, self._expire)
        if self.world.record.watchful and not self.looking and self._expects():
            self.looking = True
            self.looked_at = self.world.clock.now
            self.later(LOOK, self._look)

    def _expects(self) -> bool:
        return any(
            p.view.pushed or p.here.unacknowledged or p.view.suspended for p in self.pipes.values()
        )

    def _expire(self) -> None:
        """End what has waited too long for a worker that may run it."""
        self.expiring = False
        timeout = self.world.no_workers_timeout
        if self.alive and timeout is not None:
            self.core.infeasible.expire(self.world.clock.now, timeout / 2)
            self.wants_step()

    def _look(self) -> None:
        """Look for signs of life, as the runtime does."""
        self.looking = False
        if not self.alive:
            return
        passed = min(self.world.clock.now - self.looked_at, 2 * LOOK)
        for pipe in self.pipes.values():
            wanted = pipe.view.pushed or pipe.view.suspended
            ask_after = SILENCE / 4 if wanted else None
            owes = bool(pipe.here.unacknowledged)
            if pipe.heartbeat.look(passed, pipe.heard, owes, ask_after):
                self.world.network.send(pipe, pipe.here.pack([], ask=True), to_worker=True)
            if pipe.heard:
                self.core.suspensions.heard(pipe.view)
            pipe.heard = False
        self.core.suspensions.silent(
            (p.view, p.heartbeat.owed / SILENCE) for p in self.pipes.values()
        )
        self.wants_step()

    def _tick(self) -> None:
        self.ticking = False
        if self.alive and self.core.tick(self.world.clock.now):
            self.wants_step()

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
                    there[0].worker.later(self.world.network.delay(), partial(arrive, there[0]))
                elif self.alive:
                    self.later(WINDOW, partial(arrive, pipe))
                return
            if pipe.worker.alive and pipe in self.world.network.pipes:
                entry = Entry(pipe.session, key, row.attempt)
                pipe.worker.store.put(entry, pickled)
                pipe.worker.core.keep(entry)
                pipe.worker.wants_step()
                took.append(pipe.view)
            self.world.clock.later(self.world.network.delay(), answer)

        def answer() -> None:
            nonlocal left
            left -= 1
            if not left and self.alive:
                self.core.put(row, took, 100_000)
                if not any(self.world.scheduler.is_there(view) for view in took):
                    self.world.record.lost.add((self.name, key))
                self.wants_step()

        for address in addresses:
            pipe = self.pipes[address]
            pipe.worker.later(self.world.network.delay(), lambda pipe=pipe: arrive(pipe))  # type: ignore[misc]
        return row

    def arrive(self, origin: Origin, wanted: bool = True) -> Row:
        """A future was unpickled here: its row with one handle more.

        ``wanted`` is False in a task that was given up, which does not keep it.
        """
        self.clock.touched.add(self.name)
        row, new = self.core.borrowing.arrive(origin)
        if new:
            # A thread left it in the inbox; the loop takes it in a little later.
            self.later(self.world.random.random() * 50, lambda: self._take_in(row))
        elif not row.borrowed:
            self.core.lifecycle.wake(row)
            # Only what a dead process handed on may be freed before it gets here.
            early = wanted and row.state == LOST and not self.world.record.lax
            assert not early, f"{origin} was freed early"
        return row

    def _due(self, function: Callable[..., None], args: tuple[Any, ...]) -> None:
        if self.alive:
            function(*args)
            self.wants_step()

    def carry_posts(self, executor: ExecutorCore) -> None:
        """Have the executor in this process pass on what this owner has to say."""
        posts, self.posts = self.posts, []
        posts += self.core.effects.posts
        self.core.effects.posts = []
        for message in posts:
            executor.deliver(message)

    # ---- who is there ----

    def meet(self, worker: WorkerProcess) -> None:
        """Hear of a worker, and link to it if there is a way."""
        view = WorkerView(
            worker.address,
            incarnation=worker.owner.name,
            nthreads=worker.slots,
            resources=dict(worker.core.queue.resources.totals),
        )
        if not self.core.membership.joined(view):
            return
        self.wants_step()
        told = worker.owner.core.membership.is_gone(self.name)
        if told or (self.name, worker.address) in self.world.network.no_route:
            self.later(WINDOW, partial(self._refused, view))
            return
        if not worker.alive:
            return  # that will be heard soon
        session = worker.core.open(self.name)
        session.process = self.process
        pipe = Pipe(self, view, worker, session)
        self.pipes[worker.address] = pipe
        worker.accept_link(pipe)
        self.world.network.pipes[pipe] = None

    def cut_route(self, address: str) -> None:
        """Cannot link to a worker any more, and finds that out at once."""
        self.world.network.no_route.add((self.name, address))
        pipe = self.pipes.pop(address, None)
        if pipe is not None:
            pipe.worker.lose_link(self.name)
            self._refused(pipe.view)

    def _refused(self, view: WorkerView) -> None:
        if self.alive and view.alive:
            self.core.membership.refuse(view, "there is no way to it", reached=False)
            self.wants_step()

    def hears_of_death(self, address: str, incarnation: str) -> None:
        """Hear that a worker is gone."""
        pipe = self.pipes.get(address)
        if pipe is not None and pipe.view.incarnation == incarnation:
            del self.pipes[address]
            self.world.network.pipes.pop(pipe, None)
        self._orphan(incarnation)
        self.core.membership.left(incarnation, "died")

    def hears_of_client(self, incarnation: str) -> None:
        """Hear that a client is gone."""
        self._orphan(incarnation)
        self.core.membership.process_gone(incarnation)

    def _orphan(self, incarnation: str) -> None:
        """The executor in this process drops what it has of another owner."""
        worker = self.world.workers.get(self.home) if self.home is not None else None
        if worker is not None and worker.owner is self:
            worker.orphan(incarnation)

    def ask(self) -> None:
        """Ask the scheduler who is there."""
        if not self.alive:
            return
        world = self.world
        asked = self.core.membership.ask()
        if world.random.random() < world.network.faults.unanswered:
            self.later(WINDOW, self.ask)
        else:
            world.clock.later(world.network.delay(), partial(world.scheduler.ask, self, asked))

    def answered(
        self, asked: Asked, workers: Sequence[WorkerProcess], clients: Sequence[str]
    ) -> None:
        """Hear from the scheduler who is there."""
        self.asking = False
        there = {worker.owner.name for worker in workers}
        for incarnation in sorted(asked.workers - there):
            view = self.core.membership.view_of(incarnation)
            address = view.address if view is not None else ""
            self.hears_of_death(address, incarnation)
        for incarnation in sorted(asked.clients.difference(clients)):
            self.hears_of_client(incarnation)
        for worker in workers:
            if worker.owner is not self:
                self.meet(worker)

    def reconnect(self) -> None:
        """Connect to a scheduler that was started in place of another, a little later."""
        self.asking = True
        self.later(self.world.random.random() * WINDOW, self._reconnected)

    def _reconnected(self) -> None:
        self.world.scheduler.reconnected(self)
        self.ask()

    # ---- values ----

    def _take_in(self, row: Row) -> None:
        if self.alive:
            self.core.submit([row])
            self.wants_step()

    def open(self, row: Row) -> list[VirtualFuture]:
        """The futures inside the value of a row, as `Future.result` gives them."""
        data = self.world.observer.copies(self, row)[0] if row.state == STORED else row.value
        _, futures = travel.loads(self, data)
        self.core.borrowing.hold_until_counted(row, [f.row for f in futures])
        return futures

    def look_again(self, row: Row) -> None:
        """No holder of a stored row gave its value when it was read, as in `Owner.fetch`."""
        if row.state == STORED:
            if isinstance(row, Borrowed):
                addresses = list(row.addresses)
            else:
                addresses = [view.address for view in row.locations]
                if row.lineage is None:
                    self.world.record.lost.add((self.name, row.key))
            workers = self.world.workers
            name = self.core.table.value_name(row)
            absent = [a for a in addresses if a in workers and not workers[a].store.find(name)]
            self.core.missed(row, absent)
            self.wants_step()

    def when_done(self, row: Row, wake: Callable[[], None]) -> None:
        """Call when the row ends; at once when it has."""
        if row.done:
            wake()
        else:
            row.waiters = [*(row.waiters or ()), wake]
