"""Values of which two copies are kept, in a virtual cluster whose workers die one by one."""

from __future__ import annotations

from random import Random

import pytest

from dask_ownership.core.owner.rows.options import Options, Replication
from dask_ownership.core.protocol.states import STORED
from dask_ownership.testing.virtual import Faults, Task, VirtualCluster


def run_deaths(seed: int, number: int, scattered: int = 6, computed: int = 6) -> VirtualCluster:
    """Keep copies of values while workers die and join, each death after things came to rest."""
    random = Random(seed)
    faults = Faults(0.2, 0.1, 20_000.0 if seed % 2 else 500.0)
    cluster = VirtualCluster(seed, workers=4, slots=2, faults=faults)
    owner = cluster.clients[0]
    wanted = Replication(number)
    rows = []
    for i in range(computed):
        rows.append(owner.submit(f"c{i}", Task(i, large=True), rows[-1:], Options(replicas=wanted)))
    for i in range(scattered):
        row = owner.put(f"s{i}", 100 + i, [random.choice(sorted(cluster.workers))])
        owner.core.replicas.want(row, wanted)
        rows.append(row)
    cluster.dirty.add(owner)
    cluster.run()
    values = [cluster.read(owner, row) for row in rows]
    ran = {row.key: cluster.record.runs.get((owner.name, row.key)) for row in rows}
    for death in range(5):
        for victim in random.sample(sorted(cluster.workers), number - 1):
            if random.random() < 0.3:
                cluster.retire(victim)
            else:
                cluster.kill(victim)
            cluster.add_worker(f"worker-{death}-{victim[-1]}", 2)
        cluster.run()
        assert all(row.state == STORED for row in rows)
        for row in rows:
            assert len(set(cluster.copies(owner, row))) == 1
            assert len(cluster.copies(owner, row)) >= number
    assert values == [cluster.read(owner, row) for row in rows]
    assert ran == {row.key: cluster.record.runs.get((owner.name, row.key)) for row in rows}
    owner.core.release(rows)
    cluster.dirty.add(owner)
    cluster.run()
    cluster.assert_empty()
    return cluster


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("seed", range(20))
def test_no_death_costs_a_value_and_nothing_runs_again(seed, number):
    cluster = run_deaths(seed, number)
    assert not cluster.record.lost and not cluster.record.remade
