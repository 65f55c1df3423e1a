"""Places of rows: one number that orders all tasks of an owner, lower first.

It puts the user's priority before the nesting, and that before first come, first served::

    bits   63 ... 37        36 ... 32    31 ... 0
           -64 * priority   -depth       place

so an executor can compare tasks of several owners by the part above the places. Graphs that
come within ``fifo_timeout`` of each other share a *generation*, as in Dask: their places begin
at the same number, and so they go on side by side, each in its own order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, copysign, isnan
from numbers import Real
from typing import Any

from dask_ownership.core.row import Row

DEPTH = 1 << 32
"""What one level of nesting is worth, up to `DEEPEST` of them."""

DEEPEST = 31

BAND = 37
"""Bits below the user's priority."""

LOW = 1 << BAND
"""Orders from here on are those of priorities below 0."""

FIRST = -(1 << 62)
"""The order of what comes before all tasks of users: copies, and aliases."""

URGENT = -DEEPEST * DEPTH
"""Orders below this are those of priorities above 0."""

STEPS = 64
"""How finely priorities are told apart: to 1/64. All but 0 differ from 0."""

HIGHEST = 1 << 20
"""What is beyond this, either way, counts as this."""


def ordered(place: int, priority: Any = 0, depth: int = 0) -> int:
    """A place with the user's priority, higher first, and the nesting, deeper first.

    Raises
    ------
    TypeError
        When the priority is no number.
    """
    if depth:
        place -= min(depth, DEEPEST) * DEPTH
    if priority:
        if not isinstance(priority, Real) or isnan(priority):
            raise TypeError(f"priority= takes a number, not {priority!r}")
        size = ceil(min(abs(float(priority)), HIGHEST - 1) * STEPS)
        place -= int(copysign(size, priority)) << BAND
    return place


def urgency(order: int) -> int:
    """The part of an order that is the user's priority, lower first, whoever owns the task."""
    return (order - URGENT) >> BAND


class Places:
    """Gives the rows of one owner their places.

    Parameters
    ----------
    clock : callable
        Seconds.

    Attributes
    ----------
    next : int
        The place behind all others.
    shared : bool
        Whether a graph came, and what comes next may be of its generation.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.next = 0
        self._recent = 0
        self._before = 0
        self._start = 0
        self._beside = 0
        self._since = 0.0
        self.shared = False

    def one(self) -> int:
        """The place of a single task: behind all others."""
        self.next += 1
        return self.next - 1

    def beside(self, within: float) -> int:
        """The place of a single task that shares a graph's generation if that is so young."""
        if not self.shared or self._clock() - self._since > within:
            self.shared = False
            return self.one()
        place = self._start + self._beside
        self._beside += 1
        self.next = max(self.next, place + 1)
        return place

    def behind(self, dependencies: Sequence[Row], depth: int) -> int | None:
        """The place of the last of these if that is recent, else None.

        What goes on with work that was submitted just before comes before the rest of that:
        its inputs need not be kept for long.
        """
        place = dependencies[0].order
        for row in dependencies:
            if row.order > place:
                place = row.order
        if depth:
            place += min(depth, DEEPEST) * DEPTH
        return place if self._recent <= place < self.next else None

    def grow_old(self) -> None:
        """A while has passed; what was submitted two whiles ago is not recent any more."""
        self._recent, self._before = self._before, self.next

    def graph(self, count: int, within: float) -> int:
        """The first of so many places of a graph, in the last graph's generation if that is
        not older than ``within`` seconds."""
        now = self._clock()
        if not self.shared or now - self._since > within:
            self._start = self.next
            self._since = now
            self.shared = True
            self._beside = 0
        self.next = max(self.next, self._start + count)
        return self._start
