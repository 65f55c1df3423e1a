"""Parked tasks of a worker, and how many other tasks may begin because of them.

A parked task gives its slot up, and another task takes the slot: tasks that submit tasks live by
such exchange. But a task that began has its inputs in memory, and holds the resources that it
took. So a worker with `WAITING_PER_THREAD` parked tasks for each of its threads is *full*: a free
slot then is only for tasks that the parked tasks need to go on. These are

- a task that a parked task waits for, as far as the executor knows (`awaited`);
- a task nested deeper than all parked tasks, because the tasks that parked tasks wait for are as
  a rule among the deeper ones.

When no task has ended for a while nevertheless, any one more task may begin, and after twice as
long the next (`relieve`): perhaps only another process knows which tasks the parked tasks need.

A parked task does not count after its cancellation, nor when the task left its slot by
``distributed.secede``: such a task says that other tasks should begin.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from dask_ownership.core.executor.session import BLOCKED, QUEUED, Entry

WAITING_PER_THREAD = 4
"""Parked tasks for each thread of a worker from which on the worker is full."""

FIRST_RELIEF = 1.0
"""Seconds in which no task ended, after which a full worker begins one more task."""

LONGEST_RELIEF = 4.0
"""Seconds between one more task and the next, at most."""


class Crowd:
    """The parked tasks of one executor.

    Parameters
    ----------
    nthreads : int
        Threads of the worker.

    Attributes
    ----------
    waiting : dict
        Each parked task to whether the task counts.
    counting : int
        How many parked tasks count.
    depths : dict
        Nesting to how many parked tasks of that nesting count.
    limit : int
        How many parked tasks that count make the worker full.
    awaited : deque of Entry
        Queued tasks that parked tasks wait for, and which start first.
    one_more : bool
        Whether one more task may begin although the worker is full.
    """

    def __init__(self, nthreads: int) -> None:
        self.limit_for(nthreads)
        self.waiting: dict[Entry, bool] = {}
        self.awaited: deque[Entry] = deque()
        self.counting = 0
        self.depths: dict[int, int] = {}
        self.one_more = False
        self._next_relief = FIRST_RELIEF

    def __len__(self) -> int:
        return len(self.waiting)

    def limit_for(self, nthreads: int) -> None:
        """Set the limit for a number of threads of the worker."""
        self.limit = WAITING_PER_THREAD * nthreads

    @property
    def full(self) -> bool:
        """Whether only tasks that the parked tasks need may begin."""
        return self.counting >= self.limit and not self.one_more

    @property
    def deepest(self) -> int:
        """The deepest nesting of a parked task that counts. There has to be one."""
        return max(self.depths)

    def add(self, entry: Entry, counts: bool = True) -> None:
        """Count a running task that has given its slot up; ``counts`` is False after a secede."""
        # A cancelled task may be parked for long, and would keep the worker full.
        counts = counts and not entry.cancelled
        self.waiting[entry] = counts
        if counts:
            self.counting += 1
            depth = entry.depth
            self.depths[depth] = self.depths.get(depth, 0) + 1

    def remove(self, entry: Entry) -> None:
        """Take out a parked task that goes on, or ended without a slot."""
        if self.waiting.pop(entry):
            self._count_less(entry)

    def unwanted(self, entry: Entry) -> None:
        """Count a parked task no more, because the task was cancelled.

        A thread cannot be stopped, so a cancelled task may wait for as long as it likes.
        """
        if self.waiting.get(entry):
            self.waiting[entry] = False
            self._count_less(entry)

    def _count_less(self, entry: Entry) -> None:
        self.counting -= 1
        depth = entry.depth
        left = self.depths[depth] - 1
        if left:
            self.depths[depth] = left
        else:
            del self.depths[depth]

    # ---- tasks that may begin at a full worker ----

    def await_(self, entries: Iterable[Entry]) -> None:
        """Have tasks start first that parked tasks wait for, with the tasks that these need."""
        stack = list(entries)
        while stack:
            entry = stack.pop()
            if entry.state == QUEUED and not entry.awaited:
                entry.awaited = True
                self.awaited.append(entry)
            elif entry.state == BLOCKED and not entry.awaited:
                # Marked for later, when the task is queued; its inputs may start now.
                entry.awaited = True
                stack.extend(one for one in entry.dependencies if type(one) is Entry)

    def take_awaited(self) -> Entry | None:
        """Take the first awaited task that is still queued; None when there is none."""
        while self.awaited:
            entry = self.awaited.popleft()
            if entry.state == QUEUED:
                return entry
        return None

    def relieve(self, standstill: float) -> None:
        """Let one more task begin at a full worker when the standstill has lasted long enough.

        Parameters
        ----------
        standstill : float
            Seconds in which no task has ended; the runtime calls again and again.
        """
        # Each relief that brings no end makes the next one wait longer.
        if standstill < FIRST_RELIEF:
            self._next_relief = FIRST_RELIEF
        elif standstill >= self._next_relief:
            self._next_relief += min(self._next_relief, LONGEST_RELIEF)
            self.one_more = self.counting >= self.limit

    def began(self) -> None:
        """Note that a task took a slot, which uses up the relief."""
        self.one_more = False
