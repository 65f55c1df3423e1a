"""What all processes of a virtual cluster share."""

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
    """What the processes of a virtual cluster meet outside of themselves.

    Attributes
    ----------
    locks : Locks
        Those of the cluster, as ``distributed.Lock``.
    workers : mapping of str to WorkerProcess
        Those that live, by address.
    replace : callable
        ``replace(address)``: a worker dies, and another one comes.
    no_workers_timeout : float or None
        Virtual microseconds between looks for tasks that no worker may run; the second ends them.
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
