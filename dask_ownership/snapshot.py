"""What a process owns, borrows and lends at one moment, for people.

The functions here read an owner's table on its event loop, where nothing changes rows
meanwhile, and copy what they find: a `Snapshot` holds no row and keeps no value alive.
They cost time in proportion to the table (a second for a million objects) and nothing
when they are not called.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from html import escape
from typing import Any

from dask.utils import format_bytes

from dask_ownership.core.row import (
    CANCELLED,
    ERROR,
    FORGOTTEN,
    INLINE,
    LOST,
    PUSHED,
    STATE_NAMES,
    STORED,
    Borrowed,
    Failure,
    Row,
)
from dask_ownership.runtime.owner import Owner

Event = tuple[Hashable, str, str, float]
"""Key, what happened to it, how, and when."""

SHOWN = 20
"""Lines of one list that are shown; the attributes have all."""

KINDS = {INLINE: "inline", STORED: "stored"}

# ---- what is read ----


@dataclass(frozen=True)
class Section:
    """A part of what is shown: words and what belongs to them, or a table with a header."""

    title: str
    rows: list[tuple[str, ...]]
    header: tuple[str, ...] = ()

    def shown(self) -> tuple[list[tuple[str, ...]], str]:
        """The rows to show, and a word on those left out."""
        left = len(self.rows) - SHOWN
        return self.rows[:SHOWN], f"... and {left:,d} more" if left > 0 else ""

    def lines(self) -> list[str]:
        """As text."""
        rows, more = self.shown()
        if not self.header:
            return [", ".join([*(" ".join(row) for row in rows), *([more] if more else [])])]
        table = [self.header, *rows]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
        return [*lines, more] if more else lines

    def html(self) -> str:
        """As a table."""
        rows, more = self.shown()
        lines = [cells("th", self.header)] if self.header else []
        for row in rows:
            if self.header or len(row) == 1:
                lines.append(cells("td", row))
            else:
                lines.append(cells("th", row[:1], " width: 150px;") + cells("td", row[1:]))
        if more:
            lines.append(cells("td", (more,)))
        return (
            f'<details open="open"><summary><h4 style="display: inline;">{escape(self.title)}</h4>'
            '</summary><table style="width: 100%; text-align: left;">'
            + "".join(f"<tr>{line}</tr>" for line in lines)
            + "</table></details>"
        )


def cells(tag: str, words: Iterable[str], style: str = "") -> str:
    """Cells of one line of a table."""
    return "".join(
        f'<{tag} style="text-align: left;{style}">{escape(word)}</{tag}>' for word in words
    )


def counted(counts: dict[str, int]) -> list[tuple[str, ...]]:
    """Names with their numbers."""
    return [(name.replace("_", " "), f"{count:,d}") for name, count in counts.items()]


def worded(values: dict[str, Any] | None) -> list[tuple[str, ...]]:
    """Names with what they stand for, without those that stand for nothing."""
    return [
        (name.replace("_", " "), value if isinstance(value, str) else repr(value))
        for name, value in (values or {}).items()
        if value not in (None, 0, (), [], {})
    ]


def clock(when: float) -> str:
    """The time of day."""
    return datetime.fromtimestamp(when).strftime("%H:%M:%S.%f")[:-3]


class Shown:
    """How snapshots look in terminals and notebooks."""

    def to_dict(self) -> dict[str, Any]:
        """Everything as one dict of plain values, which shares nothing with this object."""
        return asdict(self)  # type: ignore[call-overload]

    def _head(self) -> tuple[str, str]:
        """What it is, and of what."""
        raise NotImplementedError

    def _sections(self) -> Iterable[Section]:
        raise NotImplementedError

    def __repr__(self) -> str:
        kind, name = self._head()
        sections = [(s.title.lower(), s.lines()) for s in self._sections() if s.rows]
        width = max(len(title) for title, _ in sections)
        text = [f"{kind} {name}".rstrip()]
        for title, lines in sections:
            for index, line in enumerate(lines):
                text.append(f"  {title if not index else '':{width}}  {line}")
        return "\n".join(text)

    def _repr_html_(self) -> str:
        kind, name = self._head()
        tables = "".join(section.html() for section in self._sections() if section.rows)
        return (
            '<div><div style="width: 24px; height: 24px; background-color: #e1e1e1; '
            'border: 3px solid #9D9D9D; border-radius: 5px; position: absolute;"> </div>'
            '<div style="margin-left: 48px;">'
            f'<h3 style="margin-bottom: 0px;">{escape(kind)}</h3>'
            f'<p style="color: #9D9D9D; margin-bottom: 0px;">{escape(name)}</p>'
            f"{tables}</div></div>"
        )


@dataclass(frozen=True, repr=False)
class Snapshot(Shown):
    """What one process owned, borrowed and lent at one moment.

    Made by `Client.ownership`. Plain dicts and numbers, which can be pickled and are not
    updated.

    Attributes
    ----------
    name : str
        The client's id, or the address of the worker.
    time : float
        Seconds since the epoch.
    objects : dict of str to int
        How many objects this process owns, by state: ``waiting``, ``ready``, ``pushed``,
        ``inline``, ``stored``, ``error``, ``dormant`` (only lineage needs it). Those that
        were cancelled, lost or freed are in the table no more and not counted.
    inline_nbytes : int
        Bytes of the pickled values that are here.
    stored_nbytes : dict of str to int
        Bytes of stored values by the worker that has them; a copy counts at each worker.
    references : dict of str to int
        What keeps objects, by kind: ``handles`` (futures in this process), ``uses`` (see
        `dask_ownership.core.row`), ``borrowers`` (processes, for each object),
        ``descendants`` (lineage that has it as an input), ``pinned`` (its future was
        pickled by hand) and ``fire_and_forget``. What is borrowed counts too. All
        borrowers of an object together are one of its uses.
    lineage : dict of str to int
        ``kept`` (tasks), ``nbytes``, ``max_bytes``, ``pinned`` (inline values that only
        lineage needs, whose bytes are part of ``nbytes``), ``evicted`` and ``recovered``
        (both since the start).
    borrowed : dict of str to dict
        What this process borrows, by owner: ``objects``, ``pending`` (without an outcome
        yet) and ``nbytes``.
    lent : dict of str to int
        How many objects each process borrows from this one.
    links : dict of str to dict
        By worker: ``connected``, ``unacknowledged`` (batches), ``pushed`` (tasks that it
        was given and has not answered), ``nthreads`` and ``accepting``. The workers that
        this process never had anything for are not connected.
    refused : dict of str to str
        Workers that do not take links, and why.
    counts : dict of str to int
        Since the start: ``submitted``, ``done``, ``failed``, ``attempts`` (numbers used up
        for pushing and borrowing) and ``central_calls``.
    handed_out_again : dict of str to int
        Since the start, how often tasks were handed out once more, by why: ``worker_gone``
        (it died under them, or while they waited there), ``recovered`` (from lineage, as the
        value was lost, or for one that was), ``recalled`` (for a worker with nothing to do)
        and ``returned`` (by a worker, which did not start them), ``retried`` (after they
        failed). `Client.story` has each of them.
    losses : dict of str to int
        Since the start, what deaths of other processes cost this one: ``workers_died`` (under
        its tasks), ``killed_worker`` and ``uncertain`` (tasks that ended so), ``lost_data``
        (values), ``owners_gone`` (from which it borrowed), ``orphaned`` (tasks at this worker
        whose owner died), ``owner_lost`` (borrowed futures); see `dask_ownership.core.losses`.
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

    def _head(self) -> tuple[str, str]:
        return "Ownership of", self.name

    def _sections(self) -> list[Section]:
        lineage = self.lineage
        stored = sum(self.stored_nbytes.values())
        return [
            Section("Objects", counted({"owned": sum(self.objects.values()), **self.objects})),
            Section(
                "Bytes",
                [("inline", format_bytes(self.inline_nbytes)), ("stored", format_bytes(stored))],
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
                    ("tasks kept", f"{lineage['kept']:,d}"),
                    ("used", format_bytes(lineage["nbytes"])),
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
                    )
                    for address, link in self.links.items()
                ],
                ("worker", "connected", "unacknowledged", "pushed", "threads", "accepting"),
            ),
            Section("Refused", [*self.refused.items()], ("worker", "reason")),
            Section("Counts", counted(self.counts)),
            Section("Handed out again", counted(self.handed_out_again)),
            Section("Losses", counted(self.losses)),
        ]


