"""The executor of one worker: links from owners, and the flush that sends answers and leases slots.

Three kinds of threads meet here. The event loop takes in batches of owners and sends answers.
Runner threads take tasks from the core and run them, one slot each. A thread whose task waits for
another task is parked: the task gave its slot up, and the thread sleeps until a slot is free for
the task. One lock covers the core.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from tornado.ioloop import PeriodicCallback

from dask_ownership.config import value_of
from dask_ownership.core.executor import session as ex
from dask_ownership.core.executor.effects import ExecutorEffects
from dask_ownership.core.executor.executor import ExecutorCore
from dask_ownership.core.executor.session import Entry
from dask_ownership.core.owner.rows.failure_counts import ORPHANED
from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol.messages import Origin, Process, ValueName
from dask_ownership.core.protocol.names import INCARNATION, KEY, NAME, owner_ref_of, worker_of
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
from dask_ownership.runtime.owner.owner import LocalRef, Owner
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
"""How many of the owners that are gone an executor remembers, the latest ones."""

WATCH_INTERVAL = 100
"""Milliseconds between looks at the worker's status and at tasks that wait for slots."""


class Executor:
    """Runs owned tasks at one worker, and has an owner for the tasks that these submit.

    All parts of an executor meet here: hence the many attributes and methods.

    Parameters
    ----------
    worker : distributed.Worker
    secret : str
        The secret of the cluster.
    incarnation : str
        The incarnation of the owner at this worker, which names the process to its peers.
    task_client : object
        The object that tasks find as their client.
    ask : Ask
        Asks the scheduler for the members of the cluster, for the owner.
    undelivered : callable
        ``undelivered(owners)`` has the owners of these incarnations link to this worker, because
        posts for them wait here.

    Attributes
    ----------
    worker, incarnation, task_client
        As given.
    core, lock : ExecutorCore, threading.Lock
        The lock covers the core.
    slots, resources : SlotLease, ResourceLease
    store : Store
        Values that are kept here.
    owner : Owner
        Owns the tasks that tasks of this worker submit.
    links : dict
        Incarnation of an owner to the link from that owner.
    dropped : dict
        Incarnations of owners that are gone for good, the latest `DROPPED_OWNERS` of them.
    endings, flushing : Endings, Flushing
        Takes the outcomes of tasks; has the loop call `flush`.
    threads, coroutines, parking : Threads, Coroutines, Parking
        Where tasks run, and where they wait without a slot.
    fetcher, pool : Fetcher, RoutedPool
        Fetches inputs, over connections that leave values packed.
    closed, leaving : bool
        Whether this executor has ended, and whether the worker is about to leave.
    watch : Watch
        Has the observer of tasks, if there is one.
    inline_limit : int
        Bytes above which a pickled result stays here in place of travelling in the answer.
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
        totals, pools = self.resources.totals, partial(threads_of, worker)
        self.core = ExecutorCore(
            self.slots.nthreads, totals, incarnation, leases=True, pool_threads=pools
        )
        self.store = Store(worker)
        self.inline_limit: int = value_of("ownership.inline.limit")
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
        """Start leasing slots of the worker, and have blocking calls of Dask park owned tasks."""
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
        """Cancel fetches and coroutines, drop all sessions, and end the idle runner threads."""
        self.closed = True
        self._looks.stop()
        await self.fetcher.close()
        for link in self.links.values():
            if link.channel is not None:
                link.channel.abort()
        self.endings.timeouts.close()
        self.coroutines.close()
        with self.lock:
            for owner in list(self.core.sessions):
                self.core.close(owner)
            # Slots for all: parked threads that wait for one go on, and find that all is over.
            self.core.queue.slots = 1 << 30
            while (work := self.core.queue.next_work()) is not None:
                if not isinstance(work, Entry):
                    work.release()
        self.threads.close()
        self.slots.close()
        self.resources.release(dict(self.resources.leased), done=True)
        await self.pool.close()

    def _runs(self, key: Any) -> bool:
        """Return whether a task with this key runs here, of any owner: ``secede()`` names none."""
        return any(
            (entry := session.entries.get(key)) is not None and entry.state == ex.RUNNING
            for session in list(self.core.sessions.values())
        )

    # ---- links ----

    def link_of(self, owner: str, process: Process | None = None) -> ExecutorLink:
        """Return the link from an owner, made with the session of the owner when it is new.

        ``process`` is None for an owner that scatters values before it links.
        """
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
        """Make the link to the owner in this process, which needs no connection.

        ``deliver`` takes batches for the owner; the returned function takes batches of the owner.
        """
        owner = process[INCARNATION]
        link = self.link_of(owner, process)
        link.local = deliver
        # The owner may have scattered values here before it linked, which opened its session:
        # answers and posts may have been numbered since.
        for batch in link.state.resume(0):
            deliver(batch)

        def received(batch: Any) -> None:
            if batch == BYE:
                self.drop_owner(owner, died=False)
            else:
                self.receive(link, batch)

        return received

    def drop_owner(self, owner: str, died: bool = True) -> None:
        """Drop the tasks, values and link of an owner that is gone for good.

        Should the owner live all the same, its links are refused with the reason. ``died`` is
        False for an owner that closed, and so gave its tasks up itself: they are no losses.
        """
        self.dropped[owner] = None
        if len(self.dropped) > DROPPED_OWNERS:
            del self.dropped[next(iter(self.dropped))]
        with self.lock:
            orphaned = self.core.close(owner)
            self.core.posts.undeliverable(owner)
        if died:
            self.owner.core.losses[ORPHANED] += orphaned
        link = self.links.pop(owner, None)
        if link is not None and link.channel is not None:
            link.channel.abort()
        self.owner.members.process_gone(owner)
        self.flush()

    def drop_owners_at(self, worker: str) -> None:
        """Drop all owners at a worker that is gone; ``worker`` is the incarnation."""
        for owner in [one for one in self.links if worker_of(one) == worker]:
            self.drop_owner(owner)

    def undeliverable(self, owner: str) -> None:
        """Drop an owner unknown to the scheduler; senders of posts to it hear so. Loop thread."""
        with self.lock:
            self.core.posts.undeliverable(owner)
        self.drop_owner(owner)

    def deliver(self, posts: Iterable[Any]) -> None:
        """Pass on posts of the owner in this process. Loop thread."""
        with self.lock:
            for message in posts:
                self.core.posts.deliver(message)
        self.flushing.soon()

    def receive(self, link: ExecutorLink, batch: Any) -> None:
        """Take in a batch of an owner, and answer. Loop thread."""
        messages = link.state.receive(batch)
        with self.lock:
            self.core.acknowledged(link.session, link.state.acknowledged)
            if messages:
                self.core.commands.receive(link.session, messages)
        if messages:
            self._provide()
            # A post for another owner leaves with the next flush: until then more may come.
            if self.core.effects.passed_on:
                self.flushing.soon()
            # Most batches of pushes cause no answer yet: runner threads flush when tasks end.
            if self.core.effects or link.session.outbox or link.state.unsaid >= UNSAID_BATCHES:
                self.flush()

    def _unsendable(self, session: ex.Session, message: m.Message, error: Exception) -> None:
        """Fail the task of an answer that cannot be packed. Loop thread."""
        where = f"its owner {session.process[NAME]} from {self.worker.address}"
        with self.lock:
            self.core.lifecycle.unsendable(session, message, not_sendable(message, where, error))
        self.flushing.soon()

    def _not_taken_in(self, session: ex.Session, message: m.Message, error: Exception) -> None:
        """Log a message that could not be taken in, and fail the task of a push. Loop thread."""
        logger.error("a message of %s was not taken in", session.process[NAME], exc_info=error)
        if message and message[m.KIND] == m.PUSH:
            self._unsendable(session, message, error)

    def child_submitted(self, entry: Entry, child: Any) -> None:
        """Name a child of a task to the task's owner, if the owner looks for it. Any thread."""
        row = self.owner.core.table.find(child)
        if row is None:
            return
        local_ref = LocalRef(self.owner, row)
        self.owner.drop(row)  # the local reference that `find` took
        self.owner.export(row)
        origin = self.owner.core.table.origin_of(row)
        with self.lock:
            self.core.child_submitted(entry, child, origin, local_ref)
        self.flushing.soon()

    def mark_exported(self, heir: Origin) -> None:
        """Mark a running task: futures of its children may be in other processes. Any thread.

        The answer of a marked task leaves only when its owner has heard to keep the task
        (`Endings`). Nothing happens when the task does not run here.
        """
        entry = current_entry()
        # The caller usually is the task itself. Otherwise the entry is found by its key. Without
        # the lock: an entry that is replaced meanwhile was not running.
        if entry is None or owner_ref_of(entry.heir) != owner_ref_of(heir):
            session = self.core.sessions.get(heir[INCARNATION])
            entry = session.entries.get(heir[KEY]) if session is not None else None
        if entry is not None:
            entry.exported = True

    def _look_for(self, entry: Entry, children: Iterable[Any]) -> None:
        """Name children to the owner of their parent, as far as they exist here.

        A child is found by its key, also when another attempt of the parent submitted the child.
        """
        for child in children:
            self.child_submitted(entry, child)

    # ---- slots ----

    def _provide(self) -> None:
        """Lease slots and resources for waiting tasks, and wake threads for them. Loop thread."""
        core = self.core
        if core.queue.resources.aside:
            with self.lock:
                core.queue.lend(self.resources.acquire)
        # A paused worker starts nothing, but what it started goes on.
        wanted = len(core.queue.resuming) + (core.queue.queued if self.slots.running else 0)
        wanted -= core.queue.slots - core.queue.busy  # slots that are leased and free
        if wanted > 0:
            core.queue.slots += self.slots.acquire(wanted)
        with self.lock:
            self.threads.wake()

    def _stock_went_on(self) -> None:
        """Flush soon after a stimulus of the worker's state machine, which may have freed a slot
        or a resource for which an owned task waits."""
        core = self.core
        if (
            core.queue.resources.aside
            or self.slots.reserved
            or ((core.queue.queued or core.queue.resuming) and core.queue.slots <= core.queue.busy)
        ):
            self.flushing.soon()

    # ---- flushing ----

    def flush(self) -> None:
        """Send answers, carry out effects of the core, return slots and resources. Loop thread."""
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
                    # An owner that never linked here has to be asked to link, or never hears of a
                    # post or of the departure. All else can wait until the owner links by itself.
                    if link.waits_for_first and any(
                        message[m.KIND] in (m.POST, m.LEAVING) for message in session.outbox
                    ):
                        unlinked.append(session.owner)
                    outgoing.append((link, session.outbox, session.fresh))
                    session.outbox, session.fresh = [], []
                elif link.state.unsaid >= UNSAID_BATCHES:
                    outgoing.append((link, [], []))
            effects = core.effects.take()
            undelivered = [*core.posts.undelivered, *unlinked]
            # Ordinary Dask tasks get one slot at a time while both kinds of tasks wait, and all
            # free ones when no owned task waits. A busy slot is returned when its task ends.
            if self.slots.overdue:
                core.queue.slots = max(0, core.queue.slots - 1)
            elif not core.queue.queued and not core.queue.resuming:
                core.queue.slots = core.queue.busy
            surplus = self.slots.leased - max(core.queue.slots, core.queue.busy)
            # The same for resources: what no task has now goes back when tasks of the state
            # machine have waited long enough, or when no owned task is queued.
            spare: dict[str, float] = {}
            here_now = core.queue.resources.available
            if here_now and (core.queue.resources.yielding or not core.queue.queued):
                spare, core.queue.resources.available = here_now, {}
        # Outside the lock: packing and writing take long, and runner threads need the core.
        for link, messages, fresh in outgoing:
            try:
                last = link.send(messages)
                if fresh:
                    with self.lock:
                        core.packed(link.session, last, fresh)
            except Exception:
                # Answers for other owners still leave, and the steps below still happen.
                logger.exception("answers for %s were not sent", link.session.process[NAME])
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
        """Carry out the effects of the core: each of them, also when one before has failed."""
        for name in effects.freed:  # the storage may be the user's own, and raise
            _try("a value was not deleted", self.store.delete, name)
        if effects.fetches:
            _try("values are not fetched", self.fetcher.fetch, effects.fetches)
        for entry in effects.interrupted:
            _try("a coroutine was not cancelled", self.coroutines.cancel, entry)
            _try("what cancelled tasks submitted goes on", self._cancel_children, entry)
        for entry, children in effects.watched:
            _try("what is looked for may not be found", self._look_for, entry, children)
        for broken in effects.broken:
            _try("a task was not ended", self._not_taken_in, *broken)
        if effects.posts:
            _try("posts were not taken in", self.owner.posted, effects.posts)

    def _cancel_children(self, entry: Entry) -> None:
        """Cancel the children of a cancelled task, which the owner in this process has."""
        parent = (entry.session.owner, entry.key, entry.attempt)
        detail = f"the task {entry.key!r} that submitted it was cancelled"
        self.owner.call(self.owner.core.cancel_children, parent, detail)

    def _look(self) -> None:
        """Look at changes without an event: the worker's status, threads, resources and free
        slots, and tasks standing still."""
        running = self.slots.running and not self.leaving
        nthreads = self.slots.nthreads
        if self._totals != self.resources.totals:
            self._totals = dict(self.resources.totals)
            with self.lock:
                self.core.resources_changed()
        if running != self.core.queue.accepting or nthreads != self.core.queue.nthreads:
            with self.lock:
                self.core.set_accepting(running, nthreads)
        # Looks in a row at which no task had ended since the last: see `Crowd.relieve`.
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
        # Tasks that parked tasks wait for may not have left the owner in this process yet.
        if awaited:
            self.owner.hurry(awaited)
        self.flush()
        # Acknowledge batches that caused no answer: an owner keeps a batch until then.
        for link in self.links.values():
            if link.state.unsaid:
                link.send([])

    # ---- leaving ----

    def leave(self) -> None:
        """Start no more tasks, and have owners move their values away. Loop thread."""
        self.leaving = True
        with self.lock:
            self.core.leave()

    def stay(self) -> None:
        """Start tasks again, because the worker was not retired after all. Loop thread."""
        self.leaving = False
        self.owner.core.transfer.stay()

    def can_leave(self, move: bool, wait: bool) -> bool:
        """Return whether this worker can leave without a loss. Loop thread.

        Each call has the owner in this process go on with handing its objects over. With ``wait``
        no wanted task may run, with ``move`` no value may be left, and connected owners must have
        acknowledged every answer.
        """
        if not self.owner.hand_over(move):
            return False
        with self.lock:  # runner threads add and remove entries
            if (wait and self.core.awaits_tasks) or (move and self.core.keeps_values):
                return False
        return not any(
            link.channel is not None and link.state.unacknowledged for link in self.links.values()
        )

    # ---- values ----

    def stored(self, name: ValueName) -> Any:
        """Return the value of this name, which is kept here for an owner.

        Raises
        ------
        KeyError
            When no such value is here.
        """
        entry = self.core.find_value(*name)
        if entry is None:
            raise KeyError(name)
        return self.store.get(entry)

    def hold(self, owner: str, key: Any, number: int, value: Any, contains: Any = None) -> int:
        """Keep a scattered value for its owner, who numbers it like an attempt; its bytes.

        ``contains`` has local references for the futures inside; None has the value searched for
        futures.
        """
        entry = Entry(self.link_of(owner).session, key, number)
        if contains is None and type(value) not in ATOMS:
            contains = futures_in(value)
        entry.contains = contains or None
        nbytes = self.store.put(entry, value)
        with self.lock:
            self.core.lifecycle.keep(entry)
        return nbytes


def _try(otherwise: str, call: Callable[..., object], *arguments: object) -> None:
    """Call a function, and log ``otherwise`` in place of raising, so that the next steps happen."""
    try:
        call(*arguments)
    except Exception:
        logger.exception(otherwise)
