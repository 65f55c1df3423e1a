"""The functions that tasks of the experiments run; workers import them by name."""

from __future__ import annotations

import time
from typing import Any

from distributed import worker_client

__all__ = ["drive", "first", "produce", "total", "word"]


def word(client: Any) -> None:
    """Ask the scheduler a short question and wait for its answer.

    A system whose futures are kept by one central process asks this process at each call.
    """
    client.nthreads(workers=[])


def produce(before: Any, nbytes: int) -> Any:
    """Return so many bytes after a task before; a short text for 0."""
    if not nbytes:
        return b"hi"
    import numpy

    return numpy.zeros(nbytes, "u1")


def total(values: list[Any]) -> int:
    """Return how many values came."""
    return len(values)


def first(value: Any) -> bytes:
    """Take a value."""
    return b"ok"


def drive(workers: list[Any], rounds: int, tasks: int, nbytes: int, told: bool) -> float:
    """Be an owner: submit rounds of tasks, each round after the one before; return the seconds.

    All tasks of a round take the number of the round before, which is made from all its values.
    """
    with worker_client() as client:
        start = time.perf_counter()
        before: Any = 0
        for _ in range(rounds):
            values = []
            for _ in range(tasks):
                if told:
                    word(client)
                values.append(client.submit(produce, before, nbytes, pure=False, workers=workers))
            before = client.submit(total, values, pure=False, workers=workers)
        count = before.result()
        seconds = time.perf_counter() - start
    if count != tasks:
        raise AssertionError(f"{count} values in the last round instead of {tasks}")
    return seconds
