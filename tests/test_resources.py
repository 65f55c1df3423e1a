"""Abstract resources: whoever sends tasks, a worker never has more of them running than it has."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import distributed
import pytest
from distributed import LocalCluster, Worker, get_client
from live import held_at_worker, inc, small_cluster, until, until_there
from programs import Oops, oops, wait_for_file

from dask_ownership import Client


@pytest.fixture(scope="module")
def machines() -> Iterator[LocalCluster]:
    """One worker of four threads that has two GPUs and a licence."""
    with small_cluster(
        n_workers=1, threads_per_worker=4, processes=False, resources={"GPU": 2, "licence": 1}
    ) as cluster:
        yield cluster


@pytest.fixture
def owner(machines: LocalCluster) -> Iterator[Client]:
    with Client(machines, set_as_default=False) as client:
        yield client
        until(lambda: not any(client.run(held_at_worker).values()), what="nothing left")
        assert free(machines) == {"GPU": 2, "licence": 1}


def free(cluster: LocalCluster) -> dict[str, float]:
    """What the worker's state machine has free."""
    (worker,) = cluster.workers.values()
    until(lambda: not worker.extensions["dask-ownership"].executor.resources.leased)
    return dict(worker.state.available_resources)


async def set_resources(dask_worker: Worker, **resources: float) -> None:
    await dask_worker.set_resources(**resources)


def record(path: str, seconds: float = 0.02) -> None:
    """Write when this began and ended."""
    start = time.time()
    time.sleep(seconds)
    with open(path, "a") as file:
        file.write(f"{start} {time.time()}\n")


def most_at_once(path: Path) -> int:
    """How many of what was recorded overlapped."""
    spans = [tuple(map(float, line.split())) for line in path.read_text().splitlines()]
    return max(sum(a <= start < b for a, b in spans) for start, _ in spans)


GPU = {"GPU": 1}


def test_two_owners_and_stock_share_them(
    machines: LocalCluster, owner: Client, tmp_path: Path
) -> None:
    """All three get their turn, and together no more than there is."""
    path = tmp_path / "spans"
    options: dict[str, Any] = {"resources": GPU, "pure": False}
    with (
        Client(machines, set_as_default=False) as second,
        distributed.Client(machines, set_as_default=False) as stock,
    ):
        clients = [owner, second, stock]
        futures = [c.map(record, [str(path)] * 12, **options) for c in clients]
        for client, mine in zip(clients, futures, strict=True):
            client.gather(mine)
    assert len(path.read_text().splitlines()) == 36
    assert most_at_once(path) == 2


def test_the_counts_of_the_state_machine_add_up(tmp_path: Path) -> None:
    """A worker that validates its state after each event, as tests of Dask do, goes on."""
    options: dict[str, Any] = {"resources": GPU, "pure": False}
    with (
        small_cluster(n_workers=1, processes=False, resources=GPU, validate=True) as cluster,
        Client(cluster, set_as_default=False) as client,
        distributed.Client(cluster, set_as_default=False) as stock,
    ):
        (worker,) = cluster.workers.values()
        assert worker.state.validate
        futures = [(c, c.map(inc, range(9), **options)) for c in (client, stock)]
        client.run(set_resources, GPU=2)
        for whose, mine in futures:
            assert sum(whose.gather(mine)) == 45
        until(lambda: worker.state.available_resources == {"GPU": 2})


@pytest.mark.parametrize("first", ["owned", "stock"])
def test_neither_side_keeps_them_from_the_other(
    machines: LocalCluster, owner: Client, tmp_path: Path, first: str
) -> None:
    """One task of the other kind need not wait until a long queue has ended."""
    path = str(tmp_path / "spans")
    options: dict[str, Any] = {"resources": {"licence": 1}, "pure": False}
    with distributed.Client(machines, set_as_default=False) as stock:
        many, one = (owner, stock) if first == "owned" else (stock, owner)
        queue = many.map(record, [path] * 60, **options)
        until(lambda: Path(path).exists())
        assert one.submit(inc, 1, **options).result(timeout=10) == 2
        assert not queue[-1].done()
        many.gather(queue)
    assert most_at_once(Path(path)) == 1


def test_two_client_processes(
    client: Client, workers: list[str], cluster: LocalCluster, tmp_path: Path
) -> None:
    path = tmp_path / "spans"
    client.run(set_resources, unit=1, workers=workers[:1])
    program = (
        "import sys; from dask_ownership import Client; from test_resources import record\n"
        "with Client(sys.argv[1]) as c:\n"
        "    c.gather(c.map(record, [sys.argv[2]] * 15, resources={'unit': 1}, pure=False))\n"
    )
    command = [sys.executable, "-c", program, cluster.scheduler_address, str(path)]
    other = subprocess.Popen(command)
    until(path.exists, 30)
    client.gather(client.map(record, [str(path)] * 15, resources={"unit": 1}, pure=False))
    assert other.wait(30) == 0
    assert len(path.read_text().splitlines()) == 30
    assert most_at_once(path) == 1


