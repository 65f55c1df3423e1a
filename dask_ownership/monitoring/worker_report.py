"""What a worker tells the scheduler while somebody looks, see `dask_ownership.monitoring.feed`."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from traceback import format_tb
from typing import Any

from distributed.protocol.pickle import loads

from dask_ownership.monitoring.owner_report import Reporter
from dask_ownership.monitoring.task_stream import Notes
from dask_ownership.runtime import task
from dask_ownership.runtime.comm.scheduler_ops import REPORT
from dask_ownership.runtime.executor.server import Server

logger = logging.getLogger("dask_ownership.worker")

RUNTIME = str(Path(task.__file__).parent)
"""Where the code that runs tasks is."""


class WorkerActivity:
    """Tells what one worker does.

    Parameters
    ----------
    worker : distributed.Worker
    server : Server
        Of the executor that it tells of.
    notes : Notes
    """

    def __init__(self, worker: Any, server: Server, notes: Notes) -> None:
        self.worker = worker
        self.executor = server.executor
        self.reporter = Reporter(self.executor.owner)
        self.notes = notes
        self._server = server

    def start(self) -> None:
        """Let the scheduler ask."""
        self.worker.handlers[REPORT] = self._server.scheduler_operation(self.report)

    def close(self) -> None:
        self.worker.handlers.pop(REPORT, None)
        self.reporter.close()

    def report(
        self,
        watch: bool = False,
        note: bool = False,
        again: bool = False,
        gap: float = 0.0,
        failed: int = 0,
    ) -> Any:
        """Handler of `REPORT`.

        Parameters
        ----------
        watch : bool
            Whether somebody looks.
        note : bool
            Whether to note what runs from now on.
        again : bool
            Whether what did not change is to be told once more.
        gap : float
            Seconds between two tasks that are noted, on average, at least.
        failed : int
            Number of the last failure that was told.
        """
        answer: dict[str, Any] = {
            "delay": self.worker.scheduler_delay,
            "notes": self.notes.take(watch, note, gap),
        }
        if watch != self.reporter.watching or again:
            self.reporter.watch(watch)
        if watch:
            answer["executor"] = self._counted()
            answer["owner"] = self.reporter.report()
            answer["tallies"] = self.notes.tallied()
            answer["failures"] = [
                described_failure(*failure)
                for failure in list(self.executor.endings.failures)
                if failure[0] > failed
            ]
        return answer

    def _counted(self) -> dict[str, Any]:
        """What the executor counts."""
        executor = self.executor
        core = executor.core
        store = executor.store
        counts = executor.endings.counts
        return {
            "threads": core.queue.nthreads,
            "running": core.queue.busy,
            "queued": core.queue.queued,
            "parked": len(core.queue.crowd),
            "accepting": core.queue.accepting,
            "done": counts["run"] - counts["failed"] - counts["returned"],
            "failed": counts["failed"],
            "returned": counts["returned"],
            "stored": {
                "objects": len(store.sizes),
                "nbytes": store.nbytes,
                "shared": sum(store.sizes.get(name, 0) for name in list(core.shared)),
                "spilled": store.spilled,
            },
            "received": {peer: list(sums) for peer, sums in executor.fetcher.received.items()},
            "losses": dict(self.reporter.owner.core.losses),
        }


def described_failure(number: int, key: Any, when: float, pickled: bytes) -> list[Any]:
    """Number, key, time, exception and traceback of a task that failed, as texts."""
    _, traceback, text = pickle.loads(pickled)
    lines: list[str] = []
    try:
        lines = format_tb(loads(traceback)) if traceback else []
    except Exception as error:
        logger.debug("a traceback of %r could not be shown: %r", key, error)
    while lines and RUNTIME in lines[0]:
        del lines[0]  # what called the task
    exception = text.partition(" raised ")[2]
    return [number, str(key), when, exception[:10_000], "".join(lines)[-10_000:]]
