"""Processes that are stopped for a while: workers, and clients."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import distributed
import pytest
from live import (
    assert_nothing_left,
    blob,
    deaths_under,
    inc,
    pid_of,
    slowinc,
    small_cluster,
    until,
    wait_for_members,
    where,
)
from programs import append_line, lines

from dask_ownership import Client, as_completed, wait

pytestmark = pytest.mark.waits  # most of its time nothing runs here


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[distributed.LocalCluster]:
    with small_cluster() as cluster:
        yield cluster


@pytest.fixture
def client(own_cluster) -> Iterator[Client]:
    with Client(own_cluster, set_as_default=False) as client:
        wait_for_members(client, 2)
        yield client


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def length(value: bytearray) -> int:
    return len(value)


def slow_where() -> str:
    time.sleep(0.03)
    return where()


def read_into(found: list[bytearray], value) -> None:
    found.append(value.result())


def fan(n: int) -> int:
    client = distributed.get_client()
    return sum(client.gather(client.map(slowinc, range(n), delay=0.02, pure=False)))


def holding_the_lock(seconds: float) -> None:
    """Let no other thread of this process run for about so long."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(10 * seconds)
    try:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass
    finally:
        sys.setswitchinterval(before)


def test_work_of_a_frozen_worker_is_done_elsewhere(client, tmp_path):
    """Everything ends long before it is continued; what it says then changes nothing."""
    victim, other = wait_for_members(client, 2)
    path = tmp_path / "ran"
    near = client.submit(blob, 300_000, 1, workers=victim, allow_other_workers=True, pure=False)
    wait(near, timeout=10)
    pid = pid_of(client, victim)
    running = client.map(slowinc, range(40), delay=0.05, pure=False)
    chain = client.submit(inc, 0, pure=False)
    for _ in range(20):
        chain = client.submit(slowinc, chain, 0.02, pure=False)
    marks = [client.submit(append_line, str(path), str(i), 0.02, pure=False) for i in range(20)]
    nested = [client.submit(fan, 5, pure=False) for _ in range(4)]
    views = client.owner.core.placement.workers
    until(lambda: views[victim].pushed)
    with stopped(pid):
        started = time.monotonic()
        assert client.gather(running) == list(range(1, 41))
        assert chain.result(timeout=30) == 21
        wait(marks, timeout=30)
        assert client.gather(nested) == [15] * 4
        taken = time.monotonic() - started
        assert taken < 10, taken
        assert client.submit(length, near).result(timeout=30) == 300_000  # made again
        moved = [e for e in client.owner.core.history.events if e[1] == "worker-silent"]
        assert moved, "nothing was moved"
        before = [future.result() for future in (*running, *nested)]
        assert not views[victim].accepting
        time.sleep(max(0.0, 9 - (time.monotonic() - started)))
    until(lambda: views[victim].accepting, 5, "it is used again")
    assert set(lines(path)) == {str(i) for i in range(20)}
    assert [future.result() for future in (*running, *nested)] == before
    places = [client.submit(slow_where, pure=False) for _ in range(60)]
    assert set(client.gather(places)) == {victim, other}
    assert not any(deaths_under(client, future) for future in running)
    del running, chain, marks, nested, near, places
    assert_nothing_left(client)


def test_scattered_values_of_a_frozen_worker_are_waited_for(client):
    victim, _ = wait_for_members(client, 2)
    value = client.scatter({"scattered": blob(300_000)}, workers=[victim])["scattered"]
    with stopped(pid_of(client, victim)):
        reading = client.submit(length, value, pure=False)
        read: list[bytearray] = []
        thread = threading.Thread(target=read_into, args=(read, value))
        thread.start()
        time.sleep(8)
        assert reading.status == "pending" and thread.is_alive()
    assert reading.result(timeout=20) == 300_000
    thread.join(20)
    assert len(read[0]) == 300_000
    del value, reading, thread
    assert_nothing_left(client)


def test_both_workers_freeze_for_a_while(client):
    futures = client.map(slowinc, range(60), delay=0.05, pure=False)
    first, other = wait_for_members(client, 2)
    pids = [pid_of(client, first), pid_of(client, other)]
    with stopped(pids[0]), stopped(pids[1]):
        time.sleep(8)
    assert client.gather(futures) == list(range(1, 61))
    del futures
    assert_nothing_left(client)


def test_a_task_that_keeps_its_worker_from_answering_ends(client):
    """It is moved at most once in this time, and what waits beside it is not held up."""
    blocking = client.submit(holding_the_lock, 8, pure=False)
    until(lambda: any(v.pushed for v in client.owner.core.placement.workers.values()))
    beside = client.map(slowinc, range(50), delay=0.01, pure=False)
    started = time.monotonic()
    assert client.gather(beside) == list(range(1, 51))
    assert blocking.result(timeout=40) is None
    assert time.monotonic() - started < 25
    assert client.owner.core.attempts.of(blocking._row).patience <= 8
    del blocking, beside
    assert_nothing_left(client)


PROGRAM = """
import sys, time
from dask_ownership import Client, wait
from live import blob, inc, slowinc
from programs import append_line
from test_frozen import holding_the_lock, length
if __name__ == "__main__":
    with Client(sys.argv[1]) as client:
        small = client.submit(inc, 1)
        stored = client.submit(blob, 300_000, 5, pure=False)
        wait([small, stored])
        running = [
            client.submit(append_line, sys.argv[2], str(i), 0.1, pure=False) for i in range(40)
        ]
        print("ready", flush=True)
        if sys.argv[3] != "0":
            holding_the_lock(float(sys.argv[3]))
        assert small.result() == 2
        wait(running)
        assert all(f.status == "finished" for f in running)
        assert len(stored.result()) == 300_000
        assert client.submit(length, stored).result() == 300_000
        assert not any(e[1] == "worker-silent" for e in client.owner.core.history.events)
        print("right", flush=True)
"""


def silent_client(scheduler: str, path: Path, stop: float, hold: float) -> None:
    """A client process that is stopped, or holds the interpreter's lock, and goes on."""
    here = str(Path(__file__).parent)
    search = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, scheduler, str(path), str(hold)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": search},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()
        if stop:
            with stopped(process.pid):
                time.sleep(stop)
        out, problem = process.communicate(timeout=60 + hold)
        assert out == "right\n", problem
    finally:
        process.kill()
        process.wait()
    assert sorted(map(int, lines(path))) == list(range(40))  # each ran once


def test_a_client_that_was_stopped_goes_on(own_cluster, tmp_path):
    """For longer than the grace, which counts from when the scheduler misses it."""
    silent_client(own_cluster.scheduler_address, tmp_path / "ran", stop=15, hold=0)


def test_a_client_that_held_the_interpreters_lock_goes_on(own_cluster, tmp_path):
    silent_client(own_cluster.scheduler_address, tmp_path / "ran", stop=0, hold=12)


@pytest.mark.slow
@pytest.mark.parametrize(("stop", "hold"), [(60, 0), (0, 60)])
def test_a_client_that_is_silent_for_a_minute_goes_on(own_cluster, tmp_path, stop, hold):
    silent_client(own_cluster.scheduler_address, tmp_path / "ran", stop, hold)


@pytest.mark.slow
def test_a_task_that_holds_the_interpreters_lock_for_a_minute_ends(client):
    blocking = client.submit(holding_the_lock, 60, pure=False)
    beside = client.map(slowinc, range(50), delay=0.01, pure=False)
    for future in as_completed([blocking, *beside]):
        assert future.status == "finished"
    assert client.owner.core.attempts.of(blocking._row).patience < 60
