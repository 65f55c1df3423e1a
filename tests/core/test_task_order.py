from __future__ import annotations

import pytest
from test_executor import Bench, push

from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.owner.scheduling.task_order import TaskOrder
from dask_ownership.core.protocol.order import ordered, urgency


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def task_order(clock: Clock) -> TaskOrder:
    return TaskOrder(clock)


def at(place: int) -> Row:
    return Row(f"row-{place}", None, None, (), place)


def test_higher_priorities_come_first_however_close_they_are():
    priorities = [1e9, 2**20, 1000, 2, 1.5, 1, 0.5, 1e-9, 0, -1e-9, -0.5, -1, -1000, -1e9]
    orders = [ordered(10**9, p) for p in priorities]
    assert orders == sorted(orders) and len(set(orders[1:-1])) == len(priorities) - 2
    assert all(-(2**63) <= order < 2**63 for order in orders)
    late_but_urgent, early = ordered(2**32 - 1, 0.001), ordered(0, 0)
    assert late_but_urgent < early


def test_deeper_comes_before_shallower_and_after_what_is_urgent():
    assert ordered(5, 0, 3) < ordered(5, 0, 1) < ordered(0, 0, 0)
    assert ordered(5, 1, 0) < ordered(0, 0, 40)
    assert ordered(5, 0, 100) < ordered(6, 0, 100)
    for depth in (0, 1, 31, 1000):
        assert urgency(ordered(0, 0, depth)) == urgency(ordered(2**32 - 1, 0, depth)) == 0
        assert urgency(ordered(7, 2, depth)) < urgency(ordered(7, 0.5, depth)) < 0
        assert urgency(ordered(7, -2, depth)) > 0


@pytest.mark.parametrize("priority", ["high", float("nan"), 1j, (1,)])
def test_what_is_no_priority(priority):
    with pytest.raises(TypeError, match="priority="):
        ordered(0, priority)


def test_first_come_first_served(task_order, clock):
    first = [task_order.one() for _ in range(3)]
    graph = task_order.graph(10, within=60)
    clock.now = 61
    second = task_order.graph(5, within=60)
    later = [task_order.beside(within=0.1) for _ in range(2)]
    assert first == [0, 1, 2] and graph == 3 and second == 13
    assert later == [13, 14]
    clock.now += 1
    assert task_order.beside(within=0.1) == 18 and not task_order.shared
    assert task_order.one() == 19


def test_graphs_of_one_generation_begin_at_the_same_place(task_order, clock):
    task_order.one()
    assert task_order.graph(100, within=60) == 1
    clock.now = 59
    assert task_order.graph(200, within=60) == 1
    clock.now = 62
    assert task_order.graph(5, within=60) == 201, (
        "a generation does not grow older by what joins it"
    )
    assert task_order.graph(5, within=0) == 201
    clock.now = 63
    assert task_order.graph(5, within=0) == 206


def test_what_goes_on_with_recent_work_comes_next(task_order):
    old = [at(task_order.one()) for _ in range(3)]
    assert task_order.behind(old, 0) == 2
    task_order.grow_old()
    new = at(task_order.one())
    assert task_order.behind([old[0], new], 0) == 3
    task_order.grow_old()
    assert task_order.behind(old, 0) is None
    assert task_order.behind([new], 0) == 3
    assert task_order.behind([at(ordered(3, 1))], 0) is None
    deep = at(ordered(3, 0, 2))
    assert task_order.behind([deep], 2) == 3


def test_an_executor_takes_what_is_urgent_first_whoever_owns_it():
    bench = Bench(slots=10)
    other = bench.core.open("other")
    bench.tell(push("low", order=ordered(1, -1)), push("usual", order=ordered(2)))
    bench.tell(push("high", order=ordered(3, 1)), push("deep", order=ordered(4, 0, 1), depth=1))
    bench.tell(push("their-high", order=ordered(50, 1)), session=other)
    bench.tell(push("their-usual", order=ordered(51)), session=other)
    keys = [bench.start().key for _ in range(6)]
    assert keys == ["high", "their-high", "deep", "usual", "their-usual", "low"]


def test_very_many_priorities_leave_nothing_behind():
    bench = Bench(slots=1000)
    bench.tell(*[push(f"x{i}", order=ordered(i, i - 50)) for i in range(100)])
    assert [bench.start().key for _ in range(100)] == [f"x{i}" for i in reversed(range(100))]
    assert bench.core.queue.next_work() is None
    bench.tell(push("last"))
    bench.start()
    assert bench.core.queue._levels == [0] and list(bench.session.queues) == [0]
