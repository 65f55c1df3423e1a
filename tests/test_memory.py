"""Memory: workers with little of it, and owners that keep only so much."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import distributed
import pytest
from distributed import LocalCluster
from live import (
    assert_nothing_left,
    blob,
    deaths_under,
    small_cluster,
    until,
    wait_for_members,
    where,
)
from tornado.iostream import IOStream

from dask_ownership import Client
from dask_ownership.core.owner.scheduling.dispatch import KEPT_ABOVE
from dask_ownership.core.protocol.states import INLINE, STORED
from dask_ownership.runtime.executor.fetcher import IN_TRANSIT
from dask_ownership.testing.invariants import check_ownership

pytestmark = pytest.mark.alone  # it says how long things may take

SMALL = 50_000
"""Bytes of a value that travels to its owner."""


def piece(seed: int, size: int = SMALL) -> bytes:
    """A value of its own."""
    return seed.to_bytes(8, "big") * (size // 8)


def inline_sum(client: Client) -> int:
    rows = list(client.owner.core.table.rows.values())
    return sum(row.nbytes for row in rows if row.state == INLINE)


class Peak:
    """The most that was inline at once, and the most that was in flight."""

    def __init__(self, client: Client) -> None:
        self.bytes = 0
        self.pushed = 0
        self._core = client.owner.core
        self._receive = self._core.receive
        self._core.receive = self  # type: ignore[method-assign,assignment]

    def __call__(self, view: Any, messages: Any, now: float) -> None:
        pushed = sum(len(view.pushed) for view in self._core.placement.workers.values())
        self.pushed = max(self.pushed, pushed)
        self._receive(view, messages, now)
        self.bytes = max(self.bytes, self._core.lifecycle.inline_bytes)


# ---- how much stays at the owner ----


@pytest.fixture
def frugal(cluster: LocalCluster) -> Iterator[Client]:
    """A client that keeps 10 MB of values."""
    with dask.config.set({"ownership.inline.max-bytes": "10MB"}):
        client = Client(cluster)
    with client:
        yield client
        assert_nothing_left(client)
        assert client.owner.core.lifecycle.inline_bytes == 0


def test_limit_is_configured(frugal: Client, client: Client) -> None:
    assert frugal.owner.core.limits.inline_bytes == 10_000_000
    assert 0 < client.owner.core.limits.inline_bytes <= 1 << 30


def test_values_beyond_the_limit_stay_at_the_workers(frugal: Client) -> None:
    peak = Peak(frugal)
    futures = frugal.map(piece, range(3000))
    distributed.wait(futures)
    core = frugal.owner.core
    assert core.lifecycle.inline_bytes == inline_sum(frugal)
    # What was pushed before the limit was reached may still travel.
    assert 10_000_000 - SMALL < peak.bytes <= 10_000_000 + peak.pushed * (SMALL + 100)
    assert (
        peak.bytes < 3000 * SMALL * 2 / 3
    )  # at most 1,666 are in flight, by the shortest duration
    states = [f._row.state for f in futures]
    assert states.count(STORED) > 1000
    frugal.sync(checked, core, asynchronous=False)
    for start in range(0, 3000, 500):
        values = frugal.gather(futures[start : start + 500])
        assert values == [piece(i) for i in range(start, start + 500)]
    # Others may take the room of those that are freed.
    del futures, values
    until(lambda: core.lifecycle.inline_bytes == 0)
    future = frugal.submit(piece, 1)
    assert future.result() == piece(1)
    assert future._row.state == INLINE


async def checked(core: Any) -> None:
    check_ownership(core)


def test_small_values_travel_all_the_same(frugal: Client) -> None:
    full = frugal.map(piece, range(600))
    distributed.wait(full)
    assert frugal.owner.core.lifecycle.inline_bytes > 10_000_000
    small = frugal.map(piece, range(20), size=KEPT_ABOVE // 2)
    numbers = frugal.map(lambda i: i, range(20))
    distributed.wait([*small, *numbers])
    assert {f._row.state for f in (*small, *numbers)} == {INLINE}
    larger = frugal.submit(piece, 7, size=KEPT_ABOVE * 2)
    assert larger.result() == piece(7, KEPT_ABOVE * 2)
    assert larger._row.state == STORED


def test_tasks_use_values_of_both_kinds(frugal: Client) -> None:
    values = frugal.map(piece, range(600))
    sizes = frugal.map(len, values)
    assert frugal.gather(sizes) == [SMALL] * 600
    both = frugal.submit(lambda first, last: first + last, values[0], values[-1])
    assert both.result() == piece(0) + piece(599)


def test_counted_however_a_value_ends(frugal: Client) -> None:
    core = frugal.owner.core
    futures = frugal.map(piece, range(50))
    distributed.wait(futures)
    assert core.lifecycle.inline_bytes == inline_sum(frugal) > 50 * SMALL
    frugal.cancel(futures[:20])
    assert core.lifecycle.inline_bytes == inline_sum(frugal)
    del futures[30:]
    until(lambda: len(core.table.rows) == 10)
    assert core.lifecycle.inline_bytes == inline_sum(frugal) > 10 * SMALL
    # Literal arguments of a map are values at the owner too.
    told = frugal.map(lambda i, data: len(data), range(3), data=blob(300_000))
    assert frugal.gather(told) == [300_000] * 3
    assert core.lifecycle.inline_bytes == inline_sum(frugal)


def test_tasks_that_submit_have_a_limit_too(cluster: LocalCluster, client: Client) -> None:
    def limit(dask_worker: Any) -> int:
        return int(dask_worker.extensions["dask-ownership"].owner.core.limits.inline_bytes)

    assert all(0 < value <= 1 << 30 for value in client.run(limit).values())

    def parent(limit: int) -> tuple[int, int]:
        inner = distributed.get_client()
        core = inner.owner.core
        before, core.limits.inline_bytes = core.limits.inline_bytes, limit
        try:
            futures = inner.map(piece, range(40), pure=False)
            distributed.wait(futures)
            futures += inner.map(piece, range(40, 200), pure=False)
            distributed.wait(futures)
            stored = sum(f._row.state == STORED for f in futures[40:])
            values = inner.gather(futures)
            return stored, sum(v == piece(i) for i, v in enumerate(values))
        finally:
            core.limits.inline_bytes = before

    stored, right = client.submit(parent, 1_000_000).result()
    assert (stored, right) == (160, 200)


# ---- what passes through the owner ----


def test_large_values_do_not_pass_through_the_owner(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.submit(where).result()
    came = went = 0
    read, write = IOStream.read_from_fd, IOStream.write_to_fd

    def count_read(self: IOStream, buf: Any) -> int | None:
        nonlocal came
        count = read(self, buf)
        came += count or 0
        return count

    def count_written(self: IOStream, data: memoryview) -> int:
        nonlocal went
        count = write(self, data)
        went += count
        return count

    monkeypatch.setattr(IOStream, "read_from_fd", count_read)
    monkeypatch.setattr(IOStream, "write_to_fd", count_written)
    workers = list(client.scheduler_info(n_workers=-1)["workers"])
    made = [client.submit(blob, 5_000_000, i, workers=[workers[i % 2]]) for i in range(6)]
    sizes = [client.submit(len, b, workers=[workers[(i + 1) % 2]]) for i, b in enumerate(made)]
    both = client.submit(lambda parts: sum(map(len, parts)), made)
    assert client.gather(sizes) == [5_000_000] * 6
    assert both.result() == 30_000_000
    assert all(f._row.state == STORED and f._row.value is None for f in made)
    assert 1000 < came < 500_000 and 1000 < went < 500_000
    # What this process does ask for is counted: so would have been what it did not.
    assert made[0].result() == blob(5_000_000, 0)
    assert came > 5_000_000


# ---- workers with little memory ----


def stored_where(dask_worker: Any) -> dict[str, int]:
    """How many owned values are in memory and on disk."""
    store = dask_worker.extensions["dask-ownership"].executor.store
    return {
        "fast": sum(name in dask_worker.data.fast for name in store.sizes),
        "slow": sum(name in dask_worker.data.slow for name in store.sizes),
        "nbytes": store.nbytes,
    }


def test_values_spill_and_are_read_back() -> None:
    limits = {
        "distributed.worker.memory.target": 0.1,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.worker.memory.terminate": False,
    }
    with (
        dask.config.set(limits),
        small_cluster(memory_limit="600MB") as cluster,
        Client(cluster) as client,
    ):
        futures = client.map(lambda i: blob(10_000_000, i), range(40))
        distributed.wait(futures)
        found = client.run(stored_where)
        assert sum(f["fast"] + f["slow"] for f in found.values()) == 40
        assert all(f["slow"] > 0 for f in found.values()), found
        assert all(f["fast"] <= 6 for f in found.values()), found
        # Tasks, and the client, read them back.
        last = client.gather(client.map(lambda b: (len(b), b[-1]), futures))
        assert last == [(10_000_000, i) for i in range(40)]
        assert futures[0].result() == blob(10_000_000, 0)
        del futures
        assert_nothing_left(client)
        for address, found_ in client.run(stored_where).items():
            assert found_ == {"fast": 0, "slow": 0, "nbytes": 0}, address


def test_owned_bytes_are_a_metric() -> None:
    with small_cluster() as cluster, Client(cluster) as client:
        first, second = wait_for_members(client, 2)
        future = client.submit(blob, 3_000_000, workers=[first])
        distributed.wait([future])

        def metric(address: str) -> int:
            info = client.scheduler_info(n_workers=-1)["workers"][address]
            return int(info["metrics"].get("owned_nbytes", -1))

        until(lambda: metric(first) >= 3_000_000, 10)
        until(lambda: metric(second) == 0, 10)
        del future
        until(lambda: metric(first) == 0, 10)


def test_a_paused_worker_gets_no_new_tasks(tmp_path: Path) -> None:
    end = tmp_path / "end"
    with small_cluster() as cluster, Client(cluster) as client:
        first, second = wait_for_members(client, 2)
        views = client.owner.core.placement.workers

        def fill(pause: bool, dask_worker: Any = None) -> None:
            # What the memory manager does when the process has too much.
            manager = dask_worker.memory_manager
            manager.memory_pause_fraction = 1e-9 if pause else 0.99
            manager.memory_spill_fraction = False

        def slowly() -> str:
            while not end.exists():
                time.sleep(0.01)
            return where()

        running = client.submit(slowly, workers=[first], pure=False)
        until(lambda: client.run(busy, workers=[first])[first] == 1)
        client.run(fill, True, workers=[first])
        until(lambda: not views[first].accepting, 10)
        places = client.gather([client.submit(where, pure=False) for _ in range(50)])
        assert set(places) == {second}
        # What ran goes on.
        end.touch()
        assert running.result(timeout=10) == first
        # What may run only there waits until it goes on.
        bound = client.submit(where, workers=[first], pure=False)
        time.sleep(0.3)
        assert not bound.done()
        client.run(fill, False, workers=[first])
        assert bound.result(timeout=10) == first
        del running, bound
        assert_nothing_left(client)


def busy(dask_worker: Any) -> int:
    return int(dask_worker.extensions["dask-ownership"].executor.core.queue.busy)


def grow_once(marker: str, size: int) -> str:
    """Take far more memory than there is, the first time."""
    import pathlib

    path = pathlib.Path(marker)
    if not path.exists():
        path.write_text("")
        kept = []
        for _ in range(200):
            kept.append(bytearray(b"x") * size)
            time.sleep(0.05)
    return where()


def test_values_of_a_worker_that_the_nanny_ended_are_made_again(tmp_path: Any) -> None:
    limits = {
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.worker.memory.terminate": 0.95,
        "distributed.scheduler.allowed-failures": 3,
    }
    with (
        dask.config.set(limits),
        small_cluster(memory_limit="500MB", silence_logs=50) as cluster,
        Client(cluster) as client,
    ):
        first, _ = wait_for_members(client, 2)
        values = [
            client.submit(blob, 1_000_000, i, workers=[first], allow_other_workers=True)
            for i in range(5)
        ]
        distributed.wait(values)
        assert {view.address for f in values for view in f._row.locations} == {first}
        eater = client.submit(
            grow_once, str(tmp_path / "grown"), 50_000_000, workers=[first],
            allow_other_workers=True,
        )  # fmt: skip
        assert eater.result(timeout=40) != first
        assert client.gather(values) == [blob(1_000_000, i) for i in range(5)]
        assert client.owner.core.lineages.recovered >= 5
        assert deaths_under(client, eater) == 1
        del values, eater
        assert_nothing_left(client)


# ---- tasks that make much do not outrun those that use it up ----


def written_to_disk(dask_worker: Any) -> int:
    """Bytes that a worker ever spilled."""
    metrics = dask_worker.data.cumulative_metrics
    return int(
        sum(n for (what, unit), n in metrics.items() if what == "disk-write" and unit == "bytes")
    )


@pytest.mark.parametrize("pairs", [False, True], ids=["rows", "neighbours"])
def test_a_deep_reduction_of_ten_times_the_memory_does_not_spill(pairs: bool) -> None:
    limits = {
        # Only what the values take counts, not the 65 MB of an idle process.
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.worker.memory.terminate": False,
    }
    width, depth, numbers = 100, 20, 100_000  # 800 kB each, 1.6 GB in all
    with (
        dask.config.set(limits),
        small_cluster(memory_limit="80MB") as cluster,
        Client(cluster) as client,
    ):
        layers = da.ones((depth, width * numbers), chunks=(1, numbers))
        layers = layers * da.arange(depth, chunks=1)[:, None]
        if pairs:
            layers = layers[:-1] + layers[1:]
        rows = [i + i + 1 for i in range(depth - 1)] if pairs else range(depth)
        assert layers.sum(axis=0).max().compute() == sum(rows)
        assert set(client.run(written_to_disk).values()) == {0}
        # The same would have been seen, had it happened.
        kept = client.map(lambda i: blob(10_000_000, i), range(20))
        distributed.wait(kept)
        assert all(client.run(written_to_disk).values())


# ---- bytes on their way between workers ----


def watch_transit(dask_worker: Any) -> None:
    """Remember the most bytes that a worker asked for at once."""
    fetcher = dask_worker.extensions["dask-ownership"].executor.fetcher
    request = fetcher._request
    fetcher.most = 0

    def watched(*args: Any) -> Any:
        fetcher.most = max(fetcher.most, fetcher.in_transit)
        return request(*args)

    fetcher._request = watched


def most_in_transit(dask_worker: Any) -> int:
    return int(dask_worker.extensions["dask-ownership"].executor.fetcher.most)


def test_bytes_on_their_way_to_a_worker_are_bounded() -> None:
    with small_cluster(n_workers=3) as cluster, Client(cluster) as client:
        first, second, third = wait_for_members(client, 3)
        client.run(watch_transit)
        made = [
            client.submit(blob, 20_000_000, i, workers=[(first, second)[i % 2]]) for i in range(30)
        ]
        distributed.wait(made)
        # 600 MB are wanted at the third worker, and none of it is there.
        sizes = [client.submit(len, value, workers=[third]) for value in made]
        assert client.gather(sizes) == [20_000_000] * 30
        most = client.run(most_in_transit, workers=[third])[third]
        # As much as may be under way, and what one more request may ask for.
        assert 20_000_000 <= most <= IN_TRANSIT * 1.5 + 20_000_000
