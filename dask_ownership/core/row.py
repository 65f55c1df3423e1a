"""A row: one object that this process owns or borrows, and the task that makes it.

A row is both, because a Dask task makes one object. Only the owner writes its rows (rule R1), and
there only `core.lifecycle` their states and `core.table` their counts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from dask_ownership.core.messages import Key, Origin

OVERHEAD = 600
"""Bytes that a row and its lineage take besides payload and value."""

DORMANT = -1
"""Only lineage needs it: its value was freed, and can be made again."""
WAITING = 0
"""Some dependency has no value yet."""
READY = 1
"""Could start; waits here, at the owner, until a slot wants it."""
PUSHED = 2
"""Handed to a worker, which is written here before the message leaves."""
INLINE = 3
"""The value is here, pickled."""
STORED = 4
"""The value is with its holders."""
ERROR = 5
CANCELLED = 6
LOST = 7
"""The value is gone and cannot be made again."""
FORGOTTEN = 8
"""Nobody can reach it; the row is not in the table any more."""

STATE_NAMES = (
    "waiting",
    "ready",
    "pushed",
    "inline",
    "stored",
    "error",
    "cancelled",
    "lost",
    "forgotten",
    "dormant",
)


HAS_BORROWERS = 1
"""A role, see `Row.roles`: other processes borrow it."""
BORROWED = 2
"""Another process owns it."""
TRACED = 4
"""It has, or is about to have, a lineage."""
ESCAPED = 8
"""A task submitted it, and its future may be in other processes."""
RETAINED = 16
"""It is kept for what it submitted."""
COPY = 32
"""It makes a copy of a value."""
DESIRED = 64
"""It is kept until it ends."""
CHECKPOINTED = 128
"""Checkpoints of its task are kept."""
REPLICATED = 256
"""Several copies of its value are kept."""
SOUGHT = 512
"""Children of it are sought."""
QUESTION = 1024
"""It stands for what is looked for."""


class Failure:
    """Why a row has no value, when it was not its function that raised.

    The runtime makes the exception of it when someone asks for the value.

    Attributes
    ----------
    kind : str
        ``cancelled``, ``lost-data``, ``owner-lost``, ``killed-worker``, ``uncertain``,
        ``no-worker``, ``scheduler-gone``, ``internal`` or ``closed``.
    key : hashable
        The key that it happened to; for those that depend on it, not their own.
    detail : str
        What happened, where, what was tried.
    where : str
        Who owned it and where it was, when ``detail`` is what a user said.
    chain : tuple of str
        For ``owner-lost``: the names of its owner and of those who owned the tasks that led
        to it, nearest first.
    """

    __slots__ = ("chain", "detail", "key", "kind", "where")

    def __init__(
        self, kind: str, key: Key, detail: str, where: str = "", chain: tuple[str, ...] = ()
    ) -> None:
        self.kind = kind
        self.key = key
        self.detail = detail
        self.where = where
        self.chain = chain

    def __repr__(self) -> str:
        return f"<Failure {self.kind} {self.key!r}: {self.detail}>"


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


class Replication(NamedTuple):
    """How many copies of a value are kept.

    Attributes
    ----------
    number : int
        As far as there are workers.
    workers : tuple of str or None
        Addresses, names or hosts: only copies there count.
    branching : int
        How many copies each that is there may give at once.
    """

    number: int
    workers: tuple[str, ...] | None = None
    branching: int = 2


class Options:
    """What few tasks have, kept off the row.

    Attributes
    ----------
    workers : tuple of str or None
        Addresses, names or hosts where the task may run.
    loose : bool
        ``allow_other_workers``: ``workers`` is a preference only.
    retries : int
        How many more times a failure is tried again.
    resources : dict or None
    timeout : float or None
        Seconds for which one attempt may run.
    at_most_once : bool
        It is not pushed again when it may have started.
    executor : str or None
        Which of the worker's executors runs it; None for the threads of its slots.
    span : bytes or None
        Pickled: the span in which it was submitted; what it submits is of it, too.
    depth : int
        Nesting: 0 for what a client submits, one more than the submitting task's.
    deaths : int
        How many workers died while this task ran there alone.
    died : tuple of str
        Workers that died while it may have been running there, and why. Such a task is a
        suspect, see `core.exclusion`.
    beside : int
        The attempt of a suspect that may run beside others.
    moved : bool
        It was recalled once and is not recalled again.
    patience : float
        For how many times the allowed silence a worker may keep it; doubles with each move.
    parent : hashable or None
        Owner, key and attempt of the task that submitted it and alone has it.
    heir : Heir or None
        The task that submitted it.
    within : bytes or None
        Identity of the task that submitted it.
    repeats : hashable
        Key of the task that this one runs again, for the sake of its children.
    adopted : Origin or None
        Of an object that another process owned and handed over.
    bequest : Bequest or None
        Of an object that this process holds, see `core.bequest`: how it is made.
    checkpoints : dict or None
        Name to attempt, number and pickled value, see `core.checkpoints`. Not written to, but
        replaced.
    replicas : Replication or None
        The copies that are kept of its value, when it is stored.
    stays : bool
        Its value belongs to the worker that makes it, however small it is.
    """

    __slots__ = (
        "adopted",
        "at_most_once",
        "bequest",
        "beside",
        "checkpoints",
        "deaths",
        "depth",
        "died",
        "executor",
        "heir",
        "loose",
        "moved",
        "parent",
        "patience",
        "repeats",
        "replicas",
        "resources",
        "retries",
        "span",
        "stays",
        "timeout",
        "within",
        "workers",
    )

    def __init__(
        self,
        *,
        workers: tuple[str, ...] | None = None,
        loose: bool = False,
        retries: int = 0,
        resources: dict[str, float] | None = None,
        timeout: float | None = None,
        at_most_once: bool = False,
        executor: str | None = None,
        span: bytes | None = None,
        depth: int = 0,
        parent: Any = None,
        heir: Any = None,
        within: bytes | None = None,
        adopted: Any = None,
        replicas: Replication | None = None,
        stays: bool = False,
    ) -> None:
        self.workers = workers
        self.loose = loose
        self.retries = retries
        self.resources = resources
        self.timeout = timeout
        self.at_most_once = at_most_once
        self.executor = executor
        self.span = span
        self.depth = depth
        self.parent = parent
        self.heir = heir
        self.within = within
        self.repeats: Any = None
        self.adopted = adopted
        self.bequest: Any = None
        self.replicas = replicas
        self.stays = stays
        self.deaths = 0
        self.died: tuple[str, ...] = ()
        self.beside = 0
        self.moved = False
        self.checkpoints: dict[str, tuple[int, int, bytes]] | None = None
        self.patience = 1.0

    def copy(self) -> Options:
        """Options of its own for a row that is about to differ."""
        made = Options.__new__(Options)
        for name in Options.__slots__:
            setattr(made, name, getattr(self, name))
        return made


NO_OPTIONS = Options()


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


class Row:
    """One owned object and the task that makes it.

    Attributes
    ----------
    key : hashable
    state : int
    attempt : int
        How often it was handed out; fences late answers.
    function, payload
        The task: what is called, and the pickled arguments.
    dependencies : tuple of Row
        What the payload's slots stand for, in order.
    contains : tuple of Row
        Rows whose futures are inside the payload or, once there is one, the value.
    dependents : list of Row or None
        Rows that wait for this one.
    waiting : int
        How many dependencies have no value yet.
    order : int
        Place among all rows of this owner, the user's priority included; lower first.
    options : Options
        Shared and not written to: a row has its own from when one of them changes.
    worker : WorkerView or None
        Where it was pushed; of an `INLINE` value, where it was made.
    estimate : float
        Microseconds of that worker's window that it takes; once it has run, those that it took.
    value : bytes, Failure or None
        Pickled value (`INLINE`), pickled error (`ERROR`), or why there is none.
    nbytes : int
    holders : tuple of WorkerView
        Who has a copy, the one that made it first.
    type_name : bytes or None
        Pickled type of a stored value.
    lineage : Lineage or None
        How to make a stored value again.
    handles, uses, descendants : int
        Counts, see the module.
    life : int
        Tells it from other rows of this process that had its key, or will: a number that it
        gets when others hear of it, 0 until then.
    waiters : object or None
        Told when the state becomes final; belongs to the runtime.
    roles : int
        Who is told what becomes of it: some of the bits above, see `core.lifecycle`.
    """

    borrowed = False
    """Whether another process owns it."""

    __slots__ = (
        "attempt",
        "contains",
        "dependencies",
        "dependents",
        "descendants",
        "estimate",
        "function",
        "handles",
        "holders",
        "key",
        "life",
        "lineage",
        "nbytes",
        "options",
        "order",
        "payload",
        "roles",
        "state",
        "type_name",
        "uses",
        "value",
        "waiters",
        "waiting",
        "worker",
    )

    def __init__(
        self,
        key: Key,
        function: Function | None,
        payload: bytes | None,
        dependencies: tuple[Row, ...],
        order: int,
        options: Options = NO_OPTIONS,
    ) -> None:
        self.key = key
        self.state = WAITING
        self.attempt = 0
        self.function = function
        self.payload = payload
        self.dependencies = dependencies
        self.contains: tuple[Row, ...] = ()
        self.dependents: list[Row] | None = None
        self.waiting = 0
        self.order = order
        self.options = options
        self.worker: Any = None
        self.estimate = 0.0
        self.value: Any = None
        self.nbytes = 0
        self.holders: tuple[Any, ...] = ()
        self.type_name: bytes | None = None
        self.handles = 1
        self.uses = 0
        self.descendants = 0
        self.life = 0
        self.roles = 0
        self.lineage: Lineage | None = None
        self.waiters: Any = None

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
            self.options = self.options.copy()
            self.options.parent = None

    @property
    def done(self) -> bool:
        """Whether the state is final (a retry may still change an error)."""
        return self.state >= INLINE


class Borrowed(Row):
    """An object that another process owns, in the table of one that borrows it.

    Its state is what the owner said last: `WAITING` until then.

    Attributes
    ----------
    origin : Origin
    place : Place
        Where it is owned now: another process may have taken it over from the first.
    path : tuple or None
        Where it is not owned but can be made: the keys of the task there that leads to it,
        of the task that this one submitted, and so on, its own last.
    returns : list or None
        Those that owned it before and count this process until its owner does.
    addresses : tuple of str
        Workers that have the value, when it is `STORED`. ``holders`` are those that
        fetched it for tasks of this process.
    counted : bool
        The owner counts this process, or there is nothing to count any more.
    handovers : object or None
        Told when it is counted.
    version : int
        Number of the value that it has, among the attempts of this process.
    made_by : int
        The attempt of its owner that made it, when it is `STORED`.
    misses : int
        How often in a row its holders did not have it: since it was last found, or since its
        owner last named other holders.
    survived : tuple of str
        Names of owners that died before it ended.
    freed : Failure or None
        Its owner had freed it when it was borrowed, and those who led to it are asked.
    """

    borrowed = True

    __slots__ = (
        "addresses",
        "counted",
        "freed",
        "handovers",
        "made_by",
        "misses",
        "origin",
        "path",
        "place",
        "returns",
        "survived",
        "version",
    )

    def __init__(self, origin: Origin) -> None:
        super().__init__(borrowed_key(origin), None, None, (), 0)
        self.roles = BORROWED
        self.origin = origin
        self.place: Any = origin  # the first four of it
        self.path: Any = None
        self.returns: list[Any] | None = None
        self.addresses: tuple[str, ...] = ()
        self.counted = False
        self.handovers: Any = None
        self.version = 0
        self.made_by = 0
        self.misses = 0
        self.survived: tuple[str, ...] = ()
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
