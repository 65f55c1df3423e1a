"""Parking: tasks wait without a slot.

A task waiting for another task is *parked*: the task gives its slot up, and asks for a slot again
when it can go on. So recursion of any depth ends on one slot. A task waiting for the scheduler's
coordination (locks, events, queues ...) is parked only when the wait lasts; a task asking the
scheduler a short question is not parked.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain, islice
from time import perf_counter
from typing import Any

from dask_ownership.core.executor.executor import ExecutorCore
from dask_ownership.core.executor.session import Entry
from dask_ownership.core.owner.rows.row import Borrowed, Row
from dask_ownership.core.protocol.messages import Key
from dask_ownership.core.protocol.names import INCARNATION, KEY
from dask_ownership.core.protocol.states import INLINE
from dask_ownership.runtime.dask.worker import without_slot
from dask_ownership.runtime.task import coroutine_entry, here


def _in_pool(entry: Entry) -> bool:
    """Return whether a task runs in a thread of a named executor (a pool).

    Such a task goes on without waiting for a slot: the tasks in all the slots may wait for the very
    thread of the pool that this task has.
    """
    return entry.options is not None and "executor" in entry.options


class ThreadToken:
    """A token for a parked thread: wakes the thread when there is a slot for its task."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def wait(self, seconds: float = -1.0) -> bool:
        """Block until `release`; return False when the time ran out. Negative: no limit."""
        return self._lock.acquire(True, seconds)

    def release(self) -> None:
        self._lock.release()


PATIENCE = 0.09
"""Seconds for which a task that can go on waits for a slot. After this time the task goes on
without a slot: the tasks with slots may be waiting for something that the parked task holds, such
as a lock, and would never give their slots up."""

LONG = 0.01
"""Seconds after which a task waiting for the scheduler gives its slot up, and seconds for which the
task then waits for a slot to go on: the task may have just got a lock that other tasks wait for."""

LOOKED_AT = 10_000
"""Rows that `Parking.look` visits to find the objects that parked tasks wait for."""

LOOKED_AT_FIRST = 100
"""Rows visited for the same purpose at the moment at which a task is parked."""


class _TimeIsUp(Exception):
    """A wait without a slot ended because its time ran out."""


class LoopToken:
    """A token for a parked coroutine: wakes the coroutine when there is a slot for its task."""

    __slots__ = ("_future", "_loop")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] = self._loop.create_future()

    async def wait(self, seconds: float | None = None) -> bool:
        """Wait until `release`; return False when the time ran out. None: no limit."""
        await asyncio.wait([self._future], timeout=seconds)
        return self._future.done()

    def release(self) -> None:
        """Wake the coroutine. Any thread."""
        self._loop.call_soon_threadsafe(self._set)

    def _set(self) -> None:
        if not self._future.done():
            self._future.set_result(None)


class EventToken:
    """A token for ``distributed.rejoin()``: sets the event that the rejoining thread waits for."""

    __slots__ = ("_event",)

    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def release(self) -> None:
        self._event.set()


@dataclass(slots=True, eq=False, repr=False)
class _Wait:
    """A wait of a task that still has its slot, see `Parking.without_slot_if_long`."""

    #: The waiting task.
    entry: Entry
    #: Whether the wait has ended.
    over: bool = field(default=False, init=False)
    #: Whether the task has given its slot up in the meantime.
    parked: bool = field(default=False, init=False)


