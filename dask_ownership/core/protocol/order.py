"""Orders of rows: one number that orders all tasks of an owner, lower first.

An order puts the user's priority before the nesting, and the nesting before first come, first
served, which is the *place*::

    bits   63 ... 37        36 ... 32    31 ... 0
           -64 * priority   -depth       place

so an executor can compare tasks of several owners by the part above the places. Graphs that
come within ``fifo_timeout`` of each other share a *generation*, as in Dask: the places of these
graphs begin at the same number, and so the graphs go on side by side, each in its own order.
"""

from __future__ import annotations

from math import ceil, copysign, isnan
from numbers import Real
from typing import Any

DEPTH = 1 << 32
"""How much one level of nesting takes off an order, up to `DEEPEST` levels."""

DEEPEST = 31
"""The levels of nesting that have bits in an order; deeper tasks share the deepest level."""

BAND = 37
"""Bits below the user's priority."""

LOW = 1 << BAND
"""Orders from here on belong to priorities below 0."""

FIRST = -(1 << 62)
"""The order of rows that come before all tasks of users: copies, and aliases."""

URGENT = -DEEPEST * DEPTH
"""Orders below this number belong to priorities above 0."""

STEPS = 64
"""Steps of a priority between two whole numbers. Every priority but 0 differs from 0."""

HIGHEST = 1 << 20
"""Priorities of this size and beyond, either way, count as one less."""


def ordered(place: int, priority: Any = 0, depth: int = 0) -> int:
    """Return the order of a row: a place with the user's priority and the nesting.

    Parameters
    ----------
    place : int
        Lower first.
    priority : number
        Of the user, higher first.
    depth : int
        Levels of nesting, deeper first: shallower tasks wait for deeper ones.

    Raises
    ------
    TypeError
        When the priority is no number.
    """
    # Without a priority and at no depth, as most tasks are, an order is the place itself.
    if depth:
        place -= min(depth, DEEPEST) * DEPTH
    if priority:
        if not isinstance(priority, Real) or isnan(priority):
            raise TypeError(f"priority= takes a number, not {priority!r}")
        # Rounded away from 0, so that the smallest priority is still one step from none.
        size = ceil(min(abs(float(priority)), HIGHEST - 1) * STEPS)
        place -= int(copysign(size, priority)) << BAND
    return place


def urgency(order: int) -> int:
    """Return the user's priority in an order, lower first, comparable between all owners."""
    return (order - URGENT) >> BAND
