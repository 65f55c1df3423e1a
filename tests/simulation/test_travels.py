"""Futures that travel, on the virtual cluster: never freed while reachable, nothing left over.

A failure prints the arguments of `run_travels` with which it happens again.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from travel_programs import run_travels

from dask_ownership.testing.virtual import Faults

SETTINGS = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "print_blob": True,
}
SHAPES = {
    "seed": st.integers(0, 2**32),
    "workers": st.integers(1, 4),
    "slots": st.integers(1, 3),
    "clients": st.integers(1, 3),
    "length": st.integers(1, 60),
    "duplicate": st.sampled_from([0.0, 0.2]),
    "disconnect": st.sampled_from([0.0, 0.1]),
}


def run(seed, workers, slots, clients, length, duplicate, disconnect, kills=0):
    faults = Faults(duplicate, disconnect)
    note(f"run_travels({seed}, {workers}, {slots}, {clients}, {length}, {faults}, {kills})")
    run_travels(seed, workers, slots, clients, length, faults, kills)


@settings(max_examples=500, **SETTINGS)
@given(**SHAPES)
def test_futures_travel_and_are_never_freed_while_reachable(**shape):
    run(**shape)


@settings(max_examples=500, **SETTINGS)
@given(kills=st.integers(1, 3), **SHAPES)
def test_borrowers_and_owners_that_die_leave_nothing_behind(**shape):
    run(**shape)


@pytest.mark.parametrize("kills", [0, 2])
@pytest.mark.parametrize("seed", range(5))
def test_a_seed_gives_the_same_run_again(seed, kills):
    first = run_travels(seed, kills=kills)
    second = run_travels(seed, kills=kills)
    assert (first.now, first.steps) == (second.now, second.steps)
