"""The owner of one process, on a real cluster: drives the core of the owner on an event loop.

A submitting thread leaves a row in the owner's inbox. The event loop takes in the inbox, lets the
core decide, and sends each worker the messages in its outbox, as one batch. Results come back the
same way. There is one owner per client and one per worker, of the same class; the owner at a worker
serves tasks that submit tasks.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from time import perf_counter, time
from typing import Any, TypeVar
from uuid import uuid4
from weakref import WeakSet

import dask
from dask.utils import parse_timedelta
from distributed.system import MEMORY_LIMIT

from dask_ownership.config import value_of
from dask_ownership.core.owner.ownership import OwnerCore
from dask_ownership.core.owner.references.detached import LineageSpec
from dask_ownership.core.owner.rows.limits import Limits
from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.owner.rows.worker_view import WorkerView
from dask_ownership.core.owner.scheduling.builtin import BuiltinFunctions
from dask_ownership.core.protocol.messages import Message, Origin, Process
from dask_ownership.runtime.comm.link import UNSAID_BATCHES
from dask_ownership.runtime.comm.reach import Reach, RoutedPool
from dask_ownership.runtime.comm.request import Backoff
from dask_ownership.runtime.comm.secret import proof
from dask_ownership.runtime.functions import Functions
from dask_ownership.runtime.owner.backlog import Backlog
from dask_ownership.runtime.owner.connections import Connections
from dask_ownership.runtime.owner.event_log import EventLog
from dask_ownership.runtime.owner.failure_detector import FailureDetector
from dask_ownership.runtime.owner.home import Home
from dask_ownership.runtime.owner.inbox import Inbox
from dask_ownership.runtime.owner.members import Ask, Members
from dask_ownership.runtime.owner.waiting import Waiting
from dask_ownership.runtime.serialize import Slot, dumps, identity, nothing

logger = logging.getLogger("dask_ownership.owner")

Result = TypeVar("Result")

TICK = 0.005
"""Seconds between two calls of `Owner._tick` while there may be tasks to recall, or batches to
acknowledge."""

SWEEP = 0.03
"""Seconds after which dropped local references are counted off."""


def max_bytes(of: str) -> int:
    """Return ``ownership.<of>.max-bytes``; by default a tenth of the memory, at most 1 GiB."""
    configured: int | None = value_of(f"ownership.{of}.max-bytes")
    return int(min(1 << 30, MEMORY_LIMIT // 10)) if configured is None else configured


class LocalRef:
    """One local reference to a row, dropped when this object goes.

    Parameters
    ----------
    owner : Owner
    row : Row
    """

    __slots__ = ("owner", "row")

    def __init__(self, owner: Owner, row: Row) -> None:
        owner.core.table.hold(row)
        self.owner = owner
        self.row = row

    def __del__(self) -> None:
        # A finalizer may run in any thread, at any moment: `drop` only appends to a deque.
        self.owner.drop(self.row)


class Owner:
    """The owner of one client or worker: its rows, links and waiting threads.

    The methods for any thread are methods of `inbox` and `waiting`, bound here under the same
    names. One more call in between would cost as much as a good part of the work of `submit` or
    `drop`: hence the many attributes and methods.

    Parameters
    ----------
    connection_args : dict
        Arguments for connections, from the cluster's security, for the role of this process.
    name : str
        The client's id or the worker's address, for messages and logs.
    ask : Ask
        Asks the scheduler for the members of the cluster.
    executor : Home, optional
        The executor in this process.
    secret : str
        The secret of the cluster, where known. The owner of a client has none, and gets its token
        when it joins.
    scheduler : callable, optional
        Returns the address of the scheduler, which relays to workers that cannot be dialled.
    tell_backlog : callable, optional
        ``tell_backlog(tasks)`` tells the scheduler how many tasks wait for a worker.

    Attributes
    ----------
    incarnation : str
        The name of this life of the owner, which no other owner ever has.
    name : str
    executor : Home or None
    lock : threading.Lock
        Covers the counts of rows, and the waiters of rows.
    functions : Functions
        Records of the functions that tasks call.
    core : OwnerCore
    inbox : Inbox
        Items of any thread for the core.
    process, place, task_order, submit, expect, begin, call, check_open
        As in `Inbox`, for tasks.
    drop, drop_all, dropped, find, known, arrive, export, pin, open
        As in `Inbox`, for local references and for futures that travel.
    waiting : Waiting
        Threads and coroutines that wait for rows.
    wait, wait_at, wait_async
        As in `Waiting`.
    reach : Reach
        The ways to workers: direct connections, and relays.
    pool : RoutedPool
        Connections for requests to workers beside the links; leaves values packed.
    backoff : Backoff
        How long such a request may stall.
    members : Members
        The members of the cluster.
    connections : Connections
        The links to workers.
    promoted : dict of str to LocalRef
        Objects that the central scheduler may read, by their names there.
    streams : WeakSet of Stream
        Streams of tasks that have not been dropped, for those who look; changed under ``lock``.
    """

    def __init__(
        self,
        connection_args: dict[str, Any],
        name: str,
        ask: Ask,
        executor: Home | None = None,
        *,
        secret: str = "",
        scheduler: Callable[[], str] | None = None,
        tell_backlog: Callable[[int], None] | None = None,
    ) -> None:
        self.incarnation = executor.incarnation if executor is not None else uuid4().hex
        self.name = name
        self.executor = executor
        self.lock = threading.Lock()
        address = executor.worker.address if executor is not None else None
        self.functions = Functions(self._forget_function)
        self.core = core = OwnerCore(
            self.lock,
            home=address,
            process=(self.incarnation, address or "", name),
            clock=time,
            trace_inline=value_of("ownership.lineage.inline"),
            limits=Limits(
                allowed_failures=value_of("distributed.scheduler.allowed-failures"),
                inline_bytes=max_bytes("inline"),
                lineage_bytes=max_bytes("lineage"),
            ),
            # Functions that the core calls on its own account are pickled as those of users.
            functions=BuiltinFunctions(
                self.functions.get(identity), self.functions.get(nothing), dumps(((Slot(0),), {}))
            ),
        )
        self.inbox = inbox = Inbox(core, executor, self.step)
        self.process = inbox.process
        self.place, self.task_order = inbox.place, inbox.task_order
        self.submit, self.expect, self.begin = inbox.submit, inbox.expect, inbox.begin
        self.drop, self.drop_all, self.dropped = inbox.drop, inbox.drop_all, inbox.dropped
        self.find, self.known = inbox.find, inbox.known
        self.arrive, self.export, self.pin = inbox.arrive, inbox.export, inbox.pin
        self.open, self.call, self.check_open = inbox.open, inbox.call, inbox.check_open
        self.waiting = waiting = Waiting(self.lock, inbox.check_open, executor)
        self.wait, self.wait_at, self.wait_async = waiting.wait, waiting.wait_at, waiting.wait_async
        # `Reach` and `Members` need `Connections`, which is made after them: functions find it.
        self.reach = Reach(
            connection_args,
            scheduler,
            asker=lambda: self.incarnation,
            token=lambda: self.token,
            now_direct=lambda address: self.connections.now_direct(address),
        )
        self.pool = RoutedPool(self.reach, deserialize=False, connection_args=connection_args)
        self._failure_detector = FailureDetector(core, self.step)
        self.backoff = Backoff(self._failure_detector.limit)
        self._event_log = EventLog(core)
        self.members = Members(
            core,
            self._event_log,
            ask,
            proof(secret, self.incarnation) if secret else "",
            lambda view: self.connections.end(view),
            self.step,
        )
        self.connections = Connections(
            core,
            executor,
            self.reach,
            self.pool,
            self._failure_detector.limit,
            token=lambda: self.token,  # not known yet, when a client has still to join
            received=self.received,
            call=inbox.call,
            refused=self.members.refused,
            unreachable=self.members.unreachable,
        )
        self.promoted: dict[str, LocalRef] = {}
        self.streams: WeakSet[Any] = WeakSet()
        # `_ticking` and `_sweeping` say whether a timer is running already.
        self._backlog = Backlog(core.placement, tell_backlog)
        self._ticking = False
        self._sweeping = False
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        """Begin on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self.waiting.start()
        await self.pool.start()
        self._failure_detector.start()
        self.inbox.start()

    @property
    def closed(self) -> bool:
        """Whether the owner takes no more tasks."""
        return self.inbox.closed

    @property
    def lost(self) -> str:
        """The reason when the owner closed because the scheduler is gone; else empty."""
        return self.inbox.lost

    @property
    def token(self) -> str:
        """The token that proves this owner's incarnation to other processes of the cluster."""
        return self.members.token

    @property
    def holder(self) -> Process:
        """The process that holds the objects in queues, variables and datasets."""
        return self.members.holder

    def promotion_over(self, names: Iterable[str]) -> None:
        """Let go of promoted objects that the central scheduler has forgotten. Stream handler."""
        for name in names:
            self.promoted.pop(name, None)

    def _forget_function(self, number: int) -> None:
        """Have workers forget a function when its record is gone. Any thread, at any moment."""
        # Through the inbox: the record may go in any thread, in the middle of any code.
        if not self.inbox.closed:
            self.call(self.core.dispatch.forget, number)

    # ---- the loop ----

    def call_now(self, function: Callable[..., Result], *args: Any) -> Result:
        """Call a function of the core after all earlier items of the inbox, and send. Loop thread.

        Return the result of the function.
        """
        self.inbox.process()
        result = function(*args)
        self.step()
        return result

    def hold(self, origins: Iterable[Origin], spec: LineageSpec) -> list[Row]:
        """Hold objects of other owners; return rows with a local reference each. Loop thread.

        The ``spec`` says how the objects are made.
        """
        return self.call_now(self.core.detached.hold, origins, spec)

    async def held(self, rows: Sequence[Row]) -> None:
        """Wait until the owners of held rows may leave: all there is by now is taken over."""
        counted = asyncio.Event()
        # A held row is an alias: its dependency is the borrowed row of the object at the old owner.
        sources = [source for row in rows for source in row.dependencies]
        self.core.borrowing.when_acknowledged(sources, counted.set)
        await counted.wait()
        await self.wait_async([row for row in rows if not self.core.detached.settled(row)])

    def cancel(self, rows: Iterable[Row], detail: str) -> None:
        """Cancel rows, and all rows that depend on them. Loop thread.

        The text ``detail`` says why.
        """
        self.call_now(self.core.cancel, rows, detail)

    def retry(self, rows: Iterable[Row]) -> None:
        """Run failed rows again, with the failed rows that they need. Loop thread."""
        self.call_now(self.core.retry, rows)

    def hurry(self, rows: Iterable[Row]) -> None:
        """Push ready rows to this worker that its parked tasks wait for. Loop thread.

        For a worker with a full crowd (`executor.crowd`): no other task may begin there. The worker
        gets the rows even when it wants no more tasks.
        """
        self.call_now(self.core.hurry, rows, perf_counter() * 1e6)

    def received(self, view: WorkerView, messages: Any) -> None:
        """Take in a batch of answers of a worker."""
        self.core.receive(view, messages, perf_counter() * 1e6)
        self.step()

    def step(self) -> None:
        """Drive the core one step: schedule, tell waiters, and send the messages for workers.

        Loop thread; after each change to the core.
        """
        core = self.core
        # First messages of this process to itself: they may make rows ready.
        if core.peers.talking:
            core.peers.say_to_itself()
        core.schedule(perf_counter() * 1e6)
        # Posts go into the outboxes of workers or into the effects, and both are emptied below.
        if core.peers.talking or core.posting.waiting:
            self._post()
        if core.refusals:
            self.members.settle_refused()
        self._carry_out_effects()
        # Busy: a worker may have tasks to recall, or has batches here that are to be acknowledged.
        busy = False
        for view in list(core.placement.workers.values()):
            # Each batch acknowledges the batches received. Without messages, an empty batch does so
            # when there are many.
            if view.outbox:
                messages, view.outbox = view.outbox, []
                self.connections.to(view).send(messages)
            elif view.link is not None and view.link.state.unsaid >= UNSAID_BATCHES:
                view.link.send([])
            if (
                view.active > view.nthreads
                or view.reserved
                or (view.link is not None and view.link.state.unsaid)
            ):
                busy = True
        busy = busy or bool(core.peers.talking)
        loop = self._loop
        assert loop is not None
        if busy and not self._ticking:
            self._ticking = True
            loop.call_later(TICK, self._tick)
        # Both timers run only while there is work for them.
        if (
            not self._sweeping
            and (core.table.rows or self.inbox.gone or self._backlog.size)
            and not self.inbox.closed
        ):
            self._sweeping = True
            loop.call_later(SWEEP, self._sweep)

    def _carry_out_effects(self) -> None:
        """Carry out the effects that the core decided on, beside the messages for workers."""
        effects = self.core.effects.take()
        if effects is None:
            return
        for where, error in effects.broken:
            logger.error("%s: %s", self.name, where, exc_info=error)
        if effects.posts:
            self._deliver(effects.posts)
        if effects.completed:
            self._tell(effects.completed)
        loop = self._loop
        for seconds, function, args in effects.timers:
            assert loop is not None
            loop.call_later(seconds, self._due, function, args)

    def _deliver(self, posts: list[Message]) -> None:
        """Have the executor in this process pass posts on to other processes."""
        assert self.executor is not None  # only an owner at a worker posts by itself
        self.executor.deliver(posts)

    def _post(self, acknowledge: bool = False) -> None:
        """Send the messages for other owners."""
        posting = self.core.posting
        posting.flush(acknowledge)
        # Posts by way of the executor leave before later answers of the executor, see `post_now`.
        if posts := self.core.effects.take_posts():
            self._deliver(posts)
        if posting.waiting:  # posts for a worker that no message of the scheduler has named yet
            self.members.ask_soon()

    def _due(self, function: Callable[..., None], args: tuple[Any, ...]) -> None:
        """Call a function of the core whose time has come, unless the owner is closed."""
        if not self.inbox.closed:
            function(*args)
            self.step()

    def post_now(self) -> None:
        """Send the messages for other owners before any later message. Loop thread.

        For the end of a task whose children's futures have left this process: the owner of the task
        is asked to retain the task before it hears of the end.
        """
        if self.core.peers.talking:
            self._post()

    def hand_over(self, stored: bool) -> bool:
        """Hand objects over to their heirs, because this process is about to leave. Loop thread.

        Parameters
        ----------
        stored : bool
            Whether to hand over objects with stored values as well; a worker has to stay for these.

        Returns
        -------
        bool
            Whether all objects are handed over. If not, call `hand_over` again after a while.
        """
        done = self.core.transfer.hand_over(stored)
        self.step()
        return done

    def posted(self, posts: Iterable[Message]) -> None:
        """Take in posts of other processes. Loop thread."""
        self.core.posting.receive(posts)
        self.step()

    def _sweep(self) -> None:
        """Count off dropped local references, and do the work that no event starts. Loop thread."""
        self._sweeping = False
        if not self.inbox.closed:
            self.task_order.grow_old()
            self._event_log.look()
            if not self._ticking:
                # Without ticks, no worker has more tasks than threads. Yet these tasks may queue
                # behind tasks of other owners, and are recalled for idle workers then.
                self.core.tick(perf_counter() * 1e6)
            self.inbox.process()
            self._event_log.stuck(perf_counter())
            # Rows are infeasible only when there is no worker at all, or when they are restricted.
            if not self.core.placement.workers or self.core.placement.any_restricted:
                self._expire_infeasible()
            self._backlog.look()

    def _expire_infeasible(self) -> None:
        """End rows that no worker may run and that waited too long, if so configured."""
        timeout = dask.config.get("distributed.scheduler.no-workers-timeout", None)
        if timeout is not None:
            self.core.infeasible.expire(perf_counter(), parse_timedelta(timeout))
            self.step()

    def _tell(self, completed: list[Row]) -> None:
        """Tell the waiters of rows that ended, once."""
        # Waiters are called without the lock, which they may take themselves.
        with self.lock:
            told = [(row, row.waiters) for row in completed]
            for row in completed:
                row.waiters = None
        for row, waiters in told:
            for waiter in waiters or ():
                try:
                    waiter.row_done(row)
                except Exception:
                    # The event loop of a waiter may be closed; other waiters must still be told.
                    logger.exception("one that waited for %r could not be told", row.key)

    def _tick(self) -> None:
        """Recall tasks for idle workers, and acknowledge batches that nothing else acknowledged."""
        self._ticking = False
        if self.inbox.closed:
            return
        self.core.tick(perf_counter() * 1e6)
        self._post(acknowledge=True)
        # Batches that no batch in the other direction has acknowledged by now.
        for view in self.core.placement.workers.values():
            if view.link is not None and view.link.state.unsaid and not view.outbox:
                view.link.send([])
        self.step()

    # ---- the end ----

    async def close(self, lost: str = "") -> None:
        """Close the owner: end all rows, tell all waiters, and end all links.

        Parameters
        ----------
        lost : str
            Why the scheduler is gone, when the owner closes because of it. Values and errors in
            this process can still be read then.
        """
        if self.inbox.closed:
            return
        self._failure_detector.stop()
        self.inbox.close(lost)
        # Other owners hear that this owner leaves, and workers get the rest of their outboxes,
        # before the links say that the owner closes.
        self.core.posting.flush()
        self._carry_out_effects()
        for view in list(self.core.placement.workers.values()):
            if view.outbox and view.link is not None:
                messages, view.outbox = view.outbox, []
                view.link.send(messages)
        self.members.close()
        await self.connections.close()
        self.promoted.clear()
        await self.reach.close()
        await self.pool.close()
