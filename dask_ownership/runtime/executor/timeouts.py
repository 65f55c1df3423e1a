"""Timers of running tasks that have a ``timeout``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from dask_ownership.core.executor.session import Entry


class Timeouts:
    """One timer for each running task that has a ``timeout``; other tasks cost nothing.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
    expired : callable
        ``expired(entry)`` on the loop when the time of a task is over.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, expired: Callable[[Entry], None]) -> None:
        self._loop = loop
        self._expired = expired
        self._timers: dict[Entry, asyncio.TimerHandle] = {}

    def start(self, entry: Entry, seconds: float) -> None:
        """Start the timer of a task that took a slot, with this many seconds. Any thread."""
        self._soon(self._start, entry, self._loop.time() + seconds)

    def stop(self, entry: Entry) -> None:
        """Stop the timer of a task that ended. Any thread.

        Calls reach the loop in order, so the timer is there when it is stopped.
        """
        self._soon(self._stop, entry)

    def _soon(self, call: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *args)
        except RuntimeError:
            pass  # the loop is closed, and so is the worker

    def _start(self, entry: Entry, deadline: float) -> None:
        self._timers[entry] = self._loop.call_at(deadline, self._ring, entry)

    def _stop(self, entry: Entry) -> None:
        timer = self._timers.pop(entry, None)
        if timer is not None:
            timer.cancel()

    def _ring(self, entry: Entry) -> None:
        del self._timers[entry]
        self._expired(entry)

    def __len__(self) -> int:
        return len(self._timers)

    def close(self) -> None:
        """Stop all timers. Loop thread."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
