"""What an executor keeps for one owner: entries by key, in a session."""

from __future__ import annotations

from collections import deque
from typing import Any

from dask_ownership.core.protocol.messages import Heir, Key, Message, Process, ValueName
from dask_ownership.core.protocol.names import task_identity, task_origin
from dask_ownership.core.queue import OrderedQueue

# ---- states of an entry ----

BLOCKED = 0
"""A task that waits for a dependency to be made or fetched."""
QUEUED = 1
RUNNING = 2
FETCHING = 3
"""No task: a value on its way from another worker."""
HELD = 4
"""A live value that the owner has too, kept until the owner has said so."""
COPIED = 5
"""A pickled value that the owner sent for several tasks."""
KEPT = 6
"""A value in the worker's store, until the owner frees it."""
GONE = 7
ASIDE = 8
"""A task that could start but for resources that others hold."""

UNENDED = frozenset({BLOCKED, QUEUED, RUNNING, ASIDE})
"""States of tasks that have not ended."""

STATE_NAMES = (
    "blocked",
    "queued",
    "running",
    "fetching",
    "held",
    "copied",
    "kept",
    "gone",
    "aside",
)


class Entry:
    """A task or a value of one owner at this worker.

    Attributes
    ----------
    session : Session
    key : hashable
    attempt : int
        The owner's number of this push; of a value that was made elsewhere, that of its making.
    function : int
        Id of the function within the session.
    payload : bytes
    order : int
    dependencies : list
        `Entry` for what is here, bytes for what came with the push.
    missing : int
        How many of them have no value yet.
    waiters : list of Entry
        Tasks here that wait for this one.
    state : int
    value : object
        Live (`HELD`) or pickled (`COPIED`) value.
    options : dict
    limited : bool
        It takes resources, or a thread of a pool.
    awaited : bool
        A parked task here waits for it, or for what needs it, see `executor.crowd`.
    awaits : object
        What it waits for while it is parked; whatever the runtime keeps.
    cancelled : bool
        Nobody wants its outcome any more; set while it runs.
    addresses : tuple of str
        Where to fetch it from (`FETCHING`).
    nbytes : int
    stored : object
        The name of its value in the store, which no other value ever has; written by
        the runtime. Several attempts of one key may be here at once.
    parks : int
        How many waits it is in without a slot.
    parked_for : float
        Time it spent without a slot; written by the runtime.
    occurrences : dict or None
        How often it made each call, for the keys of its children.
    contains : object
        Handles of the futures inside its value; whatever the runtime keeps.
    arrived : object
        Rows of the futures that came in its arguments; written by the runtime.
    named : Heir or None
        What `heir` gives, once it was asked for.
    known : bytes or None
        What `identity` gives, once it was asked for.
    exported : bool
        Futures of what it submitted may be in other processes; written by the runtime.
    sought : set or None
        Keys of children that its owner looks for, see `references.reconstruction`.
    origin : ValueName or None
        Of a value that its session's owner borrows (`FETCHING`).
    """

    __slots__ = (
        "addresses",
        "arrived",
        "attempt",
        "awaited",
        "awaits",
        "cancelled",
        "contains",
        "dependencies",
        "exported",
        "function",
        "key",
        "known",
        "limited",
        "missing",
        "named",
        "nbytes",
        "occurrences",
        "options",
        "order",
        "origin",
        "parked_for",
        "parks",
        "payload",
        "session",
        "sought",
        "state",
        "stored",
        "value",
        "waiters",
    )

    def __init__(self, session: Session, key: Key, attempt: int = 0) -> None:
        self.session = session
        self.key = key
        self.attempt = attempt
        self.function = 0
        self.payload: bytes = b""
        self.order = 0
        self.dependencies: list[Any] | tuple[()] = ()
        self.missing = 0
        self.waiters: list[Entry] | None = None
        self.state = BLOCKED
        self.value: Any = None
        self.options: dict[str, Any] | None = None
        self.awaited = False
        self.awaits: Any = ()
        self.limited = False
        self.cancelled = False
        self.addresses: tuple[str, ...] = ()
        self.nbytes = 0
        self.stored: Any = None
        self.parks = 0
        self.parked_for = 0.0
        self.occurrences: dict[bytes, int] | None = None
        self.contains: Any = None
        self.arrived: Any = None
        self.origin: ValueName | None = None
        self.named: Heir | None = None
        self.known: bytes | None = None
        self.exported = False
        self.sought: set[Key] | None = None

    def __repr__(self) -> str:
        return f"<Entry {self.key!r} {STATE_NAMES[self.state]} attempt={self.attempt}>"

    @property
    def depth(self) -> int:
        """Nesting of the task, see `Options.depth`."""
        return self.options["depth"] if self.options else 0

    @property
    def task(self) -> Key:
        """The key of the task that runs: another's, when this one repeats that."""
        return self.options.get("repeats", self.key) if self.options else self.key

    @property
    def heir(self) -> Heir:
        """How others know this task, for those that it submits."""
        named = self.named
        if named is None:
            above = self.options.get("heir") if self.options else None
            named = self.named = task_origin(self.session.process, self.task, above)
        return named

    @property
    def identity(self) -> bytes:
        """Who the task is, for the keys of those that it submits."""
        known = self.known
        if known is None:
            within = self.options.get("within") if self.options else None
            known = self.known = task_identity(self.session.owner, self.task, within)
        return known

    @property
    def value_name(self) -> ValueName:
        """What those that have the value know it by."""
        return self.origin or (self.session.owner, self.key, self.attempt)

    @property
    def has_value(self) -> bool:
        return HELD <= self.state <= KEPT


