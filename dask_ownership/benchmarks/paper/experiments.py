"""The experiments that measure the systems alone: calls, owners, borrowers and recovery.

Each experiment yields points: what was measured, with all that the point depends on.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from dask_ownership.benchmarks import recovery_cases, travel_cases
from dask_ownership.benchmarks.engines import Engine, make_engine
from dask_ownership.benchmarks.paper import tasks
from dask_ownership.benchmarks.paper.tasks import Told

__all__ = ["MICRO", "Experiment", "Point", "System", "borrow", "latency", "recovery", "scalability"]

Point = dict[str, Any]

MEBIBYTE = 1 << 20

WORKERS = (1, 2)
"""Numbers of workers whose throughput is measured."""

OWNERS = (1, 2, 4)
"""Numbers of owners whose throughput is measured."""


@dataclass(frozen=True)
class System:
    """A system to measure.

    Attributes
    ----------
    name
        Name on the command line and in plots.
    engine
        The engine of `dask_ownership.benchmarks.engines`.
    told
        What the scheduler hears before each submit, see `tasks.word`.
    calls
        How many calls a second the system makes, roughly: how much work to give it.
    """

    name: str
    engine: str
    told: Told = None
    calls: int = 500


@dataclass(frozen=True)
class Experiment:
    """An experiment.

    Attributes
    ----------
    name
        Name on the command line and of the plot's file.
    run
        Takes a system and the part of the work that is to be done (1 for all), yields points.
    systems
        Names of the systems that can run it.
    """

    name: str
    run: Callable[[System, float], Iterator[Point]]
    systems: tuple[str, ...]


@contextlib.contextmanager
def started(system: System, n_workers: int) -> Iterator[Engine]:
    """Start the engine of a system."""
    engine = make_engine(system.engine, n_workers)
    try:
        engine.start()
        yield engine
    finally:
        engine.close()


def scalability(system: System, part: float) -> Iterator[Point]:
    """Measure tasks per second against the number of owners and workers.

    Owners are tasks at worker processes of their own, or all at one of these.
    """
    rounds = 3
    with started(system, max(WORKERS) + max(OWNERS)) as engine:
        # Dask names the workers of a local cluster by numbers.
        names = list(range(max(WORKERS) + max(OWNERS)))
        places = names[max(WORKERS) :]
        for nbytes in (0, MEBIBYTE):
            calls = system.calls if not nbytes else min(system.calls, 500)
            for spread in (True, False):
                for n_owners in OWNERS:
                    for n_workers in WORKERS:
                        share = max(5, int(part * calls / rounds / n_owners))
                        owners = [
                            engine.client.submit(
                                tasks.drive, names[:n_workers], rounds, share, nbytes,
                                system.told, workers=[places[i if spread else 0]], pure=False,
                            )
                            for i in range(n_owners)
                        ]  # fmt: skip
                        start = time.perf_counter()
                        engine.client.gather(owners)
                        seconds = time.perf_counter() - start
                        yield {
                            "nbytes": nbytes,
                            "spread": spread,
                            "owners": n_owners,
                            "workers": n_workers,
                            "tasks": n_owners * rounds * share,
                            "rate": n_owners * rounds * share / seconds,
                        }


def latency(system: System, part: float) -> Iterator[Point]:
    """Measure the time of a call with 1 MiB as its argument, one at a time and many at once.

    The argument is a future of a value that is there, or the value itself; the task runs where the
    value of the future is (local), or at the other worker (remote).
    """
    import numpy

    with started(system, 2) as engine:
        client = engine.client
        here, there = engine.workers()
        held = client.submit(tasks.produce, 0, MEBIBYTE, pure=False, workers=[here])
        held.result()
        given = numpy.zeros(MEBIBYTE, "u1")
        for passed, value in (("reference", held), ("value", given)):
            for place, address in (("local", here), ("remote", there)):
                if passed == "value" and place == "remote":
                    continue  # for a value of the client all workers are alike

                def call(value: Any = value, address: Any = address) -> Any:
                    tasks.word(client, system.told)
                    return client.submit(tasks.first, value, pure=False, workers=[address])

                n = max(10, int(part * (200 if passed == "reference" else 50)))
                call().result()
                times = []
                for _ in range(n):
                    start = time.perf_counter()
                    call().result()
                    times.append((time.perf_counter() - start) * 1000)
                point = {"passed": passed, "place": place}
                yield {**point, "mode": "one at a time", "ms": sum(times) / n, "all_ms": times}
                start = time.perf_counter()
                client.gather([call() for _ in range(n)])
                each = (time.perf_counter() - start) * 1000 / n
                yield {**point, "mode": "all at once", "ms": each}


def borrow(system: System, part: float) -> Iterator[Point]:
    """Measure tasks per second that borrowers of one future submit."""
    with started(system, 2) as engine:
        n = max(100, int(part * system.calls * 2))
        found = travel_cases.borrow(engine, n)
    for borrowers in travel_cases.BORROWERS:
        yield {"borrowers": borrowers, "tasks": n, "rate": found[f"b{borrowers}"]}


def recovery(system: System, part: float) -> Iterator[Point]:
    """Measure how long chains of 10 s take when their worker dies after half of the time."""
    seconds = max(2, round(10 * part))
    cases = (("small", recovery_cases.recovery), ("10 MiB", recovery_cases.recovery_large))
    with started(system, 2) as engine:
        for size, measure in cases:
            found = measure(engine, seconds)
            for milliseconds in recovery_cases.DURATIONS:
                yield {
                    "size": size,
                    "task_ms": milliseconds,
                    "without_s": found[f"without{milliseconds}"],
                    "with_s": found[f"with{milliseconds}"],
                    "ratio": found[f"ratio{milliseconds}"],
                    "steps": found[f"steps{milliseconds}"],
                }


MICRO = (
    Experiment(
        "scalability", scalability, ("ownership", "asynchronous", "synchronous", "distributed")
    ),
    Experiment("latency", latency, ("ownership", "synchronous", "distributed")),
    Experiment("borrow", borrow, ("ownership", "distributed", "ray")),
    Experiment("recovery", recovery, ("ownership", "distributed", "ray")),
)
"""The experiments of this module."""
