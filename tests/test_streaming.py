"""``Client.map`` with ``buffer_size``."""

from __future__ import annotations

import asyncio
import gc
import itertools
import queue
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import distributed
import numpy as np
import pytest
from distributed import LocalCluster
from live import assert_nothing_left, until
from programs import Oops, double, inc, odd_fails, process, sleep, total

from dask_ownership import Client, ClosedOwner
from dask_ownership.futures.streaming import Stream


class Counted:
    """Numbers without end; knows how many were taken."""

    def __init__(self, end: float = float("inf")) -> None:
        self.taken = 0
        self.end = end

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        if self.taken >= self.end:
            raise StopIteration
        self.taken += 1
        return self.taken - 1


def test_a_generator(client: Client) -> None:
    stream = client.map(inc, (i for i in range(20)), buffer_size=4)
    assert isinstance(stream, Stream) and isinstance(stream, Iterator)
    assert [future.result() for future in stream] == list(range(1, 21))
    assert list(stream) == []


def test_futures_have_ended(client: Client) -> None:
    for future in client.map(sleep, itertools.repeat(0.02, 4), buffer_size=2, pure=False):
        assert future.status == "finished"


def test_without_end(client: Client) -> None:
    stream = client.map(inc, itertools.count(), buffer_size=10)
    assert [f.result() for f in itertools.islice(stream, 50)] == list(range(1, 51))


@pytest.mark.parametrize("size", [1, 3, 20])
def test_no_more_than_the_buffer(client: Client, size: int) -> None:
    source = Counted()
    stream = client.map(inc, source, buffer_size=size)
    assert source.taken == 0
    for taken in range(60):
        assert source.taken <= taken + size
        assert next(stream).result() == taken + 1


def test_the_buffer_is_filled_while_tasks_run(client: Client) -> None:
    source = Counted(8)
    stream = client.map(lambda i: time.sleep(0.1) or i, source, buffer_size=5)
    assert next(stream).result() == 0
    assert source.taken == 5
    assert [f.result() for f in stream] == list(range(1, 8))


def test_a_slow_source_does_not_hold_back_what_is_finished(client: Client) -> None:
    stops = []

    def slowly() -> Iterator[int]:
        for i in range(6):
            time.sleep(0.05)
            stops.append(i)
            yield i

    stream = client.map(inc, slowly(), buffer_size=100)
    assert next(stream).result() == 1
    assert len(stops) < 6
    assert [f.result() for f in stream] == list(range(2, 7))


def test_rows_stay_few(client: Client) -> None:
    most = 0
    rows = client.owner.core.table.rows
    for number, future in enumerate(client.map(inc, iter(range(5000)), buffer_size=50)):
        assert future.result() == number + 1
        if number % 10 == 0:
            most = max(most, len(rows))
    # Those of the buffer, and no more that were dropped since the loop last looked: the
    # consumer gets past the buffer only when the loop has run.
    assert most <= 2 * 50 + 5


@pytest.mark.slow
def test_memory_is_flat_over_very_many_items(cluster: LocalCluster) -> None:
    import psutil

    process_ = psutil.Process()
    sizes = []
    with Client(cluster) as client:
        rows = client.owner.core.table.rows
        for number, future in enumerate(client.map(inc, itertools.count(), buffer_size=500)):
            assert future.result() == number + 1
            if number % 20_000 == 0:
                assert len(rows) <= 2 * 500 + 5
                gc.collect()
                sizes.append(process_.memory_info().rss)
            if number == 200_000:
                break
        del future
        assert_nothing_left(client)
    assert sizes[-1] - sizes[2] < 20e6, [int(size / 1e6) for size in sizes]


def test_values_are_freed_at_the_workers(client: Client) -> None:
    for future in client.map(np.ones, itertools.repeat(50_000, 30), buffer_size=3, pure=False):
        assert future.result().sum() == 50_000
    del future

    def sizes(dask_worker: Any) -> int:
        return len(dask_worker.extensions["dask-ownership"].executor.store.sizes)

    until(lambda: not any(client.run(sizes).values()))


def test_several_sources_end_with_the_shortest(client: Client) -> None:
    stream = client.map(total, itertools.count(), [10, 20, 30], iter((1, 2, 3, 4)), buffer_size=2)
    assert [f.result() for f in stream] == [11, 23, 35]


def test_without_sources_and_without_items(client: Client) -> None:
    assert list(client.map(inc, buffer_size=2)) == []
    assert list(client.map(inc, iter(()), buffer_size=2)) == []


