"""TaskOrder of rows: one number that orders all tasks of an owner, lower first.

It puts the user's priority before the nesting, and that before first come, first served::

    bits   63 ... 37        36 ... 32    31 ... 0
           -64 * priority   -depth       place

so an executor can compare tasks of several owners by the part above the places. Graphs that
come within ``fifo_timeout`` of each other share a *generation*, as in Dask: their places begin
at the same number, and so they go on side by side, each in its own order.
"""

from __future__ import annotations

from math import ceil, copysign, isnan
from numbers import Real
from typing import Any

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
