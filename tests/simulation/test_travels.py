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


def run(seed, workers, slots, clients, length, duplicate, disconnect, kills=0, **more):
    faults = Faults(duplicate, disconnect)
    args = f"{seed}, {workers}, {slots}, {clients}, {length}, {faults}, {kills}"
    note(f"run_travels({args}, **{more})")
    run_travels(seed, workers, slots, clients, length, faults, kills, **more)


@settings(max_examples=110, **SETTINGS)
@given(**SHAPES)
def test_futures_travel_and_are_never_freed_while_reachable(**shape):
    run(**shape)


@settings(max_examples=110, **SETTINGS)
@given(kills=st.integers(1, 3), **SHAPES)
def test_borrowers_and_owners_that_die_leave_nothing_behind(**shape):
    run(**shape)


@settings(max_examples=110, **SETTINGS)
@given(kills=st.integers(0, 2), cancels=st.booleans(), leaves=st.just(True), **SHAPES)
def test_clients_that_cancel_and_leave_cost_only_what_they_cancelled_or_owned(**shape):
    run(**shape)


@settings(max_examples=110, **SETTINGS)
@given(retires=st.integers(1, 3), **SHAPES)
def test_workers_that_leave_in_good_order_cost_nothing(**shape):
    run(**shape)


@settings(max_examples=110, **SETTINGS)
@given(
    retires=st.integers(1, 3), kills=st.integers(0, 2), cancels=st.booleans(),
    leaves=st.booleans(), **SHAPES,
)  # fmt: skip
def test_leaving_dying_and_cancelling_together_leave_nothing_behind(**shape):
    run(**shape)


