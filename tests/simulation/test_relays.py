"""Links that the scheduler relays: slower, and broken or stalled all together."""

from __future__ import annotations

from random import Random

import pytest
from simulation_programs import KILLS, LONGEST_WAIT, USUAL, Program

from dask_ownership.testing.network import Faults
from dask_ownership.testing.virtual import VirtualCluster

SEEDS = range(60)


@pytest.mark.parametrize("seed", SEEDS)
def test_programs_over_relays_that_break_and_stall(seed: int) -> None:
    """Some links are relayed, also between workers; others of the same owner are direct."""
    random = Random(seed)
    kills = seed % 3
    cluster = VirtualCluster(
        seed, 3, 2, 2, Faults(0.1, 0.05), resources=[{"gpu": 1.0}], longest_wait=LONGEST_WAIT
    )
    cluster.kills_left = kills  # type: ignore[attr-defined]
    network = cluster.world.network
    for owner in cluster.owners:
        for address in cluster.workers:
            if random.random() < 0.6:
                network.relayed.add((owner.name, address))
    weights = KILLS if kills else USUAL
    programs = [Program(cluster, number, random, weights) for number in range(2)]
    for _ in range(60):
        random.choice(programs).step()
        if random.random() < 0.05:
            network.break_relays()
        elif random.random() < 0.05:
            network.stall_relays(random.choice([10_000.0, 300_000.0, 8_000_000.0]))
    for worker in list(cluster.workers.values()):
        worker.accept(True)
    cluster.run()
    for program in programs:
        program.check()
        live = [call.row for call in program.calls if not call.released]
        program.owner.core.release(live)
        cluster.dirty.add(program.owner)
    cluster.run()
    cluster.assert_empty()
