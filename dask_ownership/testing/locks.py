"""Locks of the virtual cluster, so that it can be seen who waits with a slot and who without.

A task may take a lock of its process, as a library does around its file handles: who waits for
that keeps the slot, because nobody knows that it waits. It may then take a lock of the cluster,
as ``distributed.Lock``: who waits for that gives the slot up when it lasts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

Granted = Callable[[], None]


class Locks:
    """Locks by name, each given to one holder at a time, in the order in which they ask."""

    def __init__(self) -> None:
        self.locations: dict[str, Any] = {}
        self._waiting: dict[str, deque[tuple[Any, Granted]]] = {}

    def acquire(self, name: str, holder: Any, granted: Granted) -> None:
        """Call ``granted`` when the holder has the lock, which may be at once."""
        if name not in self.locations:
            self.locations[name] = holder
            granted()
        else:
            self._waiting.setdefault(name, deque()).append((holder, granted))

    def release(self, name: str, holder: Any) -> None:
        """Give a lock to the next; or stop waiting for it."""
        waiting = self._waiting.get(name, deque())
        if self.locations.get(name) is not holder:
            self._waiting[name] = deque(one for one in waiting if one[0] is not holder)
            return
        del self.locations[name]
        if waiting:
            next_one, granted = waiting.popleft()
            self.locations[name] = next_one
            granted()
