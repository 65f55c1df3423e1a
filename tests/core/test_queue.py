from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_ownership.core.queue import OrderedQueue


@dataclass(frozen=True)
class Item:
    order: int
    number: int


def test_an_empty_queue_has_nothing():
    queue: OrderedQueue[Item] = OrderedQueue()
    assert len(queue) == 0 and queue.items() == []
    with pytest.raises(IndexError):
        queue.pop()
    with pytest.raises(IndexError):
        queue.peek()


@given(st.lists(st.one_of(st.integers(-5, 5), st.none()), max_size=60))
def test_gives_the_lowest_order_first_whatever_comes_between(actions):
    queue: OrderedQueue[Item] = OrderedQueue()
    inside: list[Item] = []
    for number, order in enumerate(actions):
        if order is not None:
            item = Item(order, number)
            queue.push(item)
            inside.append(item)
        elif inside:
            assert queue.peek().order == min(item.order for item in inside)
            queue.put_back(queue.pop())
            item = queue.pop()
            assert item.order == min(item.order for item in inside)
            inside.remove(item)
        assert len(queue) == len(inside)
        assert sorted(queue.items(), key=hash) == sorted(inside, key=hash)
        assert [i.order for i in queue.items()] == sorted(i.order for i in inside)


def test_what_arrives_in_order_leaves_in_order_of_arrival():
    queue: OrderedQueue[Item] = OrderedQueue()
    for number in range(5):
        queue.push(Item(1, number))
    assert [queue.pop().number for _ in range(5)] == [0, 1, 2, 3, 4]