@dataclass(frozen=True, repr=False)
class ObjectSnapshot(Shown):
    """All that one process knew of one object at one moment.

    Made by ``Client.ownership(key)``. Rows are named by their keys.

    Attributes
    ----------
    key : hashable
    time : float
        Seconds since the epoch.
    owner : str
        Name of the process that owns it.
    borrowed : bool
        Whether that is another process; then only what this one knows is here.
    state : str
        One of `dask_ownership.core.table.STATE_NAMES`.
    attempt : int
        Number of the last hand-out, which is used once; 0 when it never was.
    function : str or None
        Name of the function, while the task has not ended with a value.
    kind : str or None
        Of the value: ``inline``, ``stored``, ``exception`` or ``failure``; None without one.
    nbytes : int
        Of the value, or of the pickled exception.
    handles, uses, descendants : int
        Counts that keep it, see `dask_ownership.core.row`.
    pinned, fire_and_forget : bool
        Kept because its future was pickled by hand, or until it ends. Part of ``handles``.
    borrowers : list of str
        Names of the processes that borrow it.
    holders : list of str
        Workers that have a copy, or are being given one.
    worker : str or None
        Where it was pushed.
    dependencies : list of hashable
        What it takes as arguments, while it has not ended with a value.
    contains : list of hashable
        Whose futures are inside its arguments or its value.
    dependents : list of hashable
        Which tasks take it as an argument, or have its future inside what they have.
    lineage_of : list of hashable
        Which stored values can be made again only with it.
    waiting : int
        How many dependencies have no value yet.
    no_worker : str or None
        Why no worker that is there may run it, if none may: it waits for one to join.
    order : int
        Its place; lower runs first.
    options : dict
        ``workers``, ``allow_other_workers``, ``retries`` (left), ``resources``, ``executor``,
        ``timeout`` (seconds), ``at_most_once``, ``depth``, ``deaths`` (of workers under it)
        and ``recalled``.
    lineage : dict or None
        How it can be made again: ``function``, ``payload_nbytes``, ``inputs``, ``contains``.
    failure : dict or None
        Why there is no value: ``kind``, ``key`` that it happened to, ``detail``.
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
    handles: int
    uses: int
    descendants: int
    pinned: bool
    fire_and_forget: bool
    borrowers: list[str]
    holders: list[str]
    worker: str | None
    dependencies: list[Hashable]
    contains: list[Hashable]
    dependents: list[Hashable]
    lineage_of: list[Hashable]
    waiting: int
    no_worker: str | None
    order: int
    options: dict[str, Any]
    lineage: dict[str, Any] | None
    failure: dict[str, Any] | None
    history: list[Event]

    def _head(self) -> tuple[str, str]:
        return "Object", repr(self.key)

    def _sections(self) -> list[Section]:
        now = {
            "state": self.state,
            "attempt": self.attempt,
            "function": self.function,
            "pushed to": self.worker,
            "waits for": self.waiting,
            "no worker": self.no_worker,
        }
        value = {
            "kind": self.kind or "none yet",
            "bytes": format_bytes(self.nbytes) if self.nbytes else None,
        }
        references = {
            "handles": self.handles,
            "uses": self.uses,
            "descendants": self.descendants,
            "pinned": self.pinned,
            "fire_and_forget": self.fire_and_forget,
        }
        lists: dict[str, list[Any]] = {
            "Holders": self.holders,
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


# ---- reading it, on the event loop ----


def name_of(key: Hashable) -> Hashable:
    """The key that users know, of one in the table: a borrowed object has another there."""
    if type(key) is tuple and len(key) == 4 and key[0] == "borrowed":
        return key[2]
    return key


def named(rows: Iterable[Row]) -> list[Hashable]:
    """The keys of rows, each once."""
    return list(dict.fromkeys(name_of(row.key) for row in rows))


def take(owner: Owner, central_calls: int) -> Snapshot:
    """Count everything. Loop thread."""
    core = owner.core
    hidden = (CANCELLED, LOST, FORGOTTEN)
    objects = {name: 0 for state, name in enumerate(STATE_NAMES) if state not in hidden}
    kinds = ("handles", "uses", "borrowers", "descendants", "pinned", "fire_and_forget")
    references = dict.fromkeys(kinds, 0)
    inline = kept = 0
    stored: dict[str, int] = {}
    borrowed: dict[str, dict[str, int]] = {}
    for row in owner.core.table.all():
        pinned, desired = row in owner.core.table.pinned, row in core.desired.rows
        references["handles"] += row.handles - pinned - desired
        references["uses"] += row.uses
        references["borrowers"] += len(core.lending.borrowers.get(row, ()))
        references["descendants"] += row.descendants
        references["pinned"] += pinned
        references["fire_and_forget"] += desired
        if isinstance(row, Borrowed):
            new = {"objects": 0, "pending": 0, "nbytes": 0}
            those = borrowed.setdefault(row.place[2], new)
            those["objects"] += 1
            those["pending"] += not row.done
            those["nbytes"] += row.nbytes if row.state in KINDS else 0
            continue
        state = STATE_NAMES[row.state]
        objects[state] = objects.get(state, 0) + 1
        kept += row.lineage is not None
        if row.state == INLINE:
            inline += row.nbytes
        elif row.state == STORED:
            for view in row.holders:
                stored[view.address] = stored.get(view.address, 0) + row.nbytes
    lent: dict[str, int] = {}
    for peer in core.peers.known.values():
        if peer.lent:
            lent[peer.process[2]] = lent.get(peer.process[2], 0) + len(peer.lent)
    links = {}
    for address, view in core.placement.workers.items():
        link = view.link
        links[address] = {
            "connected": link is not None and link.connected,
            "unacknowledged": len(link.state.unacknowledged) if link is not None else 0,
            "pushed": len(view.pushed),
            "nthreads": view.nthreads,
            "accepting": view.accepting,
        }
    lineages = core.lineages
    return Snapshot(
        name=owner.name,
        time=core.history.clock(),
        objects=objects,
        inline_nbytes=inline,
        stored_nbytes=stored,
        references=references,
        lineage={
            "kept": kept,
            "nbytes": lineages.nbytes,
            "max_bytes": lineages.limits.lineage_bytes,
            "pinned": len(lineages.pinned),
            "evicted": lineages.evicted,
            "recovered": lineages.recovered,
        },
        borrowed=borrowed,
        lent=lent,
        links=links,
        refused=dict(owner.core.refused),
        counts={**core.counts, "attempts": core.lifecycle.numbers, "central_calls": central_calls},
        handed_out_again={
            why.replace("-", "_"): times for why, times in core.history.again.items()
        },
        losses={kind.replace("-", "_"): number for kind, number in core.losses.items()},
    )


def find(owner: Owner, key: Hashable) -> Row | None:
    """The row of a key that this process owns or borrows; takes no handle."""
    row: Row | None = owner.core.table.rows.get(key)
    if row is None:
        peers = list(owner.core.peers.known.values())
        borrowed = (row for peer in peers for row in list(peer.borrowed.values()))
        row = next((row for row in borrowed if row.origin[3] == key), None)
    return row


def look(owner: Owner, row: Row) -> ObjectSnapshot:
    """All about one row. Loop thread."""
    core = owner.core
    key = name_of(row.key)
    dependents: list[Row] = []
    lineage_of: list[Row] = []
    for other in owner.core.table.all():
        if row in other.dependencies or row in other.contains:
            dependents.append(other)
        made = other.lineage
        if made is not None and (row in made.dependencies or row in made.contains):
            lineage_of.append(other)
    options = row.options
    value = row.value
    kind = KINDS.get(row.state)
    nbytes = row.nbytes if kind is not None else 0
    failure: dict[str, Any] | None = None
    if isinstance(value, Failure):
        kind = "failure"
        failure = {"kind": value.kind, "key": value.key, "detail": value.detail}
    elif row.state == ERROR:
        kind, nbytes = "exception", len(value)
        failed = next((d for d in row.dependencies if d.state == ERROR), None)
        while failed is not None and (
            deeper := next((d for d in failed.dependencies if d.state == ERROR), None)
        ):
            failed = deeper
        failure = {
            "kind": kind,
            "key": key if failed is None else name_of(failed.key),
            "detail": "the exception that it raised; future.exception() gives it",
        }
    lineage = row.lineage
    borrowed = isinstance(row, Borrowed)
    holders = [view.address for view in row.holders]
    if isinstance(row, Borrowed):
        holders = list(dict.fromkeys([*row.addresses, *holders]))
    return ObjectSnapshot(
        key=key,
        time=core.history.clock(),
        owner=row.place[2] if isinstance(row, Borrowed) else core.peers.process[2],
        borrowed=borrowed,
        state=STATE_NAMES[row.state],
        attempt=row.attempt,
        function=None if row.function is None else row.function.name,
        kind=kind,
        nbytes=nbytes,
        handles=row.handles,
        uses=row.uses,
        descendants=row.descendants,
        pinned=row in owner.core.table.pinned,
        fire_and_forget=row in core.desired.rows,
        borrowers=list(
            dict.fromkeys(peer.process[2] for peer, _ in core.lending.borrowers_of(row))
        ),
        holders=holders,
        worker=row.worker.address if row.state == PUSHED else None,
        dependencies=named(row.dependencies),
        contains=named(row.contains),
        dependents=named(dependents),
        lineage_of=named(lineage_of),
        waiting=row.waiting if not row.done else 0,
        no_worker=core.infeasible.why(row),
        order=row.order,
        options={
            "workers": options.workers,
            "allow_other_workers": options.loose,
            "retries": options.retries,
            "resources": options.resources,
            "executor": options.executor,
            "timeout": options.timeout,
            "at_most_once": options.at_most_once,
            "depth": options.depth,
            "deaths": len(options.died),
            "recalled": options.moved,
            "replicas": None if options.replicas is None else options.replicas.number,
        },
        lineage=None
        if lineage is None
        else {
            "function": lineage.function.name,
            "payload_nbytes": len(lineage.payload or b""),
            "inputs": named(lineage.dependencies),
            "contains": named(lineage.contains),
        },
        failure=failure,
        history=history(owner, {key}),
    )


def history(owner: Owner, keys: Collection[Hashable]) -> list[Event]:
    """What is remembered of keys, oldest first. Loop thread."""
    return [
        (name_of(key), event, detail, when)
        for key, event, detail, when in owner.core.history.events
        if name_of(key) in keys
    ]


def present(owner: Owner, row: Row) -> Event:
    """The state of a row as the last entry of its story."""
    words = []
    if row.attempt and not row.borrowed:
        words.append(f"attempt {row.attempt}")
    if row.state == PUSHED:
        words.append(f"at {row.worker.address}")
    elif row.state == STORED:
        places = row.addresses if isinstance(row, Borrowed) else [v.address for v in row.holders]
        words.append(f"at {', '.join(places)}")
    if why := owner.core.infeasible.why(row):
        words.append(why)
    if row.state in KINDS:
        words.append(f"{row.nbytes} bytes")
    if isinstance(row, Borrowed):
        words.append(f"borrowed from {row.place[2]}")
    return name_of(row.key), STATE_NAMES[row.state], ", ".join(words), owner.core.history.clock()
