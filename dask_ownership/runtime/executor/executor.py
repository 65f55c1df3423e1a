"""The executor of one worker: links from owners, and a loop that sends and provides.

Three kinds of threads meet here. The event loop takes batches in and sends them
out. Runner threads take tasks from the core and run them, one slot each. A thread
whose task waits for another is parked: it gave its slot up and sleeps until it is
handed one again. One lock covers the core.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import dask
from dask.utils import parse_bytes
from tornado.ioloop import PeriodicCallback

from dask_ownership.core.executor import session as ex
from dask_ownership.core.executor.effects import ExecutorEffects
from dask_ownership.core.executor.executor import ExecutorCore
from dask_ownership.core.executor.session import Entry
from dask_ownership.core.owner.rows.failure_counts import ORPHANED
from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol.messages import Origin, Process, ValueName
from dask_ownership.core.protocol.names import worker_of
from dask_ownership.runtime.comm.link import BYE, UNSAID_BATCHES, ExecutorLink
from dask_ownership.runtime.comm.packing import not_sendable
from dask_ownership.runtime.comm.reach import RoutedPool
from dask_ownership.runtime.dask.client import block_in
from dask_ownership.runtime.dask.slots import ResourceLease, SlotLease
from dask_ownership.runtime.dask.worker import watch_stimuli
from dask_ownership.runtime.executor.endings import Endings
from dask_ownership.runtime.executor.fetcher import Fetcher
from dask_ownership.runtime.executor.flushing import Flushing
from dask_ownership.runtime.executor.inputs import Inputs
from dask_ownership.runtime.executor.named_executors import threads_of
from dask_ownership.runtime.executor.store import Store
from dask_ownership.runtime.executor.threads import Coroutines, Threads
from dask_ownership.runtime.executor.watch import Watch
from dask_ownership.runtime.owner.members import Ask
from dask_ownership.runtime.owner.owner import Handle, Owner
from dask_ownership.runtime.parking import (
    await_without_slot,
    await_without_slot_if_long,
    caller_without_slot,
    caller_without_slot_if_long,
)
from dask_ownership.runtime.serialize import ATOMS, futures_in
from dask_ownership.runtime.task import current_entry

logger = logging.getLogger("dask_ownership.executor")

DROPPED_OWNERS = 10_000
"""Owners that are remembered to be gone."""

WATCH_INTERVAL = 100
"""Milliseconds between looks at the worker's status and at tasks that wait for slots."""


