"""Locks of the virtual cluster, for which tasks wait with a slot or without.

A task may take a lock of its process, as libraries do around file handles. A task waiting for such
a lock keeps its slot, because the executor does not know of the wait. A task may then take a lock
of the cluster, as ``distributed.Lock``, and gives its slot up when the wait lasts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

Granted = Callable[[], None]


class Locks:
    """Locks by name, each given to one holder at a time, in the order of asking."""

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
        """Give a lock to the next in turn; a holder that only waits stops waiting."""
        waiting = self._waiting.get(name, deque())
        if self.locations.get(name) is not holder:
            self._waiting[name] = deque(one for one in waiting if one[0] is not holder)
            return
        del self.locations[name]
        if waiting:
            next_one, granted = waiting.popleft()
            self.locations[name] = next_one
            granted()
