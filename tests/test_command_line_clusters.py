"""Clusters of ``dask scheduler`` and ``dask worker``, and what makes clusters for others."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import distributed
import pytest
from live import inc, pid_of, slowinc, until, wait_for_members

from dask_ownership import Client, LocalCluster

NO_RIGHTS = {"DASK_DISTRIBUTED__SCHEDULER__BLOCKED_HANDLERS": "['register_scheduler_plugin']"}
"""Clients may register no plugin."""

PRELOAD = ["--preload", "dask_ownership.preload"]

SMALL: dict[str, Any] = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": ":0"}


class Commands:
    """Processes of ``dask`` commands that find each other by a scheduler file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = str(path / "scheduler.json")
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, *options: str, **config: str) -> subprocess.Popen[bytes]:
        """Run ``dask NAME`` with options; ``config`` is for its environment."""
        if name == "scheduler":
            options = ("--host", "127.0.0.1", "--port", "0", *options)
        line = [sys.executable, "-m", "dask", name, "--scheduler-file", self.file]
        with open(self.path / f"{len(self.started)}.log", "wb") as log:
            process = subprocess.Popen(
                [*line, "--no-dashboard", *options],
                env={**os.environ, **config},
                cwd=self.path,
                stdout=log,
                stderr=log,
            )
        self.started.append(process)
        if name == "scheduler":
            until(lambda: os.path.exists(self.file), 20)
        return process

    def stop(self) -> None:
        for process in reversed(self.started):
            process.terminate()  # and not killed: a nanny ends its workers
        for process in self.started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    commands = Commands(tmp_path)
    try:
        yield commands
    finally:
        commands.stop()


def fan(n: int) -> int:
    client = distributed.get_client()
    return sum(client.gather(client.map(inc, range(n), pure=False)))


def test_preload(commands: Commands) -> None:
    """It works where clients may register nothing, and a worker's death is heard of."""
    commands.start("scheduler", *PRELOAD, **NO_RIGHTS)
    first = commands.start("worker", "--nthreads", "1", "--no-nanny", *PRELOAD)
    commands.start("worker", "--nthreads", "1", "--no-nanny")
    with Client(scheduler_file=commands.file, set_as_default=False, timeout=20) as client:
        until(lambda: len(client.owner.core.placement.workers) == 2, 20)
        assert client.gather(client.map(inc, range(100))) == list(range(1, 101))
        address = client.scheduler.address
        futures = client.map(slowinc, range(200), delay=0.003, pure=False)
        first.kill()
        assert client.gather(futures) == list(range(1, 201))
    with Client(address, set_as_default=False) as client:
        assert client.submit(inc, 1).result(timeout=10) == 2


def test_preload_by_configuration_and_several_workers_of_one_command(commands: Commands) -> None:
    """Where the scheduler's command line is not the user's: a variable of its environment."""
    config = {"DASK_DISTRIBUTED__SCHEDULER__PRELOAD": "['dask_ownership.preload']"}
    commands.start("scheduler", **NO_RIGHTS, **config)
    commands.start("worker", "--nworkers", "2", "--nthreads", "1")
    with Client(scheduler_file=commands.file, set_as_default=False, timeout=20) as client:
        until(lambda: len(client.owner.core.placement.workers) == 2, 20)
        assert client.gather(client.map(inc, range(50))) == list(range(1, 51))
        assert client.submit(fan, 5).result(timeout=10) == 15
        before = set(wait_for_members(client, 2))
        # The nanny of one that dies starts another, which takes owned tasks as well.
        os.kill(pid_of(client, min(before)), signal.SIGKILL)
        until(lambda: set(client.owner.core.placement.workers) - before, 20)
        [new] = set(client.owner.core.placement.workers) - before
        assert client.submit(inc, 5, workers=new).result(timeout=20) == 6


def test_first_client_installs_the_plugins(commands: Commands) -> None:
    """With nothing on the command lines, and at workers that come later."""
    commands.start("scheduler")
    commands.start("worker", "--nthreads", "1", "--no-nanny")
    with Client(scheduler_file=commands.file, set_as_default=False, timeout=20) as client:
        assert client.gather(client.map(inc, range(50))) == list(range(1, 51))
        commands.start("worker", "--nthreads", "1", "--no-nanny", "--name", "late")
        until(lambda: len(client.owner.core.placement.workers) == 2, 20)
        assert client.submit(fan, 5, workers="late").result(timeout=10) == 15
        with distributed.Client(client.scheduler.address, set_as_default=False) as stock:
            assert stock.submit(inc, 1).result(timeout=10) == 2


# ---- what makes clusters, or clients of them, for others ----


def test_client_that_the_cluster_makes() -> None:
    with LocalCluster(**SMALL, processes=False) as cluster, cluster.get_client() as client:
        assert type(client) is Client
        assert client.submit(inc, 1).result() == 2
        assert cluster.get_client() is client
        assert distributed.default_client() is client


def test_stock_cluster_gives_the_client_that_is_current() -> None:
    with distributed.LocalCluster(**SMALL, processes=False) as cluster:
        with Client(cluster) as client:
            assert cluster.get_client() is client
        with cluster.get_client() as stock:
            assert type(stock) is distributed.Client


def test_asynchronous_cluster_and_its_client() -> None:
    async def main() -> None:
        async with (
            LocalCluster(**SMALL, processes=False, asynchronous=True) as cluster,
            cluster.get_client() as client,
        ):
            assert await client.submit(inc, 1) == 2

    asyncio.run(main())


LAB = {
    "labextension": {
        "factory": {
            "module": "dask_ownership",
            "class": "LocalCluster",
            "args": [],
            "kwargs": {**SMALL, "processes": False},
        }
    }
}
"""As in docs/deploying.md; the rest is that of a small cluster."""


def test_setting_of_the_jupyterlab_extension() -> None:
    """It makes clusters of a class that a setting names, in its own event loop."""

    async def main() -> None:
        with dask.config.set(LAB):
            factory = dask.config.get("labextension.factory")
        module = importlib.import_module(factory["module"])
        kind = getattr(module, factory["class"])
        cluster = await kind(*factory["args"], **factory["kwargs"], asynchronous=True)
        try:
            assert cluster.dashboard_link
            await cluster.scale(2)
            async with asyncio.timeout(10):
                await cluster
                while len(cluster.scheduler_info["workers"]) != 2:  # it hears of them later
                    await asyncio.sleep(0.01)
            # What it writes into a notebook is the address, for a client of the user's.
            address = cluster.scheduler_address
            async with Client(address, asynchronous=True) as client:
                assert await client.gather(client.map(inc, range(5))) == [1, 2, 3, 4, 5]
        finally:
            await cluster.close()

    asyncio.run(main())
