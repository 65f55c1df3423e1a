"""Tasks that hold locks of their process while they wait without a slot: all of them end."""

from __future__ import annotations

from random import Random

import pytest

from dask_ownership.core.executor.crowd import WAITING_PER_THREAD
from dask_ownership.core.owner.rows.options import Options
from dask_ownership.core.owner.rows.row import Row
from dask_ownership.testing.travel import VirtualFuture
from dask_ownership.testing.virtual import Faults, Task, VirtualCluster

QUIET = Faults(0.0, 0.0)
ROUGH = Faults(0.2, 0.1)
SECOND = 1e6


def end(cluster: VirtualCluster, rows: list[Row]) -> None:
    owner = cluster.clients[0]
    owner.core.release(rows)
    cluster.dirty.add(owner)
    cluster.run()
    cluster.assert_empty()


@pytest.mark.parametrize("faults", [QUIET, ROUGH])
@pytest.mark.parametrize("seed", range(30))
def test_who_has_a_lock_of_the_process_goes_on_whatever_the_slots_holders_do(seed, faults):
    """A file of a library is written under a lock of the process and one of the cluster."""
    random = Random(seed)
    workers, slots = random.randint(1, 3), random.randint(1, 3)
    cluster = VirtualCluster(seed, workers, slots, faults=faults)
    owner = cluster.clients[0]
    rows, values = [], []
    for i in range(40):
        local = random.choice(["", "file", "file", "other"])
        shared = random.choice(["", "store", "store", "dataset"])
        if local == "other":
            shared = ""  # always taken in one order, as a program must that ends at all
        children = () if local or shared else (Task(1),) * random.choice([0, 0, 2])
        duration = random.choice([100.0, 5_000.0, 20_000.0])
        task = Task(i, duration, children=children, local_lock=local, cluster_lock=shared)
        rows.append(owner.submit(f"t{i}", task))
        values.append(task.value([]))
        if random.random() < 0.3:
            cluster.run_for(random.choice([100.0, 20_000.0]))
    cluster.run_for(40 * (0.02 + 0.1 + 0.1) * SECOND)
    assert [cluster.outcome(owner, row) for row in rows] == values
    end(cluster, rows)


def test_each_goes_on_within_a_tenth_of_a_second():
    """All of those that can, not one after the other."""
    cluster = VirtualCluster(1, 1, 2, faults=QUIET)
    owner = cluster.clients[0]
    # The first two have one lock each of the process, and wait for one of the cluster.
    held = [owner.submit("holder", Task(0, 30_000.0, cluster_lock="c"), options=Options())]
    cluster.run_for(5_000.0)
    held += [
        owner.submit(f"w{i}", Task(i, 1_000.0, local_lock=f"l{i}", cluster_lock="c"))
        for i in range(2)
    ]
    cluster.run_for(20_000.0)
    blocked = [owner.submit(f"b{i}", Task(i, 1_000.0, local_lock=f"l{i % 2}")) for i in range(6)]
    cluster.run_for(0.25 * SECOND)
    assert all(row.done for row in (*held, *blocked))
    end(cluster, [*held, *blocked])


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_waiting_begins_a_bounded_number_of_tasks(slots):
    cluster = VirtualCluster(0, 1, slots, faults=QUIET)
    owner = cluster.clients[0]
    (worker,) = cluster.workers.values()
    cluster.world.locks.acquire("c", "somebody", lambda: None)
    rows = [owner.submit(f"t{i}", Task(i, 1.0, cluster_lock="c")) for i in range(200)]
    cluster.run_for(0.5 * SECOND)
    limit = WAITING_PER_THREAD * slots
    assert limit <= sum(cluster.record.started.values()) < limit + slots
    cluster.run_for(3 * SECOND)
    assert sum(cluster.record.started.values()) < limit + slots + 2
    cluster.world.locks.release("c", "somebody")
    cluster.run()
    assert [cluster.outcome(owner, row) for row in rows] == list(range(200))
    assert not worker.core.queue.crowd.waiting
    end(cluster, rows)


@pytest.mark.parametrize("seed", range(20))
def test_what_waiting_tasks_wait_for_starts_however_many_wait(seed):
    """Each waits for the future of one that is queued behind it, which waits for the next."""
    cluster = VirtualCluster(seed, 1, 1, faults=QUIET)
    owner = cluster.clients[0]
    short = owner.submit("short", Task(1, 10.0))
    cluster.run()  # now it is known how long such tasks take, and all are pushed at once
    rows = [owner.submit("last", Task(1, 10.0), priority=-1)]
    for i in range(40):
        rows[-1].local_refs += 1
        carried = VirtualFuture(owner, rows[-1])
        rows.append(owner.submit(f"t{i}", Task(1, 10.0, carries=(carried,), uses="read")))
    del carried
    cluster.run_for(2 * SECOND)
    assert [cluster.outcome(owner, row) for row in rows] == list(range(1, 42))
    end(cluster, [short, *rows])
