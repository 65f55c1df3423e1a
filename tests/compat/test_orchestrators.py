"""Clients as workflow engines use them: from asyncio, with callbacks, polled, inside tasks."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import distributed
import pytest
from distributed import LocalCluster, get_client, worker_client
from programs import Oops, inc, oops, slowly, total

from dask_ownership import Client

pytestmark = pytest.mark.usefixtures("all_tasks_are_owned")


def step(name: str, upstream: list[Any]) -> tuple[str, int]:
    """A step of a flow: its inputs are what the steps before it gave."""
    return name, 1 + sum(value for _, value in upstream)


def flow_of_flows(n: int) -> int:
    """A step that runs steps, with the client of its worker."""
    with worker_client(separate_thread=False) as client:
        return sum(client.gather(client.map(inc, range(n))))


def run_a_flow(n: int) -> int:
    futures = get_client().map(inc, range(n), pure=False)
    return sum(future.result() for future in futures)


def test_a_flow_from_asyncio(client: Client, cluster: LocalCluster) -> None:
    async def flow() -> None:
        async with Client(cluster.scheduler_address, asynchronous=True) as own:
            extracted = own.map(inc, range(5), pure=False)
            assert await asyncio.gather(*extracted) == [1, 2, 3, 4, 5]
            seen = []
            async for future in distributed.as_completed(extracted):
                seen.append(await future)
            assert sorted(seen) == [1, 2, 3, 4, 5]
            async for _, value in distributed.as_completed(extracted, with_results=True):
                seen.remove(value)
            assert not seen
            loaded = own.submit(total, *extracted)
            assert await asyncio.wait_for(loaded.result(), 10) == 15
            with pytest.raises(Oops):
                await own.submit(oops)
            racing = [own.submit(slowly, i, delay) for i, delay in ((1, 0), (2, 1))]
            done, late = await asyncio.wait(
                map(asyncio.ensure_future, racing), return_when=asyncio.FIRST_COMPLETED
            )
            assert [task.result() for task in done] == [1]
            for task in late:
                task.cancel()

    asyncio.run(flow())


def test_a_blocking_client_under_asyncio(client: Client) -> None:
    """Futures of a blocking client, waited for by a loop through threads and callbacks."""

    async def flow() -> list[int]:
        loop = asyncio.get_running_loop()
        ended: asyncio.Queue[int] = asyncio.Queue()
        futures = client.map(slowly, range(4), pure=False)
        for future in futures:
            future.add_done_callback(
                lambda f: loop.call_soon_threadsafe(ended.put_nowait, f.result())
            )
        by_callback = sorted([await ended.get() for _ in futures])
        by_thread = await asyncio.gather(*[asyncio.to_thread(f.result) for f in futures])
        executor = client.get_executor(pure=False)
        by_executor = await asyncio.gather(
            *[loop.run_in_executor(executor, inc, i) for i in range(-1, 3)]
        )
        assert by_callback == by_thread
        return list(by_executor)

    assert asyncio.run(flow()) == [0, 1, 2, 3]


def test_steps_by_key_polled_as_they_end(client: Client) -> None:
    """A graph of steps that is walked outside of Dask: futures as inputs, keys, priorities."""
    graph = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"], "broken": []}
    futures: dict[str, Any] = {}
    for name, upstream in graph.items():
        futures[name] = (
            client.submit(oops, key=f"run-1-{name}", pure=False)
            if name == "broken"
            else client.submit(
                step, name, [futures[u] for u in upstream],
                key=f"run-1-{name}", pure=False, priority=len(upstream),
            )
        )  # fmt: skip
    got, failed = {}, []
    iterator = distributed.as_completed(
        list(futures.values()), with_results=True, raise_errors=False
    )
    for future, result in iterator:
        if future.status == "error":
            failed.append((future.key, result[0]))
        else:
            got[result[0]] = result[1]
    assert got == {"a": 1, "b": 2, "c": 2, "d": 5}
    assert failed == [("run-1-broken", Oops)]
    del future, result, iterator


def test_steps_that_run_steps(client: Client) -> None:
    assert client.submit(flow_of_flows, 4).result() == 10
    assert client.submit(run_a_flow, 4).result() == 10


def test_clients_in_threads(client: Client) -> None:
    """One client, many threads: each with a flow of its own."""
    got: dict[int, int] = {}

    def run(i: int) -> None:
        with client.as_current():
            futures = distributed.get_client().map(inc, range(i, i + 3), pure=False)
            got[i] = sum(client.gather(futures))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert got == {i: 3 * i + 6 for i in range(4)}
