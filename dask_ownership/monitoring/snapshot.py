"""Snapshots for people: what a process owns, borrows and lends at one moment.

Snapshots are plain data: a snapshot holds no row and keeps no value alive. The functions of
`dask_ownership.monitoring.lookup` make them.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from dask.utils import format_bytes

from dask_ownership.monitoring.html import SHOWN, Section, Shown, clock, counted, worded

Event = tuple[Hashable, str, str, float]
"""Key, event, detail, and time."""

FORMER = {
    "handles": "local_refs",
    "uses": "task_refs",
    "descendants": "lineage_refs",
    "holders": "locations",
}
"""Former names in snapshots, which work for one release, with the names of today."""


def _warn(former: str) -> None:
    """Warn of a former name. The caller of the caller is the program that used the name."""
    warnings.warn(f"{former!r} is {FORMER[former]!r} now", DeprecationWarning, stacklevel=3)


def _former(name: str) -> Any:
    """Return a property that reads the attribute of today by a former name.

    The property has no docstring, so that the page about the API does not list the former name.
    """

    def value(snapshot: Any) -> Any:
        _warn(name)
        return getattr(snapshot, FORMER[name])

    return property(value)


class References(dict[str, int]):
    """Numbers of references by kind; a former name of a kind gives its number with a warning."""

    def __missing__(self, kind: str) -> int:
        """Return the number of a kind that was asked for by its former name."""
        if kind not in FORMER or FORMER[kind] not in self:
            raise KeyError(kind)
        _warn(kind)
        return self[FORMER[kind]]


@dataclass(frozen=True, repr=False)
class Snapshot(Shown):
    """What one process owned, borrowed and lent at one moment.

    Made by `Client.ownership`. Plain dicts and numbers, which can be pickled and are not updated.

    Attributes
    ----------
    name : str
        The client's id, or the address of the worker.
    time : float
        Seconds since the epoch.
    objects : dict of str to int
        How many objects this process owns, by state: ``waiting``, ``ready``, ``pushed``,
        ``inline``, ``stored``, ``error``, ``dormant`` (only lineage needs the object). Cancelled,
        lost and freed objects are in the table no more and not counted.
    inline_nbytes : int
        Bytes of the pickled values in this process.
    stored_nbytes : dict of str to int
        Bytes of stored values by the address of the holding worker; a copy counts at each worker.
    references : dict of str to int
        References that keep objects, owned and borrowed, by kind: ``local_refs`` (futures in this
        process), ``task_refs`` (see `dask_ownership.core.owner.rows.row`), ``borrowers``
        (processes, for each object), ``lineage_refs`` (lineage with the object as an input),
        ``pinned`` (objects whose future was pickled by hand) and ``fire_and_forget``. All borrowers
        of an object together are also one of its task references.
    lineage : dict of str to int
        ``kept`` (tasks), ``nbytes``, ``max_bytes``, ``pinned`` (inline values that only lineage
        needs, whose bytes are part of ``nbytes``), ``evicted`` and ``recovered`` (both since the
        start).
    borrowed : dict of str to dict
        Objects that this process borrows, by owner: ``objects``, ``pending`` (without an outcome
        yet) and ``nbytes``.
    lent : dict of str to int
        How many objects each other process borrows from this process.
    links : dict of str to dict
        By worker: ``connected``, ``unacknowledged`` (batches), ``pushed`` (tasks handed to the
        worker and not answered), ``nthreads``, ``accepting``, ``way`` (``direct``, or ``relayed``
        by the scheduler) and ``relayed_nbytes``. Workers for which this process never had anything
        are not connected.
    refused : dict of str to str
        Workers that do not take links, and why.
    counts : dict of str to int
        Since the start: ``submitted``, ``done``, ``failed``, ``attempts`` (numbers used up for
        pushing and borrowing) and ``central_calls``.
    handed_out_again : dict of str to int
        Since the start, how often tasks were handed out once more, by reason: ``worker_gone`` (the
        worker died under the task, or while the task waited there), ``worker_silent`` (the worker
        does not answer), ``recovered`` (from lineage, because the value, or a value that depends on
        it, was lost), ``repeated`` (for the sake of what the task submitted), ``recalled`` (for a
        worker with nothing to do), ``returned`` (by a worker that did not start the task, or
        because the task raised ``Reschedule``) and ``retried`` (after an error). `Client.story` has
        each event.
    losses : dict of str to int
        Since the start, what deaths of other processes cost this process: ``workers_died`` (under
        its tasks), ``killed_worker`` and ``uncertain`` (tasks with that outcome), ``lost_data``
        (values), ``owners_gone`` (owners from which this process borrowed), ``orphaned`` (tasks at
        this worker whose owner died), ``owner_lost`` (borrowed futures); see
        `core.owner.rows.failure_counts`.
    lingering : dict of str to list
        By worker the keys of cancelled tasks, and of tasks whose ``timeout`` is up, whose functions
        go on and keep slots: a thread cannot be stopped.
    """

    name: str
    time: float
    objects: dict[str, int]
    inline_nbytes: int
    stored_nbytes: dict[str, int]
    references: dict[str, int]
    lineage: dict[str, int]
    borrowed: dict[str, dict[str, int]]
    lent: dict[str, int]
    links: dict[str, dict[str, Any]]
    refused: dict[str, str]
    counts: dict[str, int]
    handed_out_again: dict[str, int]
    losses: dict[str, int]
    lingering: dict[str, list[Hashable]]

    def _head(self) -> tuple[str, str]:
        return "Ownership of", self.name

    def _sections(self) -> list[Section]:
        lineage = self.lineage
        stored = sum(self.stored_nbytes.values())
        return [
            Section("Objects", counted({"owned": sum(self.objects.values()), **self.objects})),
            Section(
                "Bytes",
                [
                    (kind, format_bytes(nbytes))
                    for kind, nbytes in (("inline", self.inline_nbytes), ("stored", stored))
                    if nbytes
                ],
            ),
            Section(
                "Stored at",
                [(at, format_bytes(n)) for at, n in self.stored_nbytes.items()],
                ("worker", "bytes"),
            ),
            Section("References", counted(self.references)),
            Section(
                "Lineage",
                [
                    *counted({"tasks kept": lineage["kept"]}),
                    *([("used", format_bytes(lineage["nbytes"]))] if lineage["nbytes"] else []),
                    ("allowed", format_bytes(lineage["max_bytes"])),
                    *counted({k: lineage[k] for k in ("pinned", "evicted", "recovered")}),
                ],
            ),
            Section(
                "Borrowed",
                [
                    (owner, f"{b['objects']:,d}", f"{b['pending']:,d}", format_bytes(b["nbytes"]))
                    for owner, b in self.borrowed.items()
                ],
                ("owner", "objects", "pending", "bytes"),
            ),
            Section(
                "Lent",
                [(borrower, f"{n:,d}") for borrower, n in self.lent.items()],
                ("borrower", "objects"),
            ),
            Section(
                "Links",
                [
                    (
                        address,
                        "yes" if link["connected"] else "no",
                        f"{link['unacknowledged']:,d}",
                        f"{link['pushed']:,d}",
                        f"{link['nthreads']:,d}",
                        "yes" if link["accepting"] else "no",
                        link["way"],
                    )
                    for address, link in self.links.items()
                ],
                ("worker", "connected", "unacknowledged", "pushed", "threads", "accepting", "way"),
            ),
            Section(
                "Cancelled, still running",
                [(at, ", ".join(map(str, keys[:3]))) for at, keys in self.lingering.items()],
                ("worker", "keys"),
            ),
            Section("Refused", [*self.refused.items()], ("worker", "reason")),
            Section("Counts", counted(self.counts)),
            Section("Handed out again", counted(self.handed_out_again)),
            Section("Losses", counted(self.losses)),
        ]


@dataclass(frozen=True, repr=False)
class ObjectSnapshot(Shown):
    """Everything that a process knew of one object at one moment.

    Made by ``Client.ownership(key)``. Rows are named by their keys. There are as many attributes as
    facts about a row: they are flat, for people who type their names.

    Attributes
    ----------
    key : hashable
    time : float
        Seconds since the epoch.
    owner : str
        Name of the process that owns the object.
    borrowed : bool
        Whether the owner is another process; then only what this process knows is here.
    state : str
        One of `dask_ownership.core.protocol.states.STATE_NAMES`.
    attempt : int
        Number of the last hand-out, which is used once; 0 if the task was never handed out.
    function : str or None
        Name of the function, while the task has not ended with a value.
    kind : str or None
        Kind of the value: ``inline``, ``stored``, ``exception`` or ``failure``; None without one.
    nbytes : int
        Size of the value, or of the pickled exception.
    local_refs, task_refs, lineage_refs : int
        Counts that keep the object, see `dask_ownership.core.owner.rows.row`.
    pinned, fire_and_forget : bool
        Whether the object is kept because its future was pickled by hand, or until the task ends.
        Each is also part of ``local_refs``.
    borrowers : list of str
        Names of the processes that borrow the object.
    locations : list of str
        Workers that have a copy, or are being given one.
    worker : str or None
        Worker to which the task is pushed.
    dependencies : list of hashable
        Keys of the task's arguments, while the task has not ended with a value.
    contains : list of hashable
        Keys of the futures inside the task's arguments or its value.
    dependents : list of hashable
        Keys of tasks with the object as an argument, or with its future inside their arguments or
        value.
    lineage_of : list of hashable
        Keys of the stored values that can be made again only with this object.
    waiting : int
        How many dependencies have no value yet.
    no_worker : str or None
        Why no present worker may run the task, if so: the task waits for another worker to join.
    why : str or None
        Why the object has no end yet, in a sentence; None when it has one.
    lingers_at : list of str
        Workers where a cancelled attempt of the task goes on and keeps a slot.
    order : int
        Position among the tasks of the owner; lower runs first.
    options : dict
        ``workers``, ``allow_other_workers``, ``retries`` (left), ``resources``, ``executor``,
        ``timeout`` (seconds), ``at_most_once``, ``depth``, ``deaths`` (of workers under the task),
        ``recalled`` and ``replicas`` (wanted copies of the value, or None).
    lineage : dict or None
        How the value can be made again: ``function``, ``payload_nbytes``, ``inputs``, ``contains``.
    failure : dict or None
        Why there is no value: ``kind``, ``key`` of the task that failed, ``detail``.
    history : list of tuple
        As `Client.story`, without the present state.
    """

    key: Hashable
    time: float
    owner: str
    borrowed: bool
    state: str
    attempt: int
    function: str | None
    kind: str | None
    nbytes: int
    local_refs: int
    task_refs: int
    lineage_refs: int
    pinned: bool
    fire_and_forget: bool
    borrowers: list[str]
    locations: list[str]
    worker: str | None
    dependencies: list[Hashable]
    contains: list[Hashable]
    dependents: list[Hashable]
    lineage_of: list[Hashable]
    waiting: int
    no_worker: str | None
    why: str | None
    lingers_at: list[str]
    order: int
    options: dict[str, Any]
    lineage: dict[str, Any] | None
    failure: dict[str, Any] | None
    history: list[Event]

    handles = _former("handles")
    uses = _former("uses")
    descendants = _former("descendants")
    holders = _former("holders")

    def _head(self) -> tuple[str, str]:
        return "Object", repr(self.key)

    def _sections(self) -> list[Section]:
        now = {
            "state": self.state,
            "function": self.function,
            "pushed to": self.worker,
            "waits for": self.waiting,
            "because": self.why,
            "still runs at": ", ".join(self.lingers_at),
        }
        value = {
            "kind": self.kind or "none yet",
            "bytes": format_bytes(self.nbytes) if self.nbytes else None,
        }
        references = {
            "local_refs": self.local_refs,
            "task_refs": self.task_refs,
            "lineage_refs": self.lineage_refs,
            "pinned": self.pinned,
            "fire_and_forget": self.fire_and_forget,
        }
        lists: dict[str, list[Any]] = {
            "Locations": self.locations,
            "Borrowers": self.borrowers,
            "Dependencies": self.dependencies,
            "Contains": self.contains,
            "Dependents": self.dependents,
            "Needed to remake": self.lineage_of,
        }
        return [
            Section("Owner", [(self.owner,), *[("borrowed",)] * self.borrowed]),
            Section("State", worded(now)),
            Section("Value", worded(value)),
            Section("Failure", worded(self.failure)),
            Section("References", worded(references)),
            Section("Options", worded(self.options)),
            Section("Lineage", worded(self.lineage)),
            *(Section(title, [(str(word),) for word in words]) for title, words in lists.items()),
            Section(
                "History",
                [(clock(when), event, detail) for _, event, detail, when in self.history[-SHOWN:]],
                ("time", "event", "detail"),
            ),
        ]
