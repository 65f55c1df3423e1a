"""Owned tasks run once more in this process, for a debugger."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

import dask
import distributed
import pytest
from live import blob, inc, total

from dask_ownership import Client, NotHere, wait


def divide(x: float, y: float) -> float:
    return x / y


def here(*args: Any) -> tuple[int, int]:
    return os.getpid(), threading.get_ident()


def fails_here(*args: Any, **kwargs: Any) -> None:
    raise RuntimeError(here(), args, kwargs)


def test_a_failed_task_fails_here(client: Client) -> None:
    one = client.submit(inc, 1)
    future = client.submit(fails_here, one, [one, "x"], keyword={"one": one})
    with pytest.raises(RuntimeError) as caught:
        client.recreate_error_locally(future)
    assert caught.value.args == (here(), (2, [2, "x"]), {"keyword": {"one": 2}})
    with pytest.raises(RuntimeError) as caught:
        client.recreate_task_locally(future)
    assert caught.value.args[0] == here()
    assert future.status == "error"


def test_the_task_that_is_to_blame_fails_and_no_other(client: Client) -> None:
    good = client.submit(divide, 1, 1)
    bad = client.submit(divide, 1, client.submit(inc, -1))
    after = client.submit(total, good, bad)
    last = client.submit(inc, after)
    with pytest.raises(ZeroDivisionError) as caught:
        client.recreate_error_locally([good, last])
    assert caught.traceback[-1].name == "divide"


def test_large_inputs_and_results(client: Client) -> None:
    data = client.submit(blob, 300_000)
    size = client.submit(fails_here, data)
    with pytest.raises(RuntimeError) as caught:
        client.recreate_error_locally(size)
    assert caught.value.args[1] == (bytearray(300_000),)
    assert client.recreate_task_locally(data) == data.result()


def test_input_that_only_lineage_needs_is_made_again(client: Client) -> None:
    data = client.submit(blob, 300_000, pure=False)
    twice = client.submit(lambda x: x + x, data)
    wait(twice)
    del data
    assert client.recreate_task_locally(twice) == twice.result()


def test_failure_in_a_graph(client: Client) -> None:
    parts = [dask.delayed(divide)(1, n) for n in range(3)]
    whole = client.compute(dask.delayed(sum)(parts))
    with pytest.raises(ZeroDivisionError):
        client.recreate_error_locally(whole)
    persisted = client.persist(dask.delayed(inc)(dask.delayed(fails_here)(1)))
    wait(persisted)
    with pytest.raises(RuntimeError) as caught:
        client.recreate_error_locally(persisted)
    assert caught.value.args[0] == here()


def test_coroutine_function(client: Client) -> None:
    async def fails() -> None:
        await asyncio.sleep(0)
        raise RuntimeError(here())

    with pytest.raises(RuntimeError) as caught:
        client.recreate_error_locally(client.submit(fails))
    assert caught.value.args == (here(),)


def test_futures_inside_of_arguments_work_here(client: Client) -> None:
    class Box:
        def __init__(self, future: Any) -> None:
            self.future = future

    def opens(box: Any) -> None:
        raise RuntimeError(here(), box.future.result())

    future = client.submit(opens, Box(client.submit(inc, 1)))
    with pytest.raises(RuntimeError) as caught:
        client.recreate_error_locally(future)
    assert caught.value.args == (here(), 2)


def test_no_failed_future(client: Client) -> None:
    with pytest.raises(ValueError, match="No errored futures"):
        client.recreate_error_locally(client.submit(inc, 1))


def test_small_value_when_how_it_was_made_is_not_kept(client: Client) -> None:
    with pytest.raises(NotHere, match=r"ownership\.lineage\.inline"):
        client.recreate_task_locally(client.submit(inc, 1))


def test_small_value_when_it_is_kept(cluster: distributed.LocalCluster) -> None:
    with dask.config.set({"ownership.lineage.inline": True}), Client(cluster) as client:
        first = client.submit(divide, 1, client.submit(inc, 1))
        assert first.result() == 0.5
        assert client.recreate_task_locally(first) == 0.5
        where = client.submit(here, first)
        assert client.recreate_task_locally(where) == here() != where.result()
        del first, where
        from conftest import check_nothing_left

        check_nothing_left(client)


def test_scattered_value_has_no_task(client: Client) -> None:
    with pytest.raises(NotHere, match="scattered"):
        client.recreate_task_locally(client.scatter(blob()))


def test_of_the_scheduler(client: Client) -> None:
    with distributed.Client(client.scheduler.address, set_as_default=True) as stock:
        assert stock.recreate_task_locally(stock.submit(inc, 1)) == 2
        with pytest.raises(ZeroDivisionError):
            stock.recreate_error_locally(stock.submit(divide, 1, 0))
    mine = client.map(divide, [1, 2], [1, 0], actor=True)
    with pytest.raises(ZeroDivisionError):
        client.recreate_error_locally(mine)


def test_parts_from_asyncio(cluster: distributed.LocalCluster) -> None:
    async def ask() -> None:
        async with Client(cluster.scheduler_address, asynchronous=True) as client:
            bad = client.submit(divide, 1, client.submit(inc, -1))
            key = await client._get_errored_future([client.submit(inc, bad)])
            assert key == bad.key
            task, values = await client._get_components_from_future(bad)
            with pytest.raises(ZeroDivisionError):
                task(values)

    asyncio.run(ask())


def test_in_a_task(client: Client) -> None:
    def debug() -> str:
        inner = distributed.get_client()
        try:
            inner.recreate_error_locally(inner.submit(divide, 1, 0))
        except ZeroDivisionError:
            return "here"
        return "nowhere"

    assert client.submit(debug).result() == "here"
