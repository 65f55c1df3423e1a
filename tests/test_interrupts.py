"""Ctrl-C, or a notebook's stop button: the client goes on as if nothing had happened."""

from __future__ import annotations

import asyncio
import linecache
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import dask
import distributed
import pytest
from distributed import LocalCluster
from live import blob, child_processes, inc, slowinc, threads_of_this_process, until

import dask_ownership
from dask_ownership import Client, as_completed, wait
from dask_ownership.runtime.serialize import pickling

pytestmark = pytest.mark.alone  # it says how long things may take

SOURCES = os.path.dirname(dask_ownership.__file__)


def interrupted(call: Callable[[], Any], after: float = 0.1) -> float:
    """Run this and have Ctrl-C pressed; the seconds that it takes to stop after that."""
    pressed = [0.0]

    def press() -> None:
        pressed[0] = time.perf_counter()
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(after, press)
    try:
        timer.start()
        call()
        time.sleep(after + 1)
    except KeyboardInterrupt:
        return time.perf_counter() - pressed[0]
    raise AssertionError("Ctrl-C was not heard")


def slow(client: Client, number: int) -> list[Any]:
    """Futures that take more than half a second."""
    return client.map(slowinc, range(number, number + 6), delay=0.2, pure=False)


WAITS: dict[str, tuple[Callable[[Client, Any], Any], Callable[[Client, Any], Any]]] = {
    # How it waits, and what the same gives when it is asked again, for six futures.
    "result": (lambda c, fs: fs[5].result(), lambda c, fs: [f.result() for f in fs]),
    "result with timeout": (
        lambda c, fs: fs[5].result(timeout=9),
        lambda c, fs: [f.result(timeout=9) for f in fs],
    ),
    "exception": (lambda c, fs: fs[5].exception(), lambda c, fs: c.gather(fs)),
    "gather": (lambda c, fs: c.gather(fs), lambda c, fs: c.gather(fs)),
    "wait": (lambda c, fs: wait(fs), lambda c, fs: [f.result() for f in wait(fs).done]),
    "wait for the first": (
        lambda c, fs: wait(fs[3:], return_when="FIRST_COMPLETED"),
        lambda c, fs: [f.result() for f in wait(fs, return_when="FIRST_COMPLETED").done | set(fs)],
    ),
    "stock wait": (
        lambda c, fs: distributed.wait(fs),
        lambda c, fs: [f.result() for f in distributed.wait(fs).done],
    ),
    "as_completed": (
        lambda c, fs: list(as_completed(fs)),
        lambda c, fs: [f.result() for f in as_completed(fs)],
    ),
    "stock as_completed": (
        lambda c, fs: list(distributed.as_completed(fs)),
        lambda c, fs: [f.result() for f in distributed.as_completed(fs)],
    ),
    "compute": (
        lambda c, fs: dask.delayed(list)(fs).compute(),
        lambda c, fs: dask.delayed(list)(fs).compute(),
    ),
    "run": (lambda c, fs: c.run(time.sleep, 0.5), lambda c, fs: c.gather(fs)),
}


@pytest.mark.parametrize("name", WAITS)
def test_interrupted_waits(client: Client, name: str) -> None:
    """The wait ends at once; the tasks go on, and asking again gives their values."""
    call, again = WAITS[name]
    futures = slow(client, 1)
    assert interrupted(lambda: call(client, futures)) < 0.4
    assert sorted(again(client, futures)) == [2, 3, 4, 5, 6, 7]
    assert client.submit(inc, 1).result(timeout=5) == 2


def test_what_came_out_before_the_interrupt_does_not_come_again(client: Client) -> None:
    """One `as_completed`, and one stream, go on where they were."""
    completed = as_completed(slow(client, 1))
    assert interrupted(lambda: next(completed)) < 0.4
    assert sorted(future.result() for future in completed) == [2, 3, 4, 5, 6, 7]
    stream = client.map(slowinc, range(4), delay=0.3, buffer_size=2)
    assert interrupted(lambda: next(stream)) < 0.4
    assert [future.result() for future in stream] == [1, 2, 3, 4]


def freeze(client: Client) -> None:
    """Have the workers answer nobody for a moment."""

    async def soon() -> None:
        asyncio.get_running_loop().call_later(0.05, time.sleep, 0.6)

    client.run(soon)
    time.sleep(0.1)


def test_interrupted_reads_and_writes(client: Client, workers: list[str]) -> None:
    """Values of which a part was on its way are read, and put, once more."""
    value = client.submit(blob, 10_000_000, pure=False, workers=workers[0])
    wait(value)
    freeze(client)
    assert interrupted(value.result) < 0.3
    assert len(value.result()) == 10_000_000
    freeze(client)
    assert interrupted(lambda: client.scatter(b"x" * 1000, workers=[workers[0]])) < 0.3
    assert client.scatter(b"x" * 1000, workers=[workers[0]]).result() == b"x" * 1000


def test_cancel_after_an_interrupt(client: Client) -> None:
    """What a notebook's user does next: the tasks are not wanted any more."""
    futures = client.map(slowinc, range(100), delay=0.2, pure=False)
    interrupted(lambda: client.gather(futures))
    started = time.perf_counter()
    client.cancel(futures)
    assert client.submit(inc, 1, pure=False).result(timeout=5) == 2
    assert time.perf_counter() - started < 2


# ---- at any line ----


