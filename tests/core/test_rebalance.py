"""What is moved so that workers have as many bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dask_ownership.core.owner.recovery.rebalance import moves


def after(stored: dict[str, int], values: list[tuple[int, list[str]]]) -> dict[str, int]:
    loads = dict(stored)
    for number, source, target in moves(stored, values):
        nbytes, locations = values[number]
        assert source in locations and target not in locations
        loads[source] -= nbytes
        loads[target] += nbytes
    return loads


def test_equal_values_are_spread_evenly() -> None:
    loads = after({"a": 90, "b": 0, "c": 0}, [(10, ["a"])] * 9)
    assert loads == {"a": 30, "b": 30, "c": 30}


def test_what_is_even_stays() -> None:
    assert moves({"a": 50, "b": 52}, [(10, ["a"])] * 5 + [(52, ["b"])]) == []
    assert moves({}, [(10, ["a"])]) == []
    assert moves({"a": 0}, []) == []


def test_one_large_value_stays() -> None:
    assert moves({"a": 100, "b": 0}, [(100, ["a"])]) == []


def test_a_large_value_that_helps_moves() -> None:
    assert moves({"a": 100, "b": 0}, [(60, ["a"]), (40, ["a"])]) in (
        [(0, "a", "b")],
        [(1, "a", "b")],
    )


def test_no_second_copy_goes_to_a_location() -> None:
    assert moves({"a": 20, "b": 10}, [(10, ["a", "b"])]) == []


def test_one_that_gave_a_copy_away_is_not_given_another() -> None:
    values = [
        (4, ["a", "c"]),
        (6, ["b", "c"]),
        (12, ["a", "b", "c"]),
        (5, ["a"]),
        (10, ["c"]),
        (14, ["a", "b"]),
    ]
    loads = after({"a": 35, "b": 32, "c": 32, "d": 0}, values)
    assert sum(loads.values()) == 99 and max(loads.values()) - min(loads.values()) < 10


def test_elsewhere_stored_values_count_and_stay() -> None:
    assert moves({"a": 100, "b": 0}, [(10, ["a"]), (500, ["z"])]) == [(0, "a", "b")]


@given(
    st.lists(
        st.tuples(st.integers(0, 100), st.sets(st.sampled_from("abcd"), min_size=1)), max_size=30
    )
)
def test_it_never_gets_worse(values: list[tuple[int, set[str]]]) -> None:
    stored = dict.fromkeys("abcd", 0)
    for nbytes, locations in values:
        for worker in locations:
            stored[worker] += nbytes
    listed = [(nbytes, sorted(locations)) for nbytes, locations in values]
    loads = after(stored, listed)
    assert sum(loads.values()) == sum(stored.values())
    assert max(loads.values()) <= max(stored.values())
    assert min(loads.values()) >= min(stored.values())
