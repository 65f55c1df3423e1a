"""Cases whose futures travel inside objects: few borrowers of one value, and very many futures.

A borrower is a task that got a future inside an object and submits tasks with the future. Wang et
al. measure the same (*Ownership*, NSDI 2021): the more processes submit, the more tasks per second.
"""

from __future__ import annotations

import time

from dask_ownership.benchmarks import functions
from dask_ownership.benchmarks.engines import Engine

__all__ = ["BORROWERS", "borrow", "many_futures"]

MEBIBYTE = 1 << 20

BORROWERS = (0, 1, 2, 4, 8, 16)
"""How many tasks borrow the value and submit; with 0 the client submits all tasks."""


def borrow(engine: Engine, n: int) -> dict[str, float]:
    """Use 1 MiB in ``n`` no-ops in all, submitted by the client or by borrowers."""
    client = engine.client
    array = client.submit(functions.make_array, MEBIBYTE, 1, pure=False)
    # The value is there before the clock starts.
    array.result()
    result = {}
    for borrowers in BORROWERS:
        held = functions.Held([array])
        shares = [len(range(i, n, borrowers)) for i in range(borrowers)]
        start = time.perf_counter()
        if borrowers:
            futures = [client.submit(functions.borrow, held, s, pure=False) for s in shares]
            done = sum(client.gather(futures))
        else:
            futures = [client.submit(functions.consume, array, pure=False) for _ in range(n)]
            done = client.gather(futures).count(None)
        seconds = time.perf_counter() - start
        if done != n:
            raise AssertionError(f"{done} tasks ended instead of {n}")
        result[f"b{borrowers}"] = n / seconds
        del futures
        engine.settle()
    return result


def many_futures(engine: Engine, n: int) -> dict[str, float]:
    """Send ``n`` futures in one object, return them, and wait for as many futures of a task."""
    client = engine.client
    clock = time.perf_counter
    futures = client.map(functions.noop, range(n), pure=False)
    client.gather(futures)
    held = functions.Held(futures)
    del futures

    start = clock()
    task = client.submit(functions.count, held, pure=False)
    pickled = clock()
    counted = task.result()
    sent = clock()
    returned = client.submit(functions.noop, held, pure=False).result()
    back = clock()
    if counted != n or len(returned.futures) != n:
        raise AssertionError(f"{counted} futures arrived and {len(returned.futures)} came back")
    # Freeing so many futures belongs to no measurement.
    del held, returned, task
    engine.settle()

    made = client.submit(functions.make_many, n, pure=False).result().futures
    start_waiting = clock()
    engine.wait_for_first(made)
    first = clock()
    ended = engine.count_as_completed(made)
    all_ended = clock()
    if ended != n:
        raise AssertionError(f"{ended} futures of {n} ended")
    return {
        name: seconds / n * 1e6
        for name, seconds in {
            "pickle": pickled - start,
            "send": sent - start,
            "back": back - sent,
            "first": first - start_waiting,
            "all": all_ended - first,
        }.items()
    }
