"""Random programs on the virtual cluster, against a sequential oracle.

A failure prints the arguments of `run_program` with which it happens again; add them to
`test_regressions.py`.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from simulation_programs import run_program

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
    "clients": st.integers(1, 2),
    "length": st.integers(1, 60),
    "duplicate": st.sampled_from([0.0, 0.2]),
    "disconnect": st.sampled_from([0.0, 0.1]),
}


def run(seed, workers, slots, clients, length, duplicate, disconnect, kills=0, freezes=False):
    faults = Faults(duplicate, disconnect)
    arguments = (seed, workers, slots, clients, length, faults, kills, freezes)
    note(f"run_program{arguments}")
    run_program(*arguments)


@settings(max_examples=160, **SETTINGS)
@given(**SHAPES)
def test_random_programs_get_what_a_sequential_program_gets(**shape):
    run(**shape)


@settings(max_examples=160, **SETTINGS)
@given(kills=st.integers(1, 3), **SHAPES)
def test_workers_that_die_cost_nothing_but_the_values_that_only_they_had(**shape):
    run(**shape)


@settings(max_examples=100, **SETTINGS)
@given(kills=st.sampled_from([0, 0, 2]), **SHAPES)
def test_workers_that_freeze_cost_nothing_but_time(kills, **shape):
    run(**shape, kills=kills, freezes=True)


@pytest.mark.parametrize("kills", [0, 2])
@pytest.mark.parametrize("seed", range(10))
def test_a_seed_gives_the_same_run_again(seed, kills):
    first = run_program(seed, kills=kills)
    second = run_program(seed, kills=kills)
    assert (first.now, first.steps) == (second.now, second.steps)
