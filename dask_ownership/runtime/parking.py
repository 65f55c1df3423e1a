"""Waiting without a slot.

A task that waits for another is *parked*: it gives its slot up, and asks for one again
when it can go on. This is what makes recursion of any depth end on one slot. What waits for
the scheduler's coordination (locks, events, queues ...) is parked only when that lasts; what
asks the scheduler a short question is not.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain, islice
from time import perf_counter
from typing import Any

from dask_ownership.core.executor.executor import ExecutorCore
from dask_ownership.core.executor.session import Entry
from dask_ownership.core.owner.rows.row import Borrowed, Row
from dask_ownership.core.protocol.messages import Key
from dask_ownership.core.protocol.states import INLINE
from dask_ownership.runtime.dask.worker import without_slot
from dask_ownership.runtime.task import coroutine_entry, here


def _in_pool(entry: Entry) -> bool:
    """Whether a task has a thread of a pool. It waits for no slot when it goes on: those may
    all have tasks that wait for that very thread."""
    return entry.options is not None and "executor" in entry.options


class ThreadToken:
    """Wakes a parked thread when there is a slot for it."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def wait(self, seconds: float = -1.0) -> bool:
        return self._lock.acquire(True, seconds)

    def release(self) -> None:
        self._lock.release()


PATIENCE = 0.09
"""Seconds for which a task that can go on waits for a slot: those that have them may wait for
what it has, such as a lock, and never give theirs up."""

LONG = 0.01
"""Seconds after which a wait for the scheduler gives the slot up, and for which it waits for one
then: it may have a lock now for which others wait."""

LOOKED_AT = 10_000
"""Rows that are looked at for what parked tasks wait for, and again after a while."""

LOOKED_AT_FIRST = 100
"""Those that are looked at when a task is parked."""


class _TimeIsUp(Exception):
    """A wait without a slot ended because its time ran out."""


class LoopToken:
    """Wakes a parked coroutine when there is a slot for it."""

    __slots__ = ("_future", "_loop")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] = self._loop.create_future()

    async def wait(self, seconds: float | None = None) -> bool:
        await asyncio.wait([self._future], timeout=seconds)
        return self._future.done()

    def release(self) -> None:
        self._loop.call_soon_threadsafe(self._set)

    def _set(self) -> None:
        if not self._future.done():
            self._future.set_result(None)


class EventToken:
    """Sets the event that ``distributed.rejoin()`` waits for."""

    __slots__ = ("_event",)

    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def release(self) -> None:
        self._event.set()


class _Wait:
    """A wait that has not given its slot up yet, see `Parking.without_slot_if_long`."""

    __slots__ = ("entry", "over", "parked")

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.over = False
        self.parked = False


