"""Owned futures in queues and variables: what lies there stays, and is let go of when taken."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import distributed
import pytest
from conftest import FAILED, check_nothing_left
from distributed import LocalCluster, Queue, Variable, wait
from live import blob, boom, inc, slowinc, until
from test_published import holding_of, nothing_held, publisher

from dask_ownership import Client, Future


@pytest.fixture
def another(client: Client, cluster: LocalCluster, request: Any) -> Iterator[Client]:
    """A second client of the cluster; in the end nothing of either is left."""
    with Client(cluster, set_as_default=False) as another:
        yield another
        if request.node.nodeid in request.config.stash[FAILED]:
            return
        check_nothing_left(another)
    check_nothing_left(client)
    nothing_held(cluster)


def held(cluster: LocalCluster) -> int:
    """How many objects the cluster holds."""
    return len(holding_of(cluster).owner.core.table.rows)


def test_a_queue_holds_a_future_until_it_is_taken(client, another, cluster):
    queue = Queue("one", client=client)
    queue.put(client.submit(blob, pure=False))  # nobody else has it
    time.sleep(0.2)
    assert held(cluster) == 1
    taken = Queue("one", client=another).get(timeout=5)
    assert isinstance(taken, Future) and taken.client is another
    assert taken.result() == blob()
    until(lambda: not holding_of(cluster).holds)
    assert held(cluster) == 1  # it lives as long as the one who took it wants
    assert another.submit(len, taken).result() == 200_000
    del taken
    nothing_held(cluster)
    queue.close()


def test_who_puts_it_may_go_before_anyone_takes_it(client, another, cluster):
    with publisher(cluster) as gone:
        queue = Queue("many", client=gone)
        for future in gone.map(inc, range(3), pure=False):
            queue.put(future)
        queue.put(gone.submit(slowinc, 10, 0.5, pure=False))
        queue.put({"deep": [gone.submit(blob, seed=1, pure=False)]})
        Variable("last", client=gone).set(gone.submit(slowinc, 20, 0.5, pure=False))
    queue = Queue("many", client=another)
    assert another.gather([queue.get(timeout=5) for _ in range(3)]) == [1, 2, 3]
    assert queue.get(timeout=5).result() == 11
    assert queue.get(timeout=5)["deep"][0].result() == blob(seed=1)
    variable = Variable("last", client=another)
    assert variable.get(timeout=5).result() == 21
    variable.delete()
    queue.close()


def test_who_takes_it_keeps_it_when_who_put_it_goes(client, another, cluster):
    with publisher(cluster) as gone:
        queue = Queue("short", client=gone)
        queue.put(gone.submit(blob, seed=3, pure=False))
        queue.put(gone.submit(slowinc, 0, 0.5, pure=False))
        large, slow = Queue("short", client=another).get(batch=True)
    assert large.result() == blob(seed=3)
    assert slow.result() == 1
    queue = Queue("short", client=another)
    queue.close()


def test_a_variable_holds_what_was_set_last(client, another, cluster):
    variable = Variable("v", client=client)
    first = client.submit(inc, 1, pure=False)
    variable.set(first)
    variable.set(client.submit(inc, 2, pure=False))
    until(lambda: len(holding_of(cluster).holds) == 1)
    there = Variable("v", client=another)
    assert [there.get(timeout=5).result() for _ in range(2)] == [3, 3]
    assert variable.get().result() == 3
    variable.set(7)
    nothing_held(cluster)
    assert there.get() == 7
    variable.set(first)
    assert there.get(timeout=5).result() == 2
    variable.delete()
    nothing_held(cluster)
    assert first.result() == 2


def test_a_queue_that_is_closed_lets_go(client, another, cluster):
    queue = Queue("closed", client=client)
    for future in client.map(inc, range(3), pure=False):
        queue.put(future)
    del future
    assert held(cluster) == 3
    queue.close()
    nothing_held(cluster)


def test_a_full_queue(client, another, cluster):
    queue = Queue("full", client=client, maxsize=1)
    future = client.submit(inc, 1, pure=False)
    queue.put(future)
    with pytest.raises(asyncio.TimeoutError):
        queue.put(future, timeout=0.1)
    until(lambda: len(holding_of(cluster).holds) == 1)
    assert queue.get().result() == 2
    queue.close()


def test_errors_and_cancelled_futures(client, another, cluster):
    queue = Queue("bad", client=client)
    queue.put(client.submit(boom, "from the queue", pure=False))
    slow = client.submit(slowinc, 1, 0.5, pure=False)
    queue.put(slow)
    slow.cancel()  # as in Dask, others want it all the same
    failed, kept = Queue("bad", client=another).get(batch=2)
    with pytest.raises(ZeroDivisionError, match="from the queue"):
        failed.result()
    assert kept.result(timeout=10) == 2
    queue.close()


def test_the_same_future_many_times(client, another, cluster):
    queue = Queue("again", client=client)
    future = client.submit(inc, 1, pure=False)
    for _ in range(4):
        queue.put(future)
    there = Queue("again", client=another)
    taken = [there.get(timeout=5) for _ in range(2)]
    for one in taken:
        there.put(one)
    assert {one.key for one in there.get(batch=True)} == {future.key}
    assert another.gather(taken) == [2, 2]
    queue.close()


def test_producers_and_consumers(client, another, cluster):
    """Tasks put what they submit, threads take it, and nothing is left in between."""

    def produce(name: str, count: int) -> None:
        here = distributed.get_client()
        queue = Queue(name, client=here)
        for i in range(count):
            queue.put(here.submit(inc, i))

    producers = [client.submit(produce, "line", 10, pure=False) for _ in range(2)]
    found: list[int] = []

    def consume() -> None:
        queue = Queue("line", client=another)
        found.extend(queue.get(timeout=20).result(timeout=20) for _ in range(10))

    threads = [threading.Thread(target=consume) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    wait(producers)
    assert sorted(found) == sorted([i + 1 for i in range(10)] * 2)
    Queue("line", client=client).close()
    nothing_held(cluster)


def test_a_taker_that_vanishes_leaves_nothing(client, another, cluster):
    """It got the item, and is gone before it could say that it is counted."""
    queue = Queue("vanish", client=client)
    queue.put(client.submit(inc, 1, pure=False))
    with publisher(cluster) as gone:
        taking = gone.sync(
            gone.scheduler._rpc.queue_get, name="vanish", owner=gone.owner.incarnation
        )
        assert taking and holding_of(cluster).holds
        del taking
        holding_of(cluster).scheduler.loop.add_callback(
            holding_of(cluster).gone, gone.owner.incarnation
        )
        nothing_held(cluster)
    queue.close()


def test_events_take_no_futures_as_in_dask(client, another):
    future = client.submit(inc, 1, pure=False)
    with pytest.raises(TypeError, match="msgpack"):
        client.log_event("topic", future)
    assert future.result() == 2
