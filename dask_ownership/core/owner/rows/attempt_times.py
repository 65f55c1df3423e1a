"""When an owner gave out the numbers of attempts, to within a second or a tenth of the age.

A time for each attempt would cost a look at the clock per task. Instead an owner makes at most
one mark per second, which says how far the count of attempts has got. The age of a row follows
from the number of the row's last attempt.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

SECOND = 1e6
"""Microseconds between two marks, at least."""

MARKS = 200
"""Number of marks above which neighbouring marks are joined."""

PART = 0.1
"""Longest time that a joined mark covers, as a part of the age of the mark."""


class AttemptTimes:
    """Marks of how far the count of attempts had got, and when.

    Parameters
    ----------
    clock : callable
        Returns the wall-clock time in seconds. Called once for each mark.

    Attributes
    ----------
    counts : list of int
        The highest number of each mark, ascending.
    times : list of float
        When the owner began to give out the numbers of each mark, by ``clock``.
    """

    __slots__ = ("_full", "clock", "counts", "times")

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.counts: list[int] = []
        self.times: list[float] = []
        self._full = 0.0

    def mark(self, count: int, now: float) -> None:
        """Note that numbers up to ``count`` are given out.

        Parameters
        ----------
        count : int
        now : float
            Microseconds, of any clock that runs evenly.
        """
        counts = self.counts
        if counts and now < self._full:
            # The last mark is less than `SECOND` old and takes the new numbers in.
            counts[-1] = count
        elif not counts or count > counts[-1]:
            counts.append(count)
            self.times.append(self.clock())
            self._full = now + SECOND
            if len(counts) > MARKS:
                self._thin()

    def since(self, number: int) -> float | None:
        """Return when a number was given out, in seconds of ``clock``.

        The answer may be too early, by a second or by a tenth of the number's age. For a number
        that was not given out, such as 0, the answer is None.
        """
        index = bisect_left(self.counts, number)
        return self.times[index] if number > 0 and index < len(self.counts) else None

    def _thin(self) -> None:
        """Join neighbouring marks that lie close together compared with their age."""
        counts: list[int] = []
        times: list[float] = []
        newest = self.times[-1]
        # A mark covers the time until the next mark begins.
        ends = [*self.times[1:], newest]
        for count, time, end in zip(self.counts, self.times, ends, strict=True):
            if times and end - times[-1] <= PART * (newest - times[-1]):
                counts[-1] = count
            else:
                counts.append(count)
                times.append(time)
        self.counts, self.times = counts, times
