"""Views of workers: what an owner knows of each worker."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol.byte_counter import ByteCounter
from dask_ownership.core.protocol.messages import Key, Message

WINDOW = 10_000.0
"""Microseconds of queued work per slot."""


@dataclass(slots=True, eq=False, repr=False)
class WorkerView:
    """What one owner knows of one worker.

    All that placement reads of a worker is in one object: hence the many attributes.
    """

    #: Where the worker is found.
    address: str
    _: KW_ONLY
    #: Names the worker: a restarted worker may have the same address. The address when no
    #: incarnation is given.
    incarnation: str = ""
    #: Number of the worker's slots.
    nthreads: int = 1
    #: Name that the worker has in Dask.
    name: Any = None
    #: Host of the worker, as ``workers=`` may name it.
    host: str = ""
    #: Amounts of the worker's abstract resources.
    resources: dict[str, float] = field(default_factory=dict)

    #: The worker takes new tasks.
    accepting: bool = field(default=True, init=False)
    #: The worker was not removed.
    alive: bool = field(default=True, init=False)
    #: The worker is about to leave; its values are moved.
    leaving: bool = field(default=False, init=False)
    #: The worker does not answer, see `scheduling.suspension`.
    suspended: bool = field(default=False, init=False)
    #: While the worker is suspended: what ``accepting`` was before.
    would_accept: bool = field(default=True, init=False)
    #: Nothing more is pushed: the next free slot is for a task that runs at most once.
    reserved: bool = field(default=False, init=False)
    #: The suspect that has the worker for itself, see `executor.exclusion`.
    alone: Row | None = field(default=None, init=False)
    #: Key to row, oldest first: tasks that the worker was given and has not answered.
    pushed: dict[Any, Row] = field(default_factory=dict, init=False)
    #: How many rows in ``pushed`` take room: parked tasks, and tasks behind them, do not.
    active: int = field(default=0, init=False)
    #: Microseconds of the worker's window that are taken.
    load: float = field(default=0.0, init=False)
    #: Order of the least urgent task with a priority below the usual that was pushed since the
    #: worker had nothing to do; 0 when there was none.
    low: int = field(default=0, init=False)
    #: Messages to the worker that have not left yet.
    outbox: list[Message] = field(default_factory=list, init=False)
    #: Functions that were sent to the worker.
    functions: set[int] = field(default_factory=set, init=False)
    #: By key: values that the worker was given, or was told to fetch. The number is that of the
    #: first attempt whose answer can tell of the copy: earlier answers are older than the copy.
    copies: dict[Any, int] = field(default_factory=dict, init=False)
    #: Keys among ``copies`` whose values are at the worker for certain.
    arrived: set[Any] = field(default_factory=set, init=False)
    #: Bytes of values that were copied to the worker for safety.
    given: int = field(default=0, init=False)
    #: How many tasks the worker was given since it joined.
    handed: int = field(default=0, init=False)
    #: When the worker last answered, or was given work after having none, in microseconds.
    heard: float = field(default=0.0, init=False)
    #: A recall is under way.
    recalled: bool = field(default=False, init=False)
    #: Key and attempt of each cancelled task that keeps a slot, because its function goes on.
    lingering: dict[tuple[Key, int], None] = field(default_factory=dict, init=False)
    #: The runtime's link to the worker; None while there is none.
    link: Any = field(default=None, init=False)
    #: Bytes to and from the worker.
    byte_counter: ByteCounter = field(default_factory=ByteCounter, init=False)

    def __post_init__(self) -> None:
        self.incarnation = self.incarnation or self.address

    def __repr__(self) -> str:
        return f"<WorkerView {self.address} pushed={len(self.pushed)} load={self.load:.0f}us>"

    @property
    def idle(self) -> bool:
        """Whether a slot of the worker has nothing to do, as far as this owner knows."""
        return self.accepting and not self.reserved and self.active < self.nthreads

    @property
    def open(self) -> bool:
        """Whether the worker wants more tasks: it has a free slot, or room in its window."""
        return (
            self.accepting
            and not self.reserved
            and (self.load < WINDOW * self.nthreads or self.active < self.nthreads)
        )

    def ended(self, row: Row) -> None:
        """Count an attempt at the worker no more, because it has ended."""
        del self.pushed[row.key]
        # A parked task took no room any more.
        if row.estimate:
            self.active -= 1
            self.load -= row.estimate
        if not self.pushed:
            self.load = 0.0  # or rounding errors would add up
        if self.alone is row:
            self.alone = None

    def take_back(self, row: Row) -> None:
        """Tell the worker to drop an attempt, and count the attempt there no more."""
        if row.key in self.pushed:
            self.ended(row)
            self.outbox.append((m.CANCEL, row.key, row.attempt))
        elif self.alone is row:
            self.alone = None

    def free(self, key: Key, number: int) -> None:
        """Tell the worker to drop its copy of a value.

        A copy that the worker gets with a number above ``number`` stays.
        """
        self.copies.pop(key, None)
        self.arrived.discard(key)
        self.outbox.append((m.FREE, (key,), number))

    def answers_to(self, name: str) -> bool:
        """Return whether ``workers=name`` means this worker: the address, name or host."""
        return (
            name == self.address
            or name == str(self.name)
            or name == self.host
            or name == self.address.partition("://")[2]
        )
