"""An owner of the virtual cluster: the real core, its links, and a driver in virtual time."""

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
"""Virtual microseconds within which a process hears what the scheduler has found out."""


class VirtualOwner(VirtualProcess):
    """An owner with its links: the process of a client, or a part of the process of a worker.

    Parameters
    ----------
    world : World
    name : str
        The incarnation.
    home : str, optional
        The address of the worker in the same process; None for a client.

    Attributes
    ----------
    world : World
    home : str or None
    process : Process
    core : OwnerCore
    dropped : list of Row
        Rows of dropped local references since the last step, one entry for each reference.
    posts : list of tuple
        Posts that the executor in this process has not taken over yet.
    function : Function
        The function of all tasks: `Runner` does what their `Task` says.
    pipes : dict of str to Pipe
        Links by the address of the worker.
    order : int
        Number of the last submitted task.
    asking, ticking, looking, expiring : bool
        Whether a question to the scheduler, a tick, a look at silent workers, and a look at
        infeasible tasks are under way: each is at most once.
    looked_at : float
        Time of the last look at silent workers.
    """

    def __init__(self, world: World, name: str, home: str | None = None) -> None:
        super().__init__(world.clock, name)
        self.world = world
        self.home = home
        self.process = (name, home or "", name)
        functions = BuiltinFunctions(
            Function(2, b"run", "identity"),
            Function(3, b"run", "nothing"),
            # The identity runs for stored values only: an alias takes an inline value over.
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
        """Submit a task as `Client.submit` does; its row, with one local reference more."""
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
        """Schedule, carry out effects and flush the links, as the runtime does after each event."""
        core = self.core
        dropped, self.dropped = self.dropped, []
        core.release(dropped)
        # Before scheduling: a message of this process to itself may have a task run.
        core.peers.say_to_itself()
        core.schedule(self.world.clock.now)
        core.posting.flush(acknowledge=True)
        if any(core.posting.waiting) and not self.asking:
            self.asking = True
            self.later(WINDOW / 10, self.ask)
        # The executor in this process carries the posts, with its own next step.
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
                # As `Packing`: a message that cannot be packed fails its own task only.
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
        """Return whether any worker owes a sign of life."""
        return any(
            p.view.pushed or p.here.unacknowledged or p.view.suspended for p in self.pipes.values()
        )

    def _expire(self) -> None:
        """End infeasible tasks that have waited for too long."""
        self.expiring = False
        timeout = self.world.no_workers_timeout
        if self.alive and timeout is not None:
            self.core.infeasible.expire(self.world.clock.now, timeout / 2)
            self.wants_step()

    def _look(self) -> None:
        """Look for signs of life of workers, as the runtime does."""
        self.looking = False
        if not self.alive:
            return
        # Time in which this process was stopped itself does not count as silence of workers.
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
        """Have the core look for tasks to recall, now and then."""
        self.ticking = False
        if self.alive and self.core.tick(self.world.clock.now):
            self.wants_step()

    def put(self, key: str, value: Any, addresses: Sequence[str]) -> Row:
        """Scatter a value to workers: it travels beside the links, as in `scatter`; its row."""
        pickled, found = travel.dumps(value)
        made = Row(key, None, None, (), 0)
        made.contains = tuple(dict.fromkeys(future.row for future in found))
        row = self.core.table.adopt(made)
        if row.state or row.attempt:
            return row  # a value of the same key is there, or on its way
        self.core.lifecycle.numbers += 1
        row.attempt = self.core.lifecycle.numbers
        took: list[WorkerView] = []
        left = len(addresses)

        def arrive(pipe: Pipe) -> None:
            if pipe.worker.leaving or not pipe.worker.alive:
                # This worker does not take the value: another is asked, as soon as there is any.
                there = [p for p in self.pipes.values() if p.worker.alive and not p.worker.leaving]
                if there:
                    there[0].worker.later(self.world.network.delay(), partial(arrive, there[0]))
                elif self.alive:
                    self.later(WINDOW, partial(arrive, pipe))
                return
            if pipe.worker.alive and pipe in self.world.network.pipes:
                entry = Entry(pipe.session, key, row.attempt)
                pipe.worker.store.put(entry, pickled)
                pipe.worker.core.lifecycle.keep(entry)
                pipe.worker.wants_step()
                took.append(pipe.view)
            self.world.clock.later(self.world.network.delay(), answer)

        def answer() -> None:
            nonlocal left
            left -= 1
            if not left and self.alive:
                self.core.put(row, took, 100_000)
                # Workers may have died since they took the value, which nothing makes again.
                if not any(self.world.scheduler.is_there(view) for view in took):
                    self.world.record.lost.add((self.name, key))
                self.wants_step()

        for address in addresses:
            pipe = self.pipes[address]
            pipe.worker.later(self.world.network.delay(), lambda pipe=pipe: arrive(pipe))  # type: ignore[misc]
        return row

    def arrive(self, origin: Origin, wanted: bool = True) -> Row:
        """Take in a future that was unpickled here; its row, with one local reference more.

        ``wanted`` is False in a task that its owner has given up: then the object may be freed.
        """
        self.clock.touched.add(self.name)
        row, new = self.core.borrowing.arrive(origin)
        if new:
            # As a thread that leaves the row in the inbox, which the loop takes in a little later.
            self.later(self.world.random.random() * 50, lambda: self._take_in(row))
        elif not row.borrowed:
            self.core.lifecycle.wake(row)
            # Only a future from a dead process may arrive after its object was freed.
            early = wanted and row.state == LOST and not self.world.record.lax
            assert not early, f"{origin} was freed early"
        return row

    def _due(self, function: Callable[..., None], args: tuple[Any, ...]) -> None:
        """Call the function of a timer of the core, while the process lives."""
        if self.alive:
            function(*args)
            self.wants_step()

    def carry_posts(self, executor: ExecutorCore) -> None:
        """Have the executor in this process pass on the posts of this owner."""
        posts, self.posts = self.posts, []
        posts += self.core.effects.take_posts()
        for message in posts:
            executor.posts.deliver(message)

    # ---- who is there ----

    def meet(self, worker: WorkerProcess) -> None:
        """Hear of a worker, and link to that worker if there is a route."""
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
            return  # news of the death is on its way
        # Both ends of the link are made at once: the greeting takes no virtual time.
        session = worker.core.open(self.name)
        session.process = self.process
        pipe = Pipe(self, view, worker, session)
        self.pipes[worker.address] = pipe
        worker.accept_link(pipe)
        self.world.network.pipes[pipe] = None

    def cut_route(self, address: str) -> None:
        """Lose the route to a worker, and find that out at once."""
        self.world.network.no_route.add((self.name, address))
        pipe = self.pipes.pop(address, None)
        if pipe is not None:
            pipe.worker.lose_link(self.name)
            self._refused(pipe.view)

    def _refused(self, view: WorkerView) -> None:
        """Find out that a worker cannot be linked."""
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
        """Have the executor in this process drop the tasks and values of an owner that is gone."""
        worker = self.world.workers.get(self.home) if self.home is not None else None
        if worker is not None and worker.owner is self:
            worker.orphan(incarnation)

    def ask(self) -> None:
        """Ask the scheduler for the members, until it answers."""
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
        """Take in the members, and that all other known processes are gone."""
        self.asking = False
        there = {worker.owner.name for worker in workers}
        # Only processes that this owner knew when it asked: later ones are not in the answer.
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
        """Connect to the scheduler that was started in place of the last one, a little later."""
        self.asking = True
        self.later(self.world.random.random() * WINDOW, self._reconnected)

    def _reconnected(self) -> None:
        self.world.scheduler.reconnected(self)
        self.ask()

    # ---- values ----

    def _take_in(self, row: Row) -> None:
        """Have the core borrow the object of a future that arrived."""
        if self.alive:
            self.core.submit([row])
            self.wants_step()

    def open(self, row: Row) -> list[VirtualFuture]:
        """Return the futures inside the value of a row, as `Future.result` gives them."""
        data = self.world.observer.copies(self, row)[0] if row.state == STORED else row.value
        _, futures = travel.loads(self, data)
        self.core.borrowing.hold_until_acknowledged(row, [f.row for f in futures])
        return futures

    def look_again(self, row: Row) -> None:
        """Take in that no location gave the value of a row, as `fetch` of the runtime does."""
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
        """Call ``wake`` when the row ends; at once when it has ended before."""
        if row.done:
            wake()
        else:
            row.waiters = [*(row.waiters or ()), wake]
