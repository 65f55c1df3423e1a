"""Sessions: entries of tasks and values, by key, that an executor keeps for one owner."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from dask_ownership.core.protocol.messages import Heir, Key, Message, Process, ValueName
from dask_ownership.core.protocol.names import task_identity, task_origin
from dask_ownership.core.queue import OrderedQueue

# ---- states of an entry ----

BLOCKED = 0
"""A task that waits for a dependency to be made or fetched."""
QUEUED = 1
"""A task that lacks nothing but a slot, or that waits for its turn to run alone."""
RUNNING = 2
"""A task that took a slot and has not ended, also while parked."""
FETCHING = 3
"""No task: a value on its way from another worker."""
HELD = 4
"""A live value that travels to the owner, too; kept until the owner acknowledges the value."""
COPIED = 5
"""A pickled value that the owner sent for several tasks."""
KEPT = 6
"""A value in the worker's store, until the owner frees the value."""
GONE = 7
"""A task or value that is not here any more; tasks and queues may still refer to the entry."""
ASIDE = 8
"""A task that lacks nothing but resources, which other tasks have."""

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


@dataclass(slots=True, eq=False, repr=False, init=False)
class Entry:
    """A task or a value of one owner at this worker.

    One entry lives through both: a task becomes the value that the task made. There may be very
    many entries, each of which is one object: hence the many attributes. Each task has an entry
    made: the constructor is written out because a generated one takes a seventh longer.
    """

    #: Session of the owner.
    session: Session
    #: The key at the owner.
    key: Key
    #: The number of the task's attempt; of a value made elsewhere, the number that the owner gave
    #: to the value.
    attempt: int
    #: Id of the function within the session.
    function: int
    #: The pickled arguments, with slots for the dependencies; empty when the task has ended.
    payload: bytes
    #: Place of the task among all tasks, lower first (`protocol.order`).
    order: int
    #: For each slot an `Entry` of a task or value here, or the bytes of a value that came with the
    #: push.
    dependencies: list[Any] | tuple[()]
    #: How many of the dependencies have no value yet.
    missing: int
    #: Tasks here that wait for the value of this entry.
    waiters: list[Entry] | None
    #: One of the states above.
    state: int
    #: Live (`HELD`) or pickled (`COPIED`) value.
    value: Any
    #: As in `PUSH`.
    options: dict[str, Any] | None
    #: Whether a parked task here waits for the task, or for a task that needs the task
    #: (`executor.crowd`).
    awaited: bool
    #: The rows that the parked task waits for, as far as the runtime knows.
    awaits: Any
    #: Whether the task takes resources, or a thread of a pool.
    takes_resources_or_pool: bool
    #: Whether the outcome of the running task is not wanted any more.
    cancelled: bool
    #: Workers from which to fetch the value (`FETCHING`).
    addresses: tuple[str, ...]
    #: Size of the value, as the owner says (`FETCHING`).
    nbytes: int
    #: The name of the value in the store, written by the runtime. No other value ever has the name,
    #: because several attempts of one key may be here at once.
    stored: Any
    #: How many waits of a coroutine task go on without a slot.
    parks: int
    #: Seconds that the task spent without a slot; written by the runtime.
    parked_for: float
    #: How often the task made each call, for the keys of its children.
    occurrences: dict[bytes, int] | None
    #: The futures inside the value, or local references by which the runtime keeps these futures.
    contains: Any
    #: Rows of the futures that came in the arguments; written by the runtime.
    arrived: Any
    #: The name of a value that the session's owner borrows (`FETCHING`).
    origin: ValueName | None
    #: The answer of `heir`, from the first call on.
    named: Heir | None
    #: The answer of `identity`, from the first call on.
    known: bytes | None
    #: Whether futures of the task's children may be in other processes; written by the runtime.
    exported: bool
    #: Keys of children that the owner looks for, see `references.reconstruction`.
    watched: set[Key] | None

    def __init__(self, session: Session, key: Key, attempt: int = 0) -> None:
        self.session = session
        self.key = key
        self.attempt = attempt
        self.function = 0
        self.payload = b""
        self.order = 0
        self.dependencies = ()
        self.missing = 0
        self.waiters = None
        self.state = BLOCKED
        self.value = None
        self.options = None
        self.awaited = False
        self.awaits = ()
        self.takes_resources_or_pool = False
        self.cancelled = False
        self.addresses = ()
        self.nbytes = 0
        self.stored = None
        self.parks = 0
        self.parked_for = 0.0
        self.occurrences = None
        self.contains = None
        self.arrived = None
        self.origin = None
        self.named = None
        self.known = None
        self.exported = False
        self.watched = None

    def __repr__(self) -> str:
        return f"<Entry {self.key!r} {STATE_NAMES[self.state]} attempt={self.attempt}>"

    @property
    def depth(self) -> int:
        """The nesting of the task, see `Options.depth`."""
        return self.options["depth"] if self.options else 0

    @property
    def ordinal(self) -> int:
        """Which attempt of the task this is, as people count."""
        return self.options.get("ordinal", 1) if self.options else 1

    @property
    def task(self) -> Key:
        """The key under which the task runs: that of the first run, when the task repeats one."""
        return self.options.get("repeats", self.key) if self.options else self.key

    @property
    def heir(self) -> Heir:
        """The name of the task in all processes, for the tasks that it submits."""
        named = self.named
        if named is None:
            above = self.options.get("heir") if self.options else None
            named = self.named = task_origin(self.session.process, self.task, above)
        return named

    @property
    def identity(self) -> bytes:
        """The identity of the task, for the keys of the tasks that it submits."""
        known = self.known
        if known is None:
            within = self.options.get("within") if self.options else None
            known = self.known = task_identity(self.session.owner, self.task, within)
        return known

    @property
    def value_name(self) -> ValueName:
        """The name of the value at all workers that have it."""
        return self.origin or (self.session.owner, self.key, self.attempt)

    @property
    def has_value(self) -> bool:
        """Whether the value is here, in any form."""
        return HELD <= self.state <= KEPT


