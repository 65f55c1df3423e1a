"""The end of tasks: their owners hear the outcome, and their slots become free."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from time import time
from typing import Any

from dask_ownership.core.executor import session as ex
from dask_ownership.core.executor.executor import ExecutorCore
from dask_ownership.core.executor.session import Entry
from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol.names import NAME
from dask_ownership.errors import TaskTimeout
from dask_ownership.runtime.executor.flushing import Flushing
from dask_ownership.runtime.executor.timeouts import Timeouts
from dask_ownership.runtime.owner.owner import Owner
from dask_ownership.runtime.serialize import dumps_error
from dask_ownership.runtime.task import Outcome

FAILURES = 20
"""How many failed tasks are remembered with their errors."""


class Endings:
    """Takes the outcomes of the tasks of one worker.

    Parameters
    ----------
    worker : distributed.Worker
    core : dask_ownership.core.executor.executor.ExecutorCore
    lock : threading.Lock
        Covers the core.
    owner : Owner
        The owner in this process, which borrows the futures in arguments of tasks.
    flushing : Flushing
        Has the loop send answers.
    provide : callable
        Leases slots and has waiting tasks start. Loop thread.

    Attributes
    ----------
    timeouts : Timeouts
        The timers of tasks with a ``timeout``.
    counts : dict of str to int
        How many tasks ran, were coroutines, failed, and were given back.
    failures : deque of tuple
        Number, key, time, pickled error, name of the owner and attempt of each of the last tasks
        that failed.
    """

    def __init__(
        self,
        worker: Any,
        core: ExecutorCore,
        lock: threading.Lock,
        owner: Owner,
        flushing: Flushing,
        provide: Callable[[], None],
    ) -> None:
        self.timeouts = Timeouts(worker.loop.asyncio_loop, self._expired)
        self.counts = {"run": 0, "coroutines": 0, "failed": 0, "returned": 0}
        self.failures: deque[tuple[int, Any, float, bytes, str, int]] = deque(maxlen=FAILURES)
        self._worker = worker
        self._core = core
        self._lock = lock
        self._owner = owner
        self._flushing = flushing
        self._provide = provide

    def ended(self, entry: Entry, outcome: Outcome, parked: bool) -> None:
        """Take in the outcome of a task, and free its slot. The lock is held.

        The slot is free at once, also when the answer to the owner has to wait.
        """
        queue = self._core.queue
        self.counts["run"] += 1
        if entry.options is not None and "timeout" in entry.options:
            self.timeouts.stop(entry)
        entry.contains = outcome.contains
        reason, _keys = outcome.gave_back or (None, ())
        ran = reason in (None, m.RESCHEDULED)
        if (entry.arrived is not None or entry.exported) and ran:
            # With the answer the owner lets go of the futures in the arguments: so this process
            # has to be counted for them first. The owner also forgets how to run the task then,
            # unless it has heard before to keep the task for its children.
            rows, entry.arrived = entry.arrived or (), None
            owner = self._owner
            owner.call(
                owner.core.borrowing.when_acknowledged, rows, lambda: self._report(entry, outcome)
            )
        else:
            self._tell(entry, outcome)
        if parked:
            queue.ended_parked(entry)
        else:
            queue.released_slot()
        if not self._flushing.scheduled:
            self._flushing.soon()

    def _report(self, entry: Entry, outcome: Outcome) -> None:
        """Tell the outcome once the task's owner keeps it for its children. Loop thread."""
        if entry.exported:
            # RETAIN_PARENT leaves before the answer. An owner at another worker gets the two by
            # different links: so the answer waits until that owner has acknowledged.
            self._owner.post_now()
            self._owner.core.retention.when_retained(
                entry.session.owner, entry.task, lambda: self._say(entry, outcome)
            )
        else:
            self._say(entry, outcome)

    def _say(self, entry: Entry, outcome: Outcome) -> None:
        """Tell the outcome of a task outside `ended`. Loop thread."""
        with self._lock:
            self._tell(entry, outcome)
        # The value of the task may be what other tasks here were blocked on.
        self._provide()
        self._flushing.soon()

    def _tell(self, entry: Entry, outcome: Outcome) -> None:
        """Put the answer for the owner of a task into the outbox. The lock is held."""
        if outcome.gave_back is not None:
            self.counts["returned"] += 1
            self._core.lifecycle.could_not_start(entry, *outcome.gave_back)
        elif outcome.state == ex.GONE:
            if outcome.message[m.KIND] == m.FAILED:
                self.counts["failed"] += 1
                _, _, _, error, *_ = outcome.message
                number = self.counts["failed"]
                who = entry.session.process[NAME]
                self.failures.append((number, entry.key, time(), error, who, entry.attempt))
            self._core.lifecycle.failed(entry, outcome.message)
        else:
            self._core.lifecycle.succeeded(entry, outcome.message, outcome.state, outcome.value)

    def _expired(self, entry: Entry) -> None:
        """Fail a task whose ``timeout`` is over, while its function still runs. Loop thread."""
        address = self._worker.address
        seconds = entry.options["timeout"] if entry.options else 0.0
        # Raised and caught, because the pickle of an error is made where the error is handled.
        try:
            raise TaskTimeout(entry.key, address, seconds)
        except TaskTimeout as error:
            where = f"worker {address} (attempt {entry.ordinal})"
            pickled = dumps_error(error, entry.key, where)
        with self._lock:
            message = (m.FAILED, entry.key, entry.attempt, pickled, seconds * 1e6)
            self._core.lifecycle.expired(entry, message)
        self._flushing.soon()
