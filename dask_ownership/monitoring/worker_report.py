"""What a worker reports to the scheduler while the cluster is watched.

The receiver is `dask_ownership.monitoring.feed`.
"""

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
"""Folder of the code that runs tasks."""


class WorkerReporter:
    """Answers the scheduler's questions about one worker.

    Parameters
    ----------
    worker : distributed.Worker
    server : Server
        Of the executor whose tasks are reported.
    notes : Notes

    Attributes
    ----------
    worker, notes
        The parameters.
    executor : Executor
        The executor of the server.
    owner_reporter : Reporter
        Reports on the owner in this process.
    """

    def __init__(self, worker: Any, server: Server, notes: Notes) -> None:
        self.worker = worker
        self.executor = server.executor
        self.owner_reporter = Reporter(self.executor.owner)
        self.notes = notes
        self._server = server

    def start(self) -> None:
        """Let the scheduler ask."""
        self.worker.handlers[REPORT] = self._server.scheduler_operation(self.report)

    def close(self) -> None:
        """Answer no more questions, and stop reporting."""
        self.worker.handlers.pop(REPORT, None)
        self.owner_reporter.close()

    def report(
        self,
        watch: bool = False,
        note: bool = False,
        again: bool = False,
        gap: float = 0.0,
        failed: int = 0,
    ) -> Any:
        """Handle `REPORT`: return what the worker and its owner do.

        Parameters
        ----------
        watch : bool
            Whether the cluster is watched.
        note : bool
            Whether to note tasks for the task stream from now on.
        again : bool
            Whether to send a full report, because the scheduler has none of this worker.
        gap : float
            Seconds between two noted tasks, on average, at least.
        failed : int
            Number of the last failure that the scheduler was told of.

        Returns
        -------
        dict
            ``delay`` (between the clocks), ``notes``; while the cluster is watched also
            ``executor`` (counts), ``owner`` (a report or None), ``tallies``, and ``failures`` since
            ``failed``.
        """
        answer: dict[str, Any] = {
            "delay": self.worker.scheduler_delay,
            "notes": self.notes.take(watch, note, gap),
        }
        # This also forgets the last report, so that the next one is full.
        if watch != self.owner_reporter.watching or again:
            self.owner_reporter.watch(watch)
        if watch:
            answer["executor"] = self._counted()
            answer["owner"] = self.owner_reporter.report()
            answer["tallies"] = self.notes.tallied()
            answer["failures"] = [
                described_failure(*failure)
                for failure in list(self.executor.endings.failures)
                if failure[0] > failed
            ]
        return answer

    def _counted(self) -> dict[str, Any]:
        """Return the counts of the executor."""
        executor = self.executor
        core = executor.core
        store = executor.store
        counts = executor.endings.counts
        return {
            "threads": core.queue.nthreads,
            "running": core.queue.busy,
            "queued": core.queue.queued,
            "parked": len(core.queue.crowd),
            "lingering": len(core.lifecycle.lingering),
            "accepting": core.queue.accepting,
            # Each ended attempt is in "run", also a failed attempt and a returned task.
            "done": counts["run"] - counts["failed"] - counts["returned"],
            "failed": counts["failed"],
            "returned": counts["returned"],
            "stored": {
                "objects": len(store.sizes),
                "nbytes": store.nbytes,
                "shared": sum(store.sizes.get(name, 0) for name in list(core.lifecycle.shared)),
                "spilled": store.spilled,
            },
            "received": {peer: list(sums) for peer, sums in executor.fetcher.received.items()},
            "losses": dict(self.owner_reporter.owner.core.losses),
        }


def described_failure(
    number: int, key: Any, when: float, pickled: bytes, owner: str, attempt: int
) -> list[Any]:
    """Return a failed task as plain values.

    These are number, key, time, exception (text), traceback (text), owner and attempt.
    """
    _, traceback, text = pickle.loads(pickled)
    lines: list[str] = []
    try:
        lines = format_tb(loads(traceback)) if traceback else []
    except Exception as error:
        logger.debug("a traceback of %r could not be shown: %r", key, error)
    while lines and RUNTIME in lines[0]:
        del lines[0]  # frames of this package, which called the task
    # The text of a pickled error begins with the key and the place of the task.
    exception = text.partition(" raised ")[2]
    text = "".join(lines)[-10_000:]
    return [number, str(key), when, exception[:10_000], text, owner, attempt]
