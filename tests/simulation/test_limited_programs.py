"""Tasks that run at most once, or for a limited time, in the virtual cluster."""

from __future__ import annotations

from random import Random

import pytest

from dask_ownership.core.owner.rows.options import Options
from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.protocol.states import ERROR, PUSHED
from dask_ownership.testing.virtual import Faults, Task, VirtualCluster

ROUGH = Faults(0.2, 0.1)
SECOND = 1e6


def let_go(cluster: VirtualCluster, rows: list[Row]) -> None:
    """Nobody wants the rows any more: nothing is left anywhere."""
    cluster.clients[0].core.release(rows)
    cluster.dirty.add(cluster.clients[0])
    cluster.run()
    cluster.assert_empty()


@pytest.mark.parametrize("seed", range(100))
def test_tasks_start_at_most_once_whatever_dies_freezes_pauses_or_leaves(seed):
    random = Random(seed)
    slots = random.randint(1, 3)
    faults = random.choice([ROUGH, ROUGH, Faults(0, 0, 20_000.0)])
    cluster = VirtualCluster(seed, random.randint(1, 4), slots, faults=faults)
    owner = cluster.clients[0]
    rows: list[Row] = []
    once: set[Row] = set()
    values: dict[Row, int] = {}
    retried: set[Row] = set()
    deaths = 0
    for number in range(60):
        if random.random() < 0.75 or not rows:
            needed = random.sample(rows, k=min(len(rows), random.choice([0, 0, 1, 2])))
            children = tuple(Task(i) for i in range(random.choice([0, 0, 0, 3])))
            duration = random.choice([1.0, 300.0, 20_000.0])
            task = Task(number, duration, random.random() < 0.3, children=children)
            options = Options(at_most_once=random.random() < 0.4)
            row = owner.submit(f"t{number}", task, needed, options)
            rows.append(row)
            values[row] = task.value([values[d] for d in dict.fromkeys(needed)])
            if options.at_most_once:
                once.add(row)
        else:
            there = sorted(cluster.workers)
            what = random.random()
            if what < 0.2 and deaths < 3:
                deaths += 1
                cluster.add_worker(f"new-{number}", slots)
                cluster.kill(random.choice(there))
            elif what < 0.3:
                worker = cluster.workers[random.choice(there)]
                worker.accept(not worker.core.queue.accepting)
            elif what < 0.4:
                staying = [a for a in there if cluster.workers[a].core.queue.accepting]
                if len(staying) > 1:
                    cluster.retire(staying[0])
            elif what < 0.5:
                cluster.workers[random.choice(there)].forget_functions()
            elif what < 0.6:
                cluster.freeze(random.choice(there), random.choice([5_000.0, 60_000.0, 500_000.0]))
            elif what < 0.7:
                other = random.choice([owner.name, *(cluster.workers[a].owner.name for a in there)])
                one = cluster.workers[random.choice(there)].owner.name
                if one != other:
                    cluster.partition(one, other, random.choice([5_000.0, 60_000.0, 300_000.0]))
            elif what < 0.8:
                cancelled = random.choice(rows)
                owner.core.cancel([cancelled], "stop")
            cluster.run_for(random.choice([10.0, 500.0, 20_000.0]))
        cluster.dirty.add(owner)
    for worker in list(cluster.workers.values()):
        worker.accept(True)
    cluster.run()
    for row in rows:
        name = (owner.name, row.key)
        if row in once:
            assert cluster.record.started[name] <= 1, row
        got = cluster.outcome(owner, row)
        assert got in (values[row], "cancelled", "uncertain", "lost"), (row, got)
        if got == "uncertain":
            assert deaths, "nothing died"
        if got == values[row] and row in once:
            assert cluster.record.started[name] == 1, row
    # By hand those that are uncertain run again.
    for row in rows:
        if row.state == ERROR and row in once and row.value.key == row.key:
            retried.add(row)
    if retried:
        owner.core.retry(list(retried))
        cluster.dirty.add(owner)
        cluster.run()
        for row in retried:
            assert cluster.record.started[owner.name, row.key] <= 2, row
    let_go(cluster, rows)