class Session:
    """What the executor has for one owner.

    Attributes
    ----------
    owner : str
        The owner's incarnation.
    process : Process
        The owner, as others know it.
    entries : dict
        Key to entry.
    functions : dict
        Id to whatever the runtime makes of the pickled function, the oldest first.
    function_sizes : dict
        Id to the bytes of the pickle.
    function_bytes : int
        Sum of the sizes.
    outbox : list of tuple
        Results that have not left yet.
    unacknowledged : deque
        ``(batch, entries)``: `HELD` entries that the owner may still refer to.
    handed : dict
        ``(key, attempt)`` to entry: results with futures inside, until the owner says
        that those are counted.
    """

    __slots__ = (
        "closed",
        "entries",
        "fresh",
        "function_bytes",
        "function_sizes",
        "functions",
        "handed",
        "link",
        "outbox",
        "owner",
        "process",
        "queues",
        "runtime",
        "unacknowledged",
    )

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.process: Process = (owner, "", owner)
        self.entries: dict[Key, Entry] = {}
        self.functions: dict[int, Any] = {}
        self.function_sizes: dict[int, int] = {}
        self.function_bytes = 0
        self.outbox: list[Message] = []
        self.fresh: list[Entry] = []
        self.unacknowledged: deque[tuple[int, list[Entry]]] = deque()
        self.handed: dict[tuple[Key, int], Entry] = {}
        self.queues: dict[int, OrderedQueue[Entry]] = {}
        self.closed = False
        self.link: Any = None
        self.runtime: Any = None

    def add_function(self, number: int, pickled: bytes) -> None:
        """Keep a function that the owner sent."""
        self.forget_function(number)
        self.functions[number] = pickled
        self.function_sizes[number] = len(pickled)
        self.function_bytes += len(pickled)

    def forget_function(self, number: int) -> None:
        """Let go of a function. Nothing happens when it is not here."""
        if self.functions.pop(number, None) is not None:
            self.function_bytes -= self.function_sizes.pop(number)

    def __repr__(self) -> str:
        return f"<Session of {self.owner} entries={len(self.entries)}>"
