"""The executor of one worker: slots and threads, links from owners, the store.

Three kinds of threads meet here. The event loop takes batches in and sends them
out. Runner threads take tasks from the core and run them, one slot each. A thread
whose task waits for another is parked: it gave its slot up and sleeps until it is
handed one again. One lock covers the core.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from time import time
from typing import Any

import dask
from dask.utils import parse_bytes
from distributed.comm import Comm
from distributed.core import ConnectionPool, Status
from distributed.protocol import Serialize, Serialized
from tornado.ioloop import PeriodicCallback

from dask_ownership.core import messages as m
from dask_ownership.core import session as ex
from dask_ownership.core.executor import Executor as Core
from dask_ownership.core.identity import worker_of
from dask_ownership.core.losses import ORPHANED
from dask_ownership.core.messages import Origin, Process, ValueName
from dask_ownership.core.session import Entry
from dask_ownership.errors import NotSerializable, TaskTimeout
from dask_ownership.runtime.channel import Channel, channel, has_stream
from dask_ownership.runtime.clocks import Clocks
from dask_ownership.runtime.dask.client import block_in, current_client
from dask_ownership.runtime.dask.slots import ResourceLease, SlotLease
from dask_ownership.runtime.dask.worker import (
    current_worker,
    pool_state,
    thread_state,
    watch_stimuli,
)
from dask_ownership.runtime.link import BYE, PROTOCOL, UNSAID_BATCHES, ExecutorLink
from dask_ownership.runtime.operations import Refusals, operation, refusal
from dask_ownership.runtime.owner import Handle
from dask_ownership.runtime.packing import not_sendable
from dask_ownership.runtime.parking import (
    Parking,
    Pool,
    await_without_slot,
    await_without_slot_if_long,
    caller_without_slot,
    caller_without_slot_if_long,
)
from dask_ownership.runtime.pools import custom_default, run_in_pool, threads_of
from dask_ownership.runtime.runner import (
    Outcome,
    current_entry,
    here,
    run_in_thread,
    run_on_loop,
)
from dask_ownership.runtime.secret import SCHEDULER, proof, proves
from dask_ownership.runtime.serialize import ATOMS, dumps_error, futures_in
from dask_ownership.runtime.store import Store
from dask_ownership.runtime.transfer import Fetcher, pack, unpack_off_loop

logger = logging.getLogger("dask_ownership.executor")

SPARE_THREADS = 8
"""Idle threads that are kept beyond the worker's slots."""

LEAVE_INTERVAL = 0.02
"""Seconds between looks at whether a worker can leave."""

STAY = 60.0
"""Seconds after which a worker that was to leave and is still there works again."""

DROPPED_OWNERS = 10_000
"""Owners that are remembered to be gone."""

FAILURES = 20
"""Of how many tasks that failed it is remembered why."""

WATCH_INTERVAL = 100
"""Milliseconds between looks at the worker's status and at tasks that wait for slots."""


