"""Programs that once went wrong, each by its seed: see `simulation_programs.run_program`."""

from __future__ import annotations

import pytest
from simulation_programs import run_program

from dask_ownership.testing.virtual import Faults, Task, VirtualCluster

QUIET = Faults(0.0, 0.0)
ROUGH = Faults(0.2, 0.1)

RUNS = {
    # A row that was forgotten while others were retried with it came back without a task.
    "retry brings back a forgotten row": (2969801288, 4, 1, 1, 44, ROUGH, 0),
    # A scattered value whose row was cancelled meanwhile stayed at its workers.
    "scatter of what is cancelled": (2294930058, 2, 1, 1, 6, QUIET, 0),
    "scatter of what is cancelled, with a death": (1083892138, 1, 1, 2, 8, QUIET, 1),
    # A superseded attempt found its input gone, which a new row of the same key had again.
    "a superseded attempt is unwanted": (2194678813, 4, 1, 2, 44, Faults(0.2, 0.0), 2),
    # A worker that was to leave had a copy freed that a task on its way there named.
    "a copy at a worker that is to leave": (4330, 2, 1, 2, 43, QUIET, 0),
    # A task that no worker may run took a ready one with it, which was pushed all the same.
    "a ready row goes with another": (
        *(817807441, 2, 1, 2, 96, Faults(0.2, 0.1, 2_000.0, 0.1), 0),
        *(True, True),
    ),
    # A parked task looked for something faster than the owner of a suspect could answer.
    "a turn that is taken": (1240822674, 2, 3, 3, 100, Faults(0.2, 0.0, 20_000.0, 0.1), 1, True),
}


@pytest.mark.parametrize("name", RUNS)
def test_program(name):
    run_program(*RUNS[name])


def test_an_attempt_that_was_superseded_does_not_replace_the_value_of_the_next():
    cluster = VirtualCluster(1, workers=1, slots=2, faults=QUIET)
    owner = cluster.clients[0]
    old = owner.submit("x", Task(1, duration=50_000.0, large=True))
    cluster.run_for(10_000.0)
    owner.core.cancel([old], "stop")
    new = owner.submit("x", Task(2, duration=10.0, large=True))
    cluster.run()
    assert cluster.outcome(owner, new) == 2
    owner.core.release([old, new])
    cluster.dirty.add(owner)
    cluster.run()
    cluster.assert_empty()


@pytest.mark.parametrize("seed", range(20))
def test_a_fetch_of_a_value_that_was_freed_does_not_delete_the_next_one(seed):
    cluster = VirtualCluster(seed, workers=2, slots=2, faults=QUIET)
    owner = cluster.clients[0]
    rows = []
    for number in range(4):
        x = owner.put("x", number, ["worker-0"])
        cluster.run_for(5_000.0)
        y = owner.submit(f"y{number}", Task(0, duration=1.0), [x])
        cluster.run_for(cluster.random.choice([50.0, 500.0, 5_000.0]))
        if number < 3:
            owner.core.cancel([x], "stop")
            cluster.dirty.add(owner)
        rows += [x, y]
    cluster.run()
    assert cluster.outcome(owner, rows[-1]) == 3
    owner.core.release(rows)
    cluster.dirty.add(owner)
    cluster.run()
    cluster.assert_empty()
