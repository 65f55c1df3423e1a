"""Checkpoints: what an owner keeps for a task, and what the executor makes of its answers."""

from __future__ import annotations

import pytest
from test_executor import Bench as ExecutorBench
from test_executor import push
from test_ownership import Bench

from dask_ownership.core.executor import session as ex
from dask_ownership.core.executor.checkpoints import restored
from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol.states import ERROR, INLINE, PUSHED, STORED
from dask_ownership.testing.invariants import check_empty, check_executor_empty


@pytest.fixture
def bench():
    return Bench("a", "b")


def keep(bench, row, name="state", value=b"1", number=1, attempt=None, at=None):
    """A task asks for a checkpoint; what its owner answers."""
    address = at or row.worker.address
    attempt = row.attempt if attempt is None else attempt
    bench.sent(address)
    bench.answer(address, (m.CHECKPOINT, row.key, attempt, number, name, value))
    answers = [said for said in bench.sent(address) if said[0] == "CHECKPOINTED"]
    assert [said[1:4] for said in answers] == [(row.key, attempt, number)]
    return answers[0][4]


def pushed_with(bench, row):
    """The checkpoints in the latest push of a row."""
    pushes = [said for said in bench.sent(row.worker.address) if said[0] == "PUSH"]
    assert pushes[-1][1:3] == (row.key, row.attempt)
    return (pushes[-1][7] or {}).get("checkpoints")


# ---- the owner ----


def test_the_next_attempt_gets_what_was_kept_last(bench):
    row = bench.row("x")
    assert pushed_with(bench, row) is None
    assert keep(bench, row, value=b"1", number=1) is None
    assert keep(bench, row, "other", b"one", number=2) is None
    assert keep(bench, row, value=b"2", number=3) is None
    bench.core.remove_worker(row.worker)
    bench.step()
    assert row.state == PUSHED
    assert pushed_with(bench, row) == {"state": b"2", "other": b"one"}
    assert keep(bench, row, value=b"3", number=1) is None  # another executor counts anew
    bench.returned(row, m.REFUSED)
    bench.step()
    assert pushed_with(bench, row) == {"state": b"3", "other": b"one"}


def test_an_older_attempt_changes_nothing(bench):
    row = bench.row("x")
    first, where = row.attempt, row.worker.address
    keep(bench, row, value=b"1")
    bench.returned(row, m.MISSING)
    assert row.attempt > first
    why = keep(bench, row, value=b"zombie", number=2, attempt=first, at=where)
    assert f"attempt {row.attempt} has taken the place" in why
    bench.returned(row, m.MISSING)
    assert pushed_with(bench, row) == {"state": b"1"}


def test_what_comes_twice_or_late_changes_nothing(bench):
    row = bench.row("x")
    keep(bench, row, value=b"1", number=1)
    keep(bench, row, value=b"2", number=2)
    assert keep(bench, row, value=b"1", number=1) is None
    bench.returned(row, m.MISSING)
    assert pushed_with(bench, row) == {"state": b"2"}
    where = row.worker.address
    bench.done(row)
    assert "inline already" in keep(bench, row, number=3, at=where)
    bench.release(row)
    assert "cancelled" in keep(bench, row, number=4, at=where)
    check_empty(bench.core)


def test_rows_with_the_same_options_keep_their_own(bench):
    first = bench.row("x", retries=3)
    second = bench.row("y")
    second.options = first.options
    keep(bench, first, value=b"1")
    assert bench.core.attempts.of(second).checkpoints is None
    assert first.options.retries == 3


def test_they_survive_a_retry_and_an_error_that_is_retried_by_hand(bench):
    row = bench.row("x", retries=1)
    keep(bench, row, value=b"1")
    for _ in range(2):
        bench.answer(row.worker.address, (m.FAILED, "x", row.attempt, b"error", 1.0))
        if row.state == ERROR:
            bench.core.retry([row])
            bench.step()
        assert pushed_with(bench, row) == {"state": b"1"}


def test_a_value_drops_them_and_is_made_again_without(bench):
    row = bench.row("x")
    keep(bench, row, value=b"1")
    bench.stored(row)
    assert row.state == STORED and bench.core.attempts.of(row).checkpoints is None
    bench.core.remove_worker(row.locations[0])
    bench.step()
    assert row.state == PUSHED and pushed_with(bench, row) is None
    bench.done(row)
    assert row.state == INLINE
    bench.release(row)


