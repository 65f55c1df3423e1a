"""The functions that the benchmark's tasks run; workers import them by name."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

from dask_ownership.benchmarks.ray_client import RayClient

__all__ = [
    "Held",
    "add",
    "borrow",
    "closure",
    "consume",
    "count",
    "fib",
    "first_bytes",
    "inc",
    "make_array",
    "make_many",
    "nested",
    "noop",
    "of_script",
    "shifted",
    "sleep",
    "step",
    "task_client",
    "wait_for_removal",
    "zeros",
]


def noop(value: Any = None) -> Any:
    """Return the argument."""
    return value


def of_script() -> Any:
    """Return `noop` as a function of the program itself: it is not imported, but sent by value."""
    made = FunctionType(noop.__code__, {"__name__": "__main__"}, "noop", noop.__defaults__)
    made.__module__ = "__main__"
    return made


def inc(value: int) -> int:
    """Return the next number."""
    return value + 1


def add(left: int, right: int) -> int:
    """Return the sum of two numbers."""
    return left + right


def closure(value: int) -> Callable[[], int]:
    """Return a function that can only be pickled by value."""
    return lambda: value


def sleep(seconds: float) -> float:
    """Sleep, and return the seconds."""
    time.sleep(seconds)
    return seconds


def make_array(n_bytes: int, value: int) -> Any:
    """Return an array of that many bytes, all of one value."""
    import numpy

    return numpy.full(n_bytes, value % 256, dtype="u1")


def shifted(array: Any) -> Any:
    """Return a new array of the same size, one greater everywhere."""
    return array + 1


def first_bytes(array: Any, index: int) -> int:
    """Return one element of an array."""
    return int(array[index % len(array)])


def zeros(length: int) -> Any:
    """Return an array of zeros, or a plain zero when the length is 0."""
    if not length:
        return 0
    import numpy

    return numpy.zeros(length, dtype="i8")


def step(value: Any, seconds: float, path: str) -> Any:
    """Note this process in the file at ``path``, and return one more after so many seconds."""
    # Taken first, so that writing the file is part of the step's time.
    end = time.perf_counter() + seconds
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")
    value = value + 1
    time.sleep(max(0.0, end - time.perf_counter()))
    return value


def wait_for_removal(path: str, name: str) -> str:
    """Show by a file that this task runs, then keep its slot until the file at ``path`` is gone."""
    Path(f"{path}.{name}").touch()
    while os.path.exists(path):
        time.sleep(0.01)
    return name


def task_client() -> Any:
    """Return the context manager of a client for a task, of the engine that runs the task."""
    # Only a process of Ray has imported ray.
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return RayClient(ray)
    from distributed import worker_client

    return worker_client()


def nested(n: int) -> int:
    """Submit ``n`` no-ops from inside a task and gather them."""
    with task_client() as client:
        futures = [client.submit(noop, i, pure=False) for i in range(n)]
        return sum(client.gather(futures))


def fib(n: int) -> int:
    """Compute a Fibonacci number with a task per call."""
    if n < 2:
        return n
    with task_client() as client:
        left = client.submit(fib, n - 1, pure=False)
        right = client.submit(fib, n - 2, pure=False)
        return sum(client.gather([left, right]))


class Held:
    """Futures inside an object, which arrive as futures; a list of futures arrives as values."""

    def __init__(self, futures: list[Any]) -> None:
        self.futures = futures


def consume(value: Any) -> None:
    """Take an argument and do nothing with it."""


def borrow(held: Held, n: int) -> int:
    """Submit ``n`` no-ops that use the one future, gather them, and count them."""
    (future,) = held.futures
    with task_client() as client:
        futures = [client.submit(consume, future, pure=False) for _ in range(n)]
        done: int = client.gather(futures).count(None)
        return done


def count(held: Held) -> int:
    """Count the futures inside."""
    return len(held.futures)


def make_many(n: int) -> Held:
    """Submit ``n`` no-ops and return their futures at once."""
    from distributed import get_client

    ray = sys.modules.get("ray")
    client = task_client() if ray is not None and ray.is_initialized() else get_client()
    return Held(client.map(noop, range(n), pure=False))
