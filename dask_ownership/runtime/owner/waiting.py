"""Waiting for rows: in a thread, in a coroutine, and with a callback.

A waiter hangs on each of its rows, and is told on the event loop when a row ends. Telling a waiter
twice, or about another row, changes nothing; so a thread may check a row itself right after hanging
a waiter on the row.
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
    """The base of waiters: objects that are told of rows that ended."""

    __slots__ = ()

    def row_done(self, row: Row) -> None:
        """Take in that a row ended; a second call for a row changes nothing."""
        raise AssertionError("abstract")


def hang(waiter: Waiter, rows: Iterable[Row], lock: AbstractContextManager[Any]) -> None:
    """Hang a waiter on rows, and tell the waiter of rows that have ended already."""
    ended = []
    with lock:
        for row in rows:
            waiters = row.waiters
            row.waiters = (waiter,) if waiters is None else (*waiters, waiter)
            # Checked when the waiter is there: a row that ends from now on finds the waiter.
            if row.done:
                row.waiters = waiters  # nothing would ever take the waiter off an ended row
                ended.append(row)
    for row in ended:
        waiter.row_done(row)


def unhang(waiter: Waiter, rows: Iterable[Row], lock: AbstractContextManager[Any]) -> None:
    """Take a waiter off its rows, when it does not wait any more."""
    with lock:
        for row in rows:
            waiters = row.waiters
            if waiters is not None:
                row.waiters = tuple([w for w in waiters if w is not waiter]) or None


class AllDone(Waiter):
    """A waiter that opens once, when all its rows have ended.

    Parameters
    ----------
    rows : iterable of Row
    opened : callable
        Called once when the waiter opens, in any thread.
    stop_at_error : bool
        Open at the first row that ends without a value.
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
    """A waiter that opens each time one of many rows ends.

    For loops that wait for the first of the remaining rows, again and again: the waiter is hung on
    all rows once, and not for each wait.

    Attributes
    ----------
    pending : set of Row
        The rows that have not ended.
    busy : bool
        Whether a thread is waiting.
    """

    __slots__ = ("_gate", "busy", "pending")

    def __init__(self, rows: Iterable[Row]) -> None:
        self.pending = set(rows)
        self.busy = False
        self._gate: Gate | None = None

    def gate(self) -> Gate:
        """Return a gate that opens when the next row ends."""
        gate = self._gate = Gate()
        return gate

    def row_done(self, row: Row) -> None:
        self.pending.discard(row)
        if self._gate is not None:
            self._gate.open()


class Callback(Waiter):
    """A waiter that calls a function with each row that ends, once per row."""

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
    """A gate for a thread: a lock that `open` releases once; further calls do nothing.

    Attributes
    ----------
    lock : threading.Lock
        To be acquired by the waiting thread.
    """

    __slots__ = ("lock",)

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.lock.acquire()

    def open(self) -> None:
        try:
            self.lock.release()
        except RuntimeError:
            pass  # the gate is open already


class LoopGate:
    """A gate for a coroutine, which any thread may open."""

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
"""Seconds after which a thread waiting for a lock wakes up to notice Ctrl-C; None on systems where
Ctrl-C ends the wait itself."""


def acquired(lock: Any, seconds: float) -> bool:
    """Acquire a lock; return False when the time ran out. Ctrl-C ends the wait.

    A negative number of seconds means no limit.
    """
    if DEAF is None:
        return bool(lock.acquire(True, seconds))
    deadline = perf_counter() + seconds if seconds >= 0 else float("inf")
    while not lock.acquire(True, max(0.0, min(DEAF, deadline - perf_counter()))):
        if perf_counter() >= deadline:
            return False
    return True


class Waiting:
    """The waiting for rows of one owner, by threads and coroutines.

    Parameters
    ----------
    lock : context manager
        Covers the waiters of rows.
    check_open : callable
        Raises an error when the owner is closed.
    executor : Home or None
        The executor in this process, whose tasks are parked while they wait.
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
        """Note the current thread as the loop's: rows end in this thread, so it must not block."""
        self._loop_thread = threading.get_ident()

    def wait(
        self,
        rows: Sequence[Row],
        timeout: float | None = None,
        *,
        stop_at_error: bool = False,
        any_one: bool = False,
    ) -> bool:
        """Block until rows have ended. A task gives its slot up meanwhile.

        Parameters
        ----------
        rows : sequence of Row
        timeout : float or None
            Seconds; None for no limit.
        stop_at_error : bool
            Return at the first row that ends without a value.
        any_one : bool
            Return at the first row that ends.

        Returns
        -------
        bool
            False when the time ran out.

        Raises
        ------
        ClosedOwner
        SchedulerGone
            When the owner closed because the scheduler is gone.
        RuntimeError
            In the event loop's own thread: blocking the loop would block the rows, too.
        """
        # The usual case costs no waiter: all rows have ended, or enough of the rows.
        pending = [row for row in rows if row.state < INLINE]
        if not pending or (any_one and len(pending) < len(rows)):
            return True
        if stop_at_error and any(row.state > STORED for row in rows):
            return True
        self._check_open()  # after the rows that have ended, which a closed owner still has
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
            if waiter._pending:  # else each row has dropped its waiters at its end
                unhang(waiter, pending, self._lock)

    def wait_at(self, gate: Gate, timeout: float | None, rows: Iterable[Row] = ()) -> bool:
        """Block until a gate opens. A task gives its slot up meanwhile.

        Parameters
        ----------
        gate : Gate
        timeout : float or None
            Seconds; None for no limit.
        rows : iterable of Row
            The rows that open the gate, one of them or all together.

        Returns
        -------
        bool
            False when the time ran out.
        """
        seconds = -1.0 if timeout is None else max(0.0, timeout)
        if self._executor is not None:
            return self._executor.parking.wait(gate.lock, seconds, rows)
        with caller_without_slot():  # the caller may be a task that has made a client of its own
            return acquired(gate.lock, seconds)

    async def wait_async(
        self,
        rows: Sequence[Row],
        timeout: float | None = None,
        *,
        stop_at_error: bool = False,
        any_one: bool = False,
    ) -> bool:
        """Wait until rows have ended, as `wait`, in a coroutine on any event loop."""
        pending = [row for row in rows if row.state < INLINE]
        if not pending or (any_one and len(pending) < len(rows)):
            return True
        if stop_at_error and any(row.state > STORED for row in rows):
            return True
        self._check_open()
        # The coroutine may run on another loop than the owner's: `LoopGate` crosses over.
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
        """Block until one of some unfinished rows ends; return False when the time ran out.

        A waiter from the call before is used again when it hangs on all these rows.
        """
        with self._lock:
            waiter = self._first
            before = None
            # The kept waiter does not serve while another thread waits with it, or when it does not
            # hang on all the rows. A new waiter takes the place of an idle one.
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
                # The gate comes first: a row that ends after the check opens the gate.
                gate = waiter.gate()
                if any(row.state >= INLINE for row in rows):
                    return True
                left = None if deadline is None else deadline - perf_counter()
                if not self.wait_at(gate, left, rows):
                    return False
        finally:
            if not hung and waiter is self._first:
                self._first = None  # Ctrl-C came while the waiter hung on some of its rows only
            waiter.busy = False
            if waiter is not self._first:  # the kept waiter stays hung for the next call
                unhang(waiter, list(waiter.pending), self._lock)
