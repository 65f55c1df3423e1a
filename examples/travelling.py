"""Futures inside objects, tasks that return futures, delegation, and a worker that dies.

    python examples/travelling.py

A future may go wherever an object goes. It stays alive there, and its value is kept as long as
anyone, anywhere, has it.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

import numpy as np
from distributed import get_client, wait

from dask_ownership import Client, Future, delegate


@dataclass
class Model:
    """A name, and weights that nobody needs to move: they stay where they were made."""

    name: str
    weights: Future


def make_weights(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(100_000)


def score(weights: np.ndarray, point: float) -> float:
    return float((weights * point).mean())


def scores(model: Model, points: list[float]) -> list[Future]:
    """Submit a task per point with the future in the model, and return futures, not waiting."""
    client = get_client()
    return [client.submit(score, model.weights, point) for point in points]


def collatz(n: int, steps: int = 0) -> object:
    """A loop of tasks: each ends at once, and its value is that of the next."""
    if n == 1:
        return steps
    following = 3 * n + 1 if n % 2 else n // 2
    return delegate(get_client().submit(collatz, following, steps + 1))


def kill_one_worker(client: Client) -> None:
    pids = client.run(os.getpid)
    os.kill(next(iter(pids.values())), signal.SIGKILL)


def main() -> None:
    with Client(n_workers=2, threads_per_worker=1) as client:
        weights = client.submit(make_weights, 7)
        model = Model("first", weights)
        points = [1.0, 2.0, 4.0]
        futures = client.submit(scores, model, points).result()
        found = client.gather(futures)
        print("scores:", [round(value / found[0], 3) for value in found])

        print("collatz(27) takes", client.submit(collatz, 27).result(), "steps")

        parts = client.map(make_weights, range(100))
        means = client.map(score, parts, point=1.0)
        wait(parts[:50])
        kill_one_worker(client)  # with the values that are there, finished or not
        again = client.gather(client.map(score, parts, point=1.0, pure=False))
        same = again == client.gather(means)
        print("a worker died, and all 100 values are", "there" if same else "wrong")


if __name__ == "__main__":  # worker processes import this file
    main()
