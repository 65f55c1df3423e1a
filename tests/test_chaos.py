"""Everything at once: workers that die and freeze all the time, under a mixed load.

A failure prints the seed; run it again with ``DASK_OWNERSHIP_CHAOS_SEED=<seed>``. Processes
do not repeat their timing, so that only makes it likelier.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from random import Random
from typing import Any

import dask
import dask.array as da
import distributed
import numpy as np
import programs
import psutil
import pytest
from live import assert_nothing_left, inc, small_cluster, total, until
from test_borrowing import Box

from dask_ownership import Client, delegate

pytestmark = pytest.mark.alone  # it says how long things may take

SEED = int(os.environ.get("DASK_OWNERSHIP_CHAOS_SEED", "0")) or time.time_ns() % 2**31


class Chaos:
    """Kills one worker about every second, and stops others for some seconds.

    One is always left alone, so that work goes on.
    """

    def __init__(self, cluster: Any, random: Random) -> None:
        self.cluster = cluster
        self.random = random
        self.killed = 0
        self.frozen = 0
        self._over = threading.Event()
        self._asleep: dict[int, float] = {}
        self._thread = threading.Thread(target=self._run, name="chaos")

    def __enter__(self) -> Chaos:
        self._thread.start()
        return self

    def __exit__(self, *args: Any) -> None:
        self._over.set()
        self._thread.join()
        for pid in self._asleep:
            self._signal(pid, signal.SIGCONT)

    @staticmethod
    def _signal(pid: int, number: int) -> None:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass

    def _pids(self) -> list[int]:
        """The worker processes that run now; one that starts is its nanny's to look after."""
        found = []
        members = set(self.cluster.scheduler.workers)
        for nanny in list(self.cluster.workers.values()):
            process = nanny.process
            pid = process.pid if process is not None else None
            if pid is not None and nanny.worker_address in members and psutil.pid_exists(pid):
                found.append(pid)
        return found

    def _run(self) -> None:
        while not self._over.wait(self.random.uniform(0.5, 1.5)):
            now = time.monotonic()
            for pid, until_then in list(self._asleep.items()):
                if until_then < now:
                    del self._asleep[pid]
                    self._signal(pid, signal.SIGCONT)
            pids = self._pids()
            awake = [pid for pid in pids if pid not in self._asleep]
            if len(awake) < 2:
                continue
            victim = self.random.choice(awake)
            if self.random.random() < 0.6:
                self.killed += 1
                self._signal(victim, signal.SIGKILL)
            else:
                self.frozen += 1
                self._asleep[victim] = now + self.random.uniform(1, 12)
                self._signal(victim, signal.SIGSTOP)


# ---- the load, and what a sequential program gets ----


def grow(value: np.ndarray, by: int) -> np.ndarray:
    """A value of 1 MiB made from another."""
    time.sleep(0.01)
    return value + by


def tree(n: int) -> int:
    """Tasks that submit tasks."""
    if n == 0:
        time.sleep(0.01)
        return 1
    client = distributed.get_client()
    return 1 + sum(client.gather([client.submit(tree, n - 1, pure=False) for _ in range(2)]))


def slow_square(x: int) -> int:
    time.sleep(0.005)
    return x * x


def flat(client: Client, random: Random) -> None:
    n = random.randint(50, 400)
    futures = client.map(slow_square, range(n), pure=False)
    assert client.submit(total, *futures, pure=False).result() == sum(i * i for i in range(n))
    assert client.gather(futures) == [i * i for i in range(n)]


def chain(client: Client, random: Random) -> None:
    steps = [random.randint(1, 9) for _ in range(random.randint(5, 40))]
    future = client.submit(np.zeros, 1 << 17, pure=False)
    for step in steps:
        future = client.submit(grow, future, step, pure=False)
    value = future.result()
    assert value.shape == (1 << 17,) and (value == sum(steps)).all()


def nested(client: Client, random: Random) -> None:
    depth = random.randint(2, 5)
    futures = [client.submit(tree, depth, pure=False) for _ in range(3)]
    assert client.gather(futures) == [2 ** (depth + 1) - 1] * 3