@dataclass(slots=True, eq=False, repr=False)
class Session:
    """The tasks, values and functions of one owner at an executor."""

    #: The owner's incarnation.
    owner: str
    #: The owner's process; the address and the name come with the link.
    process: Process = field(init=False)
    #: Key to the current entry of the key. An older attempt may still run.
    entries: dict[Key, Entry] = field(default_factory=dict, init=False)
    #: Id to the pickled function, or to what the runtime makes of the pickle, oldest first.
    functions: dict[int, Any] = field(default_factory=dict, init=False)
    #: Id to the bytes of the pickle.
    function_sizes: dict[int, int] = field(default_factory=dict, init=False)
    #: Sum of the sizes.
    function_bytes: int = field(default=0, init=False)
    #: Messages for the owner that have not left yet.
    outbox: list[Message] = field(default_factory=list, init=False)
    #: `HELD` entries whose answers are in the outbox.
    fresh: list[Entry] = field(default_factory=list, init=False)
    #: ``(batch, entries)``: `HELD` entries whose answers left up to that batch. Until the owner
    #: acknowledges the batch, pushes that name the entries as `LOCAL` may be on their way.
    unacknowledged: deque[tuple[int, list[Entry]]] = field(default_factory=deque, init=False)
    #: ``(key, attempt)`` to entry: results, errors and named children with futures inside, until
    #: the owner says `REFS_COUNTED`.
    handed: dict[tuple[Key, int], Entry] = field(default_factory=dict, init=False)
    #: Level of the run queue to the owner's queued tasks of that level.
    queues: dict[int, OrderedQueue[Entry]] = field(default_factory=dict, init=False)
    #: Whether the owner is gone; then no answer leaves any more.
    closed: bool = field(default=False, init=False)
    #: The executor's end of the link; written by the runtime.
    link: Any = field(default=None, init=False)
    #: The runtime's executor; written by the runtime.
    runtime: Any = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.process = (self.owner, "", self.owner)

    def add_function(self, number: int, pickled: bytes) -> None:
        """Keep a pickled function that the owner sent, in place of an older one of that number."""
        self.forget_function(number)
        self.functions[number] = pickled
        self.function_sizes[number] = len(pickled)
        self.function_bytes += len(pickled)

    def forget_function(self, number: int) -> None:
        """Let go of a function, if it is here; a task that needs the function is given back."""
        if self.functions.pop(number, None) is not None:
            self.function_bytes -= self.function_sizes.pop(number)

    def __repr__(self) -> str:
        return f"<Session of {self.owner} entries={len(self.entries)}>"
