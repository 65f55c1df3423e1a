"""Reports of workers at the scheduler: how it asks for them, and the newest of each worker."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from time import time
from typing import Any

from dask_ownership.monitoring.dask_pages import StockPages
from dask_ownership.monitoring.failed_tasks import FailedTasks
from dask_ownership.monitoring.rounds import WINDOW, rate
from dask_ownership.runtime.comm.scheduler_ops import REPORT

logger = logging.getLogger("dask_ownership.scheduler")

ASKED = 3.0
"""Seconds for which a worker may take to answer."""


class WorkerReports:
    """Asks workers for reports, and keeps the newest report of each worker.

    Parameters
    ----------
    scheduler : distributed.Scheduler
    token : str
        Proves to workers that the scheduler is asking.
    stock_pages : StockPages
        Gets the times of tasks and the failed tasks.
    failed_tasks : FailedTasks
        Gets the failed tasks.

    Attributes
    ----------
    last : dict
        Address of each worker to the counts of its executor.
    """

    def __init__(
        self, scheduler: Any, token: str, stock_pages: StockPages, failed_tasks: FailedTasks
    ) -> None:
        self.last: dict[str, dict[str, Any]] = {}
        self._scheduler = scheduler
        self._token = token
        self._stock_pages = stock_pages
        self._failed_tasks = failed_tasks
        self._done: dict[str, deque[tuple[float, int]]] = {}
        self._failed: dict[str, int] = {}

    async def ask(self, worker: str, watch: bool, note: bool, gap: float) -> Any:
        """Return the answer of one worker, or None if the worker does not answer.

        ``watch`` asks for counts and the owner's report, ``note`` for the tasks that ran; for
        ``gap`` see `task_stream.TaskStream.gap`.
        """
        try:
            asked = getattr(self._scheduler.rpc(worker), REPORT)(
                watch=watch,
                note=note,
                # A worker reports changes only. A scheduler that has no report yet needs all.
                again=watch and worker not in self.last,
                gap=gap,
                failed=self._failed.get(worker, 0),
                token=self._token,
            )
            # A frozen worker must not hold up the round.
            return await asyncio.wait_for(asked, ASKED)
        except Exception as error:
            logger.debug("what %s does is not known: %r", worker, error)
            return None

    def take_in(self, address: str, answer: dict[str, Any]) -> None:
        """Keep the answer of a worker."""
        self.last[address] = answer["executor"]
        self._stock_pages.ran(address, answer["tallies"])
        if answer["failures"]:
            self._stock_pages.failed(address, answer["failures"])
            self._failed_tasks.took(address, answer["failures"])
            self._failed[address] = answer["failures"][-1][0]
        done = self._done.setdefault(address, deque(maxlen=WINDOW))
        done.append((time(), answer["executor"]["done"]))

    def gone(self, address: str) -> None:
        """Forget a worker that left the cluster."""
        self.last.pop(address, None)
        self._done.pop(address, None)
        self._failed.pop(address, None)

    def told(self) -> list[dict[str, Any]]:
        """Return all present workers in the form that `feed.Feed.activity` documents."""
        # Workers count the bytes they receive. The bytes that a worker sent are the sum of what all
        # other workers received from it.
        sent: dict[str, Counter[str]] = {}
        for address, counted in self.last.items():
            for peer, (nbytes, _, _) in counted["received"].items():
                sent.setdefault(peer, Counter())[address] += nbytes
        return [
            {
                **counted,
                "address": address,
                "name": str(self._scheduler.workers[address].name),
                "rate": rate(self._done.get(address, ())),
                "received": {peer: sums[0] for peer, sums in counted["received"].items()},
                "sent": dict(sent.get(address, {})),
            }
            for address, counted in self.last.items()
            if address in self._scheduler.workers
        ]