@pytest.mark.parametrize("seed", range(60))
def test_tasks_start_at_most_once_when_their_worker_freezes_and_their_inputs_are_made_again(seed):
    """Others need the same inputs meanwhile, and these are made again for them."""
    random = Random(seed)
    faults = random.choice([ROUGH, Faults(0, 0), Faults(0, 0, 20_000.0)])
    cluster = VirtualCluster(seed, random.randint(2, 3), random.randint(1, 3), faults=faults)
    owner = cluster.clients[0]
    rows: list[Row] = []
    once: list[Row] = []
    for number in range(6):
        data = owner.submit(f"data-{number}", Task(number, 10.0, large=True))
        charge = owner.submit(
            f"charge-{number}", Task(1, 80_000.0), [data], Options(at_most_once=True)
        )
        rows += [data, charge]
        once.append(charge)
        cluster.run_for(random.choice([1_000.0, 10_000.0]))
        if charge.state == PUSHED:
            where = charge.worker.address
            if random.random() < 0.7:
                cluster.freeze(where, random.choice([100_000.0, 500_000.0]))
            else:
                cluster.partition(owner.name, cluster.workers[where].owner.name, 300_000.0)
        cluster.run_for(random.choice([1_000.0, 60_000.0]))
        for i in range(2):
            rows.append(owner.submit(f"look-{number}-{i}", Task(1, 10.0), [data]))
        cluster.run_for(random.choice([1_000.0, 60_000.0]))
    cluster.run()
    for number, row in enumerate(once):
        assert cluster.record.started[owner.name, row.key] == 1, row
        assert cluster.outcome(owner, row) == number + 1
    let_go(cluster, rows)


def test_some_of_those_programs_leave_tasks_uncertain_and_others_run_them_elsewhere():
    """What is recalled or refused is tried elsewhere; what a death may have met is not."""
    cluster = VirtualCluster(3, workers=2, slots=1, faults=Faults(0.0, 0.0))
    owner = cluster.clients[0]
    once = Options(at_most_once=True)
    running = owner.submit("running", Task(1, duration=SECOND), options=once)
    other = owner.submit("other", Task(2, duration=0.1 * SECOND), options=once)
    waiting = owner.submit("waiting", Task(3), options=once)
    cluster.run_for(0.05 * SECOND)
    assert waiting.attempt == 0, "no slot is free"
    cluster.kill(running.worker.address)
    cluster.run()
    assert cluster.outcome(owner, running) == "uncertain"
    assert cluster.outcome(owner, other) == 2
    assert cluster.outcome(owner, waiting) == 3
    assert {cluster.record.started[owner.name, row.key] for row in (running, other, waiting)} == {1}
    let_go(cluster, [running, other, waiting])


@pytest.mark.parametrize("seed", range(10))
def test_a_task_that_takes_too_long_fails_then_with_all_that_it_submitted(seed):
    cluster = VirtualCluster(seed, workers=2, slots=1, faults=ROUGH)
    owner = cluster.clients[0]
    grandchild = Task(1, duration=10 * SECOND)
    parent = Task(1, duration=0.1 * SECOND, children=(Task(1, children=(grandchild,)), grandchild))
    late = owner.submit("late", parent, options=Options(timeout=1.0))
    after = owner.submit("after", Task(1), [late])
    in_time = owner.submit("in-time", Task(5, duration=0.5 * SECOND), options=Options(timeout=1.0))
    cluster.run_for(2 * SECOND)
    assert late.state == ERROR and cluster.outcome(owner, after) == "error"
    for worker in cluster.workers.values():
        # What runs cannot be stopped, and keeps its slot; nobody wants it.
        assert worker.core.queue.busy <= 1 and not worker.owner.core.table.rows
    cluster.run()
    assert cluster.outcome(owner, in_time) == 5
    let_go(cluster, [late, after, in_time])


@pytest.mark.parametrize("seed", range(10))
def test_a_task_that_takes_too_long_is_tried_again(seed):
    cluster = VirtualCluster(seed, workers=2, slots=1, faults=ROUGH)
    owner = cluster.clients[0]
    options = Options(timeout=1.0, retries=2)
    row = owner.submit("x", Task(1, duration=1.5 * SECOND), options=options)
    cluster.run()
    assert row.state == ERROR and cluster.record.started[owner.name, "x"] == 3
    let_go(cluster, [row])
