"""Waking the event loop of a worker for a flush."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable


class Flushing:
    """Calls a flush on the event loop, once for all calls of `soon` before it begins.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
    flush : callable
        The function to call. It sets ``scheduled`` back.

    Attributes
    ----------
    scheduled : bool
        Whether a flush is on its way. Hot paths look here before they call `soon`.
    """

    __slots__ = ("_context", "_flush", "_loop", "scheduled")

    def __init__(self, loop: asyncio.AbstractEventLoop, flush: Callable[[], None]) -> None:
        self._loop = loop
        self._flush = flush
        self._context = contextvars.copy_context()
        self.scheduled = False

    def soon(self) -> None:
        """Have the loop flush. Any thread."""
        if not self.scheduled:
            self.scheduled = True
            try:
                # Not in the caller's context: a flush is no part of the task that asks for it.
                self._loop.call_soon_threadsafe(self._flush, context=self._context)
            except RuntimeError:
                pass  # the loop is closed, and so is the worker
