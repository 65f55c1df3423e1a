"""A client that reaches the scheduler only, so that the scheduler relays, and one that does not.

Scheduler and workers are processes of their own here, because the scheduler's memory and the lag
of its event loop are measured. The tasks and the gathered values of a stock client go through the
scheduler in both cases.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dask_ownership.benchmarks import functions
from dask_ownership.benchmarks.engines import DistributedEngine, Engine
from dask_ownership.benchmarks.timing import check, round_trips

__all__ = ["direct", "relay"]

MEBIBYTE = 1 << 20

PART = 64 * MEBIBYTE
"""Bytes of each value that is gathered."""

TASKS_PER_PART = 625
"""For 10 000 tasks 16 values are gathered: 1 GiB."""

LOOK = 0.005
"""Seconds between two looks at the scheduler's event loop, and at its memory."""


def relay(engine: Engine, n: int) -> dict[str, float]:
    """Run ``n`` no-ops, round trips and a gather; the client reaches the scheduler only."""
    return _run(engine, n, "relay", "relayed")


def direct(engine: Engine, n: int) -> dict[str, float]:
    """Run the same with a client that reaches the workers."""
    return _run(engine, n, "direct", "direct")


def _run(engine: Engine, n: int, reach: str, way: str) -> dict[str, float]:
    """Measure on a cluster of processes; ``way`` is that of the links to be, where there are."""
    import dask
    from distributed.deploy.subprocess import SubprocessCluster

    assert isinstance(engine, DistributedEngine)  # as the ability `SCHEDULER` says
    with (
        SubprocessCluster(
            n_workers=engine.n_workers,
            threads_per_worker=engine.threads_per_worker,
            dashboard_address=":0",
        ) as cluster,
        dask.config.set({"ownership.reach": reach}),
        engine.connect(cluster) as client,
    ):
        measured = _measure(client, n)
        if engine.name == "ownership":
            check({link["way"] for link in client.ownership().links.values()}, {way})
        return measured


def _measure(client: Any, n: int) -> dict[str, float]:
    """Return the rate of ``n`` no-ops, the median round trip, and what a gather costs."""
    import psutil
    from distributed import wait

    client.wait_for_workers(1)
    check(client.gather(client.map(functions.noop, range(200), pure=False)), [*range(200)])
    client.run_on_scheduler(_watch_loop)
    scheduler = psutil.Process(client.run_on_scheduler(os.getpid))

    start = time.perf_counter()
    values = client.gather(client.map(functions.noop, range(n), pure=False))
    rate = n / (time.perf_counter() - start)
    check(values, [*range(n)])
    lag = client.run_on_scheduler(_greatest_lag)

    def call(i: int) -> Any:
        return client.submit(functions.noop, i, pure=False).result()

    trip = round_trips(call, 300)["p50"]

    parts = max(1, n // TASKS_PER_PART)
    futures = client.map(functions.make_array, [PART] * parts, range(parts), pure=False)
    wait(futures)
    client.run_on_scheduler(_greatest_lag)
    with _growth(scheduler) as grown:
        start = time.perf_counter()
        received = sum(array.nbytes for array in client.gather(futures))
        seconds = time.perf_counter() - start
    check(received, parts * PART)
    return {
        "rate": rate,
        "p50": trip,
        "bandwidth": received / seconds / 1e6,
        "grown": max(grown[0], 1) / MEBIBYTE,
        "lag": max(lag, client.run_on_scheduler(_greatest_lag)) * 1000,
    }


@contextmanager
def _growth(process: Any) -> Iterator[list[int]]:
    """Watch a process's memory; at the end the list has its greatest growth, in bytes."""
    before = process.memory_info().rss
    grown = [0]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(LOOK):
            grown[0] = max(grown[0], process.memory_info().rss - before)

    watcher = threading.Thread(target=watch, name="memory-watch")
    watcher.start()
    try:
        yield grown
    finally:
        over.set()
        watcher.join()


def _watch_loop(dask_scheduler: Any) -> None:
    """Note from now on how late the scheduler's event loop is, at most."""

    async def watch() -> None:
        while True:
            start = time.perf_counter()
            await asyncio.sleep(LOOK)
            late = time.perf_counter() - start - LOOK
            dask_scheduler.benchmark_lag = max(dask_scheduler.benchmark_lag, late)

    if not hasattr(dask_scheduler, "benchmark_lag"):
        # Kept, because the loop itself has weak references to its tasks only.
        dask_scheduler.benchmark_watch = asyncio.ensure_future(watch())
    dask_scheduler.benchmark_lag = 0.0


def _greatest_lag(dask_scheduler: Any) -> float:
    """Return the greatest lag since the last call, in seconds."""
    lag, dask_scheduler.benchmark_lag = dask_scheduler.benchmark_lag, 0.0
    return float(lag)