class Executor:
    """Runs owned tasks at one worker, and has an owner for what these submit.

    It is where all that takes part meets, and so has an attribute for each.

    Parameters
    ----------
    worker : distributed.Worker
    secret : str
        The cluster's.
    incarnation : str
        Of the worker.
    task_client : object
        What tasks find as their client.
    ask : Ask
        Asks the scheduler who is there, for the owner.
    undelivered : callable
        ``undelivered(owners)`` has clients link to this worker, which has something for them.

    Attributes
    ----------
    owner : Owner
    links : dict
        Incarnation of an owner to the link from it.
    dropped : dict
        Incarnations of owners that are gone for good, the latest of them.
    endings : Endings
        What became of tasks.
    flushing : Flushing
        Has the loop send what there is.
    leaving : bool
        Whether the worker is about to leave.
    watch : Watch
        Who looks at tasks.
    inline_limit : int
        Bytes of a pickled result that may travel.
    """

    def __init__(
        self,
        worker: Any,
        secret: str,
        incarnation: str,
        task_client: Any,
        ask: Ask,
        undelivered: Callable[[list[str]], None],
    ) -> None:
        self.worker = worker
        self.incarnation = incarnation
        self.task_client = task_client
        self._undelivered = undelivered
        self._loop: asyncio.AbstractEventLoop = worker.loop.asyncio_loop
        self.lock = threading.Lock()
        self.slots = SlotLease(worker)
        self.resources = ResourceLease(worker)
        self.core = ExecutorCore(self.slots.nthreads, self.resources.totals, incarnation)
        self.core.queue.slots = 0
        self.core.queue.resources.available = {}
        self.core.queue.resources.threads = partial(threads_of, worker)
        self.store = Store(worker)
        self.inline_limit = int(parse_bytes(dask.config.get("ownership.inline.limit", "64 KiB")))
        self.links: dict[str, ExecutorLink] = {}
        self.dropped: dict[str, None] = {}
        self.closed = False
        self.watch = Watch()
        connection_args = worker.security.get_connection_args("worker")
        self.owner = Owner(
            connection_args,
            worker.address,
            ask,
            self,
            secret=secret,
            scheduler=lambda: worker.scheduler.address,
        )
        self.flushing = Flushing(self._loop, self.flush)
        self.endings = Endings(
            worker, self.core, self.lock, self.owner, self.flushing, self._provide
        )
        self.threads = Threads(
            worker,
            self.core,
            self.lock,
            task_client=task_client,
            endings=self.endings,
            flushing=self.flushing,
            look_for=self._look_for,
            watch=self.watch,
        )
        self.parking = self.threads.parking
        self.coroutines = Coroutines(
            worker,
            self.lock,
            task_client=task_client,
            endings=self.endings,
            wake=self.threads.wake,
            look_for=self._look_for,
            watch=self.watch,
        )
        self.pool = RoutedPool(
            self.owner.reach, deserialize=False, connection_args=connection_args, server=worker
        )
        inputs = Inputs(
            self.core,
            self.lock,
            self.store,
            self.owner,
            task_client,
            address=worker.address,
            provide=self._provide,
            flush=self.flush,
        )
        self.fetcher = Fetcher(
            self.pool,
            incarnation,
            self.owner.token,
            worker.address,
            arrived=inputs.arrived,
            failed=inputs.failed,
            share=inputs.share,
            watch=self.watch,
        )
        self.leaving = False
        self._totals = dict(self.resources.totals)
        self._ended_at_last_look = 0
        self._idle_looks = 0
        self._looks = PeriodicCallback(self._look, WATCH_INTERVAL)

    async def start(self) -> None:
        """Have the worker share its slots, and begin."""
        await self.pool.start()
        self.slots.start()
        watch_stimuli(self.worker, self._runs, self._stock_went_on)
        block_in(
            caller_without_slot,
            await_without_slot,
            caller_without_slot_if_long,
            await_without_slot_if_long,
        )
        self._looks.start()

    async def close(self) -> None:
        """Drop everything and end the threads that are idle."""
        self.closed = True
        self._looks.stop()
        await self.fetcher.close()
        for link in self.links.values():
            if link.channel is not None:
                link.channel.abort()
        self.endings.clocks.close()
        self.coroutines.close()
        with self.lock:
            for owner in list(self.core.sessions):
                self.core.close(owner)
            self.core.queue.slots = 1 << 30  # parked threads go on, to find that all is over
            while (work := self.core.queue.next_work()) is not None:
                if not isinstance(work, Entry):
                    work.release()
        self.threads.close()
        self.slots.close()
        self.resources.release(dict(self.resources.leased), done=True)
        await self.pool.close()

    def _runs(self, key: Any) -> bool:
        """Whether an owned task of this key has a thread here."""
        return any(
            (entry := session.entries.get(key)) is not None and entry.state == ex.RUNNING
            for session in list(self.core.sessions.values())
        )

    # ---- links ----

    def link_of(self, owner: str, process: Process | None = None) -> ExecutorLink:
        link = self.links.get(owner)
        if link is None:
            with self.lock:
                session = self.core.open(owner)
            session.runtime = self
            link = self.links[owner] = session.link = ExecutorLink(
                session, partial(self._unsendable, session)
            )
        if process is not None:
            link.session.process = process
        return link

    def local_link(self, process: Process, deliver: Any) -> Any:
        """A link to the owner in this process; what to call with its batches."""
        owner = process[0]
        link = self.link_of(owner, process)
        link.local = deliver
        # What was said before this owner linked: it may have scattered values here first.
        for batch in link.state.resume(0):
            deliver(batch)

        def received(batch: Any) -> None:
            if batch == BYE:
                self.drop_owner(owner, died=False)
            else:
                self.receive(link, batch)

        return received

    def drop_owner(self, owner: str, died: bool = True) -> None:
        """An owner is gone for good; should it live all the same, it hears so.

        ``died`` is False for one that closed, and so gave up its tasks itself.
        """
        self.dropped[owner] = None
        if len(self.dropped) > DROPPED_OWNERS:
            del self.dropped[next(iter(self.dropped))]
        with self.lock:
            orphaned = self.core.close(owner)
            self.core.undeliverable(owner)
        if died:
            self.owner.core.losses[ORPHANED] += orphaned
        link = self.links.pop(owner, None)
        if link is not None and link.channel is not None:
            link.channel.abort()
        self.owner.members.process_gone(owner)
        self.flush()

    def drop_owners_at(self, worker: str) -> None:
        """A worker is gone, and the owners there with it."""
        for owner in [one for one in self.links if worker_of(one) == worker]:
            self.drop_owner(owner)

    def undeliverable(self, owner: str) -> None:
        """The scheduler knows no such owner: what it was to hear goes nowhere. Loop thread."""
        with self.lock:
            self.core.undeliverable(owner)
        self.drop_owner(owner)

    def deliver(self, posts: Iterable[Any]) -> None:
        """Pass on what the owner in this process posts. Loop thread."""
        with self.lock:
            for message in posts:
                self.core.deliver(message)
        self.flushing.soon()

    def receive(self, link: ExecutorLink, batch: Any) -> None:
        """A batch of an owner. Loop thread."""
        messages = link.state.receive(batch)
        with self.lock:
            self.core.acknowledged(link.session, link.state.acknowledged)
            if messages:
                self.core.receive(link.session, messages)
        if messages:
            self._provide()
            if self.core.effects.passed_on:
                self.flushing.soon()
            if self.core.effects or link.session.outbox or link.state.unsaid >= UNSAID_BATCHES:
                self.flush()

    def _unsendable(self, session: ex.Session, message: m.Message, error: Exception) -> None:
        """An answer cannot be packed: the task that it is about fails. Loop thread."""
        where = f"its owner {session.process[2]} from {self.worker.address}"
        with self.lock:
            self.core.unsendable(session, message, not_sendable(message, where, error))
        self.flushing.soon()

    def _not_taken_in(self, session: ex.Session, message: m.Message, error: Exception) -> None:
        """A message could not be taken in: the task that it is about fails. Loop thread."""
        logger.error("a message of %s was not taken in", session.process[2], exc_info=error)
        if message and message[0] == m.PUSH:
            self._unsendable(session, message, error)

    def made(self, entry: Entry, child: Any) -> None:
        """A task submitted a child, which may be one that is sought. Any thread."""
        row = self.owner.core.table.find(child)
        if row is None:
            return
        handle = Handle(self.owner, row)
        self.owner.drop(row)  # the one that looking it up took
        self.owner.export(row)
        origin = self.owner.core.table.origin_of(row)
        with self.lock:
            self.core.made(entry, child, origin, handle)
        self.flushing.soon()

    def say_escaped(self, heir: Origin) -> None:
        """Futures of what this task submitted may be elsewhere, if it runs here. Any thread."""
        entry = current_entry()
        if entry is None or entry.heir[:4] != heir[:4]:
            session = self.core.sessions.get(heir[0])
            entry = session.entries.get(heir[3]) if session is not None else None
        if entry is not None:
            entry.exported = True

    def _look_for(self, entry: Entry, children: Iterable[Any]) -> None:
        """Name those children that are sought and there, however they were made."""
        for child in children:
            self.made(entry, child)

    # ---- slots ----

    def _provide(self) -> None:
        """Lease resources and slots for what waits, wake as many threads. Loop thread."""
        core = self.core
        if core.queue.resources.aside:
            with self.lock:
                core.queue.lend(self.resources.acquire)
        # A paused worker starts nothing, but what it started goes on.
        wanted = len(core.queue.resuming) + (core.queue.queued if self.slots.running else 0)
        wanted -= core.queue.slots - core.queue.busy
        if wanted > 0:
            core.queue.slots += self.slots.acquire(wanted)
        with self.lock:
            self.threads.wake()

    def _stock_went_on(self) -> None:
        """The state machine did something: what waits here may have a slot or a resource now."""
        core = self.core
        if (
            core.queue.resources.aside
            or self.slots.reserved
            or ((core.queue.queued or core.queue.resuming) and core.queue.slots <= core.queue.busy)
        ):
            self.flushing.soon()

    # ---- flushing ----

    def flush(self) -> None:
        """Send answers, fetch and free what the core decided, return slots. Loop thread."""
        self.flushing.scheduled = False
        core = self.core
        if core.queue.queued or core.queue.resuming or core.queue.resources.aside:
            self._provide()
        outgoing: list[tuple[ExecutorLink, list[Any], list[Entry]]] = []
        unlinked: list[str] = []
        with self.lock:
            for link in self.links.values():
                session = link.session
                if session.outbox:
                    if link.waits_for_first and any(
                        message[0] in (m.POST, m.LEAVING) for message in session.outbox
                    ):
                        unlinked.append(session.owner)
                    outgoing.append((link, session.outbox, session.fresh))
                    session.outbox, session.fresh = [], []
                elif link.state.unsaid >= UNSAID_BATCHES:
                    outgoing.append((link, [], []))
            effects = core.effects.take()
            undelivered = [*core.undelivered, *unlinked]
            if self.slots.overdue:
                core.queue.slots = max(0, core.queue.slots - 1)
            elif not core.queue.queued and not core.queue.resuming:
                core.queue.slots = core.queue.busy
            surplus = self.slots.leased - max(core.queue.slots, core.queue.busy)
            spare: dict[str, float] = {}
            here_now = core.queue.resources.available
            if here_now and (core.queue.resources.yielding or not core.queue.queued):
                spare, core.queue.resources.available = here_now, {}
        for link, messages, fresh in outgoing:
            try:
                last = link.send(messages)
                if fresh:
                    with self.lock:
                        core.packed(link.session, last, fresh)
            except Exception:
                # What other owners are to hear, and the rest below, goes on.
                logger.exception("answers for %s were not sent", link.session.process[2])
        if surplus > 0 or (
            self.slots.reserved and not core.queue.queued and not core.queue.resuming
        ):
            _try("slots were not given back", self.slots.release, max(surplus, 0))
        if spare or (self.resources.reserved and not core.queue.resources.aside):
            done = not core.queue.resources.aside
            _try("resources were not given back", self.resources.release, spare, done)
        if self.resources.leased or core.queue.resources.yielding:
            core.queue.resources.yielding = self.resources.overdue
        if undelivered:
            _try("posts are not under way", self._undelivered, undelivered)
        if effects is not None:
            self._carry_out(effects)

    def _carry_out(self, effects: ExecutorEffects) -> None:
        """Do what the core decided, beside what goes to owners."""
        for name in effects.freed:  # the storage may be the user's
            _try("a value was not deleted", self.store.delete, name)
        if effects.fetches:
            _try("values are not fetched", self.fetcher.fetch, effects.fetches)
        for entry in effects.interrupted:
            _try("a coroutine was not cancelled", self.coroutines.cancel, entry)
            _try("what cancelled tasks submitted goes on", self._cancel_children, entry)
        for entry, children in effects.sought:
            _try("what is sought may not be found", self._look_for, entry, children)
        for broken in effects.broken:
            _try("a task was not ended", self._not_taken_in, *broken)
        if effects.posts:
            _try("posts were not taken in", self.owner.posted, effects.posts)

    def _cancel_children(self, entry: Entry) -> None:
        """Cancel what a cancelled task submitted."""
        parent = (entry.session.owner, entry.key, entry.attempt)
        detail = f"the task {entry.key!r} that submitted it was cancelled"
        self.owner.call(self.owner.core.cancel_children, parent, detail)

    def _look(self) -> None:
        """What nobody tells: the worker's status, its threads, slots that came free."""
        running = self.slots.running and not self.leaving
        nthreads = self.slots.nthreads
        if self._totals != self.resources.totals:
            self._totals = dict(self.resources.totals)
            with self.lock:
                self.core.resources_changed()
        if running != self.core.queue.accepting or nthreads != self.core.queue.nthreads:
            with self.lock:
                self.core.set_accepting(running, nthreads)
        self._idle_looks = (
            self._idle_looks + 1 if self.endings.counts["run"] == self._ended_at_last_look else 0
        )
        self._ended_at_last_look = self.endings.counts["run"]
        with self.lock:
            self.core.queue.crowd.relieve(self._idle_looks * WATCH_INTERVAL / 1000)
            self.core.queue.exclusion.look(self._loop.time())
        if self.core.queue.queued:
            self._provide()
        awaited = self.parking.look()
        if awaited:
            self.owner.hurry(awaited)
        self.flush()
        for link in self.links.values():
            if link.state.unsaid:
                link.send([])

    # ---- leaving ----

    def leave(self) -> None:
        """Start nothing more, and have owners move the values that are here. Loop thread."""
        self.leaving = True
        with self.lock:
            self.core.leave()

    def stay(self) -> None:
        """Go on: the worker is not retired after all. Loop thread."""
        self.leaving = False
        self.owner.core.transfer.stay()

    def can_leave(self, move: bool, wait: bool) -> bool:
        """Whether nothing runs that is waited for, nothing has to be moved, and every answer
        has arrived. Loop thread."""
        core = self.core
        return (
            self.owner.hand_over(move)
            and not (wait and core.awaits_tasks)
            and not (move and core.keeps_values)
            and not any(
                link.channel is not None and link.state.unacknowledged
                for link in self.links.values()
            )
        )

    # ---- values ----

    def stored(self, name: ValueName) -> Any:
        """A value of an owner that is kept here.

        Raises
        ------
        KeyError
            When it is not here.
        """
        entry = self.core.find_value(*name)
        if entry is None:
            raise KeyError(name[1])
        return self.store.get(entry)

    def hold(self, owner: str, key: Any, number: int, value: Any, contains: Any = None) -> int:
        """Keep a scattered value for its owner; its size in bytes.

        ``contains`` holds the futures inside; they are looked for when it is None.
        """
        entry = Entry(self.link_of(owner).session, key, number)
        if contains is None and type(value) not in ATOMS:
            contains = futures_in(value)
        entry.contains = contains or None
        nbytes = self.store.put(entry, value)
        with self.lock:
            self.core.keep(entry)
        return nbytes


def _try(otherwise: str, call: Callable[..., object], *arguments: object) -> None:
    """Do one thing of several; when it fails, the others are done all the same."""
    try:
        call(*arguments)
    except Exception:
        logger.exception(otherwise)
