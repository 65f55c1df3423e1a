"""The client in a coroutine."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import dask
import dask.array as da
import distributed
import numpy as np
import pytest
from distributed import CancelledError, LocalCluster
from programs import Oops, fan, inc, ones, oops, sleep, slowly

from dask_ownership import Client, ClosedOwner, fire_and_forget


@pytest.fixture
def run(cluster: LocalCluster) -> Callable[[Callable[[Client], Awaitable[None]]], None]:
    """Run a coroutine function with an asynchronous client."""

    def run(main: Callable[[Client], Awaitable[None]]) -> None:
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

    return run


def test_await_a_future(run: Any) -> None:
    async def main(client: Client) -> None:
        assert client.asynchronous
        future = client.submit(inc, 1)
        assert await future == 2
        assert await future.result() == 2
        assert await future.exception() is None
        assert await client.submit(inc, future) == 3
        assert await client.submit(fan, 5) == 15

    run(main)


def test_await_an_error(run: Any) -> None:
    async def main(client: Client) -> None:
        future = client.submit(oops)
        with pytest.raises(Oops, match="it broke"):
            await future
        assert isinstance(await future.exception(), Oops)
        assert await future.traceback() is not None

    run(main)


def test_await_the_client(cluster: LocalCluster) -> None:
    async def main() -> None:
        client = await Client(cluster.scheduler_address, asynchronous=True)
        assert await client.submit(inc, 1) == 2
        await client.close()
        with pytest.raises(ClosedOwner):
            client.submit(inc, 2)

    asyncio.run(main())


def test_timeout(run: Any) -> None:
    async def main(client: Client) -> None:
        future = client.submit(sleep, 0.3, pure=False)
        with pytest.raises(TimeoutError):
            await future.result(timeout=0.05)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(future, 0.05)
        assert await future is None

    run(main)


def test_gather(run: Any) -> None:
    async def main(client: Client) -> None:
        futures = client.map(inc, range(5))
        assert await client.gather(futures) == [1, 2, 3, 4, 5]
        assert await client.gather({"a": futures[0], "b": [futures[1]]}) == {"a": 1, "b": [2]}
        bad = client.submit(oops)
        with pytest.raises(Oops):
            await client.gather([bad])
        assert await client.gather([bad, futures[0]], errors="skip") == [1]
        large = client.submit(ones, 100_000)
        assert (await client.gather(large)).sum() == 100_000

    run(main)


def test_asyncio_gather(run: Any) -> None:
    async def main(client: Client) -> None:
        futures = client.map(inc, range(50))
        assert await asyncio.gather(*futures) == list(range(1, 51))

    run(main)


def test_scatter(run: Any) -> None:
    async def main(client: Client) -> None:
        future = await client.scatter(np.ones(1000))
        assert await client.submit(np.sum, future) == 1000
        futures = await client.scatter({"x": 1, "y": 2})
        assert await client.gather(futures) == {"x": 1, "y": 2}

    run(main)


def test_compute_and_persist(run: Any) -> None:
    async def main(client: Client) -> None:
        x = da.ones(100, chunks=10)
        future = client.compute(x.sum())
        assert await future == 100
        y = client.persist(x)
        assert await client.compute(y.sum()) == 100
        assert await client.get({"x": (inc, 1)}, "x") == 2
        a, b = client.compute([dask.delayed(inc)(1), dask.delayed(inc)(2)])
        assert await client.gather([a, b]) == [2, 3]

    run(main)


def test_cancel_and_retry(run: Any, tmp_path: Any) -> None:
    from programs import fails_at_first

    async def main(client: Client) -> None:
        future = client.submit(sleep, 0.3, pure=False)
        await client.cancel([future])
        assert future.cancelled()
        with pytest.raises(CancelledError):
            await future
        future = client.submit(fails_at_first, str(tmp_path / "mark"))
        with pytest.raises(Oops):
            await future
        await future.retry()
        assert await future == 2

    run(main)


def test_callback(run: Any) -> None:
    async def main(client: Client) -> None:
        loop = asyncio.get_running_loop()
        seen: asyncio.Future[str] = loop.create_future()
        future = client.submit(slowly, 1)
        future.add_done_callback(lambda f: loop.call_soon_threadsafe(seen.set_result, f.status))
        assert await asyncio.wait_for(seen, 5) == "finished"

    run(main)


def test_fire_and_forget(run: Any, tmp_path: Any) -> None:
    from programs import append_line, lines

    async def main(client: Client) -> None:
        fire_and_forget(client.submit(append_line, str(tmp_path / "mark"), pure=False))
        for _ in range(200):
            if lines(tmp_path / "mark"):
                break
            await asyncio.sleep(0.02)
        assert lines(tmp_path / "mark") == ["x"]

    run(main)


def test_same_loop_as_the_cluster() -> None:
    async def main() -> None:
        async with (
            LocalCluster(
                n_workers=1,
                threads_per_worker=2,
                processes=False,
                asynchronous=True,
                dashboard_address=":0",
            ) as cluster,
            Client(cluster, asynchronous=True) as client,
        ):
            assert await client.gather(client.map(inc, range(10))) == list(range(1, 11))
            assert await client.submit(fan, 3) == 6

    asyncio.run(main())


def test_is_the_current_client(run: Any) -> None:
    async def main(client: Client) -> None:
        assert distributed.Client.current() is client
        assert distributed.get_client() is client

    run(main)


def test_two_clients_in_one_loop(cluster: LocalCluster) -> None:
    async def main() -> None:
        async with (
            Client(cluster.scheduler_address, asynchronous=True) as a,
            Client(cluster.scheduler_address, asynchronous=True) as b,
        ):
            assert await asyncio.gather(a.submit(inc, 1), b.submit(inc, 2)) == [2, 3]

    asyncio.run(main())
