"""Workers die; stored values are made again from their lineage, and nobody notices but by time."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import dask
import numpy as np
import pytest
from distributed import wait
from live import blob, inc, small_cluster, until, wait_for_members

import dask_ownership
from dask_ownership import Client
from dask_ownership.core.owner.rows.row import HAS_BORROWERS
from dask_ownership.core.protocol.states import DORMANT
from dask_ownership.errors import LostData


@pytest.fixture
def client() -> Iterator[Client]:
    with small_cluster() as cluster, Client(cluster) as client:
        yield client


def kill(client: Client, address: str) -> None:
    pid = client.run(os.getpid, workers=[address])[address]
    os.kill(pid, signal.SIGKILL)


def ones(n: int, path: str) -> Any:
    with open(path, "a") as file:
        file.write("x")
    return np.ones(n)


def add(a: Any, b: Any) -> Any:
    return a + b


def length(data: Any) -> int:
    return len(data)


def runs(path: Any) -> int:
    return len(path.read_text()) if path.exists() else 0


def test_a_value_that_died_with_its_worker_is_made_again(client, tmp_path):
    path = tmp_path / "runs"
    value = client.submit(ones, 100_000, str(path), pure=False)
    wait(value)
    kill(client, value._row.locations[0].address)
    assert value.result(timeout=30).sum() == 100_000
    assert runs(path) == 2


def test_a_value_is_made_again_in_the_middle_of_being_read(client):
    values = client.map(blob, [200_000 + i for i in range(40)], pure=False)
    wait(values)
    kill(client, wait_for_members(client, 2)[0])
    assert [len(v) for v in client.gather(values)] == [200_000 + i for i in range(40)]


def test_only_what_is_missing_is_made_again_and_freed_inputs_with_it(client, tmp_path):
    paths = [tmp_path / f"runs-{i}" for i in range(2)]
    a, b = (client.submit(ones, 100_000, str(path), pure=False) for path in paths)
    c = client.submit(add, a, b, pure=False)
    d = client.submit(add, c, c, pure=False)
    wait([a, b, c, d])
    del a, b, c  # only d's lineage needs them now
    rows = client.owner.core.table.rows
    until(lambda: [row.state for row in rows.values()].count(DORMANT) == 3)
    kill(client, d._row.locations[0].address)
    assert d.result(timeout=30).sum() == 400_000
    assert [runs(path) for path in paths] == [2, 2]
    del d
    until(lambda: not client.owner.core.table.rows)


def test_a_task_that_needs_a_lost_value_waits_for_it(client):
    value = client.submit(blob, 300_000, pure=False)
    wait(value)
    kill(client, value._row.locations[0].address)
    assert client.submit(length, value, pure=False).result(timeout=30) == 300_000


def test_collections_go_on_when_a_worker_dies(client):
    da = pytest.importorskip("dask.array")
    x = da.ones((2000, 2000), chunks=(200, 200)).persist()
    wait(x)
    kill(client, wait_for_members(client, 2)[0])
    assert float((x + x.T).sum().compute()) == 8_000_000


def test_workers_that_die_one_after_another(client, tmp_path):
    values = client.map(blob, [100_000] * 20, pure=False)
    totals = [client.submit(length, v, pure=False) for v in values]
    for _ in range(2):
        wait(values)
        kill(client, wait_for_members(client, 2)[0])
        assert (
            sum(client.gather([client.submit(length, v, pure=False) for v in values])) == 2_000_000
        )
        wait_for_members(client, 2)
    assert sum(client.gather(totals)) == 2_000_000


def test_a_borrowed_value_is_made_again(client):
    value = client.submit(blob, 300_000, pure=False)
    wait(value)
    there = value._row.locations[0].address
    other = next(a for a in wait_for_members(client, 2) if a != there)
    reader = client.submit(read_when_told, Box(value), pure=False, workers=[other])
    until(lambda: value._row.roles & HAS_BORROWERS)
    kill(client, there)
    assert reader.result(timeout=30) == 300_000


class Box:
    def __init__(self, content: Any) -> None:
        self.content = content


def read_when_told(box: Box) -> int:
    import time

    time.sleep(0.7)
    return len(box.content.result())


def forget_values(dask_worker: Any) -> None:
    """As when the source of a copy died before the copy was there."""
    executor = dask_worker.extensions["dask-ownership"].executor
    with executor.lock:
        for session in executor.core.sessions.values():
            for entry in list(session.entries.values()):
                executor.core.lifecycle.drop(entry)


def test_a_value_that_its_location_does_not_have_is_made_again(client, tmp_path):
    path = tmp_path / "runs"
    value = client.submit(ones, 100_000, str(path), pure=False)
    for times in (2, 3):
        wait(value)
        client.run(forget_values)
        assert value.result(timeout=20).sum() == 100_000
        assert runs(path) == times


def test_a_borrowed_value_that_its_location_does_not_have_is_made_again(client):
    value = client.submit(blob, 300_000, pure=False)
    wait(value)
    reader = client.submit(read_when_told, Box(value), pure=False)
    until(lambda: value._row.roles & HAS_BORROWERS)
    client.run(forget_values, workers=[value._row.locations[0].address], nanny=False)
    assert client.submit(length, value, pure=False).result(timeout=20) == 300_000
    assert reader.status in ("pending", "finished", "cancelled")


def test_a_scattered_value_has_no_lineage(client):
    value = client.scatter(b"x" * 100_000)
    kill(client, value._row.locations[0].address)
    with pytest.raises(LostData, match="it was scattered, not computed"):
        value.result(timeout=30)


def test_lineage_is_counted_and_goes_with_the_value(client):
    lineages = client.owner.core.lineages
    assert lineages.nbytes == 0
    values = client.map(blob, [100_000] * 10, pure=False)
    wait(values)
    assert 0 < lineages.nbytes < 20_000
    del values
    until(lambda: lineages.nbytes == 0)


def test_evicted_lineage_is_named_by_a_later_loss():
    with (
        dask.config.set({"ownership.lineage.max-bytes": "5 kB"}),
        small_cluster() as cluster,
        Client(cluster) as client,
    ):
        values = client.map(blob, [100_000 + i for i in range(40)], pure=False)
        wait(values)
        assert client.owner.core.lineages.nbytes <= 5_000
        assert client.owner.core.lineages.evicted > 0
        kill(client, wait_for_members(client, 2)[0])
        kill(client, wait_for_members(client, 2)[1])
        with pytest.raises(LostData, match=r"ownership\.lineage\.max-bytes"):
            client.gather(values)
        assert client.submit(inc, 1, pure=False).result(timeout=30) == 2


def test_a_cap_too_small_for_one_task():
    with (
        dask.config.set({"ownership.lineage.max-bytes": 1}),
        small_cluster() as cluster,
        Client(cluster) as client,
    ):
        values = client.map(blob, [100_000] * 5, pure=False)
        assert [len(v) for v in client.gather(values)] == [100_000] * 5
        assert client.owner.core.lineages.nbytes == 0
        del values
        until(lambda: not client.owner.core.table.rows)


def test_the_same_key_again_wakes_a_value_that_only_lineage_had(client, tmp_path):
    path = tmp_path / "runs"
    base = client.submit(ones, 100_000, str(path), key="base")
    top = client.submit(add, base, 1, key="top")
    wait(top)
    del base
    until(lambda: client.owner.core.table.rows["base"].state == DORMANT)
    again = client.submit(ones, 100_000, str(path), key="base")
    assert again.result(timeout=10).sum() == 100_000
    assert runs(path) == 2
    assert dask_ownership.wait([again, top]).done
