"""The client in a coroutine."""

from __future__ import annotations

import asyncio
import gc
import pickle
from collections.abc import Awaitable, Callable
from typing import Any

import dask
import dask.array as da
import distributed
import numpy as np
import pytest
from distributed import CancelledError, LocalCluster
from programs import Oops, fan, inc, ones, oops, sleep, slowly

from dask_ownership import Client, ClosedOwner, as_completed, fire_and_forget, wait


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
                assert not list(map(repr, client.owner.core.table.all()))

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


@pytest.mark.parametrize("kind", [as_completed, distributed.as_completed])
def test_cancelled_futures_come_out_with_results_and_only_errors_raise(run: Any, kind: Any) -> None:
    async def main(client: Client) -> None:
        failed, cancelled = client.submit(oops), client.submit(sleep, 30)
        await client.cancel([cancelled])
        [(future, error)] = [pair async for pair in kind([cancelled], with_results=True)]
        assert future is cancelled and isinstance(error, CancelledError)
        with pytest.raises(Oops):
            async for _ in kind([cancelled, failed], with_results=True):
                pass

    run(main)


def test_two_coroutines_share_the_futures_and_whoever_waits_for_the_condition_is_told(
    run: Any,
) -> None:
    async def main(client: Client) -> None:
        futures = client.map(slowly, range(20), pure=False)
        ended = as_completed(futures)

        async def take() -> list[Any]:
            return [future async for future in ended]

        async def told() -> None:
            async with ended.condition:
                await ended.condition.wait()

        one, other, _ = await asyncio.wait_for(asyncio.gather(take(), take(), told()), 20)
        assert sorted(f.key for f in one + other) == sorted(f.key for f in futures)

    run(main)


def test_wait_and_as_completed(run: Any) -> None:
    async def main(client: Client) -> None:
        futures = client.map(inc, range(10))
        done, not_done = await wait(futures)
        assert len(done) == 10
        assert not not_done
        slow = client.map(sleep, [0.01, 0.4], pure=False)
        done, not_done = await wait(slow, return_when="FIRST_COMPLETED")
        assert len(done) >= 1
        with pytest.raises(TimeoutError):
            await wait(client.map(sleep, [0.3], pure=False), timeout=0.05)
        assert {f.key async for f in as_completed(futures)} == {f.key for f in futures}
        pairs = [pair async for pair in as_completed(futures, with_results=True)]
        assert sorted(value for _, value in pairs) == list(range(1, 11))
        assert len([f async for f in distributed.as_completed(futures)]) == 10
        assert len((await distributed.wait(futures)).done) == 10

    run(main)


def test_the_rest_of_the_surface(run: Any) -> None:
    """Each of these gives an awaitable, as in Dask."""

    async def main(client: Client) -> None:
        [future] = await client.scatter([np.ones(100_000)])
        await client.replicate([future], n=2)
        assert await client.ownership(future) is not None
        assert len(await client.run(inc, 1)) == 2
        assert await client.run_on_scheduler(inc, 1) == 2
        assert len((await client.nthreads()).values()) == 2
        await client.wait_for_workers(2)
        stream = client.map(inc, range(20), buffer_size=4)
        assert [await f async for f in stream] == list(range(1, 21))
        assert await client.compute(dask.delayed(inc)(1)) == 2

    run(main)


async def fan_async(n: int) -> int:
    """A task that is a coroutine, and submits."""
    client = distributed.get_client()
    futures = client.map(inc, range(n))
    total = sum(await client.gather(futures))
    async for future in as_completed(client.map(inc, range(n))):
        total += await future
    return total + await client.submit(inc, futures[0])


def test_coroutine_tasks(run: Any) -> None:
    async def main(client: Client) -> None:
        assert await client.submit(fan_async, 3) == 6 + 6 + 2
        assert await client.gather(client.map(fan_async, [2, 2, 3], pure=False)) == [8, 8, 14]

    run(main)


def test_awaited_from_other_loops(cluster: LocalCluster) -> None:
    """A future of a client in its own thread, and of one whose loop is another thread's."""
    with Client(cluster, set_as_default=False) as client:

        async def main() -> None:
            future = client.submit(sleep, 0.1, pure=False)
            assert await future is None
            futures = client.map(inc, range(5), pure=False)
            assert await asyncio.gather(*futures) == [1, 2, 3, 4, 5]
            assert (await asyncio.wait_for(client.submit(ones, 100_000), 5)).sum() == 100_000
            async with Client(cluster.scheduler_address, asynchronous=True) as other:
                assert await other.submit(inc, 1) == 2
                # Waits of both, side by side in one loop.
                mine, theirs = client.submit(sleep, 0.05, pure=False), other.submit(inc, 5)
                assert await asyncio.gather(mine, theirs) == [None, 6]
                # One's future is an argument at the other by its pickle.
                borrowed = pickle.loads(pickle.dumps(client.submit(inc, 41, pure=False)))
                assert await borrowed == 42

        asyncio.run(main())


def test_closing_ends_what_is_awaited(cluster: LocalCluster) -> None:
    async def main() -> None:
        client = await Client(cluster.scheduler_address, asynchronous=True)
        future = client.submit(sleep, 0.5, pure=False)
        waiting = asyncio.ensure_future(future.result())
        gathering = asyncio.ensure_future(client.gather([future]))
        await asyncio.sleep(0.1)
        await client.close()
        for one in (waiting, gathering):
            with pytest.raises(ClosedOwner):
                await asyncio.wait_for(one, 5)
        assert client.status == "closed"
        await client.close()  # twice is once

    asyncio.run(main())


def test_cancelled_waits(run: Any) -> None:
    """What awaited is cancelled, not the task: that can be awaited again."""

    async def main(client: Client) -> None:
        future = client.submit(slowly, 1, pure=False)
        for awaitable in (future.result(), client.gather([future]), wait([future])):
            waiting = asyncio.ensure_future(awaitable)
            await asyncio.sleep(0.01)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        assert await future == await client.submit(slowly, 1)

    run(main)


def test_compute_in_a_coroutine_is_refused_or_falls_back(
    run: Callable[[Callable[[Client], Awaitable[None]]], None],
) -> None:
    """As with Dask's client: it would block the loop that has to answer."""

    async def inside() -> str:
        try:
            dask.delayed(inc)(1).compute(scheduler="ownership")
        except RuntimeError as error:
            return str(error)
        return "computed"

    async def main(client: Client) -> None:
        assert (await client.submit(inside)).startswith("Attempting to use an asynchronous Client")
        task = dask.delayed(inc)(1)
        for scheduler in (None, "ownership", client):
            with pytest.raises(RuntimeError, match="asynchronous"):
                task.compute(scheduler=scheduler)
            with (
                dask.config.set({"admin.async-client-fallback": "sync"}),
                pytest.warns(UserWarning, match="to (the )?`sync` scheduler"),
            ):
                assert task.compute(scheduler=scheduler) == 2
        with (
            dask.config.set({"admin.async-client-fallback": "ownership"}),
            pytest.raises(RuntimeError, match="async-client-fallback"),
        ):
            task.compute(scheduler="ownership")

    run(main)
