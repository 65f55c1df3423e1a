"""Tasks that wait without a slot, and how many others may begin because of that.

A task that waits gives its slot up, and another one takes it: tasks that submit tasks live by
that. But what began has its inputs in memory, and holds what it took. So when a worker has
`WAITING_PER_THREAD` waiting tasks for each of its threads, it is *full*: a slot that comes free
then is only for what the waiting tasks need to go on. That is

- a task that one of them waits for, as far as is known here (`awaited`);
- a task that is nested deeper than all of them, because what they wait for is among those, as a
  rule.

When no task has ended for a while nevertheless, one more may begin, whatever it is, and after
twice as long the next (`relieve`): what the waiting ones need may be known elsewhere only.

Not counted are tasks that nobody wants any more, and those that left their slot by
``distributed.secede``: that is to say that others should begin.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from dask_ownership.core.executor.session import BLOCKED, QUEUED, Entry

WAITING_PER_THREAD = 4
"""Waiting tasks of each thread of a worker above which it is full."""

FIRST_RELIEF = 1.0
"""Seconds without an end after which one more task begins."""

LONGEST_RELIEF = 4.0
"""Seconds between one such task and the next, at most."""


class Crowd:
    """The waiting tasks of one executor.

    Parameters
    ----------
    nthreads : int
        Threads of the worker.

    Attributes
    ----------
    waiting : dict
        The tasks to whether they count.
    limit : int
        How many there may be before it is full.
    awaited : deque of Entry
        Queued tasks that some of them wait for, which start first.
    one_more : bool
        One more may begin though it is full.
    """

    def __init__(self, nthreads: int) -> None:
        self.limit_for(nthreads)
        self.waiting: dict[Entry, bool] = {}
        self.awaited: deque[Entry] = deque()
        self._count = 0
        self._depths: dict[int, int] = {}
        self.one_more = False
        self._next_relief = FIRST_RELIEF

    def __len__(self) -> int:
        return len(self.waiting)

    def limit_for(self, nthreads: int) -> None:
        """The worker has so many threads from now on."""
        self.limit = WAITING_PER_THREAD * nthreads

    @property
    def full(self) -> bool:
        """Whether only what the waiting tasks need may begin."""
        return self._count >= self.limit and not self.one_more

    @property
    def deepest(self) -> int:
        """The nesting of the deepest of them. Only while some count."""
        return max(self._depths)

    def add(self, entry: Entry, counts: bool = True) -> None:
        """A running task waits, and has given its slot up."""
        counts = counts and not entry.cancelled
        self.waiting[entry] = counts
        if counts:
            self._count += 1
            depth = entry.depth
            self._depths[depth] = self._depths.get(depth, 0) + 1

    def remove(self, entry: Entry) -> None:
        """A task waits no more, or wants a slot no more."""
        if self.waiting.pop(entry):
            self._count_less(entry)

    def unwanted(self, entry: Entry) -> None:
        """Nobody wants a task any more, which may go on waiting for as long as it likes."""
        if self.waiting.get(entry):
            self.waiting[entry] = False
            self._count_less(entry)

    def _count_less(self, entry: Entry) -> None:
        self._count -= 1
        depth = entry.depth
        left = self._depths[depth] - 1
        if left:
            self._depths[depth] = left
        else:
            del self._depths[depth]

    # ---- what may begin all the same ----

    def await_(self, entries: Iterable[Entry]) -> None:
        """Waiting tasks wait for these, or for what has these as an input."""
        stack = list(entries)
        while stack:
            entry = stack.pop()
            if entry.state == QUEUED and not entry.awaited:
                entry.awaited = True
                self.awaited.append(entry)
            elif entry.state == BLOCKED and not entry.awaited:
                entry.awaited = True
                stack.extend(one for one in entry.dependencies if type(one) is Entry)

    def take_awaited(self) -> Entry | None:
        """The first of the awaited tasks that is queued."""
        while self.awaited:
            entry = self.awaited.popleft()
            if entry.state == QUEUED:
                return entry
        return None

    def relieve(self, standstill: float) -> None:
        """No task has ended for so many seconds: see whether one more may begin."""
        if standstill < FIRST_RELIEF:
            self._next_relief = FIRST_RELIEF
        elif standstill >= self._next_relief:
            self._next_relief += min(self._next_relief, LONGEST_RELIEF)
            self.one_more = self._count >= self.limit

    def began(self) -> None:
        """A task took a slot."""
        self.one_more = False