class Parking:
    """The parked tasks of one executor.

    Parameters
    ----------
    worker : distributed.Worker
    core : dask_ownership.core.executor.executor.ExecutorCore
    lock : threading.Lock
        Covers the core.
    wake : callable
        Sets threads to work for free slots; called with the lock held.
    flush_soon : callable
        Has the event loop borrow slots and send what there is.
    """

    def __init__(
        self,
        worker: Any,
        core: ExecutorCore,
        lock: threading.Lock,
        wake: Callable[[], None],
        flush_soon: Callable[[], None],
    ) -> None:
        self.worker = worker
        self.core = core
        self.lock = lock
        self._wake = wake
        self._flush_soon = flush_soon

    def park(self, rows: Iterable[Row] = (), counts: bool = True) -> bool:
        """The task of this thread waits: give its slot up. False when it has none.

        ``rows`` is what it waits for, as far as that is known.
        """
        entry = here.entry
        if entry is None or here.parked:
            return False
        here.parked = True
        with self.lock:
            self._park(entry, rows, counts)
        self._flush_soon()
        return True

    def _park(self, entry: Entry, rows: Iterable[Row], counts: bool = True) -> None:
        """The lock is held."""
        entry.awaits = rows
        self.core.queue.parked(entry, counts)
        if self.core.queue.queued and self.core.queue.crowd.full:
            self.core.queue.awaited(self._names_of(islice(rows, LOOKED_AT_FIRST)))
        self._wake()

    def look(self) -> Iterable[Row]:
        """Have what parked tasks wait for start, when nothing else may. Loop thread.

        Returns
        -------
        iterable of Row
            All that is known to be waited for.
        """
        core = self.core
        seen: dict[Row, None] = {}
        if core.queue.crowd.full:
            with self.lock:
                waiting = list(core.queue.crowd.waiting)
            awaits = chain.from_iterable(entry.awaits for entry in waiting)
            seen = dict.fromkeys(islice(awaits, LOOKED_AT))
            for row in (stack := list(seen)):  # which grows meanwhile
                for needed in row.dependencies if len(stack) < LOOKED_AT else ():
                    if needed not in seen:
                        seen[needed] = None
                        stack.append(needed)
            with self.lock:
                core.queue.awaited(self._names_of(seen))
                self._wake()
        return seen

    def _names_of(self, rows: Iterable[Row]) -> Iterator[tuple[str, Key]]:
        """Owners and keys of the objects that rows stand for, of those that have not ended."""
        for row in rows:
            if row.state < INLINE:
                if isinstance(row, Borrowed):
                    yield row.owner_ref[0], row.owner_ref[3]
                else:
                    yield self.core.home, row.key

    def want_slot(self, token: Any, entry: Entry) -> None:
        """Ask for a slot; the token is released when there is one."""
        with self.lock:
            self.core.queue.wants_slot(token, entry)
            self._wake()
        if self.core.queue.resuming:
            self._flush_soon()

    def _goes_on(self, entry: Entry) -> None:
        """Have a parked task go on at once. The lock is held."""
        self.core.queue.goes_on(entry)
        if not self.core.queue.exclusion.idle:
            self._flush_soon()  # an owner may have to hear that its task is not alone any more

    def _stops_waiting(self, token: Any, entry: Entry) -> bool:
        """Have a parked task go on without a slot; False when it was given one just before."""
        with self.lock:
            went_on = self.core.queue.stops_waiting(token, entry)
            if went_on and not self.core.queue.exclusion.idle:
                self._flush_soon()
        return went_on

    def want_slot_for(self, token: EventToken, entry: Entry) -> None:
        """As `go_on`, for one that another thread of control waits with. Any thread."""
        entry.awaits = ()
        self.want_slot(token, entry)
        loop = self.worker.loop.asyncio_loop
        loop.call_soon_threadsafe(loop.call_later, PATIENCE, self._lacks_slot, token, entry)

    def _lacks_slot(self, token: EventToken, entry: Entry) -> None:
        if self._stops_waiting(token, entry):
            token.release()

    def go_on(self, entry: Entry, patience: float = PATIENCE) -> None:
        """Take a slot again after a wait, in the task's own thread; without one after a while."""
        entry.awaits = ()
        if _in_pool(entry):
            with self.lock:
                self._goes_on(entry)
            return
        token = ThreadToken()
        self.want_slot(token, entry)
        if not token.wait(patience) and not self._stops_waiting(token, entry):
            token.wait()  # it was given a slot just now

    def wait(self, lock: Any, timeout: float, rows: Iterable[Row] = ()) -> bool:
        """Acquire a lock (for at most ``timeout`` seconds, negative: for ever), without
        a slot meanwhile when the caller is a task, owned or ordinary."""
        if lock.acquire(False):
            return True
        try:
            with self.without_slot(rows):
                if not lock.acquire(True, timeout):
                    raise _TimeIsUp
        except _TimeIsUp:
            return False
        return True

    @contextmanager
    def without_slot(self, rows: Iterable[Row] = ()) -> Iterator[None]:
        """Give the slot of the caller up while the body blocks, if it is a task.

        When the body raises (its time ran out, say) the task goes on without waiting
        for a slot.
        """
        if not self.park(rows):
            with without_slot(self.worker):
                yield
            return
        entry = here.entry
        assert entry is not None
        since = perf_counter()
        try:
            yield
        except BaseException:
            with self.lock:
                self._goes_on(entry)
            raise
        else:
            self.go_on(entry)
        finally:
            here.parked = False
            entry.parked_for += perf_counter() - since

    @contextmanager
    def without_slot_if_long(self) -> Iterator[None]:
        """As `without_slot`, once the body has blocked for `LONG`.

        For what is usually short: the task may hold a lock of its process, for which all that
        start in its slot would wait.
        """
        entry = here.entry
        if entry is None or here.parked:
            yield
            return
        since = perf_counter()
        waits = _Wait(entry)
        loop = self.worker.loop.asyncio_loop
        loop.call_soon_threadsafe(loop.call_later, LONG, self._lasts, waits)
        try:
            yield
        except BaseException:
            with self.lock:
                waits.over = True
                if waits.parked:
                    self._goes_on(entry)
            raise
        else:
            with self.lock:
                waits.over = True
            if waits.parked:
                self.go_on(entry, LONG)
        finally:
            if waits.parked:
                entry.parked_for += perf_counter() - since - LONG

    def _lasts(self, waits: _Wait) -> None:
        """A wait may have lasted so long that its task gives its slot up. Loop thread."""
        with self.lock:
            if not waits.over:
                waits.parked = True
                self._park(waits.entry, ())
        if waits.parked:
            self._flush_soon()

    async def wait_async(
        self, awaitable: Any, rows: Iterable[Row] = (), patience: float = PATIENCE
    ) -> Any:
        """Await something, without a slot meanwhile when the caller is a coroutine task."""
        entry = coroutine_entry.get()
        if entry is None:
            return await awaitable
        since = perf_counter()
        with self.lock:
            # It may await several things at once, and has one slot to give up for them.
            entry.parks += 1
            if entry.parks == 1:
                self._park(entry, rows)
            else:
                entry.awaits = (*entry.awaits, *rows)
        self._flush_soon()
        try:
            value = await awaitable
        except BaseException:
            with self.lock:
                entry.parks -= 1
                if entry.parks == 0:
                    self._goes_on(entry)
            raise
        with self.lock:
            entry.parks -= 1
            wants = entry.parks == 0
        if wants:
            entry.awaits = ()
            token = LoopToken()
            self.want_slot(token, entry)
            try:
                if not await token.wait(patience) and not self._stops_waiting(token, entry):
                    await token.wait()
            except BaseException:
                self._stops_waiting(token, entry)
                raise
            entry.parked_for += perf_counter() - since
        return value

    async def wait_async_if_long(self, awaitable: Any) -> Any:
        """As `wait_async`, once it has lasted for `LONG`."""
        waits = asyncio.ensure_future(awaitable)
        try:
            done, _ = await asyncio.wait([waits], timeout=LONG)
        except BaseException:
            waits.cancel()
            raise
        return waits.result() if done else await self.wait_async(waits, (), LONG)


