"""Workers that leave in good order: what is there is moved first; busy ones stay."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import distributed
import programs
import pytest
from distributed import wait
from live import blob, deaths_under, inc, slowinc, small_cluster, until, wait_for_members

from dask_ownership import Client
from dask_ownership.core.owner.rows.row import HAS_BORROWERS


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
    return [view.address for view in future._row.locations]


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
    until(lambda: value._row.roles & HAS_BORROWERS)
    client.retire_workers([victim])
    assert reader.result(timeout=20) == 200_000


def test_a_worker_that_is_restarted_has_its_values_moved(client, tmp_path):
    path = tmp_path / "runs"
    victim = wait_for_members(client, 3)[0]
    values = client.map(
        marked, [100_000 + i for i in range(10)], path=str(path), workers=[victim], pure=False
    )
    wait(values)
    running = client.submit(slowinc, 1, 3, workers=[victim], allow_other_workers=True, pure=False)
    until(lambda: running._row.worker)
    started = time.monotonic()
    client.restart_workers([victim])
    assert time.monotonic() - started < 10
    assert [len(value) for value in client.gather(values)] == [100_000 + i for i in range(10)]
    assert len(path.read_text()) == 10, "nothing ran again"
    assert running.result(timeout=20) == 2


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


def begins_and_sleeps(path: str) -> None:
    with open(path, "w"):
        time.sleep(30)


@pytest.mark.parametrize("close", ["cluster", "client"])
def test_a_cluster_that_closes_does_not_wait_for_tasks(close, tmp_path):
    """As in Dask; also while the client that has them is still there."""
    with small_cluster(n_workers=2) as cluster, Client(cluster) as client:
        paths = [tmp_path / "0", tmp_path / "1"]
        futures = client.map(begins_and_sleeps, [str(path) for path in paths], pure=False)
        until(lambda: all(path.exists() for path in paths))
        started = time.monotonic()
        cluster.close() if close == "cluster" else client.shutdown()
        assert time.monotonic() - started < 15
        del futures


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
        assert not any(deaths_under(client, future, alone=True) for future in futures)
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


# ---- what a worker that leaves owns ----


def fail(text: str) -> None:
    raise ZeroDivisionError(text)


def make_some(path: str) -> dict[str, Any]:
    """Futures that this worker owns: of small and large values, an error, a scattered value."""
    client = distributed.get_client()
    small = client.submit(inc, 1, pure=False)
    made = {
        "small": small,
        "large": client.submit(marked, 200_000, path, pure=False),
        "failed": client.submit(fail, "as it should", pure=False),
        "scattered": client.scatter(b"s" * 100_000),
        "inside": client.submit(Box, Box(small), pure=False),
    }
    wait(list(made.values()))
    return made


def make_deeper(path: str) -> dict[str, Any]:
    """The same, submitted by a task that this one submits: its owner is this worker too."""
    made: dict[str, Any] = distributed.get_client().submit(make_some, path, pure=False).result()
    return made


def check_some(client: Client, made: dict[str, Any], path: Any) -> None:
    assert made["small"].result(timeout=10) == 2
    assert len(made["large"].result(timeout=10)) == 200_000
    with pytest.raises(ZeroDivisionError, match="as it should"):
        made["failed"].result(timeout=10)
    assert made["scattered"].result(timeout=10) == b"s" * 100_000
    assert made["inside"].result(timeout=10).content.content.result(timeout=10) == 2
    assert client.submit(inc, made["small"], pure=False).result(timeout=10) == 3
    assert client.submit(length_of, made["large"], pure=False).result(timeout=10) == 200_000
    assert len(path.read_text()) == 1, "nothing was made again"


def length_of(value: Any) -> int:
    return len(value)


@pytest.mark.parametrize("task", [make_some, make_deeper])
def test_what_a_worker_owned_is_taken_over_when_it_leaves(client, tmp_path, task):
    path = tmp_path / "runs"
    made = client.submit(task, str(path), pure=False).result(timeout=20)
    owner = made["small"]._row.origin[1]
    started = time.monotonic()
    client.retire_workers([owner])
    assert time.monotonic() - started < 15
    until(lambda: owner not in client.owner.core.placement.workers, 10)
    check_some(client, made, path)
    # The other one leaves too: this client owns them now.
    client.retire_workers(wait_for_members(client, 2)[:1])
    wait_for_members(client, 1)
    check_some(client, made, path)
    assert made["small"].key.startswith("inc-")
    del made
    programs.forget_the_dead(client.owner)
    until(lambda: not client.owner.core.table.rows, 5)


def test_tasks_go_on_with_futures_whose_owner_left(client, tmp_path):
    made = client.submit(make_some, str(tmp_path / "runs"), pure=False).result(timeout=20)
    owner = made["small"]._row.origin[1]
    others = [address for address in wait_for_members(client, 3) if address != owner]
    del made["failed"], made["inside"]
    readers = [client.submit(read_all, made, 1.0, workers=[a], pure=False) for a in others]
    client.retire_workers([owner])
    assert client.gather(readers) == [(2, 200_000, 100_000)] * 2


def read_all(made: dict[str, Any], seconds: float) -> tuple[int, int, int]:
    time.sleep(seconds)
    return made["small"], len(made["large"]), len(made["scattered"])


class Holder:
    """Keeps futures from being replaced by their values."""

    def __init__(self, **futures: Any) -> None:
        self.futures = futures


def rows_at(dask_worker: Any) -> int:
    return len(dask_worker.extensions["dask-ownership"].owner.core.table.rows)


def hold_later(holder: Holder, seconds: float) -> list[Any]:
    time.sleep(seconds)
    return [len(f.result()) if n != "small" else f.result() for n, f in holder.futures.items()]


def test_borrowers_elsewhere_are_told_of_the_new_owner(client, tmp_path):
    made = client.submit(make_some, str(tmp_path / "runs"), pure=False).result(timeout=20)
    owner = made["small"]._row.origin[1]
    others = [address for address in wait_for_members(client, 3) if address != owner]
    holder = Holder(small=made["small"], large=made["large"], scattered=made["scattered"])
    readers = [client.submit(hold_later, holder, 2.0, workers=[a], pure=False) for a in others]
    del holder, made
    until(lambda: set(client.run(rows_at, workers=others).values()) == {3})
    client.retire_workers([owner])
    assert client.gather(readers) == [[2, 200_000, 100_000]] * 2
    del readers
    programs.forget_the_dead(client.owner)
    until(lambda: not client.owner.core.table.rows, 5)


def put_into_queue(name: str) -> str:
    client = distributed.get_client()
    queue = distributed.Queue(name, client=client)
    queue.put(client.submit(blob, 150_000, pure=False))
    queue.put(client.submit(inc, 41, pure=False))
    return str(distributed.get_worker().address)


def test_what_lies_in_a_queue_is_found_after_its_owner_left(client):
    owner = client.submit(put_into_queue, "left", pure=False).result(timeout=20)
    client.retire_workers([owner])
    until(lambda: owner not in client.owner.core.placement.workers, 10)
    queue = distributed.Queue("left", client=client)
    assert len(queue.get(timeout=10).result(timeout=10)) == 150_000
    assert queue.get(timeout=10).result(timeout=10) == 42
    # Also by a client that never knew that worker.
    assert client.submit(put_into_queue, "left", pure=False).result(timeout=20) != owner
    client.retire_workers(wait_for_members(client, 2)[:1])
    wait_for_members(client, 1)
    with Client(client.scheduler.address, set_as_default=False) as other:
        queue = distributed.Queue("left", client=other)
        assert len(queue.get(timeout=10).result(timeout=20)) == 150_000
        assert queue.get(timeout=10).result(timeout=10) == 42


def test_a_task_that_runs_elsewhere_is_waited_for_and_taken_over(client):
    def submit_slow(others: list[str]) -> Any:
        return distributed.get_client().submit(slowinc, 1, 1.5, workers=others, pure=False)

    first, *others = wait_for_members(client, 3)
    inner = client.submit(submit_slow, others, workers=[first], pure=False).result(timeout=10)
    assert inner.status == "pending"
    client.retire_workers([first])
    assert inner.result(timeout=10) == 2
