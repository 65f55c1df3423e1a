"""When numbers that an owner gives out one after the other were given out.

The time of each would cost a look at the clock per task. Here at most one mark per second
says how far the count had got; the age of a row follows from the number of its attempt.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

SECOND = 1e6
"""Microseconds between two marks, at least."""

MARKS = 200
"""Above so many they are thinned."""

PART = 0.1
"""Of the age of a mark: for how long it lasts at most when it is joined with others."""


class AttemptTimes:
    """Marks of how far a count had got when.

    Parameters
    ----------
    clock : callable
        The time in seconds, as it is told to people; asked once for each mark.

    Attributes
    ----------
    counts : list of int
        The highest number of each mark, ascending.
    times : list of float
        When the numbers of each mark began to be given out.
    """

    __slots__ = ("_full", "clock", "counts", "times")

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.counts: list[int] = []
        self.times: list[float] = []
        self._full = 0.0

    def mark(self, count: int, now: float) -> None:
        """Numbers up to this one are given out; ``now`` is in microseconds of any clock."""
        counts = self.counts
        if counts and now < self._full:
            counts[-1] = count
        elif not counts or count > counts[-1]:
            counts.append(count)
            self.times.append(self.clock())
            self._full = now + SECOND
            if len(counts) > MARKS:
                self._thin()

    def since(self, number: int) -> float | None:
        """When a number was given out, or a little before: by a second, or a tenth of its age.

        None for one that was not, such as 0.
        """
        index = bisect_left(self.counts, number)
        return self.times[index] if number > 0 and index < len(self.counts) else None

    def _thin(self) -> None:
        """Join marks that follow each other closely, for how long ago that was."""
        counts: list[int] = []
        times: list[float] = []
        newest = self.times[-1]
        ends = [*self.times[1:], newest]
        for count, time, end in zip(self.counts, self.times, ends, strict=True):
            if times and end - times[-1] <= PART * (newest - times[-1]):
                counts[-1] = count
            else:
                counts.append(count)
                times.append(time)
        self.counts, self.times = counts, times