def test_a_list(client: Client) -> None:
    assert [f.result() for f in client.map(inc, [1, 2, 3], buffer_size=2)] == [2, 3, 4]


def test_large_keywords_are_sent_once(client: Client) -> None:
    big = np.arange(100_000)
    stream = client.map(lambda i, data: int(data[i]), itertools.count(), data=big, buffer_size=5)
    assert [f.result() for f in itertools.islice(stream, 20)] == list(range(20))
    stream.close()


def test_errors_are_of_their_item(client: Client) -> None:
    futures = client.map(odd_fails, iter(range(6)), buffer_size=2)
    kinds = [type(f.exception()) for f in futures]
    assert kinds == [type(None), Oops] * 3


def test_an_item_that_cannot_be_sent_raises_at_its_place(client: Client) -> None:
    lock = __import__("threading").Lock()
    stream = client.map(inc, iter([1, lock, 3]), buffer_size=3)
    assert next(stream).result() == 2
    with pytest.raises(Exception, match="pickle"):
        next(stream)
    assert next(stream).result() == 4
    with pytest.raises(StopIteration):
        next(stream)


def test_what_a_source_raises_comes_after_what_was_before(client: Client) -> None:
    def source() -> Iterator[int]:
        yield 1
        yield 2
        raise Oops("the source broke")

    stream = client.map(inc, source(), buffer_size=10)
    assert [next(stream).result(), next(stream).result()] == [2, 3]
    with pytest.raises(Oops, match="the source broke"):
        next(stream)
    with pytest.raises(StopIteration):
        next(stream)


def test_keys(client: Client) -> None:
    assert [f.key for f in client.map(inc, iter([1, 2]), buffer_size=1, key=["a", "b"])] == [
        "a",
        "b",
    ]
    prefixed = [f.key for f in client.map(inc, iter([1, 2]), buffer_size=1, key="mine")]
    assert all(key.startswith("mine-") for key in prefixed) and len(set(prefixed)) == 2
    endless = client.map(
        inc, itertools.count(), buffer_size=2, key=(f"k{i}" for i in itertools.count())
    )
    assert [f.key for f in itertools.islice(endless, 3)] == ["k0", "k1", "k2"]
    endless.close()
    short = client.map(inc, iter([1, 2]), buffer_size=2, key=["only"])
    assert next(short).key == "only"
    with pytest.raises(ValueError, match="1 keys"):
        next(short)


def test_impure(client: Client) -> None:
    keys = {f.key for f in client.map(process, iter(range(4)), buffer_size=2, pure=False)}
    assert len(keys) == 4 and all(key.startswith("process-") for key in keys)


def test_the_same_item_many_times(client: Client) -> None:
    assert [f.result() for f in client.map(inc, itertools.repeat(1, 20), buffer_size=4)] == [2] * 20


def test_one_after_another(client: Client) -> None:
    source = Counted()
    first = client.map(inc, source, buffer_size=3)
    second = client.map(double, first, buffer_size=4)
    for number, future in enumerate(itertools.islice(second, 30)):
        assert source.taken <= number + 4 + 3
        assert future.result() == 2 * (number + 1)
    second.close()
    first.close()


def test_gather_takes_it(client: Client) -> None:
    values = client.gather(client.map(inc, itertools.count(), buffer_size=4))
    assert [next(values) for _ in range(10)] == list(range(1, 11))
    values.close()


def test_closing_cancels_and_releases(client: Client) -> None:
    stream = client.map(sleep, itertools.repeat(0.3), buffer_size=20, pure=False)
    next(stream)
    rows = client.owner.core.table.rows
    assert len(rows) >= 19
    stream.close()
    until(lambda: not rows)
    assert list(stream) == []
    assert_nothing_left(client)


def test_with(client: Client) -> None:
    with client.map(sleep, itertools.repeat(0.1), buffer_size=5, pure=False) as stream:
        next(stream)
    assert "exhausted" in repr(stream)
    until(lambda: not client.owner.core.table.rows)


def test_dropping_cancels_and_releases(client: Client) -> None:
    gc.collect()
    gc.disable()
    try:
        stream = client.map(sleep, itertools.repeat(0.1), buffer_size=10, pure=False)
        next(stream)
        del stream
        until(lambda: not client.owner.core.table.rows)
    finally:
        gc.enable()


def test_what_another_holds_is_not_cancelled(client: Client) -> None:
    mine = client.submit(sleep, 0.2)
    stream = client.map(sleep, [0.01, 0.2], buffer_size=2)
    next(stream)
    stream.close()
    assert mine.result() is None
    assert mine.status == "finished"