def reduction(client: Client, random: Random) -> None:
    n = random.randint(2, 8) * 100_000
    x = da.arange(n, chunks=50_000)
    y = (x * 2 + x[::-1]).sum()
    assert client.compute(y).result() == 3 * (n * (n - 1) // 2)


def lets_escape(n: int, size: int) -> list[Any]:
    """Returns futures that its worker's process owns: small values, large ones, delegated ones."""
    client = distributed.get_client()
    made = [client.submit(slow_square, i, pure=False) for i in range(n)]
    made += [client.submit(bytes, size + i, pure=False) for i in range(n)]
    made += [client.submit(square_by_another, i, pure=False) for i in range(n)]
    return [Box(future) for future in made]


def square_by_another(x: int) -> Any:
    return delegate(distributed.get_client().submit(slow_square, x, pure=False))


def length(box: Box) -> int:
    """A task elsewhere that has a future of it."""
    return len(box.content[0].result())


def exported(client: Client, random: Random) -> None:
    n = random.randint(2, 20)
    outer = client.submit(lets_escape, n, 100_000, pure=False)
    boxes = outer.result()
    if random.random() < 0.5:
        del outer
    lengths = [client.submit(length, box, pure=False) for box in boxes[n : 2 * n]]
    time.sleep(random.uniform(0, 1))
    squares = [i * i for i in range(n)]
    sizes = [100_000 + i for i in range(n)]
    got = client.gather([box.content[0] for box in boxes])
    assert got[:n] == got[2 * n :] == squares
    assert [len(value) for value in got[n : 2 * n]] == client.gather(lengths) == sizes


LOADS = [flat, chain, nested, reduction, exported]


def forgotten(client: Client) -> bool:
    """Let go of what is kept for the dead, everywhere; whether the client has nothing left."""
    programs.forget_the_dead(client.owner)
    client.run(forget_the_dead_at)
    gc.collect()
    return not client.owner.core.table.rows


def forget_the_dead_at(dask_worker: Any) -> None:
    programs.forget_the_dead(dask_worker.extensions["dask-ownership"].owner)


def run_chaos(seconds: float) -> None:
    print(f"DASK_OWNERSHIP_CHAOS_SEED={SEED}")
    problems: list[BaseException] = []
    done = dict.fromkeys([load.__name__ for load in LOADS], 0)
    with (
        # One that is just being started again 15 s after a death would be given up.
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1h"}),
        small_cluster(n_workers=4, silence_logs=50) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        # Deaths are nobody's fault here.
        client.owner.core.limits.allowed_failures = 100
        until(lambda: len(client.owner.core.placement.workers) == 4, 20, "four workers")
        end = time.monotonic() + seconds

        def work(number: int) -> None:
            random = Random(f"{SEED} {number}")
            try:
                while time.monotonic() < end and not problems:
                    load = random.choice(LOADS)
                    load(client, random)
                    done[load.__name__] += 1
            except BaseException as error:
                problems.append(error)

        threads = [threading.Thread(target=work, args=(i,), name=f"load-{i}") for i in range(3)]
        with Chaos(cluster, Random(SEED)) as chaos:
            for thread in threads:
                thread.start()
            while time.monotonic() < end and not problems:
                time.sleep(0.1)
        # From here on nothing more happens: what is left must end.
        for thread in threads:
            thread.join(60)
        stuck = [thread.name for thread in threads if thread.is_alive()]
        print(f"{chaos.killed} killed, {chaos.frozen} frozen; done: {done}")
        if problems:
            raise problems[0]
        if stuck:
            rows = [repr(row) for row in client.owner.core.table.all() if not row.done]
            raise AssertionError(f"{stuck} hang; {len(rows)} rows wait: {rows[:10]}")
        assert client.submit(inc, 1, pure=False).result(timeout=20) == 2
        until(lambda: len(client.owner.core.placement.workers) == 4, 30, "all are back")
        until(lambda: forgotten(client), 10, "what was kept for the dead is forgotten")
        assert_nothing_left(client)
    assert chaos.killed + chaos.frozen > seconds / 3


def test_a_quarter_of_a_minute_of_chaos() -> None:
    run_chaos(15)


@pytest.mark.slow
def test_two_minutes_of_chaos() -> None:
    run_chaos(120)