def test_they_are_free_again_after_errors_cancelling_and_the_end_of_an_owner(
    machines: LocalCluster, owner: Client, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    with pytest.raises(Oops):
        owner.submit(oops, resources={"licence": 1}).result()
    running = owner.submit(wait_for_file, str(go), resources={"licence": 1})
    behind = owner.submit(inc, 5, resources={"licence": 1})
    until(lambda: machines.workers[0].extensions["dask-ownership"].executor.core.queue.busy == 1)
    running.cancel()
    assert not behind.done()  # the thread still has it
    go.touch()
    assert behind.result(timeout=5) == 6

    go.unlink()
    with Client(machines, set_as_default=False) as second:
        held = second.submit(wait_for_file, str(go), resources={"licence": 1}, pure=False)
        assert held.status == "pending"
        until(
            lambda: machines.workers[0].extensions["dask-ownership"].executor.core.queue.busy == 1
        )
    again = owner.submit(inc, 6, resources={"licence": 1})
    time.sleep(0.05)
    assert not again.done()
    go.touch()
    assert again.result(timeout=5) == 7


def test_much_is_not_overtaken_by_little(
    machines: LocalCluster, owner: Client, tmp_path: Path
) -> None:
    path = str(tmp_path / "spans")
    small = owner.map(record, [path] * 30, resources=GPU, pure=False)
    large = owner.submit(inc, 1, resources={"GPU": 2}, priority=1)
    assert large.result(timeout=5) == 2
    assert not all(future.done() for future in small)
    owner.gather(small)


def test_nothing_of_what_no_worker_has(owner: Client) -> None:
    """It waits as in Dask; all others go on."""
    waits = owner.submit(inc, 0, resources={"no such": 0}, pure=False)
    assert owner.submit(inc, 1, resources={"GPU": 0}, pure=False).result(timeout=20) == 2
    others = owner.map(inc, range(20), pure=False)
    assert owner.gather(owner.submit(sum, others)) == 210
    assert not waits.done()


def test_what_fails_as_a_worker_sends_answers_harms_nothing_else(
    machines: LocalCluster, owner: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    (worker,) = machines.workers.values()
    executor = worker.extensions["dask-ownership"].executor

    def fails(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("as if it could not be done")

    with monkeypatch.context() as patch:
        patch.setattr(executor.resources, "release", fails)
        large = owner.submit(bytes, 200_000, resources={"GPU": 1}, pure=False)
        assert len(large.result(timeout=20)) == 200_000
        assert owner.submit(len, large).result(timeout=20) == 200_000
    given = dict(executor.resources.leased)
    executor.resources.release(given, done=True)


def test_resources_of_nested_tasks(machines: LocalCluster, owner: Client, tmp_path: Path) -> None:
    path = tmp_path / "spans"

    def parent(path: str) -> int:
        client = get_client()
        futures = client.map(record, [path] * 3, resources=GPU, pure=False)
        with dask.annotate(resources=GPU):
            futures += client.map(record, [path] * 3, pure=False)
        client.gather(futures)
        return len(futures)

    assert owner.gather(owner.map(parent, [str(path)] * 2, pure=False)) == [6, 6]
    assert len(path.read_text().splitlines()) == 12
    assert most_at_once(path) == 2


def test_a_worker_gets_other_resources(tmp_path: Path) -> None:
    """What waits for them starts; what they are too little for waits again."""
    with (
        small_cluster(n_workers=2, processes=False) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        path = tmp_path / "spans"
        address = cluster.workers[1].address
        waiting = client.map(record, [str(path)] * 3, resources={"disk": 2}, pure=False)
        time.sleep(0.1)
        assert not any(future.done() for future in waiting)
        assert client.submit(inc, 1).result() == 2
        client.run(set_resources, disk=2, workers=[address])
        client.gather(waiting)
        assert most_at_once(path) == 1

        go = tmp_path / "go"
        first = client.submit(wait_for_file, str(go), resources={"disk": 2}, pure=False)
        second = client.submit(inc, 3, resources={"disk": 2})
        until_there(client, "running", first)
        client.run(set_resources, disk=1, workers=[address])
        time.sleep(0.2)
        go.touch()
        assert first.result(timeout=5)
        assert client.submit(inc, 4, resources={"disk": 1}).result(timeout=5) == 5
        assert not second.done()
        client.run(set_resources, disk=3, workers=[address])
        assert second.result(timeout=5) == 4


def test_a_worker_with_them_joins() -> None:
    with (
        small_cluster(n_workers=1, processes=False) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        futures = client.map(inc, range(3), resources={"camera": 1})
        graph = client.compute(dask.delayed(inc)(5), resources={"camera": 1})
        time.sleep(0.1)
        assert not any(future.done() for future in [*futures, graph])

        async def join() -> Worker:
            return await Worker(cluster.scheduler_address, resources={"camera": 1})

        worker = client.sync(join)
        assert client.gather(futures) == [1, 2, 3] and graph.result(timeout=5) == 6
        client.sync(worker.close)
