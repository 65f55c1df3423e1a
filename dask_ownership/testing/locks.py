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
    """Locks by name, each given to one task at a time, in the order of asking."""

    def __init__(self) -> None:
        self.taken: dict[str, Any] = {}
        self._waiting: dict[str, deque[tuple[Any, Granted]]] = {}

    def acquire(self, name: str, task: Any, granted: Granted) -> None:
        """Call ``granted`` when the task has the lock, which may be at once."""
        if name not in self.taken:
            self.taken[name] = task
            granted()
        else:
            self._waiting.setdefault(name, deque()).append((task, granted))

    def release(self, name: str, task: Any) -> None:
        """Give a lock to the next in turn; a task that only waits stops waiting."""
        waiting = self._waiting.get(name, deque())
        if self.taken.get(name) is not task:
            self._waiting[name] = deque(one for one in waiting if one[0] is not task)
            return
        del self.taken[name]
        if waiting:
            next_one, granted = waiting.popleft()
            self.taken[name] = next_one
            granted()
