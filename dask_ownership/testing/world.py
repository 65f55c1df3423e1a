"""The parts of a virtual cluster that all of its processes share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from dask_ownership.testing.clock import Clock
from dask_ownership.testing.locks import Locks
from dask_ownership.testing.network import Network
from dask_ownership.testing.observer import Observer
from dask_ownership.testing.pipe import WorkerProcess
from dask_ownership.testing.record import Record
from dask_ownership.testing.scheduler import VirtualScheduler


@dataclass(frozen=True)
class World:
    """The surroundings of the processes of a virtual cluster.

    Attributes
    ----------
    clock : Clock
    random : Random
        The one source of chance, so that a seed gives the whole run.
    network : Network
    scheduler : VirtualScheduler
    observer : Observer
    record : Record
    locks : Locks
        The locks of the cluster, as ``distributed.Lock``.
    workers : mapping of str to WorkerProcess
        The living workers, by address.
    replace : callable
        ``replace(address)`` kills a worker, and adds another one.
    no_workers_timeout : float or None
        Virtual microseconds between looks for infeasible tasks; the second look ends a task.
    """

    clock: Clock
    random: Random
    network: Network
    scheduler: VirtualScheduler
    observer: Observer
    record: Record
    locks: Locks
    workers: Mapping[str, WorkerProcess]
    replace: Callable[[str], None]
    no_workers_timeout: float | None
