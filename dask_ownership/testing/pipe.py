"""A link of the virtual cluster, and the interfaces of the processes at its two ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dask_ownership.core.executor.executor import ExecutorCore
from dask_ownership.core.executor.session import Session
from dask_ownership.core.owner.membership import Asked
from dask_ownership.core.owner.rows.worker_view import WorkerView
from dask_ownership.core.protocol.heartbeat import Heartbeat
from dask_ownership.core.protocol.stream import NumberedStream
from dask_ownership.testing.store import Store
from dask_ownership.testing.travel import FutureOwner


class OwnerProcess(FutureOwner, Protocol):
    """An owner as the network, the scheduler and the observer of a virtual cluster see it."""

    name: str
    home: str | None

    @property
    def alive(self) -> bool: ...

    @property
    def frozen(self) -> bool: ...

    def later(self, delay: float, call: Callable[[], None]) -> None: ...

    def when_awake(self, call: Callable[[], None]) -> None: ...

    def occupy(self, microseconds: float) -> float: ...

    def catch_up(self) -> None: ...

    def meet(self, worker: WorkerProcess) -> None: ...

    def answered(
        self, asked: Asked, workers: Sequence[WorkerProcess], clients: Sequence[str]
    ) -> None: ...

    def hears_of_death(self, address: str, incarnation: str) -> None: ...

    def hears_of_client(self, incarnation: str) -> None: ...


class WorkerProcess(Protocol):
    """A worker as the network, the scheduler and owners of a virtual cluster see it."""

    address: str
    slots: int
    core: ExecutorCore
    leaving: bool
    store: Store

    @property
    def owner(self) -> OwnerProcess: ...

    @property
    def alive(self) -> bool: ...

    @property
    def frozen(self) -> bool: ...

    def wants_step(self) -> None: ...

    def later(self, delay: float, call: Callable[[], None]) -> None: ...

    def accept_link(self, pipe: Pipe) -> None: ...

    def lose_link(self, owner: str) -> None: ...

    def orphan(self, owner: str) -> None: ...


@dataclass(eq=False)
class Pipe:
    """One link: an owner's end and an executor's end.

    Attributes
    ----------
    owner, worker : OwnerProcess, WorkerProcess
        The two processes.
    view : WorkerView
        The worker as the owner sees it.
    session : Session
        The session of the owner at the worker.
    there, here : NumberedStream
        The stream of the executor's end, and that of the owner's end.
    heartbeat : Heartbeat
        Signs of life of the worker, as the owner counts them.
    heard : bool
        Whether a batch of the worker has arrived since the owner looked last.
    epoch : int
        Number of the connection: batches of an earlier one are dropped.
    breaks : int
        How often the connection broke since a batch arrived last.
    to_worker_at, to_owner_at : float
        Times at which the last batches of each direction arrive: later ones arrive after those.
    """

    owner: OwnerProcess
    view: WorkerView
    worker: WorkerProcess
    session: Session
    there: NumberedStream = field(default_factory=NumberedStream)
    here: NumberedStream = field(default_factory=NumberedStream)
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    heard: bool = False
    epoch: int = 0
    breaks: int = 0
    to_worker_at: float = 0.0
    to_owner_at: float = 0.0