class Executor:
    """Runs owned tasks at one worker.

    Parameters
    ----------
    worker : distributed.Worker
    secret : str
        The cluster's.
    incarnation : str
        Of the worker.
    """

    _thread_numbers = itertools.count(1)

    def __init__(self, worker: Any, secret: str, incarnation: str) -> None:
        self.worker = worker
        self.secret = secret
        self.incarnation = incarnation
        self.lock = threading.Lock()
        self.slots = SlotLease(worker)
        self.resources = ResourceLease(worker)
        self.core = Core(self.slots.nthreads, self.resources.totals)
        self.core.queue.slots = 0
        self.core.queue.resources.available = {}
        self.core.queue.resources.threads = partial(threads_of, worker)
        self._totals = dict(self.resources.totals)
        self.store = Store(worker)
        self.inline_limit = int(parse_bytes(dask.config.get("ownership.inline.limit", "64 KiB")))
        self.links: dict[str, ExecutorLink] = {}
        self.closed = False
        self.leaving = False
        self.counts = {"run": 0, "coroutines": 0, "failed": 0, "returned": 0}
        self.failures: deque[tuple[int, Any, float, bytes]] = deque(maxlen=FAILURES)
        self._dropped: dict[str, None] = {}
        self._refusals = Refusals()
        self.owner: Any = None
        self.on_interrupted: Any = None
        self.on_undelivered: Any = None
        self.on_ran: Callable[[Entry, Outcome, float], None] | None = None
        self.on_step: Callable[[Entry, str, float], None] | None = None
        self.task_client: Any = None
        self.loop: asyncio.AbstractEventLoop = worker.loop.asyncio_loop
        self._context = contextvars.copy_context()
        self._sleepers: list[threading.Lock] = []
        self._waking = 0
        self._ended_at_last_look = 0
        self._idle_looks = 0
        self._threads: set[threading.Thread] = set()
        self._flush_scheduled = False
        self.parking = Parking(worker, self.core, self.lock, self._wake, self.flush_soon)
        self._pool = Pool(self.parking)
        self.pool = ConnectionPool(
            deserialize=False,
            connection_args=worker.security.get_connection_args("worker"),
            server=worker,
        )
        self.fetcher = Fetcher(
            self.pool,
            incarnation,
            proof(secret, incarnation),
            worker.address,
            self._arrived,
            self._fetch_failed,
            self._share,
        )
        self.clocks = Clocks(self.loop, self._expired)
        self._coroutines: dict[Entry, asyncio.Task[None]] = {}
        self._watch = PeriodicCallback(self._look, WATCH_INTERVAL)

    async def start(self) -> None:
        """Register what peers call, and begin."""
        await self.pool.start()
        handlers = self.worker.handlers
        handlers["ownership_link"] = self.link
        handlers["ownership_get"] = self._operation(self.get, "reader")
        handlers["ownership_put"] = self._operation(self.put, "owner")
        handlers["ownership_leave"] = self.scheduler_operation(self.leave)
        self.slots.start()
        watch_stimuli(self.worker, self._runs, self._stock_went_on)
        block_in(
            caller_without_slot,
            await_without_slot,
            caller_without_slot_if_long,
            await_without_slot_if_long,
        )
        self._watch.start()

    async def close(self) -> None:
        """Drop everything and end the threads that are idle."""
        self.closed = True
        self._watch.stop()
        for name in ("ownership_link", "ownership_get", "ownership_put", "ownership_leave"):
            self.worker.handlers.pop(name, None)
        await self.fetcher.close()
        for link in self.links.values():
            if link.channel is not None:
                link.channel.abort()
        self.clocks.close()
        for entry in self._coroutines:
            self._cancel_coroutine(entry)
        with self.lock:
            for owner in list(self.core.sessions):
                self.core.close(owner)
            self.core.queue.slots = 1 << 30  # parked threads go on, to find that all is over
            while (work := self.core.queue.next_work()) is not None:
                if not isinstance(work, Entry):
                    work.release()
            sleepers, self._sleepers = self._sleepers, []
        for sleeper in sleepers:
            sleeper.release()
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

    def stranger(self, name: Any, token: Any) -> str | None:
        """Why somebody is none of this cluster, or None. What it says may be of any type."""
        if proves(self.secret, name, token):
            return None
        return (
            f"the worker {self.worker.address} does not know this owner's token: is it of this "
            "cluster?"
        )

    def _operation(self, handler: Callable[..., Any], caller: str) -> Callable[..., Any]:
        """A handler for the members of this cluster, who say who they are as ``caller``."""
        check = lambda message: self.stranger(message.get(caller), message.get("token"))  # noqa: E731
        return operation(handler, check, self._refusals)

    def scheduler_operation(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        """A handler for the scheduler."""
        check = lambda message: self.stranger(SCHEDULER, message.get("token"))  # noqa: E731
        return operation(handler, check, self._refusals)

    def _refuse(self, owner: Any, token: Any, protocol: Any, greeting: Any) -> str | None:
        """Why a link is not taken, or None."""
        address = self.worker.address
        if protocol != PROTOCOL:
            return (
                f"the worker {address} speaks version {PROTOCOL} of the ownership protocol and "
                f"the owner version {protocol!r:.20}: install the same dask_ownership in both "
                "places"
            )
        reason = self.stranger(owner, token)
        if reason is None and tuple(map(type, greeting)) != (int, str, str):
            reason = f"the worker {address} does not understand this greeting"
        if reason is None and self._closing:
            reason = f"the worker {address} is closing"
        if reason is None and owner in self._dropped:
            reason = f"the worker {address} was told that this owner is gone"
        return reason

    @property
    def _closing(self) -> bool:
        return self.closed or self.worker.status in (Status.closing, Status.closed)

    async def link(
        self,
        comm: Comm,
        owner: Any = "",
        protocol: Any = None,
        token: Any = None,
        received: Any = 0,
        stream: Any = False,
        name: Any = "",
        address: Any = "",
        to: Any = "",
        **hello: Any,
    ) -> Any:
        """Handler of ``ownership_link``: take a connection over for good."""
        reason = self._refuse(owner, token, protocol, (received, name, address))
        if reason is not None:
            gone = type(owner) is str and owner in self._dropped
            if not self._closing and not gone:
                where = comm.peer_address.rpartition(":")[0]
                self._refusals.say(f"an owner at {where}", reason)
            return refusal(reason)
        if to != worker_of(self.incarnation):
            return {"status": "another"}
        link = self._link_of(owner, (owner, address, name))
        stream = bool(stream) and has_stream(comm)
        made: Channel | None = None
        try:
            await comm.write(
                {
                    "status": "OK",
                    "received": link.state.received,
                    "stream": stream,
                }
            )
            if link.channel is not None:
                link.channel.abort()
            # No await from here until the channel is there: a batch that is numbered
            # meanwhile would be neither among those sent again nor written by itself.
            made = channel(comm, stream)
            for frame in link.packing.again(received):
                made.write(frame)
            link.channel = made
            self._flush()
            await made.listen(lambda batch: self._arrived_on(link, batch))
        except (OSError, ValueError) as error:
            logger.debug("link of %s: %r", owner, error)
        finally:
            if link.channel is made:
                link.channel = None
            comm.abort()
        return Status.dont_reply

    def _arrived_on(self, link: ExecutorLink, batch: Any) -> bool:
        """A batch came; whether it was the last."""
        if batch == BYE:
            self.drop_owner(link.session.owner, died=False)
            return True
        self.receive(link, batch)
        return False

    async def leave(self, timeout: float, move: bool = True, wait: bool = True) -> bool:
        """Handler of ``ownership_leave``: get ready to be retired or restarted.

        Starts nothing more, has owners move the values that are here, hands over what this
        worker's own tasks left with others, and waits for that and for what runs; whether
        all of it was done in time. Without ``move`` values stay, because no other worker is
        there. Without ``wait`` what runs is not waited for. A worker that is not retired
        after all goes on when a while has passed.
        """
        self.leaving = True
        self.loop.call_later(timeout + STAY, self._stay)
        with self.lock:
            self.core.leave()
        deadline = self.loop.time() + timeout
        while not (left := self._can_leave(move, wait)) and self.loop.time() < deadline:
            self._flush()
            await asyncio.sleep(LEAVE_INTERVAL)
        return left

    def _can_leave(self, move: bool, wait: bool) -> bool:
        """Whether nothing runs that is waited for, nothing has to be moved, and every answer
        has arrived."""
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

    def _stay(self) -> None:
        self.leaving = False
        self.owner.core.adoption.stay()

    def _link_of(self, owner: str, process: Process | None = None) -> ExecutorLink:
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
        link = self._link_of(owner, process)
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
        self._dropped[owner] = None
        if len(self._dropped) > DROPPED_OWNERS:
            del self._dropped[next(iter(self._dropped))]
        with self.lock:
            orphaned = self.core.close(owner)
            self.core.undeliverable(owner)
        if died:
            self.owner.core.losses[ORPHANED] += orphaned
        link = self.links.pop(owner, None)
        if link is not None and link.channel is not None:
            link.channel.abort()
        self.owner.members.process_gone(owner)
        self._flush()

    def drop_owners_at(self, worker: str) -> None:
        """A worker is gone, and the owners there with it."""
        for owner in [one for one in self.links if worker_of(one) == worker]:
            self.drop_owner(owner)

    def deliver(self, posts: Iterable[Any]) -> None:
        """Pass on what the owner in this process posts. Loop thread."""
        with self.lock:
            for message in posts:
                self.core.deliver(message)
        self.flush_soon()

    def receive(self, link: ExecutorLink, batch: Any) -> None:
        """A batch of an owner. Loop thread."""
        messages = link.state.receive(batch)
        with self.lock:
            self.core.acknowledged(link.session, link.state.acknowledged)
            if messages:
                self.core.receive(link.session, messages)
        if self.core.broken:
            self._say_what_broke()
        if messages:
            self._provide()
            if self.core.sought:
                sought, self.core.sought = self.core.sought, []
                for entry, children in sought:
                    self._look_for(entry, children)
            if self.core.posts:
                posts, self.core.posts = self.core.posts, []
                self.owner.posted(posts)
            if self.core.passed_on:
                self.core.passed_on = False
                self.flush_soon()
            if (
                self.core.fetches
                or self.core.freed
                or self.core.interrupted
                or link.session.outbox
                or link.state.unsaid >= UNSAID_BATCHES
            ):
                self._flush()

    def _unsendable(self, session: ex.Session, message: m.Message, error: Exception) -> None:
        """An answer cannot be packed: the task that it is about fails. Loop thread."""
        where = f"its owner {session.process[2]} from {self.worker.address}"
        with self.lock:
            self.core.unsendable(session, message, not_sendable(message, where, error))
        self.flush_soon()

    def _say_what_broke(self) -> None:
        """Have tasks fail whose messages could not be taken in. Loop thread."""
        broken, self.core.broken = self.core.broken, []
        for session, message, error in broken:
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
        self.owner.escapes(row)
        origin = self.owner.core.table.origin_of(row)
        with self.lock:
            self.core.made(entry, child, origin, handle)
        self.flush_soon()

    def say_escaped(self, heir: Origin) -> None:
        """Futures of what this task submitted may be elsewhere, if it runs here. Any thread."""
        entry = current_entry()
        if entry is None or entry.heir[:4] != heir[:4]:
            session = self.core.sessions.get(heir[0])
            entry = session.entries.get(heir[3]) if session is not None else None
        if entry is not None:
            entry.escaped = True

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
            self._wake()

    def _stock_went_on(self) -> None:
        """The state machine did something: what waits here may have a slot or a resource now."""
        core = self.core
        if (
            core.queue.resources.aside
            or self.slots.reserved
            or ((core.queue.queued or core.queue.resuming) and core.queue.slots <= core.queue.busy)
        ):
            self.flush_soon()

    def _wake(self) -> None:
        """Set threads to work for what free slots can take. The lock is held."""
        core = self.core
        free = core.queue.slots - core.queue.busy
        while free > 0 and (parked := core.queue.resume_next()) is not None:
            parked.release()
            free -= 1
        for _ in range(min(free, core.queue.startable) - self._waking):
            self._waking += 1
            if self._sleepers:
                self._sleepers.pop().release()
            else:
                thread = threading.Thread(
                    target=self._run_thread,
                    name=f"Dask-Ownership-Threads-{next(self._thread_numbers)}",
                    daemon=True,
                )
                self._threads.add(thread)
                thread.start()

    def _run_thread(self) -> None:
        """A runner thread: one task after another, asleep when there is none."""
        current_worker.set(self.worker)
        current_client.set(self.task_client)
        thread_state.execution_state = self.worker.execution_state
        pool_state.executor = self._pool
        pool_state.proceed = True
        base = contextvars.copy_context()
        core = self.core
        lock = self.lock
        sleeper = threading.Lock()
        sleeper.acquire()
        active = self.worker.active_threads
        ident = threading.get_ident()
        default = custom_default(self.worker)
        lock.acquire()
        self._waking -= 1
        try:
            while True:
                work = core.queue.next_work()
                if work is None:
                    if self.closed or len(self._sleepers) >= core.queue.nthreads + SPARE_THREADS:
                        return
                    self._sleepers.append(sleeper)
                    lock.release()
                    with self.worker.active_threads_lock:
                        active.pop(ident, None)
                    self.flush_soon()
                    sleeper.acquire()
                    lock.acquire()
                    self._waking -= 1
                    continue
                lock.release()
                if type(work) is Entry:
                    if work.options is not None and "timeout" in work.options:
                        self.clocks.start(work, work.options["timeout"])
                    name = (
                        default if work.options is None else work.options.get("executor", default)
                    )
                    if name is None:
                        outcome = run_in_thread(work, base)
                        parked = here.parked
                    else:
                        thread_state.start_time = time()
                        outcome, parked = run_in_pool(work, name, base, self._pool)
                    on_ran = self.on_ran  # once: the loop takes it away at any time
                    if on_ran is not None and outcome is not None:
                        on_ran(work, outcome, thread_state.start_time)
                    if work.sought:
                        self._look_for(work, tuple(work.sought))
                    lock.acquire()
                    if outcome is not None:
                        self._ended(work, outcome, parked)
                    outcome = None  # a thread that sleeps keeps no result
                else:
                    work.release()
                    lock.acquire()
        finally:
            with self.worker.active_threads_lock:
                active.pop(ident, None)
            self._threads.discard(threading.current_thread())
            lock.release()

    def _ended(self, entry: Entry, outcome: Outcome, parked: bool) -> None:
        """A task came to its end. The lock is held."""
        core = self.core
        self.counts["run"] += 1
        if entry.options is not None and "timeout" in entry.options:
            self.clocks.stop(entry)
        entry.contains = outcome.contains
        ran = outcome.gave_back is None or outcome.gave_back[0] == m.RESCHEDULED
        if (entry.arrived is not None or entry.escaped) and ran:
            # Its owner keeps what it sent until this is said: not before this process is
            # counted itself for the futures that came. And it forgets how to run the task,
            # unless it has heard before that it is to be kept.
            rows, entry.arrived = entry.arrived or (), None
            self.owner.call(
                self.owner.core.borrowing.when_counted, rows, lambda: self._report(entry, outcome)
            )
        else:
            self._tell(entry, outcome)
        if parked:
            core.queue.ended_parked(entry)
        else:
            core.queue.released_slot()
        if not self._flush_scheduled:
            self.flush_soon()

    def _report(self, entry: Entry, outcome: Outcome) -> None:
        """Say what became of a task whose slot is free already. Loop thread."""
        if entry.escaped:
            self.owner.post_now()
            self.owner.core.retention.when_kept(
                entry.session.owner, entry.task, lambda: self._say(entry, outcome)
            )
        else:
            self._say(entry, outcome)

    def _say(self, entry: Entry, outcome: Outcome) -> None:
        with self.lock:
            self._tell(entry, outcome)
        self._provide()
        self.flush_soon()

    def _tell(self, entry: Entry, outcome: Outcome) -> None:
        """Have its owner hear of it. The lock is held."""
        if outcome.gave_back is not None:
            self.counts["returned"] += 1
            self.core.give_back(entry, *outcome.gave_back)
        elif outcome.state == ex.GONE:
            if outcome.message[0] == m.FAILED:
                self.counts["failed"] += 1
                self.failures.append((self.counts["failed"], entry.key, time(), outcome.message[3]))
            self.core.failed(entry, outcome.message)
        else:
            self.core.succeeded(entry, outcome.message, outcome.state, outcome.value)

    # ---- coroutine tasks ----

    def run_coroutine(self, *call: Any) -> None:
        """Start a coroutine task on the loop; its slot goes with it."""
        self.loop.call_soon_threadsafe(self._start_coroutine, call)

    def _start_coroutine(self, call: tuple[Any, ...]) -> None:
        self._coroutines[call[0]] = asyncio.ensure_future(self._coroutine(*call))

    def _cancel_coroutine(self, entry: Entry) -> None:
        """Have a coroutine task meet `asyncio.CancelledError`; others go on. Loop thread."""
        task = self._coroutines.get(entry)
        if task is not None:
            # Behind its first step: one that never began would not give its slot back.
            self.loop.call_soon(task.cancel)

    async def _coroutine(self, entry: Entry, *call: Any) -> None:
        current_worker.set(self.worker)
        current_client.set(self.task_client)
        self.counts["coroutines"] += 1
        began = time()
        outcome = await run_on_loop(entry, *call)
        if self.on_ran is not None:
            self.on_ran(entry, outcome, began)
        if entry.sought:
            self._look_for(entry, tuple(entry.sought))
        del self._coroutines[entry]
        with self.lock:
            # Awaits that it started and left behind find that there is no slot to take.
            parked = entry.parks > 0
            entry.parks = -1 << 30
            self._ended(entry, outcome, parked)
            self._wake()

    # ---- tasks whose time is up ----

    def _expired(self, entry: Entry) -> None:
        """A task ran for longer than it may. Loop thread."""
        address = self.worker.address
        seconds = entry.options["timeout"] if entry.options else 0.0
        try:
            raise TaskTimeout(entry.key, address, seconds)
        except TaskTimeout as error:
            pickled = dumps_error(error, entry.key, f"worker {address}")
        with self.lock:
            self.core.expired(entry, (m.FAILED, entry.key, entry.attempt, pickled, seconds * 1e6))
        self.flush_soon()

    # ---- flushing ----

    def flush_soon(self) -> None:
        """Have the loop send what there is. Any thread."""
        if not self._flush_scheduled:
            self._flush_scheduled = True
            try:
                # Not in the caller's context: what is started from here is no part of its task.
                self.loop.call_soon_threadsafe(self._flush, context=self._context)
            except RuntimeError:
                pass  # the loop is closed, and with it everything else

    def _flush(self) -> None:
        """Send answers, fetch and free what the core decided, return slots. Loop thread."""
        self._flush_scheduled = False
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
            fetches, core.fetches = core.fetches, []
            freed, core.freed = core.freed, []
            undelivered = [*core.undelivered, *unlinked]
            interrupted, core.interrupted = core.interrupted, []
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
        for name in freed:  # the storage may be the user's
            _try("a value was not deleted", self.store.delete, name)
        if undelivered and self.on_undelivered is not None:
            _try("posts are not under way", self.on_undelivered, undelivered)
        if fetches:
            _try("values are not fetched", self.fetcher.fetch, fetches)
        for entry in interrupted:
            _try("a coroutine was not cancelled", self._cancel_coroutine, entry)
        if interrupted and self.on_interrupted is not None:
            _try("what cancelled tasks submitted goes on", self.on_interrupted, interrupted)

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
            self._idle_looks + 1 if self.counts["run"] == self._ended_at_last_look else 0
        )
        self._ended_at_last_look = self.counts["run"]
        with self.lock:
            self.core.queue.crowd.relieve(self._idle_looks * WATCH_INTERVAL / 1000)
            self.core.queue.exclusion.look(self.loop.time())
        if self.core.queue.queued:
            self._provide()
        awaited = self.parking.look()
        if awaited:
            self.owner.hurry(awaited)
        self._flush()
        for link in self.links.values():
            if link.state.unsaid:
                link.send([])

    # ---- values ----

    async def _arrived(self, entry: Entry, packed: Serialized) -> None:
        try:
            value, rows = await unpack_off_loop(packed, self.task_client)
        except Exception as error:
            self._fetch_failed(entry, str(error), ())
            return
        if not rows:
            self._keep_fetched(entry, value)
            return
        handles = [Handle(self.owner, row) for row in rows]
        # Whoever sent it keeps the futures inside until this one uses it: not before this
        # process is counted for them itself.
        self.owner.core.borrowing.when_counted(
            rows, lambda: self._keep_fetched(entry, value, handles)
        )

    def _keep_fetched(self, entry: Entry, value: Any, contains: Any = None) -> None:
        try:
            if entry.state == ex.FETCHING:
                entry.contains = contains
                self.store.put(entry, value)
        except Exception as error:
            self._fetch_failed(entry, str(error), ())
            return
        with self.lock:
            self.core.fetched(entry)
        self._provide()
        self._flush()

    def _share(self, entry: Entry) -> bool:
        """Take a value that another owner has at this very worker."""
        with self.lock:
            there = self.core.find_value(*entry.value_name)
            if there is None or entry.state != ex.FETCHING or not self.core.share(entry, there):
                return False
            self.core.fetched(entry)
        self._provide()
        self._flush()
        return True

    def _fetch_failed(self, entry: Entry, reason: str | None, absent: tuple[str, ...]) -> None:
        with self.lock:
            if reason is None:
                self.core.fetch_failed(entry, absent)
            else:
                try:
                    raise NotSerializable(
                        f"the input {entry.key!r} could not be brought to worker "
                        f"{self.worker.address}: {reason}"
                    )
                except NotSerializable as error:
                    self.core.fetch_impossible(
                        entry, dumps_error(error, entry.key, self.worker.address)
                    )
        self._flush()

    async def get(self, owner: str, names: Sequence[Any], reader: str) -> dict[str, Any]:
        """Handler of ``ownership_get``: values of one owner, those that are here.

        ``reader`` is the incarnation of who asks.
        """
        answer: dict[str, Any] = {"status": "OK"}
        found: list[Any] = []
        values: list[Serialized] = []
        unserializable: list[Any] = []
        reasons: list[str] = []
        for name in names:
            try:
                value = self.stored((owner, *name))
            except (KeyError, TypeError):
                continue
            except Exception as error:
                unserializable.append(name)
                reasons.append(f"it could not be read back: {error!r}")
                continue
            try:
                values.append(pack(value, self.worker.address))
                found.append(name)
            except Exception as error:
                unserializable.append(name)
                reasons.append(str(error))
        answer.update(names=found, values=values, unserializable=unserializable, reasons=reasons)
        return answer

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

    async def put(self, owner: str, data: Sequence[Any]) -> dict[str, Any]:
        """Handler of ``ownership_put``: values that an owner scatters here."""
        if self._closing:
            return refusal(f"the worker {self.worker.address} is closing")
        if owner in self._dropped:  # else nothing would ever free what it scatters
            return refusal(f"the worker {self.worker.address} was told that this owner is gone")
        if self.leaving:
            return {"status": "leaving"}
        sizes = []
        arrived: list[Any] = []
        for key, number, value in data:
            sealed = value.data if isinstance(value, Serialize) else value  # within a process
            packed = Serialized(sealed.header, sealed.frames)
            value, rows = await unpack_off_loop(packed, self.task_client)
            arrived.extend(rows)
            handles = [Handle(self.owner, row) for row in rows]
            sizes.append(self.hold(owner, key, number, value, handles))
        if arrived:
            # With the answer, whoever sent them may let go of the futures inside.
            counted = asyncio.Event()
            self.owner.core.borrowing.when_counted(arrived, counted.set)
            await counted.wait()
        return {"status": "OK", "nbytes": sizes}

    def hold(self, owner: str, key: Any, number: int, value: Any, contains: Any = None) -> int:
        """Keep a scattered value for its owner; its size in bytes.

        ``contains`` holds the futures inside; they are looked for when it is None.
        """
        entry = Entry(self._link_of(owner).session, key, number)
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
