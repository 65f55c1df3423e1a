"""The experiment beyond one machine: the real core on the virtual cluster, beside measured points.

The virtual cluster takes time and memory for each pair of an owner and a worker, so it stops at
`PAIRS`. For larger clusters there are only bounds: the rate at which the owners, the workers or,
with a centralized master, the master are always busy.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from dask_ownership.benchmarks import functions
from dask_ownership.benchmarks.paper.experiments import Experiment, Point, System, started
from dask_ownership.testing.prediction import Plan, predict

__all__ = ["PREDICTION"]

WORKERS = (1, 2, 4, 10, 100, 1_000, 10_000)
OWNERS = (1, 10, 100, 1_000)

PAIRS = 2_000
"""The most pairs of an owner and a worker in the virtual cluster."""

MEASURED = (1, 2, 4)
"""Numbers of workers for which the prediction is compared with a measurement."""

LENGTHS = (0.0, 0.005)
"""Seconds of the tasks that are compared: no-ops, and tasks that sleep."""


def measure(system: System, workers: int, length: float, n: int) -> float:
    """Return tasks per second of one client."""
    with started(system, workers) as engine:
        client = engine.client
        rate = 0.0
        # The first round warms up.
        for share in (n // 5, n):
            start = time.perf_counter()
            if length:
                client.gather(client.map(functions.sleep, [length] * share, pure=False))
            else:
                client.gather(client.map(functions.noop, range(share), pure=False))
            rate = share / (time.perf_counter() - start)
        return rate


def prediction(system: System, part: float) -> Iterator[Point]:
    """Measure 1, 2 and 4 workers, take the costs from there, and predict larger clusters."""
    found: dict[tuple[float, int], float] = {}
    for length in LENGTHS:
        for workers in MEASURED:
            n = max(50, int(part * (workers / length if length else 4 * system.calls)))
            rate = found[length, workers] = measure(system, workers, length, n)
            point = {"kind": "measured", "owners": 1, "workers": workers, "length": length}
            yield {**point, "rate": rate}
    # One owner with the least competition for cores: what a no-op costs its process.
    cost = 1 / max(found[0.0, workers] for workers in MEASURED)
    if system.engine != "ownership":
        # All owners' tasks pass the one scheduler, whose rate this is.
        for workers in WORKERS:
            point = {"kind": "bound", "owners": 1, "workers": workers, "length": 0.0}
            yield {**point, "rate": 1 / cost}
        return
    plan = Plan(owner_cost=cost, worker_cost=cost)
    for owners in OWNERS:
        for workers in WORKERS:
            for length in LENGTHS if owners == 1 and workers in MEASURED else (0.0,):
                point = {"owners": owners, "workers": workers, "length": length}
                bound = min(owners, workers) / cost
                if length:
                    bound = min(bound, workers / length)
                yield {**point, "kind": "bound", "rate": bound}
                if owners * workers > PAIRS:
                    continue
                n = int(part * max(2_000, 20 * max(workers, owners)))
                outcome = predict(
                    Plan(
                        workers=workers, owners=owners, tasks=n, length=length,
                        owner_cost=plan.owner_cost, worker_cost=plan.worker_cost,
                    )
                )  # fmt: skip
                yield {**point, "kind": "predicted", "tasks": n, "rate": outcome.throughput}


PREDICTION = Experiment("prediction", prediction, ("ownership", "distributed"))
"""The experiment of this module."""
