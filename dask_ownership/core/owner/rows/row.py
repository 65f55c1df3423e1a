"""A row: one object that this process owns or borrows, and the task that makes it.

A row is both, because a Dask task makes one object. Only the owner writes its rows (rule R1), and
there only `rows.lifecycle` their states and `rows.table` their counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from dask_ownership.core.owner.rows.options import NO_OPTIONS, Options
from dask_ownership.core.protocol.failure import Failure
from dask_ownership.core.protocol.messages import Key, Origin
from dask_ownership.core.protocol.states import INLINE, STATE_NAMES, WAITING

OVERHEAD = 600
"""Bytes that a row and its lineage take besides payload and value."""

HAS_BORROWERS = 1
"""A role, see `Row.roles`: other processes borrow it."""
BORROWED = 2
"""Another process owns it."""
TRACED = 4
"""It has, or is about to have, a lineage."""
EXPORTED = 8
"""A task submitted it, and its future may be in other processes."""
RETAINED = 16
"""It is kept for what it submitted."""
COPY = 32
"""It makes a copy of a value."""
DESIRED = 64
"""It is kept until it ends."""
REPLICATED = 256
"""Several copies of its value are kept."""
SOUGHT = 512
"""Children of it are sought."""
QUESTION = 1024
"""It stands for what is looked for."""
TRIED = 2048
"""Attempts of its task left something for the next."""


class Function:
    """A function as the owner knows it: how to send it and how long it takes.

    Attributes
    ----------
    id : int
        Names the pickled function on the wire, within one owner.
    pickled : bytes
    name : str
    duration : float
        Moving average of its running time in microseconds; negative while unknown.
    token : bytes or None
        Identifies it in keys of pure calls; None when it travels with its arguments.
    named : bool
        It is pickled as its name, which others can import.
    """

    __slots__ = ("__weakref__", "duration", "id", "name", "named", "pickled", "token")

    def __init__(self, id: int, pickled: bytes, name: str) -> None:
        self.id = id
        self.pickled = pickled
        self.name = name
        self.duration = -1.0
        self.token: bytes | None = None
        self.named = False


class Lineage:
    """The task that made a value, which can make it again.

    Attributes
    ----------
    function, payload, dependencies, contains, options
        As in `Row`.
    nbytes : int
        What keeping it costs: the pickled arguments.
    """

    __slots__ = ("contains", "dependencies", "function", "nbytes", "options", "payload")

    def __init__(self, row: Row, arguments: tuple[Row, ...]) -> None:
        assert row.function is not None
        self.options = row.options
        self.function = row.function
        self.payload = row.payload
        self.dependencies = row.dependencies
        self.contains = arguments
        self.nbytes = OVERHEAD + len(row.payload or b"")


@dataclass(slots=True, eq=False, repr=False)
class Row:
    """One owned object and the task that makes it."""

    #: Whether another process owns it.
    borrowed: ClassVar[bool] = False

    key: Key
    #: What the task calls, until there is a value.
    function: Function | None
    #: The pickled arguments, in which slots stand for the dependencies.
    payload: bytes | None
    #: What the slots stand for, in order.
    dependencies: tuple[Row, ...]
    #: OwnerRef among all rows of this owner, the user's priority included; lower first.
    order: int
    #: Shared with other rows, and not written to.
    options: Options = NO_OPTIONS

    #: One of `protocol.states`. Only `rows.lifecycle` writes it.
    state: int = field(default=WAITING, init=False)
    #: Number of the latest time that it was handed out; fences late answers.
    attempt: int = field(default=0, init=False)
    #: Rows whose futures are inside the payload or, once there is one, the value.
    contains: tuple[Row, ...] = field(default=(), init=False)
    #: Rows that wait for this one.
    dependents: list[Row] | None = field(default=None, init=False)
    #: How many dependencies have no value yet.
    waiting: int = field(default=0, init=False)
    #: Where it was pushed (a `WorkerView`); of an `INLINE` value, where it was made.
    worker: Any = field(default=None, init=False)
    #: Microseconds of that worker's window that it takes; once it has run, those that it took.
    estimate: float = field(default=0.0, init=False)
    #: Pickled value (`INLINE`), pickled error or `Failure` (`ERROR`), or why there is none.
    value: Any = field(default=None, init=False)
    #: Of the value.
    nbytes: int = field(default=0, init=False)
    #: Workers (`WorkerView`) that have a copy, the one that made it first.
    locations: tuple[Any, ...] = field(default=(), init=False)
    #: Pickled type of a stored value.
    type_name: bytes | None = field(default=None, init=False)
    #: How many futures in this process hold it, see `rows.table`.
    local_refs: int = field(default=1, init=False)
    #: How many rows that have not ended need it, and how many values contain it; all borrowers
    #: together are one.
    task_refs: int = field(default=0, init=False)
    #: How many lineages need it, and how many processes keep it for its children.
    lineage_refs: int = field(default=0, init=False)
    #: Tells it from other rows of this process that had its key, or will: a number that it gets
    #: when others hear of it, 0 until then.
    life: int = field(default=0, init=False)
    #: Who is told what becomes of it: some of the roles above, see `rows.lifecycle`.
    roles: int = field(default=0, init=False)
    #: How to make a stored value again.
    lineage: Lineage | None = field(default=None, init=False)
    #: Told when the state becomes final; belongs to the runtime.
    waiters: Any = field(default=None, init=False)

    @classmethod
    def with_value(cls, key: Key, value: bytes, options: Options = NO_OPTIONS) -> Row:
        """A row whose pickled value is known."""
        row = cls(key, None, None, (), 0, options)
        row.value = value
        row.nbytes = len(value)
        row.state = INLINE
        return row

    @classmethod
    def without_value(cls, key: Key, state: int, failure: Failure) -> Row:
        """A row, outside of the table, for what is not there: `CANCELLED` or `LOST`."""
        row = cls(key, None, None, (), 0)
        row.value = failure
        row.state = state
        return row

    def __repr__(self) -> str:
        return f"<Row {self.key!r} {STATE_NAMES[self.state]} attempt={self.attempt}>"

    def shared_with(self, parent: Any) -> None:
        """Another than the task that submitted it has it too: it does not end with that."""
        mine = self.options.parent
        if mine is not None and mine != parent:
            self.options = replace(self.options, parent=None)

    @property
    def done(self) -> bool:
        """Whether the state is final (a retry may still change an error)."""
        return self.state >= INLINE


class Borrowed(Row):
    """An object that another process owns, in the table of one that borrows it.

    Its state is what the owner said last: `WAITING` until then. Its ``locations`` are workers that
    fetched it for tasks of this process.

    Parameters
    ----------
    origin : Origin
    """

    borrowed = True

    __slots__ = (
        "acknowledged",
        "addresses",
        "freed",
        "handovers",
        "made_by",
        "misses",
        "origin",
        "owner_ref",
        "path",
        "returns",
        "survived",
        "version",
    )

    def __init__(self, origin: Origin) -> None:
        super().__init__(borrowed_key(origin), None, None, (), 0)
        self.roles = BORROWED
        self.origin = origin
        #: Where it is owned now, the first four of an origin: another process may have taken it
        #: over from the first.
        self.owner_ref: Any = origin
        #: Where it is not owned but can be made: the keys of the task there that leads to it, of
        #: the task that this one submitted, and so on, its own last.
        self.path: Any = None
        #: Those that owned it before and count this process until its owner does.
        self.returns: list[Any] | None = None
        #: Workers that have the value, when it is `STORED`.
        self.addresses: tuple[str, ...] = ()
        #: The owner counts this process, or there is nothing to count any more.
        self.acknowledged = False
        #: Told when it is counted.
        self.handovers: Any = None
        #: Number of the value that it has, among the attempts of this process.
        self.version = 0
        #: The attempt of its owner that made it, when it is `STORED`.
        self.made_by = 0
        #: How often in a row its locations did not have it: since it was last found, or since its
        #: owner last named other locations.
        self.misses = 0
        #: Names of owners that died before it ended.
        self.survived: tuple[str, ...] = ()
        #: Its owner had freed it when it was borrowed, and those who led to it are asked.
        self.freed: Failure | None = None


def measured(row: Row, microseconds: float) -> None:
    """An attempt of a row took so long: its function is expected to from now on."""
    row.estimate = microseconds
    function = row.function
    if function is not None:
        known = function.duration
        if known < 0:
            function.duration = microseconds
        else:
            weight = 0.5 if microseconds > known else 0.2
            function.duration = known + weight * (microseconds - known)


def version_of(row: Row) -> int:
    """The attempt that made a value: what the workers of this process know it by, with its key."""
    return row.version if isinstance(row, Borrowed) else row.attempt


def borrowed_key(origin: Origin) -> Key:
    """The key under which a borrowed object stands in the borrower's table and sessions."""
    return ("borrowed", origin[0], origin[3], origin[5])
