"""The virtual clock: events in the order of their times, and a step of each process after them."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from math import inf
from typing import Protocol

SECOND = 100_000.0
"""Virtual microseconds for each second of the core: shorter, so that its timers end in a run."""


class Stepping(Protocol):
    """A process, or a part of one, that takes a step after an event has concerned it."""

    @property
    def name(self) -> str: ...

    @property
    def alive(self) -> bool: ...

    @property
    def frozen(self) -> bool: ...

    def step(self) -> None: ...


class Clock:
    """Has events happen in the order of their virtual times.

    Attributes
    ----------
    now : float
        Virtual microseconds since the beginning.
    dirty : set of Stepping
        Processes that an event concerned: each takes a step before the next event.
    touched : set of str
        Names of processes that an event may have concerned since an observer cleared the set: no
        other process has changed.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.dirty: set[Stepping] = set()
        self.touched: set[str] = set()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    @property
    def seconds(self) -> float:
        """The virtual time in seconds of the core."""
        return self.now / SECOND

    @property
    def next_at(self) -> float:
        """The time of the next event; infinity when no event is left."""
        return self._events[0][0] if self._events else inf

    def number(self) -> int:
        """Return a number that this clock has not given before."""
        self._count += 1
        return self._count

    def later(self, delay: float, call: Callable[[], None]) -> None:
        """Have ``call`` happen as an event after so many virtual microseconds."""
        # The number keeps events of the same time in order, and calls from being compared.
        self._count += 1
        heappush(self._events, (self.now + delay, self._count, call))

    def happen(self) -> None:
        """Go on to the next event, and have the processes that it concerns take their steps."""
        self.now, _, call = heappop(self._events)
        call()
        # The local ``call`` keeps the futures of the event until the steps are taken: a process
        # gives these up after its step, and not before.
        self.settle()

    def pass_until(self, time: float) -> None:
        """Let time pass without an event."""
        self.now = max(self.now, time)

    def settle(self) -> None:
        """Have dirty processes take their steps until none is dirty."""
        while self.dirty:
            # By name: the order of a set would differ from run to run.
            todo = sorted(self.dirty, key=lambda one: one.name)
            self.dirty.clear()
            for one in todo:
                self.touched.add(one.name)
                if one.alive and not one.frozen:
                    one.step()
