"""Waiting without a slot.

A task that waits for another is *parked*: it gives its slot up, and asks for one again
when it can go on. This is what makes recursion of any depth end on one slot.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import perf_counter
from typing import Any

from dask_ownership.core.executor import Executor as Core
from dask_ownership.core.session import Entry
from dask_ownership.runtime import compat
from dask_ownership.runtime.runner import coroutine_entry, here


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

    def wait(self) -> None:
        self._lock.acquire()

    def release(self) -> None:
        self._lock.release()


class _TimeIsUp(Exception):
    """A wait without a slot ended because its time ran out."""


class LoopToken:
    """Wakes a parked coroutine when there is a slot for it."""

    __slots__ = ("_future", "_loop")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] = self._loop.create_future()

    async def wait(self) -> None:
        await self._future

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


class Parking:
    """The parked tasks of one executor.

    Parameters
    ----------
    worker : distributed.Worker
    core : dask_ownership.core.executor.Executor
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
        core: Core,
        lock: threading.Lock,
        wake: Callable[[], None],
        flush_soon: Callable[[], None],
    ) -> None:
        self.worker = worker
        self.core = core
        self.lock = lock
        self._wake = wake
        self._flush_soon = flush_soon

    def park(self) -> bool:
        """The task of this thread waits: give its slot up. False when it has none."""
        entry = here.entry
        if entry is None or here.parked:
            return False
        here.parked = True
        with self.lock:
            self.core.parked(entry)
            self._wake()
        self._flush_soon()
        return True

    def want_slot(self, token: Any, entry: Entry) -> None:
        """Ask for a slot; the token is released when there is one."""
        with self.lock:
            self.core.wants_slot(token, entry)
            self._wake()
        if self.core.resuming:
            self._flush_soon()

    def wait(self, lock: Any, timeout: float) -> bool:
        """Acquire a lock (for at most ``timeout`` seconds, negative: for ever), without
        a slot meanwhile when the caller is a task, owned or ordinary."""
        if lock.acquire(False):
            return True
        try:
            with self.without_slot():
                if not lock.acquire(True, timeout):
                    raise _TimeIsUp
        except _TimeIsUp:
            return False
        return True

    @contextmanager
    def without_slot(self) -> Iterator[None]:
        """Give the slot of the caller up while the body blocks, if it is a task.

        When the body raises (its time ran out, say) the task goes on without waiting
        for a slot.
        """
        if not self.park():
            with compat.without_slot(self.worker):
                yield
            return
        entry = here.entry
        assert entry is not None
        since = perf_counter()
        try:
            yield
        except BaseException:
            with self.lock:
                self.core.goes_on(entry)
            raise
        else:
            if _in_pool(entry):
                with self.lock:
                    self.core.goes_on(entry)
            else:
                token = ThreadToken()
                self.want_slot(token, entry)
                token.wait()
        finally:
            here.parked = False
            entry.parked_for += perf_counter() - since

    async def wait_async(self, awaitable: Any) -> Any:
        """Await something, without a slot meanwhile when the caller is a coroutine task."""
        entry = coroutine_entry.get()
        if entry is None:
            return await awaitable
        since = perf_counter()
        with self.lock:
            # It may await several things at once, and has one slot to give up for them.
            entry.parks += 1
            if entry.parks == 1:
                self.core.parked(entry)
                self._wake()
        self._flush_soon()
        try:
            value = await awaitable
        except BaseException:
            with self.lock:
                entry.parks -= 1
                if entry.parks == 0:
                    self.core.goes_on(entry)
            raise
        with self.lock:
            entry.parks -= 1
            wants = entry.parks == 0
        if wants:
            token = LoopToken()
            self.want_slot(token, entry)
            try:
                await token.wait()
            except BaseException:
                with self.lock:
                    self.core.stops_waiting(token, entry)
                raise
            entry.parked_for += perf_counter() - since
        return value


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
        self._parking.park()

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
                self._parking.core.goes_on(entry)
            token.release()
        else:
            self._parking.want_slot(token, entry)

    def _adjust_thread_count(self) -> None:
        pass

    def submit(self, function: Any) -> None:
        pass


def caller_without_slot() -> AbstractContextManager[None]:
    """As `Parking.without_slot`, for the owned task that the caller is in, if any."""
    entry = here.entry
    return nullcontext() if entry is None else entry.session.runtime.parking.without_slot()


def await_without_slot(awaitable: Awaitable[Any]) -> Awaitable[Any]:
    """As `Parking.wait_async`, for the owned coroutine task that the caller is in, if any."""
    entry = coroutine_entry.get()
    if entry is None:
        return awaitable
    waiting: Awaitable[Any] = entry.session.runtime.parking.wait_async(awaitable)
    return waiting
