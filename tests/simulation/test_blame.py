"""Workers die of some tasks; only those are blamed, whoever owns what runs beside them.

A failure prints the arguments of `run_killers` with which it happens again.
"""

from __future__ import annotations

from random import Random

import pytest

from dask_ownership.testing.virtual import Faults, Task, VirtualCluster

LATE = 8_000_000.0
"""A worker dies so long after its killer began: longer than that is alone at first."""


class Counted(VirtualCluster):
    """A cluster whose workers may die of tasks so many times."""

    def __init__(self, most: int, *arguments, **more) -> None:
        super().__init__(*arguments, **more)
        self.deaths_left = most

    def replace(self, address: str) -> None:
        assert self.deaths_left, "workers die again and again"
        self.deaths_left -= 1
        super().replace(address)


def run_killers(
    seed: int,
    workers: int = 2,
    slots: int = 2,
    clients: int = 2,
    killers: int = 2,
    innocents: int = 12,
    faults: Faults | None = None,
) -> VirtualCluster:
    """Killers and innocents of several owners at the same workers."""
    cluster = Counted(12 * killers, seed, workers, slots, clients, faults, no_workers_timeout=None)
    r = Random(seed)
    bad, good = [], []
    todo = ["bad"] * killers + ["good"] * innocents
    r.shuffle(todo)
    for number, kind in enumerate(todo):
        client = r.choice(cluster.clients)
        if kind == "bad":
            how = r.choice(["plain", "plain", "after a wait", "after checkpoints"])
            task = Task(
                duration=r.choice([10.0, 1_000.0, 300_000.0, LATE]),
                kills=True,
                cluster_lock="lock" if how == "after a wait" else "",
                steps=2 if how == "after checkpoints" else 0,
            )
            if r.random() < 0.3:  # a task submits it, and waits for it
                task = Task(children=(task,))
            bad.append((client, client.submit(f"bad-{number}", task)))
        else:
            task = Task(
                constant=number,
                duration=r.choice([10.0, 10_000.0, 500_000.0, 6_000_000.0]),
                large=r.random() < 0.3,
                children=tuple(Task(1, 1_000.0) for _ in range(r.choice([0, 0, 2]))),
                cluster_lock=r.choice(["", "", "", "lock"]),
            )
            good.append((client, client.submit(f"good-{number}", task), task.value(())))
        cluster.run_for(r.choice([1.0, 1_000.0, 200_000.0]))
    cluster.run()
    for client, row, value in good:
        assert cluster.outcome(client, row) == value, (seed, row)
    for client, row in bad:
        assert cluster.outcome(client, row) in ("killed-worker", "error"), (seed, row)
    for client, row, *_ in [*good, *bad]:
        client.dropped.append(row)
        cluster.dirty.add(client)
    cluster.run()
    cluster.assert_empty()
    return cluster


@pytest.mark.parametrize("seed", range(16))
def test_only_killers_are_blamed(seed: int) -> None:
    r = Random(seed)
    run_killers(
        seed,
        workers=r.randint(1, 3),
        slots=r.randint(1, 3),
        clients=r.randint(1, 3),
        killers=r.randint(1, 4),
        faults=Faults(r.choice([0, 0.2]), r.choice([0, 0.1]), r.choice([200.0, 20_000.0])),
    )
