"""Copies of values that are kept whatever dies."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dask
import dask.array as da
import distributed
import pytest
from live import boom, inc, kill, small_cluster, until, wait_for_members
from programs import append_line, lines, wait_for_file

from dask_ownership import Client, ClosedOwner, NotSerializable, wait
from dask_ownership.core.executor.session import KEPT

SIZE = 200_000


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[distributed.LocalCluster]:
    """Three workers that nannies start again."""
    with small_cluster(n_workers=3) as cluster:
        yield cluster


@pytest.fixture
def client(own_cluster) -> Iterator[Client]:
    with Client(own_cluster) as client:
        until(lambda: len(client.owner.core.placement.workers) == 3, 20, "three workers")
        yield client


def marked(n: int, path: str) -> bytes:
    """A value that stays at its worker, and a mark that it was made."""
    append_line(path, str(n))
    return bytes([n]) * SIZE


def places(client: Client, future: Any) -> set[str]:
    """Workers that have a value, as they say themselves."""
    found = client.run(has, client.owner.incarnation, future.key)
    return {address for address, there in found.items() if there}


def has(owner: str, key: str, dask_worker: Any) -> bool:
    side = dask_worker.extensions.get("dask-ownership")
    if side is None:
        return False  # it has only just come
    session = side.executor.core.sessions.get(owner)
    entry = session.entries.get(key) if session is not None else None
    return entry is not None and entry.state == KEPT


def kept(client: Client, futures: list[Any], number: int) -> bool:
    return all(len(places(client, future)) >= number for future in futures)


def test_copies_are_there_when_it_returns(client):
    value = client.scatter(b"x" * SIZE)
    assert len(places(client, value)) == 1
    client.replicate(value, n=2)
    assert len(places(client, value)) == 2
    client.replicate([value])
    assert len(places(client, value)) == 3
    client.replicate([value], n=1)
    until(lambda: len(places(client, value)) == 1)
    assert value.result() == b"x" * SIZE


def test_scattered_values_survive_one_death_after_another(client):
    values = client.scatter([bytes([i]) * SIZE for i in range(10)])
    client.replicate(values, n=2)
    for _ in range(3):
        before = set(wait_for_members(client, 3))
        victim = next(iter(before))
        kill(client, victim)
        until(lambda v=victim: v not in client.owner.core.placement.workers, 20)
        until(lambda: kept(client, values, 2), 20)
        until(lambda: len(client.owner.core.placement.workers) == 3, 20)
    assert [value[0] for value in client.gather(values)] == list(range(10))


def test_computed_values_are_not_made_again(client, tmp_path):
    path = str(tmp_path / "made")
    values = client.map(marked, range(8), path=path, pure=False)
    client.replicate(values, n=2)  # waits for them
    victim = values[0]._row.locations[0].address
    kill(client, victim)
    until(lambda: victim not in client.owner.core.placement.workers, 20)
    until(lambda: kept(client, values, 2), 20)
    assert [value[0] for value in client.gather(values)] == list(range(8))
    assert len(lines(path)) == 8


def test_a_worker_that_leaves_takes_no_copy_with_it():
    with small_cluster(n_workers=3) as cluster, Client(cluster) as client:
        wait_for_members(client, 3)
        values = client.scatter([bytes([i]) * SIZE for i in range(6)])
        client.replicate(values, n=2)
        client.retire_workers([next(iter(places(client, values[0])))])
        until(lambda: len(client.owner.core.placement.workers) == 2, 20)
        until(lambda: kept(client, values, 2), 20)
        assert [value[0] for value in client.gather(values)] == list(range(6))


def test_all_workers_means_as_many_as_there_are_now(client):
    value = client.scatter(b"x" * SIZE)
    client.replicate(value)
    victim = wait_for_members(client, 3)[0]
    kill(client, victim)
    until(lambda: victim not in client.owner.core.placement.workers, 20)
    until(lambda: len(places(client, value)) == 3, 20)


def test_named_workers(client):
    first, second, third = wait_for_members(client, 3)
    value = client.scatter(b"x" * SIZE, workers=[first])
    client.replicate(value, workers=[second, third])
    assert places(client, value) == {first, second, third}
    with pytest.raises(ValueError, match="names no worker"):
        client.replicate(value, workers=["nobody"])
    with pytest.raises(ValueError, match="replicate to delete data"):
        client.replicate(value, n=0)
    with pytest.raises(TypeError, match="whole number"):
        client.replicate(value, n="two")  # type: ignore[arg-type]


def test_small_values_errors_and_cancelled_futures_need_no_copies(client):
    small, failed, cancelled = client.submit(inc, 1), client.submit(boom), client.submit(inc, 2)
    wait([small, failed])
    cancelled.cancel()
    client.replicate([small, failed, cancelled], n=2)
    assert small.result() == 2 and failed.status == "error"


def unpicklable() -> Any:
    return [bytes(SIZE), threading.Lock()]


def test_a_value_that_cannot_be_copied(client):
    bad, good = client.submit(unpicklable), client.scatter(b"x" * SIZE)
    with pytest.raises(NotSerializable, match="could not be brought to worker"):
        client.replicate([bad, good], n=2)
    until(lambda: len(places(client, good)) == 2)
    assert bad.status == "finished"


def test_persist_and_annotate(client):
    x = client.persist(da.ones((400, 400), chunks=(200, 400)), replicas=2)
    futures = distributed.futures_of(x)
    until(lambda: kept(client, futures, 2), 10)
    assert x.sum().compute() == 160_000
    with dask.annotate(replicas=2):
        big = dask.delayed(bytes)(SIZE)
    future = client.compute(big)
    wait(future)
    until(lambda: kept(client, [future], 2), 10)
    plain = client.compute(dask.delayed(bytes)(SIZE + 1))
    wait(plain)
    assert len(places(client, plain)) == 1


def replicates_inside() -> int:
    client = distributed.get_client()
    value = client.scatter(b"x" * SIZE)
    client.replicate(value, n=2)
    return len(value._row.locations)


async def replicates_in_a_coroutine() -> int:
    client = distributed.get_client()
    value = await client.scatter(b"x" * SIZE)
    await client.replicate(value, n=2)
    return len(value._row.locations)


@pytest.mark.parametrize("function", [replicates_inside, replicates_in_a_coroutine])
def test_inside_a_task(client, function):
    assert client.submit(function).result(timeout=20) == 2


def test_closing_ends_the_wait(own_cluster, tmp_path):
    go = tmp_path / "go"
    client = Client(own_cluster, set_as_default=False)
    value = client.scatter(b"x" * SIZE)
    busy = client.map(wait_for_file, [str(go)] * 3, pure=False)
    until(lambda: all(future._row.worker for future in busy), 20)
    with ThreadPoolExecutor(1) as thread:
        copied = thread.submit(client.replicate, value, n=3)
        until(lambda: client.owner.core.copies.under_way)
        client.close()
        with pytest.raises(ClosedOwner):
            copied.result(timeout=10)
    go.touch()
