"""That every wait ends while a simulated program runs, not only when all is over.

A wait that ends by a timer which is there for something else is a hang on a real cluster, where
that timer may be half a minute or none: so the time that a row is without an outcome is bounded.
Counted is only time in which the cluster could do something for it: not while a process is
stopped or cut off, nor while no worker has a slot free.
"""

from __future__ import annotations

from collections.abc import Mapping

from dask_ownership.core.owner.rows.attempts import ALONE
from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.protocol.states import PUSHED, WAITING
from dask_ownership.testing.invariants import rows_of
from dask_ownership.testing.network import Network
from dask_ownership.testing.pipe import WorkerProcess
from dask_ownership.testing.scheduler import VirtualScheduler

EVERY = 20_000.0
"""Virtual microseconds between looks."""


class Waits:
    """Watches the rows of all processes.

    Parameters
    ----------
    network : Network
    scheduler : VirtualScheduler
        Knows whose rows there are.
    workers : mapping of str to WorkerProcess
        Those that live, by address.
    limit : float
        Virtual microseconds for which a row may wait: much more than its programs' tasks take.

    Attributes
    ----------
    longest : float
        The longest wait so far, in virtual microseconds.
    """

    def __init__(
        self,
        network: Network,
        scheduler: VirtualScheduler,
        workers: Mapping[str, WorkerProcess],
        limit: float,
    ) -> None:
        self.network = network
        self.scheduler = scheduler
        self.workers = workers
        self.limit = limit
        self.longest = 0.0
        self._clock = 0.0
        self._next = EVERY
        self._since: dict[Row, float] = {}

    def passed(self, microseconds: float) -> None:
        """Some time passed in which nothing happened.

        Raises
        ------
        AssertionError
            A row has waited for too long.
        """
        if microseconds <= 0.0 or self._excused():
            return
        self._clock += microseconds
        if self._clock >= self._next:
            self._next = self._clock + EVERY
            self._look()

    def _excused(self) -> bool:
        """Whether what waits may have to wait now."""
        if self.network.is_parted or any(owner.frozen for owner in self.scheduler.owners):
            return True
        return not any(
            worker.core.queue.accepting
            and worker.core.queue.busy < worker.slots
            and not _set_aside(worker)
            for worker in self.workers.values()
        )

    def _look(self) -> None:
        before, self._since = self._since, {}
        for owner in self.scheduler.owners:
            for row in rows_of(owner.core):
                if WAITING <= row.state <= PUSHED:
                    since = self._since[row] = before.get(row, self._clock)
                    waited = self._clock - since
                    self.longest = max(self.longest, waited)
                    assert waited <= self.limit, (
                        f"{row} of {owner.name} waited for {waited / 1e6} s"
                    )


def _set_aside(worker: WorkerProcess) -> bool:
    """Whether a worker is for one task alone for a long time, under which several have died."""
    suspect = worker.core.queue.exclusion.alone
    options = suspect.options if suspect is not None else None
    return options is not None and options["alone"] > ALONE
