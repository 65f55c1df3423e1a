"""Values that are moved between workers that stay, while tasks use them and workers die."""

from __future__ import annotations

from random import Random

import pytest

from dask_ownership.core.owner.recovery.rebalance import moves
from dask_ownership.core.protocol.states import STORED
from dask_ownership.testing.virtual import Faults, Task, VirtualCluster


def run_moves(seed: int, kill: bool) -> VirtualCluster:
    """Even out what one worker has, at once or with uses of it under way."""
    random = Random(seed)
    faults = Faults(0.2, 0.1, 20_000.0 if seed % 2 else 500.0)
    cluster = VirtualCluster(seed, workers=3, slots=2, faults=faults)
    owner = cluster.clients[0]
    core = owner.core
    rows = [owner.submit(f"v{i}", Task(i, large=True), []) for i in range(9)]
    cluster.run()
    values = [cluster.read(owner, row) for row in rows]
    views = core.placement.workers
    target = random.choice(sorted(views))
    uses = []
    if seed % 3:
        uses = [owner.submit(f"u{i}", Task(i, large=False), [row]) for i, row in enumerate(rows)]
    settled = []
    for row in rows:
        source = row.locations[0]
        if source.address != target:
            settled.append(row)
            core.moves.to(row, source, views[target], lambda task: settled.pop())
    cluster.dirty.add(owner)
    if kill:
        cluster.kill(random.choice(sorted(cluster.workers)))
        cluster.add_worker("another", 2)
    cluster.run()
    assert not settled
    assert values == [cluster.read(owner, row) for row in rows]
    if not kill and not uses:
        assert all([v.address for v in row.locations] == [target] for row in rows)
        assert all(len(cluster.copies(owner, row)) == 1 for row in rows)
        # And back again, as evenly as can be.
        stored = dict.fromkeys(views, 0)
        stored[target] = 9
        todo = moves(stored, [(1, [target]) for _ in rows])
        assert len(todo) == 6
        for number, source, there in todo:
            core.moves.to(rows[number], views[source], views[there], lambda task: None)
        cluster.dirty.add(owner)
        cluster.run()
        held = [view.address for row in rows for view in row.locations]
        assert sorted(map(held.count, views)) == [3, 3, 3]
    assert all(row.state == STORED for row in rows)
    core.release([*rows, *uses])
    cluster.dirty.add(owner)
    cluster.run()
    cluster.assert_empty()
    return cluster


@pytest.mark.parametrize("kill", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_every_value_is_somewhere_at_every_moment(seed: int, kill: bool) -> None:
    cluster = run_moves(seed, kill)
    assert not cluster.record.lost
    assert kill or not cluster.record.remade
