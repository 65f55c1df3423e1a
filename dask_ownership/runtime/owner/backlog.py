"""How much waits at an owner, which the scheduler hears of for adaptive scaling."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from dask_ownership.core.owner.scheduling.placement import Placement

INTERVAL = 0.5
"""Seconds between two words to the scheduler."""


class Backlog:
    """Tells how much waits when that changed much, and at the end that nothing does.

    Parameters
    ----------
    placement : Placement
    tell : callable or None
        ``tell(tasks)``; without it nothing is told.

    Attributes
    ----------
    size : int
        The bits of the number that was told last: 0 when nothing waits.
    """

    def __init__(self, placement: Placement, tell: Callable[[int], None] | None) -> None:
        self._placement = placement
        self._tell = tell
        self._told_at = 0.0
        self.size = 0

    def look(self) -> None:
        """Tell, if there is something new. Loop thread."""
        if self._tell is None:
            return
        waiting = self._placement.ready_count
        size = waiting.bit_length()
        now = perf_counter()
        if size != self.size and (now - self._told_at > INTERVAL or not size):
            self.size = size
            self._told_at = now
            self._tell(waiting)
