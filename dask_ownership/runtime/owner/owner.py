"""The owner: what one process owns, on a real cluster.

A thread that submits leaves a row in the owner's inbox. The event loop takes the inbox in,
lets the core decide, and sends each worker what the core left in its outbox, one batch each.
Results come back the same way. There is one owner per client and one per worker,
the same class; the worker's serves tasks that submit tasks.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from time import perf_counter, time
from typing import Any, TypeVar
from uuid import uuid4

import dask
from dask.utils import parse_bytes, parse_timedelta
from distributed.system import MEMORY_LIMIT

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
"""Seconds between looks for work to recall, while any worker is idle and another is not."""

SWEEP = 0.03
"""Seconds after which rows whose handles went away are looked at."""


def max_bytes(of: str) -> int:
    """``ownership.<of>.max-bytes``, or a tenth of this machine's memory, at most 1 GiB."""
    configured = dask.config.get(f"ownership.{of}.max-bytes", None)
    if configured is not None:
        return int(parse_bytes(configured))
    return int(min(1 << 30, MEMORY_LIMIT // 10))


class Handle:
    """One handle on a row, given up when the last reference to this object goes."""

    __slots__ = ("owner", "row")

    def __init__(self, owner: Owner, row: Row) -> None:
        owner.core.table.hold(row)
        self.owner = owner
        self.row = row

    def __del__(self) -> None:
        self.owner.drop(self.row)


class Owner:
    """Rows, links and waiting of one client or worker.

    What any thread may call are functions of its `inbox` and of its `waiting`. They are bound
    here under their names, because one more call in between costs as much as a good part of
    what `submit` and `drop` do: hence the many attributes.

    Parameters
    ----------
    connection_args : dict
        Of the cluster's security, for the role of this process.
    name : str
        The client's id or the worker's address, for messages and logs.
    ask : Ask
        Asks the scheduler who is there.
    executor : Home, optional
        The executor in this process.
    secret : str
        The cluster's, where it is known. A client gets its token when it joins.
    scheduler : callable, optional
        Gives the address of the scheduler, which relays to workers that cannot be dialled.
    tell_backlog : callable, optional
        ``tell_backlog(tasks)`` has the scheduler hear how many tasks wait.

    Attributes
    ----------
    core : OwnerCore
    promoted : dict of str to Handle
        What the central scheduler may read, by its name there.
    functions : Functions
        Records of the functions that tasks call.
    reach : Reach
        The ways to workers.
    pool : RoutedPool
        For what is asked of workers beside the links, which leaves values packed.
    patience : Backoff
        For how long it is asked.
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
            trace_inline=bool(dask.config.get("ownership.lineage.inline", False)),
            limits=Limits(
                allowed_failures=int(dask.config.get("distributed.scheduler.allowed-failures")),
                inline_bytes=max_bytes("inline"),
                lineage_bytes=max_bytes("lineage"),
            ),
            functions=BuiltinFunctions(
                self.functions.get(identity), self.functions.get(nothing), dumps(((Slot(0),), {}))
            ),
        )
        self.inbox = inbox = Inbox(core, executor, self.step)
        self.process = inbox.process
        self.place, self.places = inbox.place, inbox.places
        self.submit, self.expect, self.begin = inbox.submit, inbox.expect, inbox.begin
        self.drop, self.drop_all, self.dropped = inbox.drop, inbox.drop_all, inbox.dropped
        self.find, self.known = inbox.find, inbox.known
        self.arrive, self.export, self.pin = inbox.arrive, inbox.export, inbox.pin
        self.open, self.call, self.check_open = inbox.open, inbox.call, inbox.check_open
        self.waiting = waiting = Waiting(self.lock, inbox.check_open, executor)
        self.wait, self.wait_at, self.wait_async = waiting.wait, waiting.wait_at, waiting.wait_async
        self.reach = Reach(
            connection_args,
            scheduler,
            asker=lambda: self.incarnation,
            token=lambda: self.token,
            now_direct=lambda address: self.connections.now_direct(address),
        )
        self.pool = RoutedPool(self.reach, deserialize=False, connection_args=connection_args)
        self._liveness = FailureDetector(core, self.step)
        self.patience = Backoff(self._liveness.limit)
        self._chronicle = EventLog(core)
        self.members = Members(
            core,
            self._chronicle,
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
            self._liveness.limit,
            token=lambda: self.token,
            received=self.received,
            call=inbox.call,
            refused=self.members.refused,
            unreachable=self.members.unreachable,
        )
        self.promoted: dict[str, Handle] = {}
        self._backlog = Backlog(core.placement, tell_backlog)
        self._ticking = False
        self._sweeping = False
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        """Begin on the event loop that is running."""
        self._loop = asyncio.get_running_loop()
        self.waiting.start()
        await self.pool.start()
        self._liveness.start()
        self.inbox.start()

    @property
    def closed(self) -> bool:
        """Whether nothing can be submitted any more."""
        return self.inbox.closed

    @property
    def lost(self) -> str:
        """Why it closed by itself, if it did."""
        return self.inbox.lost

    @property
    def token(self) -> str:
        """What proves to others of this cluster who this owner is."""
        return self.members.token

    @property
    def holder(self) -> Process:
        """Who holds what lies in queues, variables and datasets."""
        return self.members.holder

    def promotion_over(self, names: Iterable[str]) -> None:
        """Stream handler: the central scheduler has forgotten these."""
        for name in names:
            self.promoted.pop(name, None)

    def _forget_function(self, number: int) -> None:
        """The last reference to the record of a function is gone. Any thread, at any moment."""
        if not self.inbox.closed:
            self.call(self.core.dispatch.forget, number)

    # ---- the loop ----

    def call_now(self, function: Callable[..., Result], *args: Any) -> Result:
        """Do something to the core, after what was submitted before, and send. Loop thread."""
        self.inbox.process()
        result = function(*args)
        self.step()
        return result

    def hold(self, origins: Iterable[Origin], bequest: LineageSpec) -> list[Row]:
        """Take over what others own; rows with one handle more each. Loop thread."""
        return self.call_now(self.core.detached.hold, origins, bequest)

    async def held(self, rows: Sequence[Row]) -> None:
        """Wait until their owners may go: what there is of them by now is taken over."""
        counted = asyncio.Event()
        sources = [source for row in rows for source in row.dependencies]
        self.core.borrowing.when_acknowledged(sources, counted.set)
        await counted.wait()
        await self.wait_async([row for row in rows if not self.core.detached.settled(row)])

    def cancel(self, rows: Iterable[Row], detail: str) -> None:
        """End rows and what depends on them. Loop thread."""
        self.call_now(self.core.cancel, rows, detail)

    def retry(self, rows: Iterable[Row]) -> None:
        """Run failed rows again. Loop thread."""
        self.call_now(self.core.retry, rows)

    def hurry(self, rows: Iterable[Row]) -> None:
        """Parked tasks of this worker wait for these rows, and nothing else may begin here. Loop
        thread."""
        self.call_now(self.core.hurry, rows, perf_counter() * 1e6)

    def received(self, view: WorkerView, messages: Any) -> None:
        """A batch of answers arrived."""
        self.core.receive(view, messages, perf_counter() * 1e6)
        self.step()

    def step(self) -> None:
        """Schedule, tell who waits, flush the links."""
        core = self.core
        if core.peers.talking:
            core.peers.say_to_itself()
        core.schedule(perf_counter() * 1e6)
        if core.peers.talking or core.posting.waiting:
            self._post()
        if core.refused:
            self.members.settle_refused()
        self._carry_out_effects()
        busy = False
        for view in list(core.placement.workers.values()):
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
        if (
            not self._sweeping
            and (core.table.rows or self.inbox.gone or self._backlog.size)
            and not self.inbox.closed
        ):
            self._sweeping = True
            loop.call_later(SWEEP, self._sweep)

    def _carry_out_effects(self) -> None:
        """Do what the core decided, beside what goes to workers."""
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
        """Have the executor in this process pass posts on."""
        assert self.executor is not None  # only an owner at a worker posts by itself
        self.executor.deliver(posts)

    def _post(self, acknowledge: bool = False) -> None:
        """Send what references have to say to other processes."""
        posting = self.core.posting
        posting.flush(acknowledge)
        effects = self.core.effects
        if effects.posts:  # before any answer of the executor that comes after them
            posts, effects.posts = effects.posts, []
            self._deliver(posts)
        if posting.waiting:
            self.members.ask_soon()

    def _due(self, function: Callable[..., None], args: tuple[Any, ...]) -> None:
        if not self.inbox.closed:
            function(*args)
            self.step()

    def post_now(self) -> None:
        """Put what references have to say before what is said next. Loop thread."""
        if self.core.peers.talking:
            self._post()

    def hand_over(self, stored: bool) -> bool:
        """This process leaves: have others take over what they have of it. Loop thread.

        Whether all of it is done; call it again until it is.
        """
        done = self.core.transfer.hand_over(stored)
        self.step()
        return done

    def posted(self, posts: Iterable[Message]) -> None:
        """Others said something to this process. Loop thread."""
        self.core.posting.receive(posts)
        self.step()

    def _sweep(self) -> None:
        """Let go of rows whose handles went away."""
        self._sweeping = False
        if not self.inbox.closed:
            self.places.grow_old()
            self._chronicle.look()
            if not self._ticking:
                # Whose tasks all could be running; yet they may wait for those of other owners.
                self.core.tick(perf_counter() * 1e6)
            self.inbox.process()
            if not self.core.placement.workers or self.core.placement.any_restricted:
                self._look_at_unmatched()
            self._backlog.look()

    def _look_at_unmatched(self) -> None:
        """End what has waited too long for a worker that may run it, if that is configured."""
        timeout = dask.config.get("distributed.scheduler.no-workers-timeout", None)
        if timeout is not None:
            self.core.infeasible.expire(perf_counter(), parse_timedelta(timeout))
            self.step()

    def _tell(self, completed: list[Row]) -> None:
        """Tell who waits for rows that ended, once."""
        with self.lock:
            told = [(row, row.waiters) for row in completed]
            for row in completed:
                row.waiters = None
        for row, waiters in told:
            for waiter in waiters or ():
                try:
                    waiter.row_done(row)
                except Exception:
                    # For one its event loop is closed; the others must still hear of it.
                    logger.exception("one that waited for %r could not be told", row.key)

    def _tick(self) -> None:
        self._ticking = False
        if self.inbox.closed:
            return
        self.core.tick(perf_counter() * 1e6)
        self._post(acknowledge=True)
        for view in self.core.placement.workers.values():
            if view.link is not None and view.link.state.unsaid and not view.outbox:
                view.link.send([])
        self.step()

    # ---- the end ----

    async def close(self, lost: str = "") -> None:
        """End all links and let everyone who waits know.

        ``lost`` says why the scheduler is gone, if that is the reason: then values and errors
        that are here can still be read.
        """
        if self.inbox.closed:
            return
        self._liveness.stop()
        self.inbox.close(lost)
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
