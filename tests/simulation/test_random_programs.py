"""Many more random programs than `make test` has time for."""

from __future__ import annotations

import os

import pytest
from random_programs import program_of, soak


def test_a_seed_stands_for_one_program():
    assert [program_of(seed) for seed in range(5)] == [program_of(seed) for seed in range(5)]


@pytest.mark.slow
def test_a_minute_of_random_programs():
    assert soak(60)[0] > 100


@pytest.mark.soak
def test_random_programs_for_as_long_as_asked():
    """Ten minutes, or ``SOAK_SECONDS``."""
    assert soak(float(os.environ.get("SOAK_SECONDS", "600")))[0] > 100
