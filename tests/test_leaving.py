"""Workers that leave in good order: what is there is moved first; busy ones stay."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import distributed
import pytest
from distributed import wait
from live import blob, inc, slowinc, small_cluster, until, wait_for_members

from dask_ownership import Client


@pytest.fixture
def client() -> Iterator[Client]:
    with small_cluster(n_workers=3) as cluster, Client(cluster) as client:
        wait_for_members(client, 3)
        yield client


def marked(n: int, path: str) -> bytes:
    with open(path, "a") as file:
        file.write("x")
    return b"x" * n


def places(future: Any) -> list[str]:
    return [view.address for view in future._row.holders]


def test_retiring_moves_scattered_values(client):
    victim = wait_for_members(client, 3)[0]
    values = client.scatter([bytes([i]) * 100_000 for i in range(10)], workers=[victim])
    client.retire_workers([victim])
    until(lambda: victim not in client.owner.core.placement.workers, 10)
    assert all(victim not in places(value) for value in values)
    assert [value[0] for value in client.gather(values)] == list(range(10))


def test_retiring_moves_results_and_nothing_runs_again(client, tmp_path):
    path = tmp_path / "runs"
    values = client.map(marked, [100_000 + i for i in range(30)], path=str(path), pure=False)
    wait(values)
    for victim in wait_for_members(client, 3)[:2]:
        client.retire_workers([victim])
    wait_for_members(client, 1)
    assert [len(value) for value in client.gather(values)] == [100_000 + i for i in range(30)]
    assert len(path.read_text()) == 30


def test_a_worker_that_closes_gracefully_moves_its_values(client):
    victim = wait_for_members(client, 3)[0]
    value = client.scatter(b"y" * 200_000, workers=[victim])
    client.run(close_soon, workers=[victim])
    until(lambda: victim not in client.owner.core.placement.workers, 15)
    assert len(value.result(timeout=10)) == 200_000


def close_soon(dask_worker: Any) -> None:
    dask_worker.loop.add_callback(dask_worker.close_gracefully, restart=False)


def test_scaling_down_moves_values(client):
    values = client.scatter([bytes([i]) * 100_000 for i in range(12)])
    client.cluster.scale(1)
    until(lambda: len(client.owner.core.placement.workers) == 1, 20)
    assert [value[0] for value in client.gather(values)] == list(range(12))


def test_a_task_that_runs_ends_before_its_worker_leaves(client):
    futures = [client.submit(slowinc, i, 0.5, pure=False) for i in range(3)]
    until(lambda: all(future._row.worker for future in futures))
    started = time.monotonic()
    client.retire_workers(wait_for_members(client, 3)[:2])
    assert client.gather(futures) == [1, 2, 3]
    assert time.monotonic() - started < 5


def test_a_borrowed_value_is_found_after_it_moved(client):
    victim, *others = wait_for_members(client, 3)
    value = client.scatter(b"z" * 200_000, workers=[victim])
    reader = client.submit(read_later, Box(value), 1.0, workers=others[:1], pure=False)
    until(lambda: value._row.borrowers)
    client.retire_workers([victim])
    assert reader.result(timeout=20) == 200_000


class Box:
    def __init__(self, content: Any) -> None:
        self.content = content


def read_later(box: Box, seconds: float) -> int:
    time.sleep(seconds)
    return len(box.content.result())


def test_the_last_worker_leaves_at_once():
    with small_cluster(n_workers=1) as cluster, Client(cluster) as client:
        value = client.submit(blob, 200_000, pure=False)
        wait(value)
        started = time.monotonic()
        client.retire_workers(wait_for_members(client, 1))
        assert time.monotonic() - started < 10


def test_adaptive_scaling_starts_from_nothing_and_keeps_busy_workers():
    with (
        distributed.LocalCluster(
            n_workers=0, threads_per_worker=1, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        cluster.adapt(minimum=0, maximum=2, interval="50ms", wait_count=2)
        assert client.submit(inc, 1, pure=False).result(timeout=30) == 2
        futures = [client.submit(slowinc, i, 1.5, pure=False) for i in range(4)]
        until(lambda: len(client.owner.core.placement.workers) == 2, 20)
        busy = set(client.owner.core.placement.workers)
        assert client.gather(futures) == [1, 2, 3, 4]
        assert all(future._row.options.deaths == 0 for future in futures)
        assert busy
        del futures
        until(lambda: not client.owner.core.placement.workers, 20)


def test_restart_leaves_nothing(client):
    values = client.map(blob, [100_000] * 10, pure=False)
    wait(values)
    running = client.submit(slowinc, 1, 5, pure=False)
    client.restart()
    assert {value.status for value in [*values, running]} == {"cancelled"}
    assert client.submit(inc, 1, pure=False).result(timeout=20) == 2
    until(lambda: len(client.owner.core.table.rows) <= 1, 5)
