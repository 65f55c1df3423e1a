"""Timing of single calls, and checks of answers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any


def check(value: Any, expected: Any) -> None:
    """Raise AssertionError when an engine gave a wrong answer."""
    if value != expected:
        raise AssertionError(f"wrong answer: {str(value)[:200]} instead of {str(expected)[:200]}")


def round_trips(call: Callable[[int], Any], n: int, limit: float = 4.0) -> dict[str, float]:
    """Time single calls, one after the other.

    Parameters
    ----------
    call
        Makes a call with a number and returns the number.
    n
        The most calls.
    limit
        The seconds after which no more calls are made, once there are a hundred.
    """
    for i in range(10):
        call(i)
    times = []
    end = time.perf_counter() + limit
    for i in range(n):
        start = time.perf_counter()
        value = call(i)
        stop = time.perf_counter()
        times.append((stop - start) * 1000)
        check(value, i)
        if stop > end and i >= 99:
            break
    # `statistics.quantiles` needs two numbers.
    if len(times) < 2:
        times *= 2
    return {
        "p50": statistics.median(times),
        "p99": statistics.quantiles(times, n=100, method="inclusive")[98],
    }
