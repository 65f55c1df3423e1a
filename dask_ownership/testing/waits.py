"""A bound for the waits of rows while a simulated program runs, not only at its end.

In a run any wait may end by an unrelated timer. On a real cluster such a timer may take half a
minute, or not be there, and the wait is a hang. So the time that a row is without an outcome is
bounded. Only time in which the cluster could help the row counts: not while a process is stopped or
cut off, nor while no worker has a free slot.
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
    """Watches how long the rows of all processes wait.

    Parameters
    ----------
    network : Network
    scheduler : VirtualScheduler
        Knows the owners of the rows.
    workers : mapping of str to WorkerProcess
        The living workers, by address.
    limit : float
        Virtual microseconds for which a row may wait: much more than the tasks of a program take.

    Attributes
    ----------
    network : Network
    scheduler : VirtualScheduler
    workers : mapping of str to WorkerProcess
    limit : float
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
        """Count time between two events, and look at the rows now and then.

        Raises
        ------
        AssertionError
            When a row has waited for too long.
        """
        if microseconds <= 0.0 or self._excused():
            return
        self._clock += microseconds
        if self._clock >= self._next:
            self._next = self._clock + EVERY
            self._look()

    def _excused(self) -> bool:
        """Return whether rows may have to wait now, so that this time does not count."""
        if self.network.is_parted or any(owner.frozen for owner in self.scheduler.owners):
            return True
        # Without a free slot rows wait for tasks, which end by themselves.
        return not any(
            worker.core.queue.accepting
            and worker.core.queue.busy < worker.slots
            and not worker.core.queue.crowd.full  # one more task begins a second later
            and not _set_aside(worker)
            for worker in self.workers.values()
        )

    def _look(self) -> None:
        """Check since when each row without an outcome waits."""
        # Made anew by each look, so that rows with an outcome are left out.
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
    """Return whether a worker is reserved for a suspect under which several workers have died.

    Such a suspect may run alone for longer than other tasks may wait.
    """
    suspect = worker.core.queue.exclusion.alone
    options = suspect.options if suspect is not None else None
    return options is not None and options["alone"] > ALONE
