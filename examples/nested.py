"""Tasks that submit tasks and wait for them.

    python examples/nested.py

A task that waits gives its slot up until the result is there, so recursion ends on any number of
slots without ``secede``. Inside a task ``get_client`` gives the worker's own client.
"""

from __future__ import annotations

import random
import time

from distributed import get_client

from dask_ownership import Client


def fib(n: int) -> int:
    """One task for each call, as a textbook has it: ``pure=True`` would make equal calls one."""
    if n < 2:
        return n
    client = get_client()
    smaller = client.map(fib, [n - 1, n - 2], pure=False)
    return sum(client.gather(smaller))


def quicksort(numbers: list[int]) -> list[int]:
    """Sort the two sides of a pivot in two tasks, until they are short."""
    if len(numbers) < 1000:
        return sorted(numbers)
    pivot = numbers[len(numbers) // 2]
    sides = (
        [number for number in numbers if number < pivot],
        [number for number in numbers if number > pivot],
    )
    client = get_client()
    low, high = client.gather(client.map(quicksort, sides, pure=False))
    return [*low, *(number for number in numbers if number == pivot), *high]


def main() -> None:
    numbers = random.choices(range(1_000_000), k=100_000)
    with Client(n_workers=2, threads_per_worker=1) as client:
        start = time.perf_counter()
        print("fib(14) =", client.submit(fib, 14).result(), end=", ")
        print(f"{time.perf_counter() - start:.2f} s")

        start = time.perf_counter()
        done = client.submit(quicksort, numbers, pure=False).result()
        assert done == sorted(numbers)
        print(f"{len(done)} numbers sorted, {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":  # worker processes import this file
    main()
