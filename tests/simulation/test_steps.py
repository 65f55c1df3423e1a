"""Tasks of many steps that keep where they are, in the virtual cluster.

Whenever such a task starts it is checked that no step which its owner keeps is taken again.
"""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from dask_ownership.core.owner.rows.options import Options
from dask_ownership.testing.virtual import Faults, Task, VirtualCluster

STEPS = 10
TASKS = 6


def run_steps(seed: int, kills: int = 0, cancels: int = 0, fails: int = 0) -> VirtualCluster:
    """Tasks of ten steps, under which workers die, and which are replaced under their key."""
    faults = Faults(0.2, 0.1, 20_000.0 if seed % 2 else 500.0)
    cluster = VirtualCluster(seed, workers=3, slots=2, faults=faults)
    owner = cluster.clients[0]
    random = Random(seed)
    child = Task(1, 10.0)

    def submit(number: int, constant: int) -> tuple:
        task = Task(
            constant, 1_000.0, steps=STEPS, large=number % 2 == 0, children=(child,), fails=fails
        )
        return owner.submit(f"x{number}", task, options=Options(retries=2 * fails)), task

    calls = [submit(number, 100 * number) for number in range(TASKS)]
    for action in random.sample(["kill"] * kills + ["cancel"] * cancels, kills + cancels):
        cluster.run_for(random.random() * 10_000.0)
        if action == "kill":
            victim = random.choice(sorted(cluster.workers))
            cluster.add_worker(f"{victim}+", 2)
            cluster.kill(victim)
        else:
            number = random.randrange(TASKS)
            row, _ = calls[number]
            owner.core.cancel([row], "another takes its place")
            owner.core.release([row])
            calls[number] = submit(number, 1000 + number)
            cluster.dirty.add(owner)
    cluster.run()
    for row, task in calls:
        assert cluster.outcome(owner, row) in (
            (task.value(()), "error") if fails and kills else (task.value(()),)
        )
        owner.core.release([row])
    cluster.dirty.add(owner)
    cluster.run()
    cluster.assert_empty()
    return cluster


def test_without_trouble_every_step_is_taken_once():
    for seed in range(10):
        assert run_steps(seed).record.steps_taken == TASKS * STEPS


def test_after_a_failure_all_steps_are_kept():
    for seed in range(10):
        assert run_steps(seed, fails=2).record.steps_taken == TASKS * STEPS


@pytest.mark.parametrize("seed", range(40))
def test_a_death_costs_a_step_of_each_task_that_was_there(seed):
    cluster = run_steps(seed, kills=2)
    # Those whose value stayed at the worker are made again from their first step.
    remade = sum(1 for name in cluster.record.remade if name[0] == cluster.clients[0].name)
    assert cluster.record.steps_taken <= TASKS * STEPS + 2 * 2 + remade * STEPS


def test_an_attempt_that_was_superseded_changes_nothing():
    superseded = resumed = 0
    met: Counter = Counter()
    for seed in range(40):
        cluster = run_steps(seed, kills=1, cancels=6)
        superseded += cluster.record.superseded
        resumed += cluster.record.resumed
        met.update(cluster.network.met)
    assert superseded > 20 and resumed > 20
    assert met["row", "late pushed", "CHECKPOINT"], "no zombie asked its owner"
