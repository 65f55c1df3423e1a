"""The virtual clock: what happens when, and who has to take a step before the next thing does."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from math import inf
from typing import Protocol

SECOND = 100_000.0
"""Virtual microseconds that what the core counts in seconds takes here."""


class Stepping(Protocol):
    """Something that takes a step after something happened to it."""

    @property
    def name(self) -> str: ...

    @property
    def alive(self) -> bool: ...

    @property
    def frozen(self) -> bool: ...

    def step(self) -> None: ...


class Clock:
    """Has things happen in the order of their virtual times.

    Attributes
    ----------
    now : float
        Virtual microseconds since the beginning.
    dirty : set of Stepping
        Those to which something happened: each of them takes a step before time goes on.
    touched : set of str
        Names of those to which something may have happened since an observer cleared it: no
        other one has changed.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.dirty: set[Stepping] = set()
        self.touched: set[str] = set()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    @property
    def seconds(self) -> float:
        """The virtual time, for those who count it in seconds."""
        return self.now / SECOND

    @property
    def next_at(self) -> float:
        """When something happens next; infinity when nothing is left to happen."""
        return self._events[0][0] if self._events else inf

    def number(self) -> int:
        """A number that was not given before."""
        self._count += 1
        return self._count

    def later(self, delay: float, call: Callable[[], None]) -> None:
        """Have something happen after a while."""
        self._count += 1
        heappush(self._events, (self.now + delay, self._count, call))

    def happen(self) -> None:
        """Go on to what happens next, and have all that this concerns take its steps.

        What happened is let go of only then, with the futures that it has: a process gives the
        handles of those up after its step, and not before.
        """
        self.now, _, call = heappop(self._events)
        call()
        self.settle()

    def pass_until(self, time: float) -> None:
        """Let time pass in which nothing happens."""
        self.now = max(self.now, time)

    def settle(self) -> None:
        """Have all that is dirty take its steps, by its name, until nothing is."""
        while self.dirty:
            todo = sorted(self.dirty, key=lambda one: one.name)
            self.dirty.clear()
            for one in todo:
                self.touched.add(one.name)
                if one.alive and not one.frozen:
                    one.step()
