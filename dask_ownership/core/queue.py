"""A priority queue that is a plain deque as long as things arrive in order."""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from typing import Generic, Protocol, TypeVar


class Ordered(Protocol):
    """What can be queued: ``order`` is its place, lower first."""

    order: int


T = TypeVar("T", bound=Ordered)


class OrderedQueue(Generic[T]):
    """Takes items in any order and gives them back by ``order``, lowest first.

    A loop of submits arrives in order, so the common case costs one append and
    one popleft. What arrives out of order goes to a heap beside it.

    Attributes
    ----------
    size : int
        How many are queued, as ``len`` gives it for a call.
    """

    __slots__ = ("_heap", "_pushed", "_run", "size")

    def __init__(self) -> None:
        self.size = 0
        self._run: deque[T] = deque()
        self._heap: list[tuple[int, int, T]] = []
        self._pushed = 0

    def __len__(self) -> int:
        return self.size

    def push(self, item: T) -> None:
        self.size += 1
        run = self._run
        if not run or run[-1].order <= item.order:
            run.append(item)
        else:
            self._pushed += 1
            heappush(self._heap, (item.order, self._pushed, item))

    def pop(self) -> T:
        """The lowest item.

        Raises
        ------
        IndexError
            When nothing is queued.
        """
        heap = self._heap
        if heap and (not self._run or heap[0][0] < self._run[0].order):
            self.size -= 1
            return heappop(heap)[2]
        item = self._run.popleft()
        self.size -= 1
        return item

    def put_back(self, item: T) -> None:
        """Undo `pop` of this item; nothing may have been pushed in between."""
        self.size += 1
        self._run.appendleft(item)

    def peek(self) -> T:
        """The lowest item, left in place."""
        heap = self._heap
        if heap and (not self._run or heap[0][0] < self._run[0].order):
            return heap[0][2]
        return self._run[0]

    def items(self) -> list[T]:
        """Everything queued, in order."""
        merged = list(self._run) + [entry[2] for entry in self._heap]
        merged.sort(key=lambda item: item.order)
        return merged
