"""Places of one owner's rows in the order of tasks, see `protocol.order`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.protocol.order import DEEPEST, DEPTH


class TaskOrder:
    """Gives the rows of one owner their places.

    Parameters
    ----------
    clock : callable
        Returns the time in seconds.

    Attributes
    ----------
    next : int
        The place behind all places given so far.
    shared : bool
        Whether there is a young graph, whose generation the next tasks may share.
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
        """Return the place of a single task: behind all places given so far."""
        self.next += 1
        return self.next - 1

    def beside(self, within: float) -> int:
        """Return the place of a single task, in the last graph's generation if that is young.

        Young is a generation not older than ``within`` seconds. Without one: a place as of `one`.
        """
        if not self.shared or self._clock() - self._since > within:
            self.shared = False
            return self.one()
        place = self._start + self._beside
        self._beside += 1
        self.next = max(self.next, place + 1)
        return place

    def behind(self, dependencies: Sequence[Row], depth: int) -> int | None:
        """Return the place of the last of the dependencies if that place is recent, else None.

        A task that goes on with recent tasks comes next to them, before the rest of the recent
        tasks: the values of the dependencies need not be kept for long.
        """
        place = dependencies[0].order
        for row in dependencies:
            if row.order > place:
                place = row.order
        if depth:
            # The order of a nested row has the depth taken off, see `protocol.order.ordered`.
            place += min(depth, DEEPEST) * DEPTH
        return place if self._recent <= place < self.next else None

    def grow_old(self) -> None:
        """Let places grow old: a place is recent until the second call after the place was given.

        The owner calls at even intervals, so a place is recent for one to two intervals.
        """
        self._recent, self._before = self._before, self.next

    def graph(self, count: int, within: float) -> int:
        """Return the first place of a graph with ``count`` tasks.

        The graph shares the last graph's generation if that is not older than ``within`` seconds:
        both begin at the same place, and so go on side by side.
        """
        now = self._clock()
        if not self.shared or now - self._since > within:
            self._start = self.next
            self._since = now
            self.shared = True
            self._beside = 0
        self.next = max(self.next, self._start + count)
        return self._start
