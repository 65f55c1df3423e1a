"""The owner: what one process owns, on a real cluster.

A thread that submits makes a row, adds it to the table and appends it to the
owner's inbox; it never blocks. The event loop takes the inbox in, lets the core
decide, and sends each worker what the core left in its outbox, one batch each.
Results come back the same way. There is one owner per client and one per worker,
the same class; the worker's serves tasks that submit tasks.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from time import perf_counter, time
from typing import Any
from uuid import uuid4

import dask
from dask.utils import parse_bytes, parse_timedelta
from distributed.core import ConnectionPool
from distributed.system import MEMORY_LIMIT

from dask_ownership.core.bequest import Bequest
from dask_ownership.core.builtin import BuiltinFunctions
from dask_ownership.core.limits import Limits
from dask_ownership.core.messages import Message, Origin, Process
from dask_ownership.core.ownership import Ownership
from dask_ownership.core.placement import WorkerView
from dask_ownership.core.places import Places, ordered
from dask_ownership.core.row import DORMANT, INLINE, STORED, WAITING, Row
from dask_ownership.errors import ClosedOwner, SchedulerGone
from dask_ownership.runtime.chronicle import Chronicle
from dask_ownership.runtime.collector import untrack
from dask_ownership.runtime.functions import Functions
from dask_ownership.runtime.link import UNSAID_BATCHES
from dask_ownership.runtime.liveness import Liveness
from dask_ownership.runtime.members import Members
from dask_ownership.runtime.parking import await_without_slot, caller_without_slot
from dask_ownership.runtime.request import Patience
from dask_ownership.runtime.serialize import (
    Slot,
    arriving,
    dumps,
    identity,
    nothing,
    unpickling,
)
from dask_ownership.runtime.waiting import (
    AllDone,
    FirstDone,
    Gate,
    LoopGate,
    acquired,
    hang,
    unhang,
    wait_for_first,
)

logger = logging.getLogger("dask_ownership.owner")

TICK = 0.005
"""Seconds between looks for work to recall, while any worker is idle and another is not."""

SWEEP = 0.03
"""Seconds after which rows whose handles went away are looked at."""

DROPPED_AT_ONCE = 1000
"""Handles that may be gone before the loop is woken for them."""

FIND_TIMEOUT = 5.0
"""Seconds for which looking a key up waits for an event loop that does not answer."""

BACKLOG_INTERVAL = 0.5
"""Seconds between two words to the scheduler about how much waits."""


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

    Parameters
    ----------
    connection_args : dict
        Of the cluster's security, for the role of this process.
    name : str
        The client's id or the worker's address, for messages and logs.
    executor : dask_ownership.runtime.executor.Executor, optional
        The one in this process.
    """

    def __init__(
        self,
        connection_args: dict[str, Any],
        name: str,
        executor: Any = None,
    ) -> None:
        self.incarnation = executor.incarnation if executor is not None else uuid4().hex
        self.name = name
        self.executor = executor
        self.token = ""
        self.connection_args = connection_args
        self.lock = threading.Lock()
        address = executor.worker.address if executor is not None else None
        self.functions = Functions(self._forget_function)
        self.core = Ownership(
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
        self.holder: Process = ("", "", "")
        """Who holds what lies in queues, variables and datasets."""
        self.on_backlog: Callable[[int], None] | None = None
        self.on_submitted: Callable[[list[Row]], None] | None = None
        self._backlog = 0
        self._backlog_at = 0.0
        self.pool = ConnectionPool(deserialize=False, connection_args=connection_args)
        self.liveness = Liveness(self)
        self.patience = Patience(self.liveness.limit)
        self.closed = False
        self.lost = ""
        """Why it closed by itself: the scheduler is gone. What was here by then stays."""
        self.cut_off = False
        """Whether the scheduler is lost: workers that refuse a link now may be about to close."""
        self.places = Places(time)
        self.chronicle = Chronicle(self)
        self.members = Members(self)
        self._inbox: deque[Any] = deque()
        self._dropped: deque[Any] = deque()
        self._awake = False
        self._ticking = False
        self._sweeping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._context: contextvars.Context | None = None
        self.promoted: dict[str, Handle] = {}
        """What the central scheduler may read, by its name there."""
        self.first: FirstDone | None = None

    async def start(self) -> None:
        """Begin on the event loop that is running."""
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._context = contextvars.copy_context()
        await self.pool.start()
        self.liveness.start()
        self._wake()

    # ---- any thread ----

    def place(self, dependencies: tuple[Row, ...], depth: int, fifo_timeout: Any) -> int:
        """The place of one task; lower first. Any thread."""
        places = self.places
        place = places.behind(dependencies, depth) if dependencies else None
        if place is None:
            if places.shared:
                place = places.beside(parse_timedelta(fifo_timeout))
            else:
                place = places.next
                places.next += 1
        return ordered(place, 0, depth) if depth else place

    def submit(self, row: Row) -> Row:
        """Add a row and have it run; the row that is known under its key, if any.

        Raises
        ------
        ClosedOwner
        """
        if self.closed:
            if self.lost:
                raise SchedulerGone(row.key, f"it cannot be submitted: {self.lost}")
            raise ClosedOwner(f"{self.name} is closed; it cannot submit {row.key!r}")
        try:
            adopted = self.core.table.adopt(row)
            if adopted is row:
                untrack(row)
                self._inbox.append(row)
                if not self._awake:
                    self._wake()
            elif adopted.state == DORMANT:
                self.call(self.core.lifecycle.wake, adopted)
            return adopted
        except BaseException:  # Ctrl-C comes between any two instructions
            self.call(self._left_behind, row, True)
            raise

    def expect(self, row: Row) -> Row:
        """Add a row that waits for something outside, until `begin` has it run."""
        if self.closed:
            raise ClosedOwner(f"{self.name} is closed; it cannot submit {row.key!r}")
        adopted = self.core.table.adopt(row)
        if adopted is row:
            untrack(row)
        return adopted

    def begin(self, row: Row) -> None:
        """Have a row run that was expected, unless it ended in the meantime. Any thread."""
        self._inbox.append(row)
        if not self._awake:
            self._wake()

    def promotion_over(self, names: Iterable[str]) -> None:
        """Stream handler: the central scheduler has forgotten these."""
        for name in names:
            self.promoted.pop(name, None)

    def dropped(self, row: Row) -> int:
        """How many handles of a row were dropped and not yet counted off."""
        return list(self._dropped).count(row) if self._dropped else 0

    def drop(self, row: Row) -> None:
        """One handle of a row went away. Called by finalizers, at any moment."""
        self._dropped.append(row)
        # A sweep is on its way while the table holds rows; waking the loop for each
        # handle would cost more than all the rest of a round trip.
        if len(self._dropped) > DROPPED_AT_ONCE and not self._awake:
            self._wake()

    def drop_all(self, rows: Iterable[Row]) -> None:
        """As `drop`, for one handle of each of these: all of them, or none when interrupted."""
        self._dropped.extend(rows)
        if len(self._dropped) > DROPPED_AT_ONCE and not self._awake:
            self._wake()

    def _left_behind(self, row: Row, handle: bool) -> None:
        """A thread was interrupted while it added this row. Loop thread.

        Others may find it under its key, and would wait for ever for one that nobody took
        in. The ``handle`` was for a future that is not made.
        """
        if self.core.table.rows.get(row.key) is row:
            if row.state == WAITING and not row.waiting and not row.attempt:
                self.core.submit((row,))
            if handle:
                self.core.release((row,))

    def find(self, key: Hashable, parent: Any = None) -> Row | None:
        """The row of a key that a user chose, with one more handle on it, or None.

        Such a key may name something else once its futures are gone, so those that are
        gone are looked at first.
        """
        row = self.known(key, parent)
        if row is None or not self._dropped or self._loop is None:
            return row
        self._dropped.append(row)
        if threading.get_ident() == self._loop_thread:
            self._release_dropped()
        else:
            gate = Gate()
            self.call(self._release_dropped, gate)
            gate.lock.acquire(True, FIND_TIMEOUT)
        return self.known(key, parent)

    def known(self, key: Hashable, parent: Any = None) -> Row | None:
        """As `find`, for a key that means the same whenever it is made."""
        row = self.core.table.find(key, parent)
        if row is not None and row.state == DORMANT:
            self.call(self.core.lifecycle.wake, row)
        return row

    def arrive(self, origin: Origin) -> Row:
        """The row of a future that was unpickled here, with one handle more. Any thread."""
        row: Row | None = None
        try:
            row, new = self.core.borrowing.arrive(origin)
            place = None if new else self.core.borrowing.held_elsewhere(row, origin)
            if place is not None:
                self.call(self.core.borrowing.borrow_at, row, place)
            if row.state == DORMANT:
                self.call(self.core.lifecycle.wake, row)
            elif new:
                untrack(row)
                self._inbox.append(row)
                if not self._awake:
                    self._wake()
        except BaseException:
            if row is not None:
                self.call(self._left_behind, row, True)
            raise
        if unpickling.arrived is not None:
            unpickling.arrived.append(row)
        return row

    def escapes(self, row: Row) -> None:
        """A future of this row may be in another process soon. Any thread."""
        heir = row.options.heir
        if heir is not None and row not in self.core.retention.escaped:
            if self.executor is not None:
                self.executor.say_escaped(heir)
            self.call(self.core.retention.escapes, row)

    def pin(self, row: Row) -> None:
        """Keep a row for whoever reads what of it is pickled somewhere. Any thread."""
        self.core.table.pin(row)
        self.escapes(row)

    def open(self, client: Any, row: Row, load: Callable[[], Any]) -> Any:
        """Unpickle the value of a row, which is kept until the futures inside are counted."""
        with arriving(client) as arrived:
            value = load()
        if arrived:
            # In order with handles that are dropped, the caller's own on this row too.
            self._dropped.append((row, arrived))
            if not self._awake:
                self._wake()
        return value

    def hold(self, origins: Iterable[Origin], bequest: Bequest) -> list[Row]:
        """Take over what others own; rows with one handle more each. Loop thread."""
        self._process()
        rows = self.core.bequests.hold(origins, bequest)
        self.step()
        return rows

    async def held(self, rows: Sequence[Row]) -> None:
        """Wait until their owners may go: what there is of them by now is taken over."""
        counted = asyncio.Event()
        sources = [source for row in rows for source in row.dependencies]
        self.core.borrowing.when_counted(sources, counted.set)
        await counted.wait()
        await self.wait_async([row for row in rows if not self.core.bequests.settled(row)])

    def call(self, function: Callable[..., None], *args: Any) -> None:
        """Do something to the core on the loop, in order with what was submitted before."""
        self._inbox.append((function, args))
        if not self._awake:
            self._wake()

    def _forget_function(self, number: int) -> None:
        """The last reference to the record of a function is gone. Any thread, at any moment."""
        if not self.closed:
            self.call(self.core.dispatch.forget, number)

    def _wake(self) -> None:
        if self._loop is None:
            return  # not started: `start` takes in what is there
        try:
            self._awake = True
            self._loop.call_soon_threadsafe(self._process, context=self._context)
        except RuntimeError:
            pass  # the loop is closed: nothing of this owner lives any more
        except BaseException:  # Ctrl-C: it may not be on its way, so the next one wakes it
            self._awake = False
            raise

    # ---- the loop ----

    def _process(self) -> None:
        """Take in what threads left, decide, send."""
        self._awake = False
        inbox = self._inbox
        core = self.core
        rows: list[Row] = []
        while inbox:
            item = inbox.popleft()
            if type(item) is not tuple:
                rows.append(item)
                continue
            if rows:
                core.submit(rows)
                rows = []
            function, args = item
            try:
                function(*args)
            except Exception:
                logger.exception("an operation on the ownership table failed")
        if rows:
            if self.on_submitted is not None:
                self.on_submitted(rows)
            core.submit(rows)
        self._release_dropped()
        if self.closed:
            self._settle_all()  # a thread was about to submit while this owner closed
        self.step()

    def _release_dropped(self, gate: Gate | None = None) -> None:
        dropped = self._dropped
        gone: list[Row] = []
        while dropped:
            item = dropped.popleft()
            if type(item) is not tuple:
                gone.append(item)
                continue
            self.core.release(gone)
            gone = []
            self.core.borrowing.hold_until_counted(*item)
        if gone:
            self.core.release(gone)
        if gate is not None:
            gate.open()

    def cancel(self, rows: Iterable[Row], detail: str) -> None:
        """End rows and what depends on them. Loop thread."""
        self._process()
        self.core.cancel(rows, detail)
        self.step()

    def retry(self, rows: Iterable[Row]) -> None:
        """Run failed rows again. Loop thread."""
        self._process()
        self.core.retry(rows)
        self.step()

    def hurry(self, rows: Iterable[Row]) -> None:
        """Parked tasks of this worker wait for these rows, and nothing else may begin here. Loop
        thread."""
        self._process()
        self.core.hurry(rows, perf_counter() * 1e6)
        self.step()

    def received(self, view: WorkerView, messages: Any) -> None:
        """A batch of answers arrived."""
        self.core.receive(view, messages, perf_counter() * 1e6)
        self.step()

    def step(self) -> None:
        """Schedule, tell who waits, flush the links."""
        core = self.core
        if core.broken:
            self._say_what_broke()
        if core.peers.talking:
            core.peers.say_to_itself()
        core.schedule(perf_counter() * 1e6)
        if core.peers.talking or core.posting.posts or core.posting.waiting:
            self._post()
        if core.refused:
            self.members.settle_refused()
        if core.lifecycle.completed:
            self._tell()
        if core.timers:
            self._set_timers()
        busy = False
        for view in list(core.placement.workers.values()):
            if view.outbox:
                messages, view.outbox = view.outbox, []
                self.members.link_to(view).send(messages)
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
            and (core.table.rows or self._dropped or self._backlog)
            and not self.closed
        ):
            self._sweeping = True
            loop.call_later(SWEEP, self._sweep)

    def _say_what_broke(self) -> None:
        broken, self.core.broken = self.core.broken, []
        for where, error in broken:
            logger.error("%s: %s", self.name, where, exc_info=error)

    def _post(self, acknowledge: bool = False) -> None:
        """Send what references have to say to other processes."""
        posting = self.core.posting
        posting.flush(acknowledge)
        if posting.posts:
            posts, posting.posts = posting.posts, []
            self.executor.deliver(posts)
        if posting.waiting:
            self.members.ask_soon()

    def _set_timers(self) -> None:
        timers, self.core.timers = self.core.timers, []
        loop = self._loop
        assert loop is not None
        for seconds, function, args in timers:
            loop.call_later(seconds, self._due, function, args)

    def _due(self, function: Callable[..., None], args: tuple[Any, ...]) -> None:
        if not self.closed:
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
        done = self.core.adoption.hand_over(stored)
        self.step()
        return done

    def posted(self, posts: Iterable[Message]) -> None:
        """Others said something to this process. Loop thread."""
        self.core.posting.receive(posts)
        self.step()

    def _sweep(self) -> None:
        """Let go of rows whose handles went away."""
        self._sweeping = False
        if not self.closed:
            self.places.grow_old()
            self.chronicle.look()
            if not self._ticking:
                # Whose tasks all could be running; yet they may wait for those of other owners.
                self.core.tick(perf_counter() * 1e6)
            self._process()
            if not self.core.placement.workers or self.core.placement.any_restricted:
                self._look_at_unmatched()
            if self.on_backlog is not None:
                self._look_at_backlog(self.on_backlog)

    def _look_at_unmatched(self) -> None:
        """End what has waited too long for a worker that may run it, if that is configured."""
        timeout = dask.config.get("distributed.scheduler.no-workers-timeout", None)
        if timeout is not None:
            self.core.infeasible.expire(perf_counter(), parse_timedelta(timeout))
            self.step()

    def _look_at_backlog(self, tell: Callable[[int], None]) -> None:
        """Tell how much waits when that changed much, and at the end that nothing does."""
        waiting = self.core.placement.ready_count
        size = waiting.bit_length()
        now = perf_counter()
        if size != self._backlog and (now - self._backlog_at > BACKLOG_INTERVAL or not size):
            self._backlog = size
            self._backlog_at = now
            tell(waiting)

    def _tell(self) -> None:
        """Tell who waits for rows that ended, once."""
        completed, self.core.lifecycle.completed = self.core.lifecycle.completed, []
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
        if self.closed:
            return
        self.core.tick(perf_counter() * 1e6)
        self._post(acknowledge=True)
        for view in self.core.placement.workers.values():
            if view.link is not None and view.link.state.unsaid and not view.outbox:
                view.link.send([])
        self.step()

    # ---- waiting ----

    def _check_open(self) -> None:
        if self.closed:
            if self.lost:
                raise SchedulerGone(self.name, self.lost)
            raise ClosedOwner(f"{self.name} is closed; its futures cannot be waited for")

    def wait(
        self,
        rows: Sequence[Row],
        timeout: float | None = None,
        *,
        stop_at_error: bool = False,
        any_one: bool = False,
    ) -> bool:
        """Block until rows end; False when the time ran out.

        Inside an owned task the slot is given up meanwhile.

        Raises
        ------
        ClosedOwner
        RuntimeError
            On the event loop's own thread, where blocking would stop everything.
        """
        pending = [row for row in rows if row.state < INLINE]
        if not pending or (any_one and len(pending) < len(rows)):
            return True
        if stop_at_error and any(row.state > STORED for row in rows):
            return True
        self._check_open()
        if threading.get_ident() == self._loop_thread:
            raise RuntimeError(
                "a future was waited for on the thread of the event loop that must bring its "
                "result; await it instead"
            )
        if any_one:
            return wait_for_first(self, pending, timeout)
        gate = Gate()
        waiter = AllDone(pending, gate.open, stop_at_error)
        hang(waiter, pending, self.lock)
        try:
            return self.wait_at(gate, timeout, pending)
        finally:
            if waiter._pending:
                unhang(waiter, pending, self.lock)

    def wait_at(self, gate: Gate, timeout: float | None, rows: Iterable[Row] = ()) -> bool:
        """Wait for a gate to open, without a slot meanwhile; False when the time ran out.

        ``rows`` are those of which one or all open it.
        """
        seconds = -1.0 if timeout is None else max(0.0, timeout)
        if self.executor is not None:
            return bool(self.executor.parking.wait(gate.lock, seconds, rows))
        with caller_without_slot():  # a task with a client of its own
            return acquired(gate.lock, seconds)

    async def wait_async(
        self,
        rows: Sequence[Row],
        timeout: float | None = None,
        *,
        stop_at_error: bool = False,
        any_one: bool = False,
    ) -> bool:
        """As `wait`, for a coroutine on any event loop."""
        pending = [row for row in rows if row.state < INLINE]
        if not pending or (any_one and len(pending) < len(rows)):
            return True
        if stop_at_error and any(row.state > STORED for row in rows):
            return True
        self._check_open()
        gate = LoopGate()
        waiter = AllDone(pending, gate.open, stop_at_error, any_one)
        hang(waiter, pending, self.lock)
        waiting = asyncio.wait_for(gate.wait(), timeout)
        try:
            if self.executor is not None:
                await self.executor.parking.wait_async(waiting, pending)
            else:
                await await_without_slot(waiting)
        except (TimeoutError, asyncio.TimeoutError):
            return False
        finally:
            if waiter._pending:
                unhang(waiter, pending, self.lock)
        return True

    # ---- the end ----

    def _settle_all(self) -> None:
        if self.lost:
            self.core.abandon(self.lost)
        else:
            self.core.close(f"its client {self.name} is closed, which freed it")

    async def close(self, lost: str = "") -> None:
        """End all links and let everyone who waits know.

        ``lost`` says why the scheduler is gone, if that is the reason: then values and errors
        that are here can still be read.
        """
        if self.closed:
            return
        self.lost = lost
        self.closed = True
        self.liveness.stop()
        self._settle_all()
        self._tell()
        self.core.posting.flush()
        for view in list(self.core.placement.workers.values()):
            if view.outbox and view.link is not None:
                messages, view.outbox = view.outbox, []
                view.link.send(messages)
        await self.members.close()
        self.promoted.clear()
        await self.pool.close()
