"""Having the event loop of a worker send what there is."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable


class Flushing:
    """Calls a function on the event loop, once for all who ask for it until then.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
    flush : callable
        What is called. It sets ``scheduled`` back.

    Attributes
    ----------
    scheduled : bool
        Whether it is on its way. Who has much to do looks here before calling `soon`.
    """

    __slots__ = ("_context", "_flush", "_loop", "scheduled")

    def __init__(self, loop: asyncio.AbstractEventLoop, flush: Callable[[], None]) -> None:
        self._loop = loop
        self._flush = flush
        self._context = contextvars.copy_context()
        self.scheduled = False

    def soon(self) -> None:
        """Have the loop send what there is. Any thread."""
        if not self.scheduled:
            self.scheduled = True
            try:
                # Not in the caller's context: what is started from here is no part of its task.
                self._loop.call_soon_threadsafe(self._flush, context=self._context)
            except RuntimeError:
                pass  # the loop is closed, and with it everything else
