"""A key that is used again for something else: nobody gets a value of its former life."""

from __future__ import annotations

from random import Random

import pytest

from dask_ownership.core.owner.rows.options import Options
from dask_ownership.core.protocol.states import STORED
from dask_ownership.testing import travel
from dask_ownership.testing.virtual import Faults, Task, VirtualCluster

OLD, NEW = 111, 222


def here(address: str) -> Options:
    return Options(workers=(address,))


@pytest.mark.parametrize("what", ["task", "scattered"])
@pytest.mark.parametrize("faults", [Faults(0.0, 0.0), Faults(0.2, 0.1)])
@pytest.mark.parametrize("seed", range(40))
def test_a_borrower_reads_no_value_of_another_life(seed, faults, what):
    """One client borrows a stored value; its owner cancels it and uses the key again."""
    random = Random(seed)
    cluster = VirtualCluster(seed, workers=3, slots=2, clients=2, faults=faults)
    giver, taker = cluster.clients
    first, second, third = sorted(cluster.workers)
    row = giver.submit("x", Task(OLD, large=True), options=here(first))
    cluster.run_for(20_000)
    assert row.state == STORED
    data, found = travel.dumps((0, (travel.VirtualFuture(giver, row),)))
    futures = travel.loads(taker, data)[1]
    mine = futures[0].row
    cluster.run_for(20_000)
    found.clear()
    assert mine.state == STORED
    users = [
        taker.submit(f"user-{i}", Task(1), [mine], here(w)) for i, w in enumerate((second,) * 3)
    ]
    cluster.run_for(random.random() * 2_000)
    giver.core.cancel([row], "stop")
    if what == "task":
        again = giver.submit("x", Task(NEW, large=True), options=here(first))
    else:
        again = giver.put("x", NEW, [first])
    cluster.dirty.add(giver)
    cluster.run_for(random.random() * 2_000)
    users += [taker.submit(f"late-{i}", Task(1), [mine], here(third)) for i in range(3)]
    cluster.run()
    assert cluster.outcome(giver, again) == NEW
    for user in users:
        assert cluster.outcome(taker, user) in (OLD + 1, "cancelled"), user
    assert cluster.outcome(taker, mine) == "cancelled"
    futures.clear()
    taker.core.release([*users])
    giver.core.release([again, row])
    cluster.dirty.update((giver, taker))
    cluster.run()
    cluster.assert_empty()
