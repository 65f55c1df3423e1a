"""A wait that does not end is found while the program runs."""

from __future__ import annotations

import pytest

from dask_ownership.core.owner.rows.row import Row
from dask_ownership.testing.task import Task
from dask_ownership.testing.virtual import VirtualCluster

LIMIT = 500_000.0


@pytest.fixture
def cluster():
    """One where a task waits for what nobody ever starts, and something goes on all the time."""
    cluster = VirtualCluster(workers=1, longest_wait=LIMIT)
    client = cluster.clients[0]
    never = client.core.table.adopt(Row("never", client.function, b"", (), 0))
    client.submit("waits", Task(), [never])

    def goes_on() -> None:
        cluster.later(10_000.0, goes_on)

    goes_on()
    return cluster


def test_one_that_lasts(cluster):
    cluster.run_for(LIMIT / 2)
    with pytest.raises(AssertionError, match="of client0 waited for"):
        cluster.run_for(LIMIT)


def test_not_while_a_process_is_stopped(cluster):
    cluster.freeze("worker-0", 2 * LIMIT)
    cluster.run_for(2 * LIMIT)
    assert cluster.waits.longest < LIMIT / 2
