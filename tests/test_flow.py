"""Rates of what goes from whom to whom."""

from __future__ import annotations

from dask_ownership.monitoring.rates import SECONDS, Flow

A, B = ("owner", "a"), ("owner", "b")


def test_rates_are_of_the_last_seconds_however_often_it_is_counted() -> None:
    for step in (0.01, 0.3, 1.0):
        flow = Flow()
        now = 0.0
        while now < 20:
            now += step
            flow.record(now, {"o": {A: int(1000 * now), B: 7}})
        ((*one, rate), (*other, none)) = flow.rates()
        assert (tuple(one), tuple(other)) == (A, B)
        assert 990 < rate < 1010 and none == 0
        assert len(flow._rounds) <= SECONDS / 0.25 + 3


def test_what_was_before_is_not_counted() -> None:
    flow = Flow()
    assert flow.rates() == []
    flow.record(1.0, {"o": {A: 10_000}})
    assert flow.rates() == []
    flow.record(2.0, {"o": {A: 10_050}, "late": {("late", "a"): 10_000}})
    assert flow.rates() == [["owner", "a", 50.0]]
    # To a worker that had nothing of this owner; and the other, from when it was heard of.
    flow.record(3.0, {"o": {A: 10_050, B: 40}, "late": {("late", "a"): 10_007}})
    assert flow.rates() == [["owner", "a", 25.0], ["owner", "b", 20.0], ["late", "a", 7.0]]
    flow.clear()
    flow.record(60.0, {"o": {A: 20_000}})
    assert flow.rates() == []
