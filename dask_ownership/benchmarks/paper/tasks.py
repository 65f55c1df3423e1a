"""The functions that tasks of the experiments run; workers import them by name."""

from __future__ import annotations

import time
from typing import Any, Literal, TypeAlias

from distributed import worker_client

__all__ = ["Told", "drive", "first", "noted", "produce", "total", "word"]


Told: TypeAlias = Literal["asked", "sent"] | None
"""What a central process hears of each call, see `word`."""


def word(client: Any, told: Told) -> None:
    """Have the scheduler hear of a call, or do nothing for None.

    ``"asked"`` is a question whose answer is waited for, as in a system whose futures are kept by
    one central process. ``"sent"`` is a message that is not waited for: what a system with leases
    writes about each task, so that others can find out whether the lease is still renewed.
    """
    if told == "asked":
        client.nthreads(workers=[])
    elif told == "sent":
        client._send_to_scheduler({"op": "heartbeat-client"})


def produce(before: Any, nbytes: int) -> Any:
    """Return so many bytes after a task before; a short text for 0."""
    if not nbytes:
        return b"hi"
    import numpy

    return numpy.zeros(nbytes, "u1")


def total(values: list[Any]) -> int:
    """Return how many values came."""
    return len(values)


def noted(path: str, seconds: float) -> None:
    """Take a time, after one byte at the end of a file says that a run began."""
    with open(path, "ab") as file:
        file.write(b".")
    time.sleep(seconds)


def first(value: Any) -> bytes:
    """Take a value."""
    return b"ok"


def drive(workers: list[Any], rounds: int, tasks: int, nbytes: int, told: Told) -> float:
    """Be an owner: submit rounds of tasks, each round after the one before; return the seconds.

    All tasks of a round take the number of the round before, which is made from all its values.
    """
    with worker_client() as client:
        start = time.perf_counter()
        before: Any = 0
        for _ in range(rounds):
            values = []
            for _ in range(tasks):
                word(client, told)
                values.append(client.submit(produce, before, nbytes, pure=False, workers=workers))
            before = client.submit(total, values, pure=False, workers=workers)
        count = before.result()
        seconds = time.perf_counter() - start
    if count != tasks:
        raise AssertionError(f"{count} values in the last round instead of {tasks}")
    return seconds
