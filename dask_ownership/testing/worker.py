"""A worker of the virtual cluster: the real executor, a store, and an owner for its tasks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from dask_ownership.core.executor import session as ex
from dask_ownership.core.executor.effects import ExecutorEffects
from dask_ownership.core.executor.executor import ExecutorCore
from dask_ownership.core.executor.session import Entry
from dask_ownership.testing import travel
from dask_ownership.testing.network import packable
from dask_ownership.testing.owner import SILENCE, VirtualOwner
from dask_ownership.testing.parking import Parking
from dask_ownership.testing.pipe import Pipe
from dask_ownership.testing.runner import Runner
from dask_ownership.testing.store import Store
from dask_ownership.testing.world import World


class VirtualWorker:
    """An executor, its store and the owner of the tasks submitted there.

    Parameters
    ----------
    world : World
    address : str
    slots : int
    resources : dict, optional
        Abstract resources.
    life : int
        Which of the workers with this address it is, the first, second ...: a part of the name of
        the incarnation.

    Attributes
    ----------
    world : World
    address : str
    slots : int
    core : ExecutorCore
    store : Store
    owner : VirtualOwner
        The owner in the same process.
    pipes : dict of str to Pipe
        Links by the incarnation of the owner.
    parking : Parking
    runner : Runner
    leaving : bool
        Whether the worker leaves in good order.
    """

    def __init__(
        self,
        world: World,
        address: str,
        slots: int,
        resources: dict[str, float] | None = None,
        life: int = 1,
    ) -> None:
        self.world = world
        self.address = address
        self.slots = slots
        incarnation = f"owner-of-{address}" + (f".{life}" if life > 1 else "")
        self.core = ExecutorCore(slots, resources, incarnation)
        self.store = Store(self.core, world.clock)
        self.owner = VirtualOwner(world, incarnation, home=address)
        self._dialled: set[str] = set()
        self.pipes: dict[str, Pipe] = {}
        self.parking = Parking(world, self.owner, self.core, self.wants_step)
        self.runner = Runner(
            world, self.owner, self.core, self.parking, self.store, self.wants_step
        )
        self.leaving = False

    @property
    def name(self) -> str:
        """The address, by which this worker takes its turn among the dirty processes."""
        return self.address

    @property
    def alive(self) -> bool:
        """Whether this process has not ended."""
        return self.owner.alive

    @property
    def frozen(self) -> bool:
        """Whether this process is stopped."""
        return self.owner.frozen

    def wants_step(self) -> None:
        """Have this worker take a step before the next event."""
        self.world.clock.dirty.add(self)

    def later(self, delay: float, call: Callable[[], None]) -> None:
        """Call a function in this process after a while, or later when it is frozen then."""
        self.owner.later(delay, call)

    def step(self) -> None:
        """Start tasks, carry out effects and flush the links, as the runtime does."""
        core = self.core
        # Parked tasks that can go on come before tasks that have not begun.
        while (go_on := core.queue.resume_next()) is not None:
            go_on()
        # The runtime wakes no thread when no task is startable.
        while (
            core.queue.busy < core.queue.slots
            and core.queue.startable
            and (work := core.queue.next_work()) is not None
        ):
            self.runner.start(work)
        self.owner.carry_posts(core)
        effects = core.effects.take() or ExecutorEffects()
        assert not effects.broken, effects.broken
        for entry in effects.fetches:
            self.later(self.world.network.delay(), lambda e=entry: self._fetch(e, 0))  # type: ignore[misc]
        for name in effects.freed:
            self.store.values.pop(name, None)
        for entry, keys in effects.watched:
            for key in keys:
                self.runner.child_submitted(entry, key)
        for entry in effects.interrupted:
            parent = (entry.session.owner, entry.key, entry.attempt)
            self.owner.core.cancel_children(parent, "its parent was cancelled")
            self.owner.wants_step()
        # As `DIAL`, but no owner is asked: here owners link when they hear of a worker.
        for name in core.posts.undelivered:
            if name not in self._dialled:
                self._dialled.add(name)
                self.later(self.world.network.delay(), partial(self._dial, name))
        for message in effects.posts:
            self.world.network.count_post(self.owner, message)
            self.owner.core.posting.receive([message])
            self.owner.wants_step()
        for pipe in self.pipes.values():
            session = pipe.session
            if session.outbox:
                messages, session.outbox = session.outbox, []
                fresh, session.fresh = session.fresh, []
                cannot: list[Any] = []
                batch = pipe.there.pack(packable(messages, cannot))
                number, _, _ = batch
                core.packed(session, number, fresh)
                self.world.network.send(pipe, batch, to_worker=False)
                for message in cannot:
                    problem = travel.dumps("it cannot be packed")[0]
                    core.lifecycle.unsendable(session, message, problem)
                    self.wants_step()
            elif pipe.there.unsaid:
                self.world.network.send(pipe, pipe.there.pack([]), to_worker=False)
        # Only tasks that went on without a slot may run beyond the slots.
        assert core.queue.busy <= core.queue.slots + len(self.parking.beyond), (
            self.address,
            core.queue.busy,
        )
        self.parking.watch()

    def _dial(self, owner: str) -> None:
        """Ask the scheduler for an owner with undelivered posts, and drop the owner if gone."""
        self._dialled.discard(owner)
        if self.alive and not self.world.scheduler.expects(owner):
            self.core.posts.undeliverable(owner)
            self.wants_step()

    # ---- links ----

    def accept_link(self, pipe: Pipe) -> None:
        """Take a link of an owner."""
        self.pipes[pipe.owner.name] = pipe
        self.wants_step()

    def lose_link(self, owner: str) -> None:
        """Drop the link of an owner, if there is one."""
        pipe = self.pipes.pop(owner, None)
        if pipe is not None:
            self.world.network.pipes.pop(pipe, None)

    def orphan(self, owner: str) -> None:
        """Drop the link, the tasks and the values of an owner that is gone, and posts for it."""
        self.lose_link(owner)
        self.core.close(owner)
        self.core.posts.undeliverable(owner)
        self.wants_step()

    # ---- the end ----

    def leave(self) -> None:
        """Begin to leave in good order."""
        self.leaving = True
        self.core.leave()
        self.wants_step()

    def has_left(self) -> bool:
        """Hand objects of the owner over; return whether this worker can go without a loss."""
        core = self.core
        # An answer that no owner has acknowledged would be lost with this worker.
        unheard = any(p.there.unacknowledged or p.session.outbox for p in self.pipes.values())
        handed_over = self.owner.core.transfer.hand_over()
        self.owner.wants_step()
        unfinished = core.queue.busy or core.queue.crowd or core.keeps_values or unheard
        return handed_over and not unfinished

    def end(self) -> None:
        """End this process."""
        self.owner.end()
        self.world.clock.dirty.discard(self)
        self.parking.end()

    def accept(self, yes: bool) -> None:
        """Pause this worker, or have it go on."""
        self.core.set_accepting(yes, self.slots)
        self.wants_step()

    def forget_functions(self) -> None:
        """Forget all functions, as an executor with too many of them: owners send them again."""
        for session in self.core.sessions.values():
            for number in list(session.functions):
                session.forget_function(number)

    def _fetch(self, entry: Entry, index: int, absent: tuple[str, ...] = ()) -> None:
        """Fetch a value from the address of this index, or from the next ones.

        ``absent`` has the addresses without the value, as they said themselves.
        """
        if entry.state != ex.FETCHING or not self.alive:
            return
        if index >= len(entry.addresses):
            self.core.lifecycle.fetch_failed(entry, absent)
            self.wants_step()
            return
        address = entry.addresses[index]
        peer = self.world.workers.get(address)
        value = peer.store.find(entry.value_name) if peer is not None else None

        def arrive() -> None:
            if not self.alive:
                return
            if value is None:
                # A dead worker does not answer, and so says nothing of the value.
                said = absent if peer is None else (*absent, address)
                self._fetch(entry, index + 1, said)
            else:
                _, entry.contains = travel.loads(self.owner, value)
                rows = [future.row for future in entry.contains]
                self.owner.core.borrowing.when_acknowledged(rows, lambda: fetched(value))
            self.wants_step()

        def fetched(value: bytes) -> None:
            if self.alive:
                if entry.state == ex.FETCHING:
                    self.store.put(entry, value)
                self.core.lifecycle.fetched(entry)
                self.wants_step()

        parted = self.world.network.parted
        if peer is not None and (peer.frozen or parted(self.owner.name, peer.owner.name)):
            # No answer says nothing of the value: the next address is asked after a while.
            self.later(SILENCE, lambda: self._fetch(entry, index + 1, absent))
            return
        self.later(self.world.network.delay(), arrive)
