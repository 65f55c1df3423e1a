"""Which client tasks find, and the threads that they start."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dask
import distributed
import pytest
from distributed import LocalCluster, default_client, get_client, worker_client

from dask_ownership import Client


def kinds() -> dict[str, bool]:
    """As libraries compare them."""
    default, mine = default_client(), get_client()
    return {
        "default_client": isinstance(default, distributed.Client),
        "Client.current": isinstance(distributed.Client.current(), distributed.Client),
        "within the task": isinstance(
            distributed.Client.current(allow_global=False), distributed.Client
        ),
        "get_client": isinstance(mine, distributed.Client),
        "their types": type(default) is type(mine) is Client,
        "the same one": default is mine is distributed.Client.current(),
    }


def in_worker_client() -> bool:
    with worker_client() as client:
        return isinstance(client, type(default_client()))


async def in_a_coroutine() -> dict[str, bool]:
    return kinds()


def test_tasks_find_a_client(client: Client) -> None:
    assert all(client.submit(kinds).result().values())
    assert all(client.submit(in_a_coroutine).result().values())
    assert client.submit(in_worker_client).result()


def use(kind: str, client: Any, mine: Any, i: int) -> Any:
    """What a thread of a task does; it gives ``i``."""
    if kind == "get_client":
        return get_client().submit(abs, -i, pure=False).result(timeout=5)
    if kind == "default_client":
        return default_client().submit(abs, -i, pure=False).result(timeout=5)
    if kind == "passed client":
        return client.submit(abs, -i, pure=False).result(timeout=5)
    if kind == "compute":
        total = dask.delayed(abs)(-i)
        assert total.compute() == i
        counted = client.owner.core.counts["submitted"]
        assert total.compute() == i
        assert client.owner.core.counts["submitted"] > counted, "it ran in this process only"
        return i
    if kind == "as_completed":
        return next(distributed.as_completed([client.submit(abs, -i, pure=False)])).result()
    if kind == "variable":
        variable = distributed.Variable(f"variable-{i}")
        variable.set(i)
        return variable.get(timeout=5)
    if kind == "future in a queue":
        queue = distributed.Queue(f"queue-{i}")
        queue.put(client.submit(abs, -i, pure=False))
        return queue.get(timeout=5).result(timeout=5)
    if kind == "lock":
        with distributed.Lock("lock"):
            return i
    if kind == "a future of the task":
        return mine.result(timeout=5) - 4 + i
    return client.gather(client.map(abs, [-i, 0], pure=False))[0]


def in_threads(kind: str) -> list[Any]:
    client = get_client()
    mine = client.submit(int, 4)
    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(lambda i: use(kind, client, mine, i), range(6)))


@pytest.mark.parametrize(
    "kind",
    [
        "get_client",
        "default_client",
        "passed client",
        "compute",
        "as_completed",
        "variable",
        "future in a queue",
        "lock",
        "a future of the task",
        "gather",
    ],
)
def test_threads_of_tasks_use_the_cluster(client: Client, kind: str) -> None:
    assert client.submit(in_threads, kind, pure=False).result(timeout=30) == list(range(6))


def names() -> list[str]:
    """The kinds of client that an ordinary task and a thread of it find."""
    found = [type(get_client()).__module__]
    with ThreadPoolExecutor(1) as pool:
        found.append(pool.submit(lambda: type(default_client()).__module__).result())
    return found


def test_ordinary_tasks_find_what_they_found_before(client: Client, cluster: LocalCluster) -> None:
    """An owned task has asked for its client in the same process."""
    client.run(lambda: None)
    for address in list(client.scheduler_info(n_workers=-1)["workers"]):
        client.submit(in_threads, "get_client", workers=[address], pure=False).result(timeout=30)
    with distributed.Client(cluster, set_as_default=False) as stock:
        found = stock.submit(names, pure=False).result(timeout=30)
        assert found == ["distributed.client"] * 2
        future = stock.submit(abs, -3)
        assert stock.submit(takes_a_future, [future]).result(timeout=30) == 3
        del future


def takes_a_future(values: list[Any]) -> int:
    (value,) = values
    return int(value)


def kinds_on_the_loop(dask_worker: Any) -> list[bool]:
    return [isinstance(find(), distributed.Client) for find in (get_client, default_client)]


async def kinds_in_a_coroutine(dask_worker: Any) -> list[bool]:
    return kinds_on_the_loop(dask_worker)


def has_asked() -> int:
    return int(get_client().submit(abs, -1).result())


def test_what_runs_on_the_loop_finds_the_client_that_a_task_asked_for(client: Client) -> None:
    """Such as `Client.run` and plugins."""
    workers = list(client.scheduler_info(n_workers=-1)["workers"])
    for address in workers:
        client.submit(has_asked, workers=[address], pure=False).result(timeout=30)
    for function in (kinds_on_the_loop, kinds_in_a_coroutine):
        assert list(client.run(function).values()) == [[True, True]] * len(workers)
