"""TaskOrder of the rows of one owner, see `protocol.order`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.protocol.order import DEEPEST, DEPTH


class TaskOrder:
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