class Parking:
    """The parked tasks of one executor.

    Parameters
    ----------
    worker : distributed.Worker
    core : dask_ownership.core.executor.executor.ExecutorCore
    lock : threading.Lock
        Covers the core.
    wake : callable
        Wakes runner threads for the free slots; called with the lock held.
    flush_soon : callable
        Has the event loop lease slots from the worker and send the outgoing messages.
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
        """Park the task of the current thread: give the slot up, because the task waits.

        Parameters
        ----------
        rows : iterable of Row
            The rows that the task waits for, as far as known.
        counts : bool
            False for a task that has left its slot by ``distributed.secede``, see
            `executor.crowd`.

        Returns
        -------
        bool
            False when the thread runs no owned task, or a task that is parked already.
        """
        entry = here.entry
        if entry is None or here.parked:
            return False
        # Only this thread reads and writes `here`, so no lock is needed for it.
        here.parked = True
        with self.lock:
            self._park(entry, rows, counts)
        self._flush_soon()
        return True

    def _park(self, entry: Entry, rows: Iterable[Row], counts: bool = True) -> None:
        """Take the slot of a task away. The lock is held."""
        entry.awaits = rows
        self.core.queue.parked(entry, counts)
        if self.core.queue.queued and self.core.queue.crowd.full:
            # When the crowd is full, a free slot is for tasks that a parked task waits for. `look`
            # finds the dependencies of these tasks later.
            self.core.queue.awaited(self._names_of(islice(rows, LOOKED_AT_FIRST)))
        self._wake()

    def look(self) -> Iterable[Row]:
        """Let the tasks start that parked tasks wait for, while the crowd is full. Loop thread.

        Returns
        -------
        iterable of Row
            All rows that parked tasks are known to wait for, directly or through dependencies;
            empty while the crowd is not full, and all tasks may start (`executor.crowd`).
        """
        core = self.core
        seen: dict[Row, None] = {}
        if core.queue.crowd.full:
            with self.lock:
                waiting = list(core.queue.crowd.waiting)
            awaits = chain.from_iterable(entry.awaits for entry in waiting)
            seen = dict.fromkeys(islice(awaits, LOOKED_AT))
            for row in (stack := list(seen)):  # the list grows during the loop
                for needed in row.dependencies if len(stack) < LOOKED_AT else ():
                    if needed not in seen:
                        seen[needed] = None
                        stack.append(needed)
            with self.lock:
                core.queue.awaited(self._names_of(seen))
                self._wake()
        return seen

    def _names_of(self, rows: Iterable[Row]) -> Iterator[tuple[str, Key]]:
        """Yield the owner and the key of each row that has not ended."""
        for row in rows:
            if row.state < INLINE:
                # Executors know a task by the key at its owner, which is not the key of the row in
                # the table of a borrower.
                if isinstance(row, Borrowed):
                    yield row.owner_ref[INCARNATION], row.owner_ref[KEY]
                else:
                    yield self.core.home, row.key

    def want_slot(self, token: Any, entry: Entry) -> None:
        """Ask for a slot for a parked task; the token is released when the task has got a slot."""
        with self.lock:
            self.core.queue.wants_slot(token, entry)
            self._wake()
        # No slot was free: the loop may lease one more from the worker.
        if self.core.queue.resuming:
            self._flush_soon()

    def _goes_on(self, entry: Entry) -> None:
        """Let a parked task go on at once, without waiting for a slot. The lock is held."""
        self.core.queue.goes_on(entry)
        if not self.core.queue.exclusion.idle:
            self._flush_soon()  # the owner of a suspect may have to hear that it is not alone now

    def _stops_waiting(self, token: Any, entry: Entry) -> bool:
        """Let a task that waits for a slot go on without a slot.

        Return False when the task was given a slot just before: then its token is released.
        """
        with self.lock:
            went_on = self.core.queue.stops_waiting(token, entry)
            if went_on and not self.core.queue.exclusion.idle:
                self._flush_soon()
        return went_on

    def want_slot_for(self, token: EventToken, entry: Entry) -> None:
        """Take a slot for a task that waits for an event, in ``distributed.rejoin()``.

        As `go_on`, but the call does not block: a timer of the loop ends the wait for a slot. Any
        thread.
        """
        entry.awaits = ()
        self.want_slot(token, entry)
        loop = self.worker.loop.asyncio_loop
        loop.call_soon_threadsafe(loop.call_later, PATIENCE, self._lacks_slot, token, entry)

    def _lacks_slot(self, token: EventToken, entry: Entry) -> None:
        """End the wait of `want_slot_for` when no slot has come free. Loop thread."""
        if self._stops_waiting(token, entry):
            token.release()

    def go_on(self, entry: Entry, patience: float = PATIENCE) -> None:
        """Take a slot again after a wait, in the task's own thread.

        After ``patience`` seconds the task goes on without a slot.
        """
        entry.awaits = ()
        if _in_pool(entry):
            with self.lock:
                self._goes_on(entry)
            return
        token = ThreadToken()
        self.want_slot(token, entry)
        if not token.wait(patience) and not self._stops_waiting(token, entry):
            token.wait()  # the task was given a slot just now, and the release is on its way

    def wait(self, lock: Any, timeout: float, rows: Iterable[Row] = ()) -> bool:
        """Acquire a lock; a calling task, owned or ordinary, gives its slot up while it waits.

        Parameters
        ----------
        lock : threading.Lock
        timeout : float
            Seconds to wait at most; negative for no limit.
        rows : iterable of Row
            The rows that an owned task waits for.

        Returns
        -------
        bool
            False when the time ran out.
        """
        if lock.acquire(False):
            return True
        try:
            with self.without_slot(rows):
                if not lock.acquire(True, timeout):
                    raise _TimeIsUp  # an error lets the task go on without waiting for a slot
        except _TimeIsUp:
            return False
        return True

    @contextmanager
    def without_slot(self, rows: Iterable[Row] = ()) -> Iterator[None]:
        """Give the slot of the calling task up while the body blocks.

        When the body raises (its time ran out, say) the task goes on without waiting for a slot.
        """
        if not self.park(rows):
            # Also an ordinary Dask task may wait here: it secedes from its worker.
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
        """Give the slot of the calling task up when the body has blocked for `LONG` seconds.

        For waits that are usually short: the task may hold a lock of its process, and all tasks
        started in its slot would wait for this lock.
        """
        entry = here.entry
        if entry is None or here.parked:
            yield
            return
        since = perf_counter()
        # A timer of the loop parks the task, because the thread itself is blocked in the body.
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
        """Park the task of a wait that has lasted for `LONG` and is not over. Loop thread.

        The lock decides between the end of the wait in the task's thread and this timer.
        """
        with self.lock:
            if not waits.over:
                waits.parked = True
                self._park(waits.entry, ())
        if waits.parked:
            self._flush_soon()

    async def wait_async(
        self, awaitable: Any, rows: Iterable[Row] = (), patience: float = PATIENCE
    ) -> Any:
        """Await something; a calling coroutine task gives its slot up while it waits.

        Parameters
        ----------
        awaitable : awaitable
        rows : iterable of Row
            The rows that the task waits for.
        patience : float
            Seconds for which the task then waits for a slot, before it goes on without.

        Returns
        -------
        object
            The result of the awaitable.
        """
        entry = coroutine_entry.get()
        if entry is None:
            return await awaitable
        since = perf_counter()
        with self.lock:
            # A coroutine task may await several things at once, and has one slot to give up.
            entry.parks += 1
            if entry.parks > 1:
                entry.awaits = (*entry.awaits, *rows)
            elif (token := self.core.queue.stays_parked(entry)) is not None:
                # An earlier wait of the task has ended, and its coroutine waits for the slot. The
                # task stays parked for this wait, and that coroutine goes on meanwhile.
                entry.awaits = rows
                token.release()
            else:
                self._park(entry, rows)
        self._flush_soon()
        try:
            value = await awaitable
        except BaseException:
            # As after an error in `without_slot`: a cancelled task, say, must not wait for a slot.
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
            # The last of several waits takes the slot again.
            token = LoopToken()
            self.want_slot(token, entry)
            try:
                if not await token.wait(patience) and not self._stops_waiting(token, entry):
                    await token.wait()
            except BaseException:  # cancelled while it waits for a slot
                self._stops_waiting(token, entry)
                raise
            entry.parked_for += perf_counter() - since
        return value

    async def wait_async_if_long(self, awaitable: Any) -> Any:
        """Await something; give the slot of the calling coroutine task up after `LONG` seconds."""
        # As a task, so the first `LONG` seconds and the rest are two waits for one awaitable.
        waits = asyncio.ensure_future(awaitable)
        try:
            done, _ = await asyncio.wait([waits], timeout=LONG)
        except BaseException:
            waits.cancel()
            raise
        return waits.result() if done else await self.wait_async(waits, (), LONG)


class Pool:
    """The thread pool that ``secede()`` and ``rejoin()`` find in the thread of an owned task.

    ``secede()`` takes a thread out of its pool and ``rejoin()`` puts the thread back. Here the
    first parks the task, and the second asks for a slot again.
    """

    def __init__(self, parking: Parking) -> None:
        self._parking = parking
        # Attributes of Dask's pool that `secede()` and `rejoin()` use: a set of threads, a list of
        # waiting threads, and the lock of this list.
        self._rejoin_lock = threading.Lock()
        self._threads = self
        self._rejoin_list = self

    def remove(self, thread: threading.Thread) -> None:
        """Park the calling task, for ``secede()``."""
        self._parking.park(counts=False)

    def append(self, waiting: tuple[threading.Thread, threading.Event]) -> None:
        """Ask for a slot for the calling task, which then waits for the event, for ``rejoin()``."""
        entry = here.entry
        assert entry is not None
        if not here.parked:  # the inner of two nested `worker_client` has rejoined already
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
    """Give the slot of the calling task up meanwhile, as `Parking.without_slot`.

    Nothing happens when the calling thread runs no owned task.
    """
    entry = here.entry
    return nullcontext() if entry is None else entry.session.runtime.parking.without_slot()


def caller_without_slot_if_long() -> AbstractContextManager[None]:
    """Give the slot of the calling task up when the body lasts.

    As `Parking.without_slot_if_long`. Nothing happens when the calling thread runs no owned task.
    """
    entry = here.entry
    return nullcontext() if entry is None else entry.session.runtime.parking.without_slot_if_long()


def await_without_slot(awaitable: Awaitable[Any]) -> Awaitable[Any]:
    """Await something without the slot of the calling coroutine task, as `Parking.wait_async`.

    The awaitable is returned unchanged when the caller is in no owned coroutine task.
    """
    entry = coroutine_entry.get()
    if entry is None:
        return awaitable
    waiting: Awaitable[Any] = entry.session.runtime.parking.wait_async(awaitable)
    return waiting


def await_without_slot_if_long(awaitable: Awaitable[Any]) -> Awaitable[Any]:
    """Await something; give the slot of the calling coroutine task up when the wait lasts.

    As `Parking.wait_async_if_long`. The awaitable is returned unchanged when the caller is in no
    owned coroutine task.
    """
    entry = coroutine_entry.get()
    if entry is None:
        return awaitable
    waiting: Awaitable[Any] = entry.session.runtime.parking.wait_async_if_long(awaitable)
    return waiting
