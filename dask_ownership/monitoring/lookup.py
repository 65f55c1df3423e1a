"""Looking up what an owner's table has, for people: one row, or all that there is.

The functions here read the table on the owner's event loop, where nothing changes rows
meanwhile, and copy what they find. They cost time in proportion to the table (a second for
a million objects) and nothing when they are not called.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable
from typing import Any

from dask_ownership.core.owner.ownership import OwnerCore
from dask_ownership.core.owner.rows.attempts import Attempts
from dask_ownership.core.owner.rows.options import Options
from dask_ownership.core.owner.rows.row import Borrowed, Lineage, Row
from dask_ownership.core.protocol.failure import Failure
from dask_ownership.core.protocol.states import (
    CANCELLED,
    ERROR,
    FORGOTTEN,
    INLINE,
    LOST,
    PUSHED,
    STATE_NAMES,
    STORED,
)
from dask_ownership.monitoring.snapshot import Event, ObjectSnapshot, Snapshot
from dask_ownership.runtime.owner.owner import Owner

KINDS = {INLINE: "inline", STORED: "stored"}

# ---- one row ----


def find(owner: Owner, key: Hashable) -> Row | None:
    """The row of a key that this process owns or borrows; takes no handle."""
    row: Row | None = owner.core.table.rows.get(key)
    if row is None:
        peers = list(owner.core.peers.known.values())
        borrowed = (row for peer in peers for row in list(peer.borrowed.values()))
        row = next((row for row in borrowed if row.origin[3] == key), None)
    return row


def name_of(key: Hashable) -> Hashable:
    """The key that users know, of one in the table: a borrowed object has another there."""
    if type(key) is tuple and len(key) == 4 and key[0] == "borrowed":
        return key[2]
    return key


def named(rows: Iterable[Row]) -> list[Hashable]:
    """The keys of rows, each once."""
    return list(dict.fromkeys(name_of(row.key) for row in rows))


def holders_of(row: Row) -> list[str]:
    """The workers that have a copy of a value, or are being given one."""
    holders = [view.address for view in row.locations]
    if isinstance(row, Borrowed):
        holders = list(dict.fromkeys([*row.addresses, *holders]))
    return holders


def look(owner: Owner, row: Row) -> ObjectSnapshot:
    """All about one row. Loop thread."""
    core = owner.core
    key = name_of(row.key)
    kind = KINDS.get(row.state)
    nbytes = row.nbytes if kind is not None else 0
    if isinstance(row.value, Failure):
        kind = "failure"
    elif row.state == ERROR:
        kind, nbytes = "exception", len(row.value)
    dependents, lineage_of = _needing(core, row)
    borrowers = dict.fromkeys(peer.process[2] for peer, _ in core.lending.borrowers_of(row))
    return ObjectSnapshot(
        key=key,
        time=core.history.clock(),
        owner=row.owner_ref[2] if isinstance(row, Borrowed) else core.peers.process[2],
        borrowed=isinstance(row, Borrowed),
        state=STATE_NAMES[row.state],
        attempt=row.attempt,
        function=None if row.function is None else row.function.name,
        kind=kind,
        nbytes=nbytes,
        handles=row.local_refs,
        uses=row.task_refs,
        descendants=row.lineage_refs,
        pinned=row in core.table.pinned,
        fire_and_forget=row in core.desired.rows,
        borrowers=list(borrowers),
        holders=holders_of(row),
        worker=row.worker.address if row.state == PUSHED else None,
        dependencies=named(row.dependencies),
        contains=named(row.contains),
        dependents=named(dependents),
        lineage_of=named(lineage_of),
        waiting=row.waiting if not row.done else 0,
        no_worker=core.infeasible.why(row),
        order=row.order,
        options=_told_options(row.options, owner.core.attempts.of(row)),
        lineage=None if row.lineage is None else _told_lineage(row.lineage),
        failure=_told_failure(row),
        history=history(owner, {key}),
    )


def _needing(core: OwnerCore, row: Row) -> tuple[list[Row], list[Row]]:
    """The rows that need one as an input or inside, and those that can be made again with it."""
    dependents: list[Row] = []
    lineage_of: list[Row] = []
    for other in core.table.all():
        if row in other.dependencies or row in other.contains:
            dependents.append(other)
        made = other.lineage
        if made is not None and (row in made.dependencies or row in made.contains):
            lineage_of.append(other)
    return dependents, lineage_of


def _told_options(options: Options, attempts: Attempts) -> dict[str, Any]:
    return {
        "workers": options.workers,
        "allow_other_workers": options.loose,
        "retries": options.retries - attempts.failures,
        "resources": options.resources,
        "executor": options.executor,
        "timeout": options.timeout,
        "at_most_once": options.at_most_once,
        "depth": options.depth,
        "deaths": len(attempts.died),
        "recalled": attempts.recalled,
        "replicas": None if options.replicas is None else options.replicas.number,
    }


def _told_lineage(lineage: Lineage) -> dict[str, Any]:
    return {
        "function": lineage.function.name,
        "payload_nbytes": len(lineage.payload or b""),
        "inputs": named(lineage.dependencies),
        "contains": named(lineage.contains),
    }


def _told_failure(row: Row) -> dict[str, Any] | None:
    """Why a row has no value; of an exception, the key of the task that raised it."""
    value = row.value
    if isinstance(value, Failure):
        return {"kind": value.kind, "key": value.key, "detail": value.detail}
    if row.state != ERROR:
        return None
    return {
        "kind": "exception",
        "key": name_of(error_cause(row).key),
        "detail": "the exception that it raised; future.exception() gives it",
    }


def error_cause(row: Row) -> Row:
    """The row whose task raised what another ended with. Loop thread."""
    while cause := next((needed for needed in row.dependencies if needed.state == ERROR), None):
        row = cause
    return row


# ---- what happened to it ----


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
        places = row.addresses if isinstance(row, Borrowed) else [v.address for v in row.locations]
        words.append(f"at {', '.join(places)}")
    if why := owner.core.infeasible.why(row):
        words.append(why)
    if row.state in KINDS:
        words.append(f"{row.nbytes} bytes")
    if isinstance(row, Borrowed):
        words.append(f"borrowed from {row.owner_ref[2]}")
    return name_of(row.key), STATE_NAMES[row.state], ", ".join(words), owner.core.history.clock()


# ---- all that there is ----


def take(owner: Owner, central_calls: int) -> Snapshot:
    """Count everything. Loop thread."""
    core = owner.core
    hidden = (CANCELLED, LOST, FORGOTTEN)
    objects = {name: 0 for state, name in enumerate(STATE_NAMES) if state not in hidden}
    inline = kept = 0
    stored: dict[str, int] = {}
    for row in core.table.all():
        if row.borrowed:
            continue
        state = STATE_NAMES[row.state]
        objects[state] = objects.get(state, 0) + 1
        kept += row.lineage is not None
        if row.state == INLINE:
            inline += row.nbytes
        elif row.state == STORED:
            for view in row.locations:
                stored[view.address] = stored.get(view.address, 0) + row.nbytes
    lineages = core.lineages
    return Snapshot(
        name=owner.name,
        time=core.history.clock(),
        objects=objects,
        inline_nbytes=inline,
        stored_nbytes=stored,
        references=_references(core),
        lineage={
            "kept": kept,
            "nbytes": lineages.nbytes,
            "max_bytes": lineages.limits.lineage_bytes,
            "pinned": len(lineages.pinned),
            "evicted": lineages.evicted,
            "recovered": lineages.recovered,
        },
        borrowed=_borrowed(core),
        lent=_lent(core),
        links=_links(owner),
        refused=dict(core.refused),
        counts={**core.counts, "attempts": core.lifecycle.numbers, "central_calls": central_calls},
        handed_out_again={
            why.replace("-", "_"): times for why, times in core.history.again.items()
        },
        losses={kind.replace("-", "_"): number for kind, number in core.losses.items()},
    )


def _references(core: OwnerCore) -> dict[str, int]:
    """What keeps objects, owned and borrowed, by kind."""
    kinds = ("handles", "uses", "borrowers", "descendants", "pinned", "fire_and_forget")
    counts = dict.fromkeys(kinds, 0)
    borrowers = core.lending.borrowers
    for row in core.table.all():
        pinned, desired = row in core.table.pinned, row in core.desired.rows
        counts["handles"] += row.local_refs - pinned - desired
        counts["uses"] += row.task_refs
        counts["borrowers"] += len(borrowers.get(row, ()))
        counts["descendants"] += row.lineage_refs
        counts["pinned"] += pinned
        counts["fire_and_forget"] += desired
    return counts


def _borrowed(core: OwnerCore) -> dict[str, dict[str, int]]:
    """What is borrowed, by the name of its owner."""
    owners: dict[str, dict[str, int]] = {}
    for row in core.table.all():
        if isinstance(row, Borrowed):
            new = {"objects": 0, "pending": 0, "nbytes": 0}
            counts = owners.setdefault(row.owner_ref[2], new)
            counts["objects"] += 1
            counts["pending"] += not row.done
            counts["nbytes"] += row.nbytes if row.state in KINDS else 0
    return owners


def _lent(core: OwnerCore) -> dict[str, int]:
    """How many objects each process borrows, by its name."""
    borrowers: dict[str, int] = {}
    for peer in core.peers.known.values():
        if peer.lent:
            name = peer.process[2]
            borrowers[name] = borrowers.get(name, 0) + len(peer.lent)
    return borrowers


def _links(owner: Owner) -> dict[str, dict[str, Any]]:
    """The links to workers, by their addresses."""
    links = {}
    for address, view in owner.core.placement.workers.items():
        link = view.link
        way = owner.reach.way_to(address)
        moved = view.traffic.sent + view.traffic.received
        links[address] = {
            "connected": link is not None and link.connected,
            "unacknowledged": len(link.state.unacknowledged) if link is not None else 0,
            "pushed": len(view.pushed),
            "nthreads": view.nthreads,
            "accepting": view.accepting,
            "way": way,
            "relayed_nbytes": moved if way == "relayed" else 0,
        }
    return links
