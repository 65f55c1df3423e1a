"""The backlog of an owner: how many tasks wait, told to the scheduler for adaptive scaling."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from dask_ownership.core.owner.scheduling.placement import Placement

INTERVAL = 0.5
"""Seconds between two messages to the scheduler, at least."""


class Backlog:
    """Tell the scheduler how many ready tasks wait, when the number has changed much.

    Parameters
    ----------
    placement : Placement
    tell : callable or None
        ``tell(tasks)`` sends the number to the scheduler. With None nothing is told.

    Attributes
    ----------
    size : int
        The bit length of the number told last: 0 when no task waits.
    """

    def __init__(self, placement: Placement, tell: Callable[[int], None] | None) -> None:
        self._placement = placement
        self._tell = tell
        self._told_at = 0.0
        self.size = 0

    def look(self) -> None:
        """Tell the number, if there is something new to tell. Loop thread."""
        if self._tell is None:
            return
        waiting = self._placement.ready_count
        # By bits: the scheduler hears of each doubling and halving, and at once when no task waits.
        size = waiting.bit_length()
        now = perf_counter()
        if size != self.size and (now - self._told_at > INTERVAL or not size):
            self.size = size
            self._told_at = now
            self._tell(waiting)