def test_in_a_task(client: Client) -> None:
    def parent(count: int) -> int:
        inner = distributed.get_client()
        stream = inner.map(inc, itertools.count(), buffer_size=6)
        return sum(f.result() for f in itertools.islice(stream, count))

    assert client.submit(parent, 50).result() == sum(range(1, 51))
    # As many parents as slots and more: each gives its slot up while it waits.
    assert client.gather(client.map(parent, range(5))) == [sum(range(1, n + 1)) for n in range(5)]


def test_in_a_coroutine_task(client: Client) -> None:
    async def parent(count: int) -> int:
        inner = distributed.get_client()
        found = 0
        async for future in inner.map(inc, range(count), buffer_size=6):
            found += await future
        return found

    assert client.submit(parent, 40).result() == sum(range(1, 41))


def test_bad_calls(client: Client) -> None:
    for wrong in (0, -1, 1.5, "2", True):
        with pytest.raises(ValueError, match="buffer_size"):
            client.map(inc, iter([1]), buffer_size=wrong)
    with pytest.raises(TypeError, match=r"iter\(queue.get"):
        client.map(inc, queue.Queue(), buffer_size=1)
    with pytest.raises(TypeError, match="takes iterables"):
        client.map(inc, 5, buffer_size=1)
    with pytest.raises(TypeError, match="resources"):
        client.map(inc, [1], buffer_size=1, resources="GPU")
    with pytest.raises(TypeError, match="priority"):
        client.map(inc, [1], buffer_size=1, priority="high")
    with pytest.raises(ValueError, match="actors"):
        client.map(inc, [1], buffer_size=1, actor=True)


def test_the_client_closes(cluster: LocalCluster) -> None:
    with Client(cluster) as client:
        stream = client.map(sleep, itertools.repeat(0.05), buffer_size=3, pure=False)
        next(stream)
    # The rest of the buffer was cancelled, and no more can be submitted.
    ends = []
    with pytest.raises(ClosedOwner):
        for future in stream:
            ends.append(future.status)
    assert set(ends) == {"cancelled"}
    assert list(stream) == []


# ---- asynchronous clients ----


def asynchronously(cluster: LocalCluster, main: Any) -> None:
    async def with_client() -> None:
        async with Client(cluster.scheduler_address, asynchronous=True) as client:
            await main(client)
            for _ in range(100):
                gc.collect()
                if not client.owner.core.table.rows:
                    break
                await asyncio.sleep(0.02)
            assert not client.owner.core.table.rows

    asyncio.run(with_client())


def test_async_for(cluster: LocalCluster) -> None:
    async def main(client: Client) -> None:
        found = []
        stream = client.map(inc, itertools.count(), buffer_size=5)
        async for future in stream:
            assert future.done()
            found.append(await future)
            if len(found) == 30:
                break
        stream.close()
        assert found == list(range(1, 31))

    asynchronously(cluster, main)


def test_asynchronous_sources(cluster: LocalCluster) -> None:
    async def numbers() -> AsyncIterator[int]:
        for i in range(10):
            await asyncio.sleep(0.001)
            yield i

    async def main(client: Client) -> None:
        first = client.map(total, numbers(), itertools.count(100), buffer_size=3)
        second = client.map(double, first, buffer_size=3)
        found = [await future async for future in second]
        assert found == [2 * (100 + 2 * i) for i in range(10)]

    asynchronously(cluster, main)


def test_asynchronous_sources_need_a_coroutine(client: Client) -> None:
    async def numbers() -> AsyncIterator[int]:
        yield 1

    with pytest.raises(TypeError, match="async for"):
        next(client.map(inc, numbers(), buffer_size=1))


def test_errors_of_asynchronous_sources(cluster: LocalCluster) -> None:
    async def numbers() -> AsyncIterator[int]:
        yield 1
        raise Oops("the source broke")

    async def main(client: Client) -> None:
        stream = client.map(inc, numbers(), buffer_size=3)
        assert await (await anext(stream)) == 2
        with pytest.raises(Oops, match="source broke"):
            await anext(stream)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    asynchronously(cluster, main)


def test_a_cancelled_anext_loses_nothing(cluster: LocalCluster) -> None:
    async def main(client: Client) -> None:
        stream = client.map(sleep, itertools.repeat(0.2, 2), buffer_size=2, pure=False)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(anext(stream), 0.02)
        assert len([f async for f in stream]) == 2

    asynchronously(cluster, main)