class Pool:
    """What ``secede()`` and ``rejoin()`` find in an owned task's thread.

    They take the thread out of its pool and put it back; here that parks the task
    and asks for a slot again.
    """

    def __init__(self, parking: Parking) -> None:
        self._parking = parking
        self._rejoin_lock = threading.Lock()
        self._threads = self
        self._rejoin_list = self

    def remove(self, thread: threading.Thread) -> None:
        self._parking.park(counts=False)

    def append(self, waiting: tuple[threading.Thread, threading.Event]) -> None:
        entry = here.entry
        assert entry is not None
        if not here.parked:  # the inner one of two `worker_client` rejoined already
            waiting[1].set()
            return
        here.parked = False
        token = EventToken(waiting[1])
        if _in_pool(entry):
            with self._parking.lock:
                self._parking._goes_on(entry)
            token.release()
        else:
            self._parking.want_slot_for(token, entry)

    def _adjust_thread_count(self) -> None:
        pass

    def submit(self, function: Any) -> None:
        pass


def caller_without_slot() -> AbstractContextManager[None]:
    """As `Parking.without_slot`, for the owned task that the caller is in, if any."""
    entry = here.entry
    return nullcontext() if entry is None else entry.session.runtime.parking.without_slot()


def caller_without_slot_if_long() -> AbstractContextManager[None]:
    """As `Parking.without_slot_if_long`, for the owned task that the caller is in, if any."""
    entry = here.entry
    return nullcontext() if entry is None else entry.session.runtime.parking.without_slot_if_long()


def await_without_slot(awaitable: Awaitable[Any]) -> Awaitable[Any]:
    """As `Parking.wait_async`, for the owned coroutine task that the caller is in, if any."""
    entry = coroutine_entry.get()
    if entry is None:
        return awaitable
    waiting: Awaitable[Any] = entry.session.runtime.parking.wait_async(awaitable)
    return waiting


def await_without_slot_if_long(awaitable: Awaitable[Any]) -> Awaitable[Any]:
    """As `Parking.wait_async_if_long`, for the owned coroutine task that the caller is in."""
    entry = coroutine_entry.get()
    if entry is None:
        return awaitable
    waiting: Awaitable[Any] = entry.session.runtime.parking.wait_async_if_long(awaitable)
    return waiting
