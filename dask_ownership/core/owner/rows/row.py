"""A row: one object that this process owns or borrows, and the task that makes the object.

A row is both, because a Dask task makes one object. Only the owner writes its rows: the
states are written by `rows.lifecycle` alone and the counts by `rows.table` alone. A row that is not
submitted yet belongs to the thread that made it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from dask_ownership.core.owner.rows.options import NO_OPTIONS, Options
from dask_ownership.core.protocol.failure import Failure
from dask_ownership.core.protocol.messages import Key, Origin
from dask_ownership.core.protocol.names import INCARNATION, KEY, LIFE
from dask_ownership.core.protocol.states import INLINE, STATE_NAMES, WAITING

OVERHEAD = 600
"""Bytes that a row and its lineage take besides payload and value."""

# Roles: bits of `Row.roles`, each for one listener (see `rows.listener`).

HAS_BORROWERS = 1
"""Role: other processes borrow the object."""
BORROWED = 2
"""Role: another process owns the object."""
TRACED = 4
"""Role: the row has, or is about to have, a lineage."""
EXPORTED = 8
"""Role: a task submitted the row, and futures of the row may be in other processes."""
RETAINED = 16
"""Role: the row's task is kept for the sake of its children."""
COPY = 32
"""Role: the row's task makes a copy of a value."""
DESIRED = 64
"""Role: the row is kept until its task ends."""
REPLICATED = 256
"""Role: several copies of the value are kept."""
SEARCHED = 512
"""Role: children of the row's task are looked for, see `references.reconstruction`."""
QUESTION = 1024
"""Role: the row stands for an object of a dead owner, which is looked for."""
TRIED = 2048
"""Role: earlier attempts of the task left a record, see `rows.attempts`."""


class Function:
    """A function as the owner knows it: how to send the function and how long its calls take.

    Attributes
    ----------
    id : int
        Names the pickled function on the wire, within one owner.
    pickled : bytes
        What a worker unpickles.
    name : str
        Name for people.
    duration : float
        Moving average of the running time in microseconds; negative while unknown.
    token : bytes or None
        Identifies the function in keys of pure calls; None when the function travels with its
        arguments.
    named : bool
        The pickle is only a name, under which other processes can import the function.
    """

    __slots__ = ("__weakref__", "duration", "id", "name", "named", "pickled", "token")

    def __init__(self, id: int, pickled: bytes, name: str) -> None:
        self.id = id
        self.pickled = pickled
        self.name = name
        self.duration = -1.0
        self.token: bytes | None = None
        self.named = False


@dataclass(slots=True, eq=False, repr=False, init=False)
class Lineage:
    """Lineage of a row: the task that made the value, and can make the value again."""

    #: As in `Row`.
    options: Options
    #: As in `Row`.
    function: Function
    #: As in `Row`.
    payload: bytes | None
    #: As in `Row`.
    dependencies: tuple[Row, ...]
    #: Rows of the futures inside the payload.
    contains: tuple[Row, ...]
    #: Bytes that count towards `Limits.lineage_bytes`: the pickled arguments and `OVERHEAD`.
    nbytes: int

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
    """One object and the task that makes the object, in the table of the owner.

    An owner may have millions of rows, each of which is one object: hence the many attributes.
    """

    #: Whether another process owns the object.
    borrowed: ClassVar[bool] = False

    #: Name of the row within the owner's table.
    key: Key
    #: The function that the task calls, until there is a value.
    function: Function | None
    #: The pickled arguments, in which slots stand for the dependencies.
    payload: bytes | None
    #: The rows for which the slots stand, in order.
    dependencies: tuple[Row, ...]
    #: Place among all rows of the owner, the user's priority included; lower first.
    order: int
    #: Shared with other rows, and never written to.
    options: Options = NO_OPTIONS

    #: One of `protocol.states`. Only `rows.lifecycle` writes the state.
    state: int = field(default=WAITING, init=False)
    #: Number of the row's latest attempt; fences late answers. 0 before the first attempt.
    attempt: int = field(default=0, init=False)
    #: Rows whose futures are inside the payload or, once there is a value, inside the value.
    contains: tuple[Row, ...] = field(default=(), init=False)
    #: Rows that wait for the row's value.
    dependents: list[Row] | None = field(default=None, init=False)
    #: How many dependencies have no value yet.
    waiting: int = field(default=0, init=False)
    #: The worker (a `WorkerView`) of the current attempt; of an `INLINE` value, the worker that
    #: made the value.
    worker: Any = field(default=None, init=False)
    #: Microseconds that the task takes of its worker's window, 0 while the task is parked; after
    #: the run the measured time.
    estimate: float = field(default=0.0, init=False)
    #: Pickled value (`INLINE`), pickled error or `Failure` (`ERROR`), or the `Failure` that says
    #: why there is no value.
    value: Any = field(default=None, init=False)
    #: Bytes of the value.
    nbytes: int = field(default=0, init=False)
    #: Workers (`WorkerView`) that have a copy or were told to fetch one, the maker first.
    locations: tuple[Any, ...] = field(default=(), init=False)
    #: Pickled type of a stored value.
    type_name: bytes | None = field(default=None, init=False)
    #: Local references: how many futures and pins in this process keep the row, see `rows.table`.
    local_refs: int = field(default=1, init=False)
    #: Task references: how many rows that did not end with a value need the row, and how many
    #: values contain its future; all borrowers together count as one.
    task_refs: int = field(default=0, init=False)
    #: Lineage references: how many lineages need the row, and how many processes have the row's
    #: task kept for its children.
    lineage_refs: int = field(default=0, init=False)
    #: Tells the row from earlier and later rows of this process with the same key: a number that
    #: the row gets when another process is about to hear of the row, 0 until then.
    life: int = field(default=0, init=False)
    #: Which listeners are told what becomes of the row: bits from the roles above.
    roles: int = field(default=0, init=False)
    #: How to make a stored value again.
    lineage: Lineage | None = field(default=None, init=False)
    #: The runtime's waiters, which are told when the state becomes final.
    waiters: Any = field(default=None, init=False)

    @classmethod
    def with_value(cls, key: Key, value: bytes, options: Options = NO_OPTIONS) -> Row:
        """Return a row whose pickled value is known: a literal."""
        row = cls(key, None, None, (), 0, options)
        row.value = value
        row.nbytes = len(value)
        row.state = INLINE
        return row

    @classmethod
    def without_value(cls, key: Key, state: int, failure: Failure) -> Row:
        """Return a row outside of the table, `CANCELLED` or `LOST`, for an object that is gone."""
        row = cls(key, None, None, (), 0)
        row.value = failure
        row.state = state
        return row

    def __repr__(self) -> str:
        return f"<Row {self.key!r} {STATE_NAMES[self.state]} attempt={self.attempt}>"

    def shared_with(self, parent: Any) -> None:
        """Note that ``parent`` has the row, too.

        Unless ``parent`` is the submitting task, the row is not cancelled with that task any more.
        Any thread does so; hence whatever else replaces options holds the lock of the table.
        """
        mine = self.options.parent
        if mine is not None and mine != parent:
            self.options = self.options._replace(parent=None)
            if self.lineage is not None:  # which brings its options back when it makes the value
                self.lineage.options = self.lineage.options._replace(parent=None)

    @property
    def done(self) -> bool:
        """Whether the state is final (a retry may still change an error)."""
        return self.state >= INLINE


