"""Many more random programs than `make test` has time for."""

from __future__ import annotations

import os
from random import Random
from time import monotonic
from typing import Any

import pytest
from simulation_programs import run_program
from travel_programs import run_travels

from dask_ownership.testing.network import Faults


def run_random_programs(seconds: float) -> int:
    """Run programs with seeds of their own until the time is over; how many.

    Every second one is of futures that travel.
    """
    first = Random().randrange(2**32)
    print(f"seeds from {first}")
    end = monotonic() + seconds
    count = 0
    while monotonic() < end:
        seed = first + count
        random = Random(seed)
        run: Any = run_travels if count % 2 else run_program
        arguments: dict[str, Any] = {
            "workers": random.randint(1, 5),
            "slots": random.randint(1, 3),
            "clients": random.randint(1, 3),
            "length": random.randint(1, 120),
            "kills": random.choice([0, 0, 1, 3]),
        }
        if run is run_travels:
            arguments["cancels"] = random.random() < 0.5
            arguments["leaves"] = random.random() < 0.5
        faults = Faults(random.choice([0.0, 0.2]), random.choice([0.0, 0.1]))
        try:
            run(seed, faults=faults, **arguments)
        except BaseException:
            print(f"{run.__name__}({seed}, faults={faults!r}, **{arguments})")
            raise
        count += 1
    return count


@pytest.mark.slow
def test_a_minute_of_random_programs():
    assert run_random_programs(60) > 100


@pytest.mark.soak
def test_random_programs_for_as_long_as_asked():
    """Ten minutes, or ``SOAK_SECONDS``."""
    assert run_random_programs(float(os.environ.get("SOAK_SECONDS", "600"))) > 100
