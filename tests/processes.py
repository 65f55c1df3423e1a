"""A cluster as the command line starts it: a process for the scheduler and one for each worker."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from live import until

from dask_ownership import Client


class Cluster:
    """``dask scheduler`` and two ``dask worker`` processes."""

    def __init__(self, directory: Path) -> None:
        self.file = str(directory / "scheduler.json")
        self.directory = directory
        self.started: list[subprocess.Popen[bytes]] = []
        common = ["--scheduler-file", self.file]
        self.start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", *common)
        for _ in range(2):
            self.start_worker()

    @property
    def scheduler(self) -> subprocess.Popen[bytes]:
        return self.started[0]

    def start(self, *words: str, stderr: Any = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "dask", *words],
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            cwd=self.directory,
        )
        self.started.append(process)
        return process

    def start_worker(self, *options: str, **more: Any) -> subprocess.Popen[bytes]:
        """A worker of two threads, which has the process for itself: there is no nanny."""
        common = ("--scheduler-file", self.file, "--no-nanny", "--no-dashboard")
        return self.start("worker", "--nthreads", "2", *common, *options, **more)

    def connect(self, **options: Any) -> Client:
        until(lambda: os.path.exists(self.file), 20)
        client = Client(scheduler_file=self.file, timeout=20, **options)
        until(lambda: len(client.owner.core.placement.workers) == 2, 20, "two workers")
        return client

    def end(self) -> None:
        for process in self.started:
            process.kill()
        for process in self.started:
            process.wait()