def test_a_cancelled_task_drops_them_and_the_next_of_that_key_does_not_see_them(bench):
    old = bench.row("x")
    where, attempt = old.worker.address, old.attempt
    keep(bench, old, value=b"old")
    bench.core.cancel([old], "stop")
    assert bench.core.attempts.of(old).checkpoints is None
    new = bench.row("x")
    assert new is not old and pushed_with(bench, new) is None
    assert "has taken the place" in keep(bench, old, attempt=attempt, number=2, at=where)
    assert bench.core.attempts.of(new).checkpoints is None


# ---- the executor ----


@pytest.fixture
def executor():
    return ExecutorBench()


class Results(list):
    """What became of checkpoints: None, or the kind of the failure."""

    def __call__(self, failure):
        self.append(failure and failure.kind)


def save(bench, entry, name="state", value=b"1"):
    answers = Results()
    bench.core.savings.save(entry, name, value, answers)
    return answers


def asked(bench):
    return [said[1:] for said in bench.said() if said[0] == "CHECKPOINT"]


def test_a_checkpoint_ends_when_the_owner_has_answered(executor):
    executor.tell(push("x", attempt=7))
    entry = executor.start()
    answers = save(executor, entry)
    ((key, attempt, number, name, value),) = asked(executor)
    assert (key, attempt, name, value) == ("x", 7, "state", b"1")
    assert answers == [] and restored(entry) == {}
    answer = (m.CHECKPOINTED, "x", 7, number, None)
    executor.tell(answer, answer)
    assert answers == [None] and restored(entry) == {"state": b"1"}
    executor.inline(entry)
    executor.said()
    executor.acknowledge()
    check_executor_empty(executor.core)


def test_what_came_with_the_push_is_not_written_to(executor):
    came = {"state": b"0"}
    executor.tell(push("x", checkpoints=came))
    entry = executor.start()
    assert restored(entry) == {"state": b"0"}
    save(executor, entry)
    ((_, attempt, number, _, _),) = asked(executor)
    executor.tell((m.CHECKPOINTED, "x", attempt, number, None))
    assert came == {"state": b"0"} and restored(entry) == {"state": b"1"}


def test_a_refusal_says_that_the_attempt_was_superseded(executor):
    executor.tell(push("x", attempt=7))
    entry = executor.start()
    answers = save(executor, entry)
    ((_, _, number, _, _),) = asked(executor)
    executor.tell((m.CHECKPOINTED, "x", 7, number, "another has its place"))
    assert answers == ["superseded"] and restored(entry) == {}


def test_cancelling_ends_the_wait_and_the_answer_comes_late(executor):
    executor.tell(push("x", attempt=7))
    entry = executor.start()
    answers = save(executor, entry)
    ((_, _, number, _, _),) = asked(executor)
    executor.tell((m.CANCEL, "x", 7))
    assert answers == ["superseded"]
    executor.tell((m.CHECKPOINTED, "x", 7, number, None))
    assert answers == ["superseded"]
    assert save(executor, entry) == ["superseded"] and asked(executor) == []


def test_a_newer_push_ends_the_wait_of_the_older(executor):
    executor.tell(push("x", attempt=7))
    answers = save(executor, executor.start())
    executor.tell(push("x", attempt=8))
    assert answers == ["superseded"]


def test_an_owner_that_closes_ends_the_wait(executor):
    executor.tell(push("x"), push("y"))
    entry = executor.start()
    answers = save(executor, entry)
    executor.core.close("owner")
    assert answers == ["closed"]
    assert save(executor, entry) == ["closed"]
    assert not executor.core.savings.under_way


def test_a_task_that_has_ended_keeps_nothing(executor):
    executor.tell(push("x"))
    entry = executor.start()
    executor.inline(entry)
    assert save(executor, entry) == ["superseded"]
    assert entry.state == ex.HELD


def test_the_size_counts_what_is_kept_what_is_under_way_and_the_names(executor):
    executor.tell(push("x", checkpoints={"a": b"12345", "b": b"1"}))
    entry = executor.start()
    savings = executor.core.savings
    assert savings.size(entry, "c", b"12") == 6 + 2 + 3
    assert savings.size(entry, "a", b"1") == 2 + 2
    save(executor, entry, "d", b"123")
    assert savings.size(entry, "a", b"1") == 2 + 2 + 4
