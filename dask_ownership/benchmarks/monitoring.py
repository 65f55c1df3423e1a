"""The cost of monitoring: CPU time per task, and the scheduler's lag, with pages and without.

``python -m dask_ownership.benchmarks.monitoring`` starts a scheduler and workers, each in a process
of its own, and a client that submits no-ops as fast as they come back. Phases of three kinds
alternate: the cluster has no viewers; reports come in, and no page shows them; pages of the
dashboard are open. After that pages stay open for a minute. CPU time is the sum over the scheduler,
the workers and the client, without the viewers.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.request import urlopen

import dask_ownership
from dask_ownership.benchmarks import functions
from dask_ownership.benchmarks.machine import describe

__all__ = ["main", "measure"]

PROGRAM = "python -m dask_ownership.benchmarks.monitoring"

PAGES = ("ownership", "status", "tasks")

BOKEH = "DASK_DISTRIBUTED__SCHEDULER__DASHBOARD__BOKEH_APPLICATION"

CLOSED_PAGES = f"{BOKEH}__UNUSED_SESSION_LIFETIME_MILLISECONDS"
"""For how long Bokeh keeps a closed page up to date: 15 s, unless told otherwise."""

KINDS = ("closed", "reports", "open")
"""Kinds of phases."""

BATCH = 5000
"""No-ops that are under way at the same time."""

BEAT = 0.002
"""Seconds between two looks at the clock, for the lag of the scheduler's loop."""

STARTING = 60.0
"""Seconds for which a start, or a change of phase, may take."""


@dataclass(frozen=True)
class Phase:
    """The numbers of one stretch of time.

    Attributes
    ----------
    seconds : float
    tasks : int
        Tasks done.
    cpu : dict of str to float
        Seconds of CPU time of each process.
    lags : list of float
        Seconds by which the scheduler's loop was late, for each look at the clock.
    """

    seconds: float
    tasks: int
    cpu: dict[str, float]
    lags: list[float]

    @property
    def per_task(self) -> float:
        """Microseconds of CPU time for each task."""
        return sum(self.cpu.values()) / max(1, self.tasks) * 1e6

    @property
    def scheduler(self) -> float:
        """Part of a core that the scheduler took."""
        return self.cpu["scheduler"] / self.seconds


class Viewer:
    """Open pages, as in browsers that take all updates and display nothing.

    Parameters
    ----------
    dashboard : str
        Address of the dashboard.
    pages : tuple of str

    Attributes
    ----------
    dashboard, pages
        The parameters.
    updates : int
        How many updates came.
    """

    def __init__(self, dashboard: str, pages: tuple[str, ...]) -> None:
        self.dashboard = dashboard
        self.pages = pages
        self.updates = 0
        self._sockets: list[Any] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="viewer", daemon=True)
        self._thread.start()

    def open(self) -> None:
        """Open all pages."""
        tokens = {}
        for page in self.pages:
            with urlopen(f"{self.dashboard}/{page}", timeout=STARTING) as answer:
                # The page of Bokeh carries the token for its own socket.
                tokens[page] = re.findall(r'"token":"([^"]+)"', answer.read().decode())[0]

        async def connect() -> None:
            from tornado.httpclient import HTTPRequest
            from tornado.websocket import websocket_connect

            for page, token in tokens.items():
                url = f"{self.dashboard.replace('http', 'ws', 1)}/{page}/ws"
                request = HTTPRequest(url)
                socket = await websocket_connect(request, subprotocols=["bokeh", token])
                self._sockets.append(socket)
                self._loop.create_task(self._take(socket))

        asyncio.run_coroutine_threadsafe(connect(), self._loop).result(STARTING)

    async def _take(self, socket: Any) -> None:
        """Count the updates of one page."""
        while await socket.read_message() is not None:
            self.updates += 1

    def close(self) -> None:
        """Close all pages."""

        async def close() -> None:
            for socket in self._sockets:
                socket.close()
            self._sockets.clear()

        asyncio.run_coroutine_threadsafe(close(), self._loop).result(STARTING)

    def end(self) -> None:
        """Close all pages, and the thread."""
        self.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def beat(dask_scheduler: Any) -> None:
    """Have the scheduler's loop note how late it is, from now on. Runs at the scheduler."""
    lags = dask_scheduler.extensions["benchmark-lags"] = []

    async def note() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(BEAT)
            # A busy loop wakes the coroutine later than asked: the difference is the lag.
            lags.append(time.perf_counter() - began - BEAT)

    dask_scheduler.extensions["benchmark-beat"] = asyncio.ensure_future(note())


