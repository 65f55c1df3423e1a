"""The scheduler is off the path: what it handles does not grow with the number of tasks."""

from __future__ import annotations

import time
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any

import distributed
import pytest
from live import blob, inc, small_cluster, wait_for_members

from dask_ownership import Client, wait

TASKS = 10_000
ALLOWED = 200


@pytest.fixture(scope="module")
def counted():
    """A cluster whose scheduler counts every message, in and out."""
    with small_cluster() as cluster:
        yield cluster, Counter(cluster.scheduler)


@pytest.fixture
def client(counted):
    with Client(counted[0], set_as_default=False) as client:
        wait_for_members(client, 2)
        yield client


class Counter:
    """Counts operations that a scheduler handles, and messages that it sends."""

    def __init__(self, scheduler: Any) -> None:
        self.counts: dict[str, int] = {}
        for kind, handlers in (("call", scheduler.handlers), ("in", scheduler.stream_handlers)):
            for name, handler in list(handlers.items()):
                handlers[name] = self._wrapped(f"{kind} {name}", handler)
        for name in ("client_send", "worker_send", "send_all"):
            setattr(scheduler, name, self._wrapped(f"out {name}", getattr(scheduler, name)))

    def _wrapped(self, name: str, function: Any) -> Any:
        if iscoroutinefunction(function):

            @wraps(function)
            async def counting_async(*args: Any, **kwargs: Any) -> Any:
                self.counts[name] = self.counts.get(name, 0) + 1
                return await function(*args, **kwargs)

            return counting_async

        @wraps(function)
        def counting(*args: Any, **kwargs: Any) -> Any:
            self.counts[name] = self.counts.get(name, 0) + 1
            return function(*args, **kwargs)

        return counting

    def during(self, function: Any) -> tuple[int, float]:
        """How many messages there were while a function ran, and how long that took."""
        before = sum(self.counts.values())
        started = time.perf_counter()
        function()
        return sum(self.counts.values()) - before, time.perf_counter() - started

    def settle(self) -> None:
        """Wait until what earlier tests left behind is through."""
        deadline = time.perf_counter() + 10
        while self.during(lambda: time.sleep(0.3))[0] > 5:
            assert time.perf_counter() < deadline, self.counts


def assert_constant(counter: Counter, work: Any) -> None:
    """Work makes few more messages than the same time of doing nothing."""
    counter.settle()
    work_messages, seconds = counter.during(work)
    idle_messages, _ = counter.during(lambda: time.sleep(min(seconds, 1.0)))
    idle = idle_messages * max(1.0, seconds)
    assert work_messages - idle < ALLOWED, counter.counts


def length(value: bytearray) -> int:
    return len(value)


def nest(count: int) -> int:
    client = distributed.get_client()
    return sum(client.gather(client.map(inc, range(count), pure=False)))


def test_the_counter_counts(counted, client):
    """Stock tasks are seen by it."""
    with distributed.Client(counted[0], set_as_default=False) as stock:
        messages, _ = counted[1].during(lambda: stock.gather(stock.map(inc, range(300))))
    assert messages >= 300


def test_flat_tasks(counted, client):
    def work() -> None:
        futures = [client.submit(inc, i, pure=False) for i in range(TASKS)]
        assert sum(client.gather(futures)) == sum(range(1, TASKS + 1))

    assert_constant(counted[1], work)
    assert client.central_calls == 0


def test_mapped_and_cancelled_tasks(counted, client):
    def work() -> None:
        futures = client.map(inc, range(TASKS))
        assert sum(client.gather(futures)) == sum(range(1, TASKS + 1))
        slow = client.map(time.sleep, [0.01] * 1000, pure=False)
        client.cancel(slow)
        del futures, slow

    assert_constant(counted[1], work)


def test_chains(counted, client):
    def work() -> None:
        last = client.submit(inc, 0, pure=False)
        for _ in range(TASKS // 5):
            last = client.submit(inc, last, pure=False)
        assert last.result() == TASKS // 5 + 1

    assert_constant(counted[1], work)


def test_fetches_between_workers(counted, client):
    here, there = wait_for_members(client, 2)

    def work() -> None:
        values = client.map(blob, [70_000] * 500, workers=here, pure=False)
        sizes = client.map(length, values, workers=there, pure=False)
        assert client.gather(sizes) == [70_000] * 500
        wait(values)
        assert len(client.gather(values[:50])) == 50

    assert_constant(counted[1], work)


def test_nested_tasks(counted, client):
    # Each worker joins once, when a task there submits for the first time.
    client.gather(client.map(nest, [5] * 4, pure=False))

    def work() -> None:
        results = client.gather(client.map(nest, [TASKS // 10] * 10, pure=False))
        assert results == [sum(range(1, TASKS // 10 + 1))] * 10

    assert_constant(counted[1], work)
