"""A priority queue that is a plain deque as long as things arrive in order."""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from typing import Generic, Protocol, TypeVar


class Ordered(Protocol):
    """An item of an `OrderedQueue`: a lower ``order`` leaves the queue first."""

    order: int


T = TypeVar("T", bound=Ordered)


class OrderedQueue(Generic[T]):
    """A priority queue that takes items in any order and gives back the lowest ``order`` first.

    A loop of submits arrives in order, so the common case costs one append to a deque and
    one popleft. Items that arrive out of order go to a heap beside the deque.

    Attributes
    ----------
    size : int
        How many items are queued; an attribute, because ``len`` costs a call.
    """

    __slots__ = ("_heap", "_pushed", "_run", "size")

    def __init__(self) -> None:
        self.size = 0
        self._run: deque[T] = deque()
        # Order, number of the push, item: items of one order leave in the order of their pushes,
        # and the heap never compares two items.
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
        """Take the lowest item out of the queue and return the item.

        Raises
        ------
        IndexError
            When the queue is empty.
        """
        heap = self._heap
        if heap and (not self._run or heap[0][0] < self._run[0].order):
            self.size -= 1
            return heappop(heap)[2]
        item = self._run.popleft()
        self.size -= 1
        return item

    def put_back(self, item: T) -> None:
        """Undo the `pop` of an item; the caller has pushed nothing in between."""
        self.size += 1
        # In front of the deque also when the item came from the heap: no item is lower.
        self._run.appendleft(item)

    def peek(self) -> T:
        """Return the lowest item and leave the item in the queue.

        Raises
        ------
        IndexError
            When the queue is empty.
        """
        heap = self._heap
        if heap and (not self._run or heap[0][0] < self._run[0].order):
            return heap[0][2]
        return self._run[0]

    def items(self) -> list[T]:
        """Return all queued items, lowest first, and leave the queue as before."""
        merged = list(self._run) + [entry[2] for entry in self._heap]
        merged.sort(key=lambda item: item.order)
        return merged
