"""Slots that the worker's state machine leaves to owned tasks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from distributed.core import Status

from dask_ownership.runtime.dask.slots import SlotLease


def worker_with(nthreads: int, executing: int = 0, ready: int = 0) -> Any:
    """As much of a worker as a lease looks at."""
    state = SimpleNamespace(
        nthreads=nthreads,
        executing=set(range(executing)),
        ready=list(range(ready)),
        constrained=[],
    )
    poked: list[Any] = []
    return SimpleNamespace(
        state=state, status=Status.running, handle_stimulus=poked.append, poked=poked
    )


def test_what_is_leased_and_what_is_left_are_all_slots() -> None:
    worker = worker_with(4, executing=1)
    lease = SlotLease(worker)
    assert lease.acquire(8) == 3
    assert (lease.leased, lease.left, lease.nthreads) == (3, 1, 4)
    lease.release(2)
    assert (lease.leased, lease.left, lease.nthreads) == (1, 3, 4)
    lease.release(5)
    assert (lease.leased, lease.left, lease.nthreads) == (0, 4, 4)


def test_a_slot_is_reserved_when_ordinary_tasks_have_all() -> None:
    worker = worker_with(1, executing=1)
    lease = SlotLease(worker)
    assert lease.acquire(1) == 0
    assert lease.reserved and lease.left == 0 and lease.nthreads == 1
    worker.state.executing.clear()  # the ordinary task ends, and no other may start
    assert lease.acquire(1) == 1
    assert not lease.reserved
    assert (lease.leased, lease.left) == (1, 0)


def test_a_reserved_slot_is_returned_when_the_owned_work_is_gone() -> None:
    worker = worker_with(1, executing=1, ready=1)
    lease = SlotLease(worker)
    lease.acquire(1)
    lease.release(0)
    assert (lease.leased, lease.left, lease.reserved) == (0, 1, False)
    assert len(worker.poked) == 1, "ordinary tasks that wait are told"


def test_a_paused_worker_is_not_set_going() -> None:
    worker = worker_with(2, ready=1)
    lease = SlotLease(worker)
    lease.acquire(2)
    worker.status = Status.paused
    lease.release(2)
    assert lease.left == 2
    assert not worker.poked