class Borrowed(Row):
    """A borrowed row: an object that another process owns, in the table of a borrower.

    The state is what the owner said last: `WAITING` until then. The ``locations`` are workers that
    fetched the value for tasks of this process. ``attempt`` is the number of the borrowing.

    Parameters
    ----------
    origin : Origin
        Name of the object in all processes.
    """

    borrowed = True

    __slots__ = (
        "acknowledged",
        "addresses",
        "freed",
        "made_by",
        "misses",
        "origin",
        "owner_ref",
        "path",
        "returns",
        "survived",
        "version",
        "when_acknowledged",
    )

    def __init__(self, origin: Origin) -> None:
        super().__init__(borrowed_key(origin), None, None, (), 0)
        self.roles = BORROWED
        self.origin = origin
        #: The present owner and the key there (the first four items are an `OwnerRef`): another
        #: process may have taken the object over from its first owner.
        self.owner_ref: Any = origin
        #: Set when the process in ``owner_ref`` does not own the object but can have it made: the
        #: keys from a task of that process down to the object, whose own key comes last.
        self.path: Any = None
        #: Earlier borrowings (peer, key and number), each given back when the present owner counts
        #: this process.
        self.returns: list[Any] | None = None
        #: Addresses of the locations, when the value is `STORED`.
        self.addresses: tuple[str, ...] = ()
        #: The owner counts this process, or there is nothing to count any more.
        self.acknowledged = False
        #: Handovers, which are told when the owner counts this process.
        self.when_acknowledged: Any = None
        #: Number of the value that this process heard of last, among the attempts of this process.
        self.version = 0
        #: The attempt of the owner that made the value, when the value is `STORED`.
        self.made_by = 0
        #: How often in a row the locations did not have the value: since a task last found the
        #: value, or since the owner last named other locations.
        self.misses = 0
        #: Names of owners that died before the object had an end.
        self.survived: tuple[str, ...] = ()
        #: Why the value is gone, when the owner had freed the object before our borrowing arrived,
        #: and an heir was asked instead.
        self.freed: Failure | None = None


def measured(row: Row, microseconds: float) -> None:
    """Take in how long an attempt of a row took: the function is expected to take as long."""
    row.estimate = microseconds
    function = row.function
    if function is not None:
        known = function.duration
        if known < 0:
            function.duration = microseconds
        else:
            # Rises count more than falls: a high estimate fills a window with too little work
            # rather than too much.
            weight = 0.5 if microseconds > known else 0.2
            function.duration = known + weight * (microseconds - known)


def version_of(row: Row) -> int:
    """Return the number by which workers of this process know a value, together with its key.

    The number is the attempt that made the value, or `Borrowed.version` for a borrowed value.
    """
    return row.version if isinstance(row, Borrowed) else row.attempt


def borrowed_key(origin: Origin) -> Key:
    """Return the key of a borrowed object in the borrower's table and sessions."""
    return ("borrowed", origin[INCARNATION], origin[KEY], origin[LIFE])
