"""What an owner knows of one worker."""

from __future__ import annotations

from typing import Any

from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol.byte_counter import ByteCounter
from dask_ownership.core.protocol.messages import Key, Message

WINDOW = 10_000.0
"""Microseconds of queued work per slot."""


class WorkerView:
    """What an owner knows of one worker.

    Attributes
    ----------
    address : str
        Where it is.
    incarnation : str
        Names it: one that is restarted may have the same address. The address when none is
        given.
    pushed : dict
        Key to row, oldest first: what it was given and has not answered.
    active : int
        How many of those do not wait for others.
    load : float
        Microseconds of its window that are taken.
    low : int
        Order of the least urgent with a priority below the usual that it was pushed since it
        had nothing to do; 0 when there was none.
    outbox : list
        Messages to it that have not left yet.
    functions : set of int
        Functions it was sent.
    copies : dict
        Key to the attempt number with which it was given a copy of that value.
    heard : float
        When it last answered or was given work after being idle, microseconds.
    recalled : bool
        A recall is under way.
    reserved : bool
        Nothing more is pushed to it: its next free slot is for a task that runs at most once.
    alone : Row or None
        The suspect that runs there alone, see `executor.exclusion`.
    leaving : bool
        It is about to leave; what it has is moved.
    arrived : set
        Keys among ``copies`` of values that are there for certain.
    given : int
        Bytes of values that were copied there for safety.
    handed : int
        How many tasks it was given since it joined.
    suspended : bool
        It does not answer, see `scheduling.suspension`; ``would_accept`` is what it said before.
    traffic : ByteCounter
        Bytes to and from it.
    """

    __slots__ = (
        "accepting",
        "active",
        "address",
        "alive",
        "alone",
        "arrived",
        "copies",
        "functions",
        "given",
        "handed",
        "heard",
        "host",
        "incarnation",
        "leaving",
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
        "traffic",
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
        self.link: Any = None
        self.traffic = ByteCounter()

    def __repr__(self) -> str:
        return f"<WorkerView {self.address} pushed={len(self.pushed)} load={self.load:.0f}us>"

    @property
    def idle(self) -> bool:
        """Whether a slot of it has nothing to do, as far as this owner knows."""
        return self.accepting and not self.reserved and self.active < self.nthreads

    @property
    def open(self) -> bool:
        """Whether it wants more."""
        return (
            self.accepting
            and not self.reserved
            and (self.load < WINDOW * self.nthreads or self.active < self.nthreads)
        )

    def ended(self, row: Row) -> None:
        """An attempt has ended at the worker: stop counting it there."""
        del self.pushed[row.key]
        if row.estimate:
            self.active -= 1
            self.load -= row.estimate
        if not self.pushed:
            self.load = 0.0
        if self.alone is row:
            self.alone = None

    def take_back(self, row: Row) -> None:
        """Tell the worker to drop an attempt, and stop counting it there."""
        if row.key in self.pushed:
            self.ended(row)
            self.outbox.append((m.CANCEL, row.key, row.attempt))
        elif self.alone is row:
            self.alone = None

    def free(self, key: Key, number: int) -> None:
        """Tell the worker to drop its copy of a value, unless it gets another with a number
        above this."""
        self.copies.pop(key, None)
        self.arrived.discard(key)
        self.outbox.append((m.FREE, (key,), number))

    def answers_to(self, name: str) -> bool:
        """Whether ``workers=name`` means this one: its address, name or host."""
        return (
            name == self.address
            or name == str(self.name)
            or name == self.host
            or name == self.address.partition("://")[2]
        )