def take_lags(dask_scheduler: Any) -> list[float]:
    """Return the lags noted since the last call. Runs at the scheduler."""
    lags = dask_scheduler.extensions["benchmark-lags"]
    taken = list(lags)
    lags.clear()
    return taken


def forget_lookers(dask_scheduler: Any) -> bool:
    """End the watching of the cluster; return whether it has ended. Runs at the scheduler."""
    # While the plugin is there, the feed keeps asking workers for notes.
    if "task-stream" in dask_scheduler.plugins:
        dask_scheduler.remove_plugin(name="task-stream")
    feed = dask_scheduler.extensions["dask-ownership"].feed
    feed.watchers.until = 0.0
    # Bokeh keeps a closed page up to date for half a minute, in case the browser comes back.
    sessions = any(
        context.sessions
        for app in dask_scheduler.http_application.applications
        for context in getattr(app, "_applications", {}).values()
    )
    return not sessions and bool(feed.idle)


def look(dask_scheduler: Any) -> None:
    """Have all owners and workers report for the time of a measurement. Runs at the scheduler."""
    dask_scheduler.extensions["dask-ownership"].feed.looked(24 * 3600)


def looked_at(dask_scheduler: Any) -> bool:
    """Return whether reports come in. Runs at the scheduler."""
    feed = dask_scheduler.extensions["dask-ownership"].feed
    return bool(feed.watchers.on and feed.owners and feed.workers.last)


class Cluster:
    """A scheduler, workers and a client that submits tasks, each a process.

    Parameters
    ----------
    workers : int
        Processes of one thread each.
    directory : str
        For the scheduler file.

    Attributes
    ----------
    directory : str
    processes : dict of str to subprocess.Popen
    done : int
        No-ops that came back.
    control : distributed.Client
        Runs functions at the scheduler.
    """

    def __init__(self, workers: int, directory: str) -> None:
        import psutil
        from distributed import Client

        self.directory = directory
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.done = 0
        file = f"{directory}/scheduler.json"
        common = ["--scheduler-file", file]
        dask = [sys.executable, "-m", "dask"]
        preload = ["--preload", "dask_ownership.preload"]
        self._start("scheduler", [*dask, "scheduler", "--port", "0", "--dashboard-address", ":0",
                                  *preload, *common])  # fmt: skip
        for number in range(workers):
            self._start(f"worker {number}", [*dask, "worker", "--nthreads", "1", "--no-nanny",
                                             "--no-dashboard", *common])  # fmt: skip
        self.control = Client(scheduler_file=file, timeout=STARTING, set_as_default=False)
        self.control.wait_for_workers(workers, timeout=STARTING)
        self._start("client", [sys.executable, "-m", __spec__.name, "--load", file])
        self._reader = threading.Thread(target=self._read, name="load", daemon=True)
        self._reader.start()
        until(lambda: self.done > 2 * BATCH)
        self._sampled = {name: psutil.Process(p.pid) for name, p in self.processes.items()}
        self.control.run_on_scheduler(beat)

    def _start(self, name: str, command: list[str]) -> None:
        """Start one process of the cluster."""
        self.processes[name] = subprocess.Popen(
            command,
            cwd=self.directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if name == "client" else subprocess.DEVNULL,
            stderr=None if name == "client" else subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", CLOSED_PAGES: "1000"},
            text=True,
        )

    def _read(self) -> None:
        """Count the no-ops that the client process reports."""
        lines = self.processes["client"].stdout
        assert lines is not None
        for line in lines:
            self.done += int(line)

    def cpu(self) -> dict[str, float]:
        """Return the seconds of CPU time of each process until now."""
        return {name: sum(p.cpu_times()[:2]) for name, p in self._sampled.items()}

    def phase(self, seconds: float) -> Phase:
        """Measure for so many seconds."""
        self.control.run_on_scheduler(take_lags)
        before, done, began = self.cpu(), self.done, time.perf_counter()
        time.sleep(seconds)
        after, tasks, took = self.cpu(), self.done - done, time.perf_counter() - began
        lags = self.control.run_on_scheduler(take_lags)
        return Phase(took, tasks, {name: after[name] - before[name] for name in after}, lags)

    def end(self) -> None:
        """End all processes."""
        self.control.close()
        for process in reversed(self.processes.values()):
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def until(true: Callable[[], Any]) -> None:
    """Wait until a function returns a true value."""
    end = time.perf_counter() + STARTING
    while not true():
        if time.perf_counter() > end:
            raise TimeoutError(f"not so within {STARTING:g} s: {true}")
        time.sleep(0.1)


