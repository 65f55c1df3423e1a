"""Random programs on a cluster of processes, for minutes: nothing is left, and memory stands still.

``SOAK_SECONDS`` says for how long (600), ``SOAK_SEED`` replays the choices of a run.
"""

from __future__ import annotations

import gc
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distributed
import psutil
import pytest
from live import assert_nothing_left, blob, boom, inc, total, until

from dask_ownership import Client, as_completed, delegate, wait

WARM_UP = 120.0
"""Seconds after which memory must stand still."""

MOST = 1.0
"""Megabytes per minute by which a process may grow after that."""


class Box:
    """Keeps futures from being replaced by their values."""

    def __init__(self, content: Any) -> None:
        self.content = content


def give(box: Box) -> Box:
    return box


def read(box: Box) -> int:
    return sum(len(v) if isinstance(v, bytearray) else v for v in read_all(box.content))


def read_all(content: Any) -> list[Any]:
    return [future.result() for future in content]


def fan_out(width: int, size: int) -> list[Any]:
    """Futures that the worker owns."""
    client = distributed.get_client()
    small = client.map(inc, range(width), pure=False)
    return [*small, client.submit(blob, size, pure=False)]


def deep(depth: int) -> int:
    if not depth:
        return 1
    return int(distributed.get_client().submit(deep, depth - 1, pure=False).result()) + 1


def countdown(n: int) -> Any:
    return delegate(distributed.get_client().submit(countdown, n - 1, pure=False)) if n else "done"


class Program:
    """One random program: each step does something and checks what comes of it."""

    def __init__(self, client: Client, seed: int) -> None:
        self.client = client
        self.random = random.Random(seed)
        self.futures: list[Any] = []

    def flat(self) -> None:
        n = self.random.randrange(1, 300)
        assert self.client.gather(self.client.map(inc, range(n), pure=False)) == [
            i + 1 for i in range(n)
        ]

    def chain(self) -> None:
        value = self.client.submit(inc, 0, pure=False)
        for _ in range(self.random.randrange(1, 60)):
            value = self.client.submit(inc, value, pure=False)
        self.futures.append(value)

    def large(self) -> None:
        size = self.random.randrange(100_000, 2_000_000)
        self.futures.append(self.client.submit(blob, size, pure=False))

    def scattered(self) -> None:
        self.futures.append(self.client.scatter(bytearray(self.random.randrange(1, 300_000))))

    def travel(self) -> None:
        some = self.some()
        back = self.client.submit(give, Box(some), pure=False).result(timeout=60)
        number = self.client.submit(read, Box(back.content), pure=False).result(timeout=60)
        values = [f.result(timeout=60) for f in some]
        assert number == sum(len(v) if isinstance(v, (bytes, bytearray)) else v for v in values)

    def owned_by_workers(self) -> None:
        width = self.random.randrange(1, 40)
        made = self.client.submit(fan_out, width, 150_000, pure=False).result(timeout=60)
        assert sum(f.result(timeout=60) for f in made[:-1]) == width * (width + 1) // 2
        done = list(as_completed(made, timeout=60))
        assert len(done) == width + 1
        self.futures += made

    def nested(self) -> None:
        depth = self.random.randrange(1, 12)
        assert self.client.submit(deep, depth, pure=False).result(timeout=60) == depth + 1
        assert self.client.submit(countdown, depth, pure=False).result(timeout=60) == "done"

    def errors(self) -> None:
        failed = self.client.submit(boom, "soak", pure=False)
        after = self.client.submit(total, failed, 1, pure=False)
        assert isinstance(after.exception(timeout=60), ZeroDivisionError)

    def cancelled(self) -> None:
        futures = self.client.map(time.sleep, [0.001] * 50, pure=False)
        self.client.cancel(futures[::2])
        wait(futures[1::2], timeout=60)

    def queued(self) -> None:
        queue = distributed.Queue(f"soak-{self.random.random()}", client=self.client)
        queue.put(self.client.submit(inc, 1, pure=False))
        assert queue.get(timeout=30).result(timeout=60) == 2
        queue.close()

    def forget(self) -> None:
        self.random.shuffle(self.futures)
        del self.futures[len(self.futures) // 2 :]

    def some(self) -> list[Any]:
        return self.random.sample(self.futures, min(len(self.futures), self.random.randrange(6)))

    def run(self, steps: int) -> None:
        actions = [
            self.flat, self.chain, self.large, self.scattered, self.travel, self.owned_by_workers,
            self.nested, self.errors, self.cancelled, self.queued, self.forget,
        ]  # fmt: skip
        for _ in range(steps):
            self.random.choice(actions)()
        self.futures.clear()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[tuple[str, dict[str, psutil.Process]]]:
    """A scheduler and two workers, each a process of its own; their address and processes."""
    file = tmp_path / "scheduler.json"
    common = ["--scheduler-file", str(file), "--no-dashboard"]
    env = {
        **os.environ,
        "DASK_DISTRIBUTED__LOGGING__DISTRIBUTED": "error",
        # Dask's own profiler keeps a history of an hour, which grows for that long.
        "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "false",
        # As the nanny sets it for its workers.
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    started = []

    def start(*arguments: str) -> psutil.Process:
        process = subprocess.Popen([sys.executable, "-m", "dask", *arguments, *common], env=env)
        started.append(process)
        return psutil.Process(process.pid)

    try:
        found = {"scheduler": start("scheduler", "--port", "0", "--host", "127.0.0.1")}
        until(file.exists, 30)
        for name in ("a", "b"):
            found[name] = start("worker", "--nthreads", "1", "--no-nanny", "--name", name)
        yield str(file), found
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait(30)


def per_minute(samples: list[tuple[float, int]]) -> float:
    """Megabytes per minute: slope of the line through the samples (seconds, bytes)."""
    line = statistics.linear_regression(*zip(*samples, strict=True))
    return line.slope * 60 / 1e6


@pytest.mark.soak
def test_memory_stands_still(processes: Any) -> None:
    seconds = float(os.environ.get("SOAK_SECONDS", "600"))
    seed = int(os.environ.get("SOAK_SEED", random.SystemRandom().randrange(2**32)))
    print(f"SOAK_SEED={seed}")
    file, found = processes
    found["client"] = psutil.Process()
    samples: dict[str, list[tuple[float, int]]] = {name: [] for name in found}
    programs = 0
    with Client(scheduler_file=file) as client:
        client.wait_for_workers(2, timeout=30)
        start = time.monotonic()
        while (now := time.monotonic() - start) < seconds:
            Program(client, seed + programs).run(20)
            programs += 1
            if programs % 10 == 0:
                gc.collect()
                for name, process in found.items():
                    samples[name].append((now, process.memory_info().rss))
        assert_nothing_left(client)
    steady = {
        name: per_minute([s for s in taken if s[0] >= min(WARM_UP, seconds / 2)])
        for name, taken in samples.items()
    }
    sizes = {name: round(taken[-1][1] / 1e6) for name, taken in samples.items()}
    print(f"{programs} programs; MB: {sizes}; growing by MB a minute: {steady}")
    for name, taken in samples.items():
        print(name, [round(size / 1e6) for _, size in taken[:: max(1, len(taken) // 20)]])
    assert all(rate < MOST for rate in steady.values()), steady
