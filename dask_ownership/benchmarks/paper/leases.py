"""The experiment that asks what leases would cost: failures that are noticed by time-outs.

With leases a worker that was silent for as long as its lease is taken for dead, whether it died or
only paused. Wang et al. compare with this design (*Ownership*, NSDI 2021, section 2). No system
here has leases, so they are emulated at real workers: the process of a worker is suspended, and
killed when its lease is over, upon which everybody hears of the death at once. Without a lease the
process is killed at once, or suspended and resumed, however long that took.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from dask_ownership.benchmarks.engines import Engine
from dask_ownership.benchmarks.paper import tasks
from dask_ownership.benchmarks.paper.experiments import Experiment, Point, System, started

__all__ = ["LEASES"]

TIMEOUTS = (0, 1, 5, 10)
"""Seconds of a lease; 0 for none, where the death is known at once."""

PAUSE = 3.0
"""Seconds for which a worker pauses that does not die."""

BEFORE = 2.0
"""Seconds of work before the worker falls silent."""

AFTER = 3.0
"""Seconds of work after the worker died or went on."""

EVERY = 0.02
"""Seconds between two tasks, whatever became of the tasks before."""

LENGTH = 0.03
"""Seconds that each task takes."""


def leases(system: System, part: float) -> Iterator[Point]:
    """Measure how long tasks take when a worker dies or pauses, and which tasks run twice."""
    timeouts = TIMEOUTS if part == 1 else TIMEOUTS[:2]
    for event in ("death", "pause"):
        for lease in timeouts:
            with started(system, 2) as engine:
                yield {"event": event, "lease_s": lease, **_one_run(engine, event, lease)}


def _one_run(engine: Engine, event: str, lease: float) -> Point:
    """Submit tasks at a fixed rate while a worker falls silent; return what became of them."""
    client = engine.client
    victim = psutil.Process(client.run(os.getpid)[engine.workers()[0]])
    survives = event == "pause" and (not lease or lease > PAUSE)
    silent = PAUSE if survives else lease
    end = threading.Timer(BEFORE + silent, victim.resume if survives else victim.kill)
    pause = threading.Timer(BEFORE, victim.suspend)
    with tempfile.TemporaryDirectory(prefix="dask-benchmark-") as folder:
        path = os.path.join(folder, "runs")
        client.gather([client.submit(tasks.noted, path, 0.0, pure=False) for _ in range(20)])
        Path(path).unlink()
        futures: list[Any] = []
        ended: dict[int, float] = {}
        timers = [end, pause] if silent else [end]
        for timer in timers:
            timer.start()
        try:
            first = time.perf_counter()
            n = int((BEFORE + silent + AFTER) / EVERY)
            for i in range(n):
                time.sleep(max(0.0, first + i * EVERY - time.perf_counter()))
                future = client.submit(tasks.noted, path, LENGTH, pure=False)
                future.add_done_callback(lambda _, i=i: ended.setdefault(i, time.perf_counter()))
                futures.append(future)
            client.gather(futures)
            while len(ended) < n:  # callbacks run beside those who wait
                time.sleep(0.01)
        finally:
            for timer in timers:
                timer.join()
        runs = len(Path(path).read_bytes())
    # From the moment at which each task was to be submitted, also when the submit came late.
    late = [(ended[i] - first - i * EVERY) * 1000 for i in range(n)]
    return {"tasks": n, "again": runs - n, "all_ms": [round(ms, 2) for ms in late]}


LEASES = Experiment("leases", leases, ("ownership",))
"""The experiment of this module."""