def load(file: str) -> None:
    """Submit no-ops for ever, and print how many came back."""
    with dask_ownership.Client(scheduler_file=file) as client:
        while True:
            client.gather(client.map(functions.noop, range(BATCH), pure=False))
            print(BATCH, flush=True)


@contextlib.contextmanager
def cluster_and_viewer(workers: int, pages: tuple[str, ...]) -> Iterator[tuple[Cluster, Viewer]]:
    """Run a cluster and a viewer for the time of a block."""
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="dask-benchmark-", ignore_cleanup_errors=True)
        )
        cluster = Cluster(workers, directory)
        stack.callback(cluster.end)
        port = cluster.control.scheduler_info()["services"]["dashboard"]
        viewer = Viewer(f"http://127.0.0.1:{port}", pages)
        stack.callback(viewer.end)
        yield cluster, viewer


def measure(
    workers: int, rounds: int, seconds: float, long: float, pages: tuple[str, ...]
) -> tuple[list[dict[str, Phase]], float, Phase]:
    """Alternate phases of the three kinds, and then open pages and keep them open.

    Parameters
    ----------
    workers, rounds : int
    seconds, long : float
        How long each phase is, and the last one.
    pages : tuple of str
        The pages to open.

    Returns
    -------
    tuple
        For each round its phases by kind; by how many seconds the scheduler's loop was late at most
        while the pages were opened; and the last phase.
    """
    found = []
    with cluster_and_viewer(workers, pages) as (cluster, viewer):
        control = cluster.control
        for number in range(rounds):
            phases = {}
            # Every second round runs backwards, so that a drift over time affects all kinds alike.
            for kind in KINDS if number % 2 == 0 else reversed(KINDS):
                if kind == "closed":
                    until(lambda: control.run_on_scheduler(forget_lookers))
                elif kind == "reports":
                    control.run_on_scheduler(look)
                else:
                    viewer.open()
                if kind != "closed":
                    until(lambda: control.run_on_scheduler(looked_at))
                time.sleep(1)
                phases[kind] = cluster.phase(seconds)
                viewer.close()
                until(lambda: control.run_on_scheduler(forget_lookers))
            found.append(phases)
        control.run_on_scheduler(take_lags)
        viewer.open()
        until(lambda: control.run_on_scheduler(looked_at))
        time.sleep(1)
        opening = max(control.run_on_scheduler(take_lags))
        updates = viewer.updates
        last = cluster.phase(long)
        # Pages that did not update would have cost nothing.
        if viewer.updates - updates < long:
            raise AssertionError(f"the pages had {viewer.updates - updates} updates in {long:g} s")
    return found, opening, last


def main(words: list[str] | None = None) -> int:
    """Measure, and print the numbers."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="of one thread each")
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="(default: 10)")
    parser.add_argument(
        "--seconds", type=float, default=5.0, metavar="S", help="of each phase (default: 5)"
    )
    parser.add_argument(
        "--long", type=float, default=60.0, metavar="S", help="of the last one (default: 60)"
    )
    parser.add_argument(
        "--pages", default=",".join(PAGES), metavar="A,B", help="(default: %(default)s)"
    )
    parser.add_argument("--load", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.load:
        load(options.load)
    pages = tuple(options.pages.split(","))
    machine = describe()
    print(f"{machine['cpu']}, {machine['cores']} cores, {machine['python']}; "
          f"{options.workers} workers; pages {', '.join(pages)}")  # fmt: skip
    found, opening, last = measure(
        options.workers, options.rounds, options.seconds, options.long, pages
    )
    for kind in KINDS:
        phases = [phases[kind] for phases in found]
        rises = [phases[kind].per_task / phases["closed"].per_task - 1 for phases in found]
        print(
            f"{kind:7}: {statistics.median(p.per_task for p in phases):6.2f} µs of CPU per task "
            f"({statistics.median(rises):+.1%}, rounds {min(rises):+.1%} to {max(rises):+.1%}), "
            f"{statistics.median(p.tasks / p.seconds for p in phases):9,.0f} tasks/s, "
            f"scheduler {statistics.median(p.scheduler for p in phases):.2%} of a core"
        )
    lags = sorted(last.lags)
    print(
        f"pages open for {last.seconds:.0f} s at {last.tasks / last.seconds:,.0f} tasks/s: the "
        f"scheduler's loop was at most {lags[-1] * 1e3:.1f} ms late (99 %: "
        f"{lags[int(len(lags) * 0.99)] * 1e3:.1f} ms), {last.scheduler:.2%} of a core; while "
        f"they were opened {opening * 1e3:.1f} ms"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
