"""What lies in queues and datasets, on the virtual cluster: it stays when its owners go.

A failure prints the arguments of `run_held` with which it happens again.
"""

from __future__ import annotations

from held_programs import run_held
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from dask_ownership.testing.virtual import Faults

SETTINGS = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "print_blob": True,
}
SHAPES = {
    "seed": st.integers(0, 2**32),
    "workers": st.integers(1, 3),
    "slots": st.integers(1, 3),
    "clients": st.integers(2, 4),
    "length": st.integers(10, 60),
    "duplicate": st.sampled_from([0.0, 0.2]),
    "disconnect": st.sampled_from([0.0, 0.1]),
}


def run(seed, workers, slots, clients, length, duplicate, disconnect, kills=0, retires=0):
    faults = Faults(duplicate, disconnect)
    note(f"run_held({seed}, {workers}, {slots}, {clients}, {length}, {faults}, {kills}, {retires})")
    run_held(seed, workers, slots, clients, length, faults, kills, retires)


@settings(max_examples=50, **SETTINGS)
@given(**SHAPES)
def test_what_lies_somewhere_stays_when_its_owner_goes(**shape):
    run(**shape)


@settings(max_examples=50, **SETTINGS)
@given(kills=st.integers(0, 3), retires=st.integers(0, 2), **SHAPES)
def test_also_when_workers_die_and_leave(**shape):
    run(**shape)
