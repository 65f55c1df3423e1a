"""Owned values in ``Worker.data``, as whoever asks a worker finds them."""

from __future__ import annotations

from typing import Any

import dask
import programs
from distributed import LocalCluster
from live import small_cluster

from dask_ownership import Client, wait


def data_of(keys: list[Any], dask_worker: Any) -> dict[Any, int]:
    data = dask_worker.data
    assert set(data) == {key for key in data if key in data}
    assert len(data) == len(list(data))
    return {key: len(data[key]) for key in keys if key in data}


def test_a_large_value_is_found_by_its_key(client: Client, workers: list[str]) -> None:
    future = client.submit(bytes, 200_000, key=("large", 1), workers=workers[0])
    wait(future)
    found = client.run(data_of, [future.key])
    assert found == {workers[0]: {("large", 1): 200_000}, workers[1]: {}}
    del future


def test_scattered_values_are_found_by_their_keys(client: Client, workers: list[str]) -> None:
    futures = client.scatter({"x": b"12", "y": b"123"}, broadcast=True)
    assert client.run(data_of, ["x", "y"]) == {w: {"x": 2, "y": 3} for w in workers}
    del futures


def count_data(dask_worker: Any) -> int:
    return len(dask_worker.data)


def test_rebalanced_values_are_at_one_worker_only(client: Client, workers: list[str]) -> None:
    futures = client.scatter(list(range(100)), workers=workers[0])
    gap = {"distributed.worker.memory.rebalance.sender-recipient-gap": 0}
    with dask.config.set(gap):
        client.rebalance()
    assert client.run(count_data) == dict.fromkeys(workers, 50)
    del futures


def test_all_values_stay_at_the_workers_when_configured() -> None:
    with (
        dask.config.set({"ownership.inline.limit": 0}),
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        futures = client.map(programs.inc, range(5))
        wait(futures)
        [worker] = cluster.workers.values()
        assert dict(worker.data) == {f.key: i + 1 for i, f in enumerate(futures)}
        assert client.submit(sum, futures).result() == 15
        assert client.gather(futures) == [1, 2, 3, 4, 5]
        assert futures[0].type is int
        del futures


def test_data_of_a_worker_without_a_memory_limit_is_a_dict() -> None:
    with (
        small_cluster(n_workers=1, processes=False, memory_limit=0) as cluster,
        Client(cluster) as client,
    ):
        future = client.submit(bytes, 200_000)
        wait(future)
        [worker] = cluster.workers.values()
        assert isinstance(worker.data, dict)
        assert list(worker.data) == [future.key]