class At:
    """Raise KeyboardInterrupt at the n-th line of this package that the body comes to."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.lines: set[tuple[Any, int]] = set()

    def __enter__(self) -> At:
        sys.settrace(self._call)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(None)
        assert pickling.found is None  # else later pickles of this thread keep nothing

    def _call(self, frame: Any, event: str, argument: Any) -> Any:
        # What is raised in a finalizer nobody hears: Python says so and goes on.
        names = {frame.f_code.co_name, frame.f_back.f_code.co_name if frame.f_back else ""}
        mine = frame.f_code.co_filename.startswith(SOURCES)
        return self._line if mine and "__del__" not in names else None

    def _line(self, frame: Any, event: str, argument: Any) -> Any:
        # Python looks for signals after calls and at jumps, so not between the end of a
        # block and the release of its lock, or of what it set for a while, nor at a `try`, which
        # no handler covers: those are lines for `settrace` only.
        if event == "line" and not self._is_with(frame):
            self.lines.add((frame.f_code, frame.f_lineno))
            if len(self.lines) > self.number:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._line

    @staticmethod
    def _is_with(frame: Any) -> bool:
        source = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        return source.lstrip().startswith(("with ", "try:", "finally", "pickling.", "unpickling."))


def submit(client: Client, number: int) -> Any:
    return [client.submit(inc, number)]


def submit_twice(client: Client, number: int) -> Any:
    return [client.submit(inc, number) for _ in range(2)]


def submit_with_dependency(client: Client, number: int) -> Any:
    future = client.submit(slowinc, number, delay=0.001)
    return [client.submit(inc, future, key=f"after-{number}")]


def map_some(client: Client, number: int) -> Any:
    return client.map(inc, range(number, number + 3))


def compute(client: Client, number: int) -> Any:
    parts = [dask.delayed(inc)(number + i, dask_key_name=f"part-{number}-{i}") for i in range(2)]
    return [client.compute(dask.delayed(sum)(parts, dask_key_name=f"sum-{number}"))]


def wait_for_first(client: Client, number: int) -> Any:
    futures = client.map(slowinc, [number, number], delay=0.001, key=[f"a-{number}", f"b-{number}"])
    wait(futures, return_when="FIRST_COMPLETED")
    return futures


def unpickle(client: Client, number: int) -> Any:
    return [pickle.loads(pickle.dumps(client.submit(inc, number)))]


@pytest.mark.parametrize(
    "program",
    [submit, submit_twice, submit_with_dependency, map_some, compute, wait_for_first, unpickle],
)
def test_interrupt_at_every_line(cluster: LocalCluster, program: Callable[..., Any]) -> None:
    """Whatever line it comes at, running the cell again gives the values."""
    stuck = []
    with Client(cluster, set_as_default=False) as client:
        program(client, -10)
        for number in range(10_000):
            try:
                with At(number):
                    futures = program(client, number * 10)
            except KeyboardInterrupt:
                ended = False
            else:
                ended = True
            futures = program(client, number * 10)
            try:
                wait(futures, timeout=2)
            except TimeoutError:
                stuck.append(number)
            else:
                client.gather(futures)
            del futures
            if ended:
                break
        assert number > 20
        assert ended
        assert not stuck
        assert not client.owner.lock.locked()


# ---- while a client or a cluster starts ----


def open_clients() -> int:
    from dask_ownership import config

    return config._open_clients


@pytest.mark.usefixtures("spawned")
def test_interrupted_start_leaves_nothing() -> None:
    """No process, thread, default client or setting of one that did not come up."""
    threads, processes, opened = threads_of_this_process(), child_processes(), open_clients()
    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": ":0"}
    interrupted(lambda: Client(**options), 0.4)
    until(lambda: threads_of_this_process() <= threads, 5, f"{threads_of_this_process()}")
    assert child_processes() == processes
    assert open_clients() == opened
    with pytest.raises(ValueError):
        distributed.default_client()
    with Client(**options) as client:
        assert client.submit(inc, 1).result(timeout=10) == 2


def test_interrupted_connection(cluster: LocalCluster) -> None:
    """A scheduler that does not answer."""
    threads = threads_of_this_process()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        assert interrupted(lambda: Client(address)) < 1
    until(lambda: threads_of_this_process() <= threads, 5)
    with pytest.raises(ValueError):
        distributed.default_client()
    with Client(cluster) as client:
        assert client.submit(inc, 1).result() == 2


@pytest.mark.usefixtures("spawned")
def test_cancelled_start_of_an_asynchronous_client() -> None:
    processes = child_processes()

    async def main() -> None:
        async def start() -> None:
            async with Client(
                asynchronous=True, n_workers=1, threads_per_worker=1, dashboard_address=":0"
            ):
                raise AssertionError("it came up")

        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(start(), 0.3)

    asyncio.run(main())
    assert child_processes() == processes


# ---- a notebook ----


def test_workers_are_spared(client: Client, workers: list[str]) -> None:
    """A terminal, or a notebook's stop button, sends it to the whole process group."""
    before = client.run(os.getpid)
    value = client.submit(blob, pure=False)
    wait(value)
    for pid in before.values():
        os.kill(pid, signal.SIGINT)
    assert client.submit(inc, 1, pure=False).result(timeout=5) == 2
    assert len(value.result(timeout=5)) == 200_000
    assert client.run(os.getpid) == before


def test_stop_button() -> None:
    """In the kernel of a notebook; see `notebook.py`."""
    command = [sys.executable, os.path.join(os.path.dirname(__file__), "notebook.py")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert run.returncode == 0, run.stderr[-3000:]
