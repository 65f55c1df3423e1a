"""Cases in which a worker dies: how much longer a chain of tasks takes then.

Wang et al. measure the same (*Ownership*, NSDI 2021): each task of a chain takes the value of the
task before, the chain takes 10 s in all, and after half of the time a worker dies. Small values are
with the owner by then. Large values are with the dead worker, and the values before were freed: the
first half of the chain runs again.

The dying worker is the worker that runs the chain; it dies by SIGKILL. It is replaced by the means
that replace it by default: Dask's nanny, and Ray's raylet. With Ray one of the worker processes of
a machine dies: its large values live in the machine's shared memory, which stays; Dask's large
values live in the process that dies.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from pathlib import Path

from dask_ownership.benchmarks import functions
from dask_ownership.benchmarks.engines import Engine

__all__ = ["DURATIONS", "recovery", "recovery_large"]

DURATIONS = (10, 100, 1000)
"""Milliseconds that each task of a chain takes."""

LARGE = 10 * (1 << 20) // 8
"""Numbers in a large value: 10 MiB."""


def recovery(engine: Engine, n: int) -> dict[str, float]:
    """Run chains of ``n`` seconds with small values, without and with a worker's death."""
    return _all_durations(engine, n, 0)


def recovery_large(engine: Engine, n: int) -> dict[str, float]:
    """Run chains of ``n`` seconds with 10 MiB values, without and with a worker's death."""
    return _all_durations(engine, n, LARGE)


def _all_durations(engine: Engine, seconds: int, length: int) -> dict[str, float]:
    """Run the chains of all durations, each without and with a death."""
    result = {}
    for milliseconds in DURATIONS:
        without, _ = _chain(engine, seconds, milliseconds, length, death=False)
        with_death, steps = _chain(engine, seconds, milliseconds, length, death=True)
        result[f"without{milliseconds}"] = without
        result[f"with{milliseconds}"] = with_death
        result[f"ratio{milliseconds}"] = with_death / without
        result[f"steps{milliseconds}"] = steps
    return result


def _chain(
    engine: Engine, seconds: int, milliseconds: int, length: int, death: bool
) -> tuple[float, int]:
    """Run one chain; return the seconds it took, and how many steps were begun."""
    import numpy

    n = seconds * 1000 // milliseconds
    client = engine.client
    # The worker that replaces the one killed last must be there.
    engine.fill()
    engine.settle()
    with tempfile.TemporaryDirectory(prefix="dask-benchmark-") as directory:
        path = os.path.join(directory, "steps")
        # In the middle of a task: a death at any moment costs half a task on average.
        killer = threading.Timer(seconds / 2 + milliseconds / 2000, _kill_last, (path,))
        start = time.perf_counter()
        if death:
            killer.start()
        try:
            future = client.submit(functions.zeros, length, pure=False)
            for _ in range(n):
                future = client.submit(
                    functions.step, future, milliseconds / 1000, path, pure=False
                )
            value = future.result()
            took = time.perf_counter() - start
        finally:
            killer.cancel()
            if death:
                killer.join()
        if numpy.size(value) != max(length, 1) or not numpy.all(value == n):
            raise AssertionError(f"wrong answer: {value} instead of {n}")
        pids = _pids(path)
    # After a death the steps come from at least two processes.
    if death and len(set(pids)) < 2:
        raise AssertionError("no worker died before the chain ended")
    return took, len(pids)


def _pids(path: str) -> list[int]:
    """Return the process of each step, in the order in which the steps began."""
    return [int(line) for line in Path(path).read_text().split()]


def _kill_last(path: str) -> None:
    """Kill the process that began the last step."""
    import psutil

    psutil.Process(_pids(path)[-1]).kill()
