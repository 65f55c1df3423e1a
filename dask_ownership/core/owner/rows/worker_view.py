"""Views of workers: what an owner knows of each worker."""

from __future__ import annotations

from typing import Any

from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol.byte_counter import ByteCounter
from dask_ownership.core.protocol.messages import Key, Message

WINDOW = 10_000.0
"""Microseconds of queued work per slot."""


class WorkerView:
    """What one owner knows of one worker.

    All that placement reads of a worker is in one object: hence the many attributes.

    Attributes
    ----------
    address : str
        Where the worker is found.
    incarnation : str
        Names the worker: a restarted worker may have the same address. The address when no
        incarnation is given.
    nthreads : int
        Number of the worker's slots.
    name : object
        Name that the worker has in Dask.
    host : str
        Host of the worker, as ``workers=`` may name it.
    resources : dict of str to float
        Amounts of the worker's abstract resources.
    accepting : bool
        The worker takes new tasks.
    alive : bool
        The worker was not removed.
    leaving : bool
        The worker is about to leave; its values are moved.
    suspended : bool
        The worker does not answer, see `scheduling.suspension`.
    would_accept : bool
        While the worker is suspended: what ``accepting`` was before.
    reserved : bool
        Nothing more is pushed: the next free slot is for a task that runs at most once.
    alone : Row or None
        The suspect that has the worker for itself, see `executor.exclusion`.
    pushed : dict
        Key to row, oldest first: tasks that the worker was given and has not answered.
    active : int
        How many rows in ``pushed`` take room: parked tasks, and tasks behind them, do not.
    load : float
        Microseconds of the worker's window that are taken.
    low : int
        Order of the least urgent task with a priority below the usual that was pushed since the
        worker had nothing to do; 0 when there was none.
    outbox : list
        Messages to the worker that have not left yet.
    functions : set of int
        Functions that were sent to the worker.
    copies : dict
        Key of each value of which the worker was given a copy, or was told to fetch one, to an
        attempt number: answers about attempts with a lower number say nothing of the copy.
    arrived : set
        Keys among ``copies`` whose values are at the worker for certain.
    given : int
        Bytes of values that were copied to the worker for safety.
    handed : int
        How many tasks the worker was given since it joined.
    heard : float
        When the worker last answered, or was given work after having none, in microseconds.
    recalled : bool
        A recall is under way.
    lingering : dict
        Key and attempt of each cancelled task that keeps a slot, because its function goes on.
    link : object
        The runtime's link to the worker; None while there is none.
    byte_counter : ByteCounter
        Bytes to and from the worker.
    """

    __slots__ = (
        "accepting",
        "active",
        "address",
        "alive",
        "alone",
        "arrived",
        "byte_counter",
        "copies",
        "functions",
        "given",
        "handed",
        "heard",
        "host",
        "incarnation",
        "leaving",
        "lingering",
        "link",
        "load",
        "low",
        "name",
        "nthreads",
        "outbox",
        "pushed",
        "recalled",
        "reserved",
        "resources",
        "suspended",
        "would_accept",
    )

    def __init__(
        self,
        address: str,
        *,
        incarnation: str = "",
        nthreads: int = 1,
        name: Any = None,
        host: str = "",
        resources: dict[str, float] | None = None,
    ) -> None:
        self.address = address
        self.incarnation = incarnation or address
        self.nthreads = nthreads
        self.name = name
        self.host = host
        self.resources = resources or {}
        self.accepting = True
        self.alive = True
        self.leaving = False
        self.suspended = False
        self.would_accept = True
        self.reserved = False
        self.alone: Row | None = None
        self.arrived: set[Any] = set()
        self.given = 0
        self.handed = 0
        self.pushed: dict[Any, Row] = {}
        self.active = 0
        self.load = 0.0
        self.low = 0
        self.outbox: list[Message] = []
        self.functions: set[int] = set()
        self.copies: dict[Any, int] = {}
        self.heard = 0.0
        self.recalled = False
        self.lingering: dict[tuple[Key, int], None] = {}
        self.link: Any = None
        self.byte_counter = ByteCounter()

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