REGRESSIONS = {
    # Its heir and the owner of the task that had led to it sent those who asked to each other.
    "a worker that was taken for dead ran a task again and returned children of the first run": (
        {"seed": 888001723, "workers": 4, "slots": 2, "clients": 3, "length": 113, "kills": 1},
        {"cancels": True, "retires": 3, "faults": Faults(0.2, 0.1, 2_000.0, unanswered=0.1)},
    ),
    "a future was taken out of a value, whose worker died before a cut off owner could answer": (
        {"seed": 446724554, "workers": 1, "slots": 3, "clients": 3, "length": 110, "kills": 3},
        {
            "freezes": True,
            "partitions": True,
            "leaves": True,
            "retires": 3,
            "faults": Faults(0.2, 0.0, 2_000.0, unanswered=0.1),
        },
    ),
    "what was taken over was being copied when its last copy went": (
        {"seed": 2544714687, "workers": 1, "slots": 2, "clients": 3, "length": 101},
        {"kills": 1, "cancels": True, "retires": 3, "faults": Faults(0.2, 0.1)},
    ),
    "a future was taken out of a scattered value, which was lost": (
        {"seed": 1622272623, "workers": 2, "slots": 3, "clients": 2, "length": 85},
        {"kills": 1, "retires": 3, "partitions": True, "faults": Faults(0.2, 0.1, 20_000.0)},
    ),
    "a copy of a borrowed value that was cancelled stayed at a worker that leaves": (
        {"seed": 920153, "workers": 3, "slots": 1, "clients": 1, "length": 60, "cancels": True},
        {"kills": 2, "retires": 2, "faults": Faults(0.2, 0.1)},
    ),
    "a worker that leaves and was asked for a scattered value": (
        {"seed": 101867, "workers": 1, "slots": 3, "clients": 1, "length": 10, "cancels": True},
        {"kills": 1, "retires": 2, "faults": Faults(0, 0)},
    ),
    "a suspect that a parked task waits for": (
        {"seed": 920008, "workers": 1, "slots": 1, "clients": 1, "length": 30, "leaves": True},
        {"kills": 1, "retires": 3, "faults": Faults(0, 0, 20_000.0)},
    ),
    "answers for a closed owner that was still linked": (
        {"seed": 102, "slots": 3, "clients": 3, "length": 60, "leaves": True},
        {"workers": 2, "faults": Faults(0, 0)},
    ),
    # Its parent's value was given up at the frozen worker, and with it the future inside.
    "what a frozen owner freed before it heard of a borrower": (
        {"seed": 17, "workers": 2, "slots": 3, "clients": 3, "length": 60, "freezes": True},
        {"faults": Faults(0, 0)},
    ),
    # Its parent was dropped, so that it was given up and what it carried freed, as it began.
    "a task that begins as it is given up": (
        {"seed": 243, "workers": 3, "slots": 3, "clients": 3, "length": 13, "retires": 1},
        {"faults": Faults(0, 0.1)},
    ),
    "answers for a closed owner over a slow network": (
        {"seed": 2115, "slots": 3, "clients": 3, "length": 100, "leaves": True, "cancels": True},
        {"kills": 1, "faults": Faults(0, 0, 20_000)},
    ),
    # Its only copy was at a frozen worker: its owner had withdrawn it and made it again.
    "a borrower that was not told yet that a value is made again": (
        {"seed": 787561589, "workers": 2, "slots": 2, "clients": 3, "length": 52, "kills": 1},
        {"freezes": True, "partitions": True, "faults": Faults(0, 0.1, 20_000)},
    ),
    # Each handed to the other what it had taken over from it.
    "an owner and the heir of what it owns leave together": (
        {"seed": 2559914692, "workers": 5, "slots": 1, "clients": 3, "length": 58, "cancels": True},
        {"freezes": True, "leaves": True, "retires": 3, "faults": Faults(0, 0, 20_000)},
    ),
    # The task that was to fetch it ended before it had: its owner thought that it was there.
    "a borrower whose owner does not know that a copy never arrived": (
        {"seed": 4184537289, "workers": 5, "slots": 3, "clients": 1, "length": 85, "kills": 1},
        {"faults": Faults(0.2, 0, 20_000)},
    ),
    # It was waited for after it had been cancelled as its dormant value was asked for.
    "a value that cannot be made again when a repeated task needs it": (
        {"seed": 3704079763, "workers": 1, "slots": 1, "clients": 1, "length": 82, "kills": 3},
        {"cancels": True, "freezes": True, "faults": Faults(0.2, 0, 2_000)},
    ),
    # What was sent anew broke the link again before the first of it had arrived.
    "a slow link that breaks with much under way": (
        {"seed": 787560933, "workers": 4, "slots": 2, "clients": 1, "length": 88, "leaves": True},
        {"freezes": True, "retires": 1, "faults": Faults(0, 0.1, 20_000)},
    ),
    # Its future was found under the key, which was that of a task by then.
    "a lost value whose key is used again": (
        {"seed": 1, "workers": 1, "slots": 1, "clients": 1, "length": 31, "kills": 1},
        {"faults": Faults(0, 0.1)},
    ),
    # The next life of its key had been cancelled.
    "a lost value whose key was used again and cancelled": (
        {"seed": 140003409, "workers": 2, "slots": 3, "clients": 2, "length": 114, "kills": 1},
        {"retires": 1, "freezes": True, "cancels": True, "faults": Faults(0, 0)},
    ),
    # It was submitted by the same task, which another process had made again before.
    "a child that is there under another process as its parent's owner": (
        {"seed": 100003745, "workers": 3, "slots": 1, "clients": 1, "length": 95, "leaves": True},
        {"kills": 3, "retires": 3, "faults": Faults(0, 0.1, 20_000)},
    ),
    # It was to take its value over from a worker that died, and waited for itself from then on.
    # Which some task waited for: what is left of it in the queue held its value, and so a future.
    "a task that began before its turn": (
        {"seed": 1287, "workers": 1, "slots": 1, "clients": 1, "length": 103, "leaves": True},
        {"faults": Faults(0, 0.1, 20_000)},
    ),
    "a task that delegated to what a dead process owned": (
        {"seed": 2, "workers": 1, "slots": 1, "clients": 1, "length": 31, "kills": 1},
        {"faults": Faults(0, 0)},
    ),
}


@pytest.mark.parametrize("name", REGRESSIONS)
def test_what_failed_before(name):
    program, trouble = REGRESSIONS[name]
    run_travels(**program, **trouble)


@pytest.mark.parametrize("kills", [0, 2])
@pytest.mark.parametrize("seed", range(5))
def test_a_seed_gives_the_same_run_again(seed, kills):
    first = run_travels(seed, kills=kills)
    second = run_travels(seed, kills=kills)
    assert (first.now, first.steps) == (second.now, second.steps)


@settings(max_examples=80, **SETTINGS)
@given(kills=st.sampled_from([0, 0, 2]), cancels=st.booleans(), **SHAPES)
def test_workers_that_freeze_lose_no_reference(**shape):
    run(**shape, freezes=True)


@settings(max_examples=60, **SETTINGS)
@given(cancels=st.booleans(), leaves=st.booleans(), **SHAPES)
def test_processes_that_cannot_all_link_to_each_other_lose_nothing(**shape):
    """What one has to say to another goes over a worker that both reach."""
    run(**shape, routes=False)


@settings(max_examples=60, **SETTINGS)
@given(restarts=st.integers(1, 2), kills=st.integers(0, 2), cancels=st.booleans(), **SHAPES)
def test_who_has_not_come_to_a_new_scheduler_yet_is_not_dead(**shape):
    run(**shape)
