"""Waiting for rows: from a thread, from a coroutine, and with a callback.

A waiter hangs on each row it waits for and is told on the event loop when the
row ends. Telling it twice, or about a row it does not wait for, changes nothing,
so a thread may look at a row itself right after hanging the waiter on it.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from time import perf_counter
from typing import Any

from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.protocol.states import INLINE, STORED
from dask_ownership.runtime.owner.home import Home
from dask_ownership.runtime.parking import await_without_slot, caller_without_slot


class Waiter:
    """Base: told of rows that ended."""

    __slots__ = ()

    def row_done(self, row: Row) -> None:
        raise AssertionError("abstract")


def hang(waiter: Waiter, rows: Iterable[Row], lock: AbstractContextManager[Any]) -> None:
    """Hang a waiter on rows and tell it of those that have ended."""
    ended = []
    with lock:
        for row in rows:
            waiters = row.waiters
            row.waiters = (waiter,) if waiters is None else (*waiters, waiter)
            # Looked at after the waiter is there: whoever ends the row now sees it.
            if row.done:
                row.waiters = waiters
                ended.append(row)
    for row in ended:
        waiter.row_done(row)


def unhang(waiter: Waiter, rows: Iterable[Row], lock: AbstractContextManager[Any]) -> None:
    """Take a waiter off rows that it gave up waiting for."""
    with lock:
        for row in rows:
            waiters = row.waiters
            if waiters is not None:
                row.waiters = tuple([w for w in waiters if w is not waiter]) or None


class AllDone(Waiter):
    """Opens when every row ended, or the first one ended without a value.

    Parameters
    ----------
    rows : iterable of Row
    opened : callable
        Called once, on any thread.
    stop_at_error : bool
    any_one : bool
        Open at the first row that ends.
    """

    __slots__ = ("_open", "_opened", "_pending", "any_one", "stop_at_error")

    def __init__(
        self,
        rows: Iterable[Row],
        opened: Callable[[], None],
        stop_at_error: bool = False,
        any_one: bool = False,
    ) -> None:
        self._pending = set(rows)
        self._opened = opened
        self._open = False
        self.stop_at_error = stop_at_error
        self.any_one = any_one

    def row_done(self, row: Row) -> None:
        self._pending.discard(row)
        if (
            not self._pending or self.any_one or (self.stop_at_error and row.state > STORED)
        ) and not self._open:
            self._open = True
            self._opened()


class FirstDone(Waiter):
    """Opens each time one of many rows ends.

    A loop that waits for the first of what is left, again and again, hangs it once and
    not on every row each time.
    """

    __slots__ = ("_gate", "busy", "pending")

    def __init__(self, rows: Iterable[Row]) -> None:
        self.pending = set(rows)
        self.busy = False
        self._gate: Gate | None = None

    def gate(self) -> Gate:
        """A gate that opens when the next row ends."""
        gate = self._gate = Gate()
        return gate

    def row_done(self, row: Row) -> None:
        self.pending.discard(row)
        if self._gate is not None:
            self._gate.open()


class Callback(Waiter):
    """Calls a function with each row that ends, once per row."""

    __slots__ = ("_call", "_rows")

    def __init__(self, rows: Iterable[Row], call: Callable[[Row], None]) -> None:
        self._rows = set(rows)
        self._call = call

    def row_done(self, row: Row) -> None:
        try:
            self._rows.remove(row)
        except KeyError:
            return
        self._call(row)


class Gate:
    """A lock that opens once; `release` may be called more than once."""

    __slots__ = ("lock",)

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.lock.acquire()

    def open(self) -> None:
        try:
            self.lock.release()
        except RuntimeError:
            pass  # open already


class LoopGate:
    """As `Gate`, for a coroutine."""

    __slots__ = ("_future", "_loop")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] = self._loop.create_future()

    def open(self) -> None:
        self._loop.call_soon_threadsafe(self._set)

    def _set(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    async def wait(self) -> None:
        await self._future


DEAF = 0.5 if sys.platform == "win32" else None
"""Seconds after which a thread that waits for a lock looks up, where Ctrl-C does not wake it."""


def acquired(lock: Any, seconds: float) -> bool:
    """Acquire a lock, for at most some seconds when not negative; Ctrl-C ends the wait."""
    if DEAF is None:
        return bool(lock.acquire(True, seconds))
    deadline = perf_counter() + seconds if seconds >= 0 else float("inf")
    while not lock.acquire(True, max(0.0, min(DEAF, deadline - perf_counter()))):
        if perf_counter() >= deadline:
            return False
    return True


class Waiting:
    """Waits for rows of one owner.

    Parameters
    ----------
    lock : context manager
        Covers the waiters of rows.
    check_open : callable
        Raises when the owner is closed.
    executor : Home or None
        The one in this process, whose tasks are parked while they wait.
    """

    def __init__(
        self,
        lock: AbstractContextManager[Any],
        check_open: Callable[[], None],
        executor: Home | None,
    ) -> None:
        self._lock = lock
        self._check_open = check_open
        self._executor = executor
        self._loop_thread = 0
        self._first: FirstDone | None = None

    def start(self) -> None:
        """From now on rows end on this thread, which must not be blocked."""
        self._loop_thread = threading.get_ident()

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
            return self._wait_for_first(pending, timeout)
        gate = Gate()
        waiter = AllDone(pending, gate.open, stop_at_error)
        hang(waiter, pending, self._lock)
        try:
            return self.wait_at(gate, timeout, pending)
        finally:
            if waiter._pending:
                unhang(waiter, pending, self._lock)

    def wait_at(self, gate: Gate, timeout: float | None, rows: Iterable[Row] = ()) -> bool:
        """Wait for a gate to open, without a slot meanwhile; False when the time ran out.

        ``rows`` are those of which one or all open it.
        """
        seconds = -1.0 if timeout is None else max(0.0, timeout)
        if self._executor is not None:
            return self._executor.parking.wait(gate.lock, seconds, rows)
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
        hang(waiter, pending, self._lock)
        waiting = asyncio.wait_for(gate.wait(), timeout)
        try:
            if self._executor is not None:
                await self._executor.parking.wait_async(waiting, pending)
            else:
                await await_without_slot(waiting)
        except (TimeoutError, asyncio.TimeoutError):
            return False
        finally:
            if waiter._pending:
                unhang(waiter, pending, self._lock)
        return True

    def _wait_for_first(self, rows: list[Row], timeout: float | None) -> bool:
        """Block until one of these ends."""
        with self._lock:
            waiter = self._first
            before = None
            if waiter is None or waiter.busy or not waiter.pending.issuperset(rows):
                before = waiter if waiter is not None and not waiter.busy else None
                waiter = FirstDone(rows)
                if before is not None or self._first is None:
                    self._first = waiter
                made = True
            else:
                made = False
            waiter.busy = True
        deadline = None if timeout is None else perf_counter() + timeout
        hung = not made
        try:
            if before is not None:
                unhang(before, list(before.pending), self._lock)
            if made:
                hang(waiter, rows, self._lock)
            hung = True
            while True:
                gate = waiter.gate()
                if any(row.state >= INLINE for row in rows):
                    return True
                left = None if deadline is None else deadline - perf_counter()
                if not self.wait_at(gate, left, rows):
                    return False
        finally:
            if not hung and waiter is self._first:
                self._first = None  # Ctrl-C: it hangs on some of them only
            waiter.busy = False
            if waiter is not self._first:
                unhang(waiter, list(waiter.pending), self._lock)
