"""A link of the virtual cluster, and what its two ends show of themselves to the other parts."""

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
    """What is told to an owner, and asked of it, by the rest of the virtual cluster."""

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
    """What is told to a worker, and asked of it, by the rest of the virtual cluster."""

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
    """One link: an owner's end and an executor's end."""

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
