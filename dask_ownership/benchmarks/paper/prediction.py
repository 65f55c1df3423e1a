"""The experiment beyond one machine: the real core on the virtual cluster, beside measured points.

The virtual cluster takes time and memory for each pair of an owner and a worker, so it stops at
`PAIRS`. For larger clusters there are only bounds: the rate at which the owners, the workers or,
with a centralized master, the master are always busy.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import psutil

from dask_ownership.benchmarks import functions
from dask_ownership.benchmarks.paper import tasks
from dask_ownership.benchmarks.paper.experiments import Experiment, Point, System, started
from dask_ownership.testing.prediction import Plan, predict

__all__ = ["PREDICTION"]

WORKERS = (1, 2, 4, 10, 100, 1_000, 10_000)
OWNERS = (1, 10, 100, 1_000)

PAIRS = 2_000
"""The most pairs of an owner and a worker in the virtual cluster."""

MEASURED = (1, 2, 4)
"""Numbers of workers for which the prediction is compared with a measurement."""

NESTED = (1, 2, 4, 10, 40)
"""Numbers of workers that tasks run on which submit others: each worker links to each other."""

CHILDREN = 200
"""Tasks that each such task submits."""

RECOVERY = (2, 4, 10, 40, 100)
"""Numbers of workers of which one dies."""

TASK = 0.01
"""Seconds of the tasks whose values are lost with a worker."""

LENGTHS = (0.0, 0.005)
"""Seconds of the tasks that are compared: no-ops, and tasks that sleep."""


class Measured(NamedTuple):
    """Tasks per second of one client, and the processor time of a task in the processes.

    Both in seconds: in the process of the client, which is that of the scheduler too, and in that
    of a worker.
    """

    rate: float
    owner: float
    worker: float


def measure(system: System, workers: int, length: float, n: int) -> Measured:
    """Run tasks of one client, and return what they cost."""
    with started(system, workers) as engine:
        client = engine.client
        here = psutil.Process()
        there = [psutil.Process(pid) for pid in client.run(os.getpid).values()]

        def spent() -> tuple[float, float]:
            own, theirs = (
                sum(sum(process.cpu_times()[:2]) for process in processes)
                for processes in ([here], there)
            )
            return own, theirs

        found = []
        # The first round warms up; of the others the one counts that was least disturbed.
        for share in (n // 5, n, n, n):
            before = spent()
            start = time.perf_counter()
            if length:
                futures = client.map(functions.sleep, [length] * share, pure=False)
            elif system.told:
                futures = []
                for i in range(share):
                    tasks.word(client, system.told)
                    futures.append(client.submit(functions.noop, i, pure=False))
            else:
                futures = client.map(functions.noop, range(share), pure=False)
            client.gather(futures)
            seconds = time.perf_counter() - start
            own, theirs = (now - then for now, then in zip(spent(), before, strict=True))
            found.append(Measured(share / seconds, own / share, theirs / share))
        return max(found[1:])


def fitted(one: Measured) -> tuple[float, float]:
    """Return what a no-op costs an owner and a worker, so that one worker is predicted rightly.

    The processor time does not have the waits for each other and for the system. Measurements
    with more workers then tell how good the prediction is.
    """
    cost, worker_cost = one.owner, one.worker
    for _ in range(3):
        plan = Plan(workers=1, tasks=4_000, length=0.0, owner_cost=cost, worker_cost=worker_cost)
        factor = predict(plan).throughput / one.rate
        cost, worker_cost = cost * factor, worker_cost * factor
    return cost, worker_cost


def nested(cost: float, worker_cost: float, part: float) -> Iterator[Point]:
    """Predict the rate of tasks that submit tasks: each is the owner of what it submits."""
    for workers in NESTED:
        plan = Plan(
            workers=workers, tasks=2 * workers, length=0.0, depth=1,
            fan_out=max(10, int(CHILDREN * part)), owner_cost=cost, worker_cost=worker_cost,
        )  # fmt: skip
        found = predict(plan)
        point = {"kind": "nested", "owners": workers, "workers": workers, "length": 0.0}
        yield {**point, "tasks": plan.total, "rate": found.throughput}


def recovery(cost: float, worker_cost: float) -> Iterator[Point]:
    """Predict what the death of a worker costs: its tasks and its values are made again."""
    for workers in RECOVERY:
        each = 100  # tasks for each worker
        plan = Plan(
            workers=workers, tasks=each * workers, length=TASK, stored=True,
            kill_every=0.8 * each * TASK, restart_after=0.1, owner_cost=cost,
            worker_cost=worker_cost,
        )  # fmt: skip
        without, found = predict(replace(plan, kill_every=None)), predict(plan)
        point = {"kind": "recovery", "owners": 1, "workers": workers, "length": TASK}
        yield {
            **point,
            "tasks": plan.total,
            "without_s": without.makespan,
            "with_s": found.makespan,
            "deaths": len(found.kills),
            "again": found.again,
        }


def prediction(system: System, part: float) -> Iterator[Point]:
    """Measure 1, 2 and 4 workers, take the costs from there, and predict larger clusters."""
    found: dict[tuple[float, int], Measured] = {}
    for length in LENGTHS:
        for workers in MEASURED:
            n = max(50, int(part * (workers / length if length else 4 * system.calls)))
            one = found[length, workers] = measure(system, workers, length, n)
            point = {"kind": "measured", "owners": 1, "workers": workers, "length": length}
            yield {
                **point,
                "rate": one.rate,
                "owner_us": 1e6 * one.owner,
                "worker_us": 1e6 * one.worker,
            }
    if system.engine != "ownership":
        # All owners' tasks pass the one scheduler, whose rate this is.
        most = max(found[0.0, workers].rate for workers in MEASURED)
        for workers in WORKERS:
            point = {"kind": "bound", "owners": 1, "workers": workers, "length": 0.0}
            yield {**point, "rate": most}
        return
    cost, worker_cost = fitted(found[0.0, 1])
    for owners in OWNERS:
        for workers in WORKERS:
            for length in LENGTHS if owners == 1 and workers in MEASURED else (0.0,):
                point = {"owners": owners, "workers": workers, "length": length}
                bound = min(owners / cost, workers / worker_cost)
                if length:
                    bound = min(bound, workers / length)
                yield {**point, "kind": "bound", "rate": bound}
                if owners * workers > PAIRS:
                    continue
                n = max(int(part * 2_000), 50 * max(workers, owners))
                if length:
                    n = int(200 * workers)
                outcome = predict(
                    Plan(
                        workers=workers, owners=owners, tasks=n, length=length,
                        owner_cost=cost, worker_cost=worker_cost,
                    )
                )  # fmt: skip
                predicted = {**point, "kind": "predicted", "tasks": n, "rate": outcome.throughput}
                if owners == 1 and (length, workers) in found:
                    predicted["error"] = outcome.throughput / found[length, workers].rate - 1
                yield predicted
    if not system.told:
        yield from nested(cost, worker_cost, part)
        yield from recovery(cost, worker_cost)


PREDICTION = Experiment("prediction", prediction, ("ownership", "asynchronous", "distributed"))
"""The experiment of this module."""
