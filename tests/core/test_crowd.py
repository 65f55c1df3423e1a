"""Waiting tasks, and what may begin because they wait."""

from __future__ import annotations

import pytest
from test_executor import Bench, push

from dask_ownership.core.executor.crowd import LONGEST_RELIEF, WAITING_PER_THREAD
from dask_ownership.core.executor.session import Entry
from dask_ownership.core.protocol import messages as m
from dask_ownership.testing.invariants import check_executor, check_executor_empty


class Full(Bench):
    """A worker of one thread with as many waiting tasks as it may have."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = []
        for i in range(WAITING_PER_THREAD):
            self.tell(push(f"w{i}"))
            entry = self.start()
            self.core.queue.parked(entry)
            self.waiting.append(entry)
        assert self.core.queue.crowd.full
        self.said()

    def starts(self) -> Entry | None:
        work = self.core.queue.next_work()
        check_executor(self.core)
        return work


@pytest.fixture
def full() -> Full:
    return Full()


def test_no_more_begin_than_the_limit(full):
    full.tell(push("x"))
    assert full.starts() is None and full.core.queue.startable == 0


def test_those_that_wait_go_on_however_many_there_are(full):
    for i, entry in enumerate(full.waiting):
        full.core.queue.wants_slot(i, entry)
    for i, entry in enumerate(full.waiting):
        assert full.starts() == i
        full.inline(entry)
    full.acknowledge()
    check_executor_empty(full.core)


def test_who_waits_for_a_slot_goes_on_without_one_together_with_the_others(full):
    full.tell(push("x", depth=1))
    holder = full.starts()
    for i, entry in enumerate(full.waiting):
        full.core.queue.wants_slot(i, entry)
    assert full.starts() is None
    assert [full.core.queue.stops_waiting(i, entry) for i, entry in enumerate(full.waiting)] == [
        True
    ] * 4
    assert not full.core.queue.stops_waiting(0, full.waiting[0])
    assert full.core.queue.busy == 5 and not full.core.queue.crowd.waiting
    full.tell(push("y"))
    for entry in (*full.waiting, holder):
        assert full.starts() is None, "no slot is free before so many have ended"
        full.inline(entry)
    assert full.starts().key == "y"


@pytest.mark.parametrize("how", ["cancelled", "superseded", "owner closed"])
def test_whom_nobody_wants_any_more_does_not_count(full, how):
    full.tell(push("x"))
    waits = full.waiting[0]
    if how == "cancelled":
        full.tell((m.CANCEL, waits.key, waits.attempt))
    elif how == "superseded":
        full.tell(push(waits.key))
    else:
        other = full.core.open("other")
        full.core.commands.receive(other, [push("z")])
        full.core.close("owner")
    assert not full.core.queue.crowd.full
    assert full.starts() is not None
    for entry in full.waiting:  # they end all the same, in the end
        full.core.queue.goes_on(entry)
        full.core.lifecycle.failed(entry, (m.FAILED, entry.key, entry.attempt, b"error", 1.0))
        full.core.queue.released_slot()
        check_executor(full.core)


def test_who_seceded_does_not_count(full):
    full.core.queue.goes_on(full.waiting[0])
    full.core.queue.parked(full.waiting[0], counts=False)
    assert not full.core.queue.crowd.full
    full.tell(push("x"))
    assert full.starts().key == "x"
    full.core.queue.ended_parked(full.waiting[0])
    check_executor(full.core)


def test_a_task_that_was_cancelled_before_it_waits_does_not_count(full):
    full.tell(push("x", depth=1, attempt=10_000))
    deeper = full.starts()
    full.tell((m.CANCEL, "x", 10_000))
    full.core.queue.parked(deeper)
    assert not full.core.queue.crowd.waiting[deeper]


def test_what_they_wait_for_starts_first(full):
    full.tell(push("a"), push("x"), push("b"))
    full.core.queue.awaited([("owner", "x"), ("owner", "no"), ("nobody", "x")])
    assert full.core.queue.startable == 1
    assert full.starts().key == "x"
    assert full.core.queue.startable == 0


def test_what_that_needs_starts_first(full):
    full.tell(
        push("a"),
        push("x", attempt=20_000),
        push("y", [(m.LOCAL, "x", 20_000)], attempt=20_001),
    )
    full.core.queue.awaited([("owner", "y")])
    x = full.starts()
    assert x.key == "x"
    full.inline(x)
    y = full.starts()
    assert y.key == "y", "it was waited for before it could start"
    full.inline(y)
    assert full.starts() is None


def test_what_began_before_its_turn_is_not_kept_by_the_queue(full):
    full.tell(push("x"))
    full.core.queue.awaited([("owner", "x")])
    full.inline(full.starts())
    assert full.starts() is None
    assert not any(map(len, full.session.queues.values()))


def test_what_is_awaited_and_given_back_is_forgotten(full):
    full.tell(push("x", attempt=30_000))
    full.core.queue.awaited([("owner", "x"), ("owner", "x")])
    full.tell((m.CANCEL, "x", 30_000))
    assert full.starts() is None and not full.core.queue.crowd.awaited


def test_one_more_begins_after_a_while_and_the_next_after_twice_as_long(full):
    full.tell(*[push(f"x{i}") for i in range(20)])
    began = []
    for tenth in range(300):
        full.core.queue.crowd.relieve(tenth / 10)
        while (entry := full.starts()) is not None:
            began.append(tenth / 10)
            full.core.queue.parked(entry)
    assert began[:4] == [1.0, 2.0, 4.0, 8.0]
    assert began[4:6] == [8.0 + LONGEST_RELIEF, 8.0 + 2 * LONGEST_RELIEF]
    full.core.queue.crowd.relieve(0.0)  # something has ended
    full.core.queue.crowd.relieve(0.9)
    assert full.starts() is None
    full.core.queue.crowd.relieve(1.0)
    assert full.starts() is not None


def test_relief_is_for_one(full):
    full.tell(push("x"), push("y"))
    full.core.queue.crowd.relieve(1.0)
    full.core.queue.slots = 10
    assert full.starts().key == "x"
    assert full.starts() is None


def test_more_threads_more_waiting_tasks(full):
    full.tell(push("x"))
    full.core.set_accepting(True, 2)
    assert not full.core.queue.crowd.full
    assert full.starts().key == "x"
