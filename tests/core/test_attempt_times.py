"""The age of a row, from the number of its attempt."""

from __future__ import annotations

from contextlib import nullcontext

from dask_ownership.core.owner.ownership import OwnerCore
from dask_ownership.core.owner.rows import attempt_times as timeline
from dask_ownership.core.owner.rows.attempt_times import AttemptTimes
from dask_ownership.core.owner.rows.row import Function, Row
from dask_ownership.core.owner.rows.worker_view import WorkerView
from dask_ownership.core.protocol.states import INLINE
from dask_ownership.monitoring.census import Census


class Clocks:
    """The time, as people are told it, and by the clock that steps are timed with."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.asked = 0

    def __call__(self) -> float:
        self.asked += 1
        return self.now

    @property
    def microseconds(self) -> float:
        return (self.now - 700) * 1e6


def test_numbers_of_one_second_have_one_mark() -> None:
    clock = Clocks()
    marks = AttemptTimes(clock)
    assert marks.since(1) is None
    for number in range(1, 1001):
        marks.mark(number, clock.microseconds)
        clock.now += 0.01
    assert clock.asked == len(marks.counts) <= 11
    for number in range(1, 1001):
        assert 0 <= 1000 + (number - 1) / 100 - marks.since(number) < 1.01
    assert marks.since(0) is None and marks.since(1001) is None


def test_what_is_given_out_after_a_pause_is_not_older() -> None:
    clock = Clocks()
    marks = AttemptTimes(clock)
    marks.mark(5, clock.microseconds)
    clock.now += 3600
    marks.mark(5, clock.microseconds)
    marks.mark(6, clock.microseconds)
    assert (marks.since(5), marks.since(6)) == (1000.0, 4600.0)


def test_few_marks_are_enough_for_days() -> None:
    clock = Clocks()
    marks = AttemptTimes(clock)
    given: list[float] = []
    for _ in range(100_000):
        given.append(clock.now)
        marks.mark(len(given), clock.microseconds)
        clock.now += 2
    assert len(marks.counts) <= timeline.MARKS + 1
    for number, when in enumerate(given, start=1):
        told = marks.since(number)
        assert 0 <= when - told <= 1 + 0.1 * (clock.now - told)


def test_a_value_is_as_old_as_its_hand_out() -> None:
    clock = Clocks()
    core = OwnerCore(nullcontext(), clock=clock)
    core.add_worker(WorkerView("a", nthreads=100))
    rows = []
    for pause in (0, 0.2, 30, 3600):
        clock.now += pause
        row = Row(f"x-{pause}", Function(1, b"", "f"), b"", (), 0)
        rows.append(core.table.adopt(row))
        core.submit([row])
        core.schedule(clock.microseconds)
    clock.now += 50
    core.schedule(clock.microseconds)
    literal = core.table.adopt(Row("literal", None, None, (), 0))
    for row in (*rows, literal):
        row.state = INLINE
    census = Census(core, str)
    assert census.advance(lambda: False)
    result = census.result()
    since = {one["key"]: one["since"] for one in result["oldest"]}
    assert list(since.values()) == [1000.0, 1000.0, 1030.2, 4630.2]
    assert {one["key"]: one["since"] for one in result["largest"]}["literal"] is None
