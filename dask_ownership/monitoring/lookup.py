"""Looking up an owner's table for people: one row, or counts of all rows.

The functions here read the table on the owner's event loop, where no row changes meanwhile, and
copy what they find. Their cost grows with the table (a second for a million objects). An owner
whose table is not looked up pays nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable
from typing import Any

from dask_ownership.core.owner.ownership import OwnerCore
from dask_ownership.core.owner.rows.attempts import Attempts
from dask_ownership.core.owner.rows.options import Options
from dask_ownership.core.owner.rows.row import Borrowed, Lineage, Row
from dask_ownership.core.protocol.failure import Failure
from dask_ownership.core.protocol.names import KEY, NAME
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
from dask_ownership.monitoring.snapshot import Event, ObjectSnapshot, References, Snapshot
from dask_ownership.runtime.owner.owner import Owner
from dask_ownership.runtime.owner.pending import lingers_at, why

KINDS = {INLINE: "inline", STORED: "stored"}
"""How values are kept, by the states of rows with a value."""

# ---- one row ----


def find(owner: Owner, key: Hashable) -> Row | None:
    """Return the row of a key that this process owns or borrows, or None; counts no reference."""
    row: Row | None = owner.core.table.rows.get(key)
    if row is None:
        # A borrowed row stands in the table under another key. The key that users know is the
        # fourth item of its origin.
        peers = list(owner.core.peers.known.values())
        borrowed = (row for peer in peers for row in list(peer.borrowed.values()))
        row = next((row for row in borrowed if row.origin[KEY] == key), None)
    return row


def name_of(key: Hashable) -> Hashable:
    """Return the key that users know for a key of the table.

    The two differ for a borrowed object, whose key in the table also names its owner.
    """
    if type(key) is tuple and len(key) == 4 and key[0] == "borrowed":
        return key[2]
    return key


def named(rows: Iterable[Row]) -> list[Hashable]:
    """Return the keys of rows that users know, each key once."""
    return list(dict.fromkeys(name_of(row.key) for row in rows))


def locations_of(row: Row) -> list[str]:
    """Return the addresses of the workers that have a copy of a value, or are being given one."""
    addresses = [view.address for view in row.locations]
    # ``row.addresses`` are the locations that the owner named, ``row.locations`` the workers that
    # fetched a copy for tasks of this process.
    if isinstance(row, Borrowed):
        addresses = list(dict.fromkeys([*row.addresses, *addresses]))
    return addresses


def look(owner: Owner, row: Row) -> ObjectSnapshot:
    """Return a snapshot of one row. Loop thread."""
    core = owner.core
    key = name_of(row.key)
    kind = KINDS.get(row.state)
    nbytes = row.nbytes if kind is not None else 0
    if isinstance(row.value, Failure):
        kind = "failure"
    elif row.state == ERROR:
        # The value of such a row is its pickled error.
        kind, nbytes = "exception", len(row.value)
    # Rows do not know every row that refers to them, so this is one pass over the table.
    dependents, lineage_of = _needing(core, row)
    borrowers = dict.fromkeys(peer.process[NAME] for peer, _ in core.lending.borrowers_of(row))
    return ObjectSnapshot(
        key=key,
        time=core.history.clock(),
        owner=row.owner_ref[NAME] if isinstance(row, Borrowed) else core.peers.process[NAME],
        borrowed=isinstance(row, Borrowed),
        state=STATE_NAMES[row.state],
        attempt=row.attempt,
        function=None if row.function is None else row.function.name,
        kind=kind,
        nbytes=nbytes,
        local_refs=row.local_refs,
        task_refs=row.task_refs,
        lineage_refs=row.lineage_refs,
        pinned=row in core.table.pinned,
        fire_and_forget=row in core.desired.rows,
        borrowers=list(borrowers),
        locations=locations_of(row),
        # In other states `worker` is where the value was made.
        worker=row.worker.address if row.state == PUSHED else None,
        dependencies=named(row.dependencies),
        contains=named(row.contains),
        dependents=named(dependents),
        lineage_of=named(lineage_of),
        waiting=row.waiting if not row.done else 0,
        no_worker=core.infeasible.why(row),
        why=None if row.done else why(core, row),
        lingers_at=lingers_at(core, row),
        order=row.order,
        options=_told_options(row.options, owner.core.attempts.of(row)),
        lineage=None if row.lineage is None else _told_lineage(row.lineage),
        failure=_told_failure(row),
        history=history(owner, {key}),
    )


def _needing(core: OwnerCore, row: Row) -> tuple[list[Row], list[Row]]:
    """Return the rows that need a row now, and the rows whose lineage needs the row.

    The former have the row as an argument, or have its future inside their arguments or value.
    """
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
    """Return the options of a task, with the state of its attempts, as plain values."""
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
    """Return the lineage of a value as plain values."""
    return {
        "function": lineage.function.name,
        "payload_nbytes": len(lineage.payload or b""),
        "inputs": named(lineage.dependencies),
        "contains": named(lineage.contains),
    }


def _told_failure(row: Row) -> dict[str, Any] | None:
    """Return why a row has no value, or None.

    For an exception, ``key`` is the key of the task that raised it.
    """
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
    """Return the row whose task raised the error of a row. Loop thread.

    An error passes from a task to the tasks that depend on it, so this follows dependencies with an
    error to the first one.
    """
    while cause := next((needed for needed in row.dependencies if needed.state == ERROR), None):
        row = cause
    return row


# ---- what happened to it ----


def history(owner: Owner, keys: Collection[Hashable]) -> list[Event]:
    """Return the remembered events of keys, oldest first. Loop thread."""
    return [
        (name_of(key), event, detail, when)
        for key, event, detail, when in owner.core.history.events
        if name_of(key) in keys
    ]


def present(owner: Owner, row: Row) -> Event:
    """Return the present state of a row, in the form of an event that ends a story."""
    words = []
    if row.attempt and not row.borrowed:
        words.append(f"attempt {row.attempt}")
    if row.state == PUSHED:
        words.append(f"at {row.worker.address}")
    elif row.state == STORED:
        places = row.addresses if isinstance(row, Borrowed) else [v.address for v in row.locations]
        words.append(f"at {', '.join(places)}")
    if reason := owner.core.infeasible.why(row):
        words.append(reason)
    if row.state in KINDS:
        words.append(f"{row.nbytes} bytes")
    if isinstance(row, Borrowed):
        words.append(f"borrowed from {row.owner_ref[NAME]}")
    return name_of(row.key), STATE_NAMES[row.state], ", ".join(words), owner.core.history.clock()


# ---- all that there is ----


def take(owner: Owner, central_calls: int) -> Snapshot:
    """Return a snapshot of all that this process owns, borrows and lends. Loop thread."""
    core = owner.core
    # Rows with these states are not in the table, so a zero for them would say nothing.
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
        refused=dict(core.refusals),
        counts={**core.counts, "attempts": core.lifecycle.numbers, "central_calls": central_calls},
        handed_out_again={
            event.replace("-", "_"): times for event, times in core.history.again.items()
        },
        lingering={
            view.address: [name_of(key) for key, _ in view.lingering]
            for view in core.placement.workers.values()
            if view.lingering
        },
        losses={kind.replace("-", "_"): number for kind, number in core.losses.items()},
    )


def _references(core: OwnerCore) -> dict[str, int]:
    """Return how many references of each kind keep objects, owned and borrowed ones."""
    kinds = ("local_refs", "task_refs", "borrowers", "lineage_refs", "pinned", "fire_and_forget")
    counts = References(dict.fromkeys(kinds, 0))
    borrowers = core.lending.borrowers
    for row in core.table.all():
        pinned, desired = row in core.table.pinned, row in core.desired.rows
        # A pin and a `fire_and_forget` each are one local reference, which is counted below under
        # its own name.
        counts["local_refs"] += row.local_refs - pinned - desired
        counts["task_refs"] += row.task_refs
        counts["borrowers"] += len(borrowers.get(row, ()))
        counts["lineage_refs"] += row.lineage_refs
        counts["pinned"] += pinned
        counts["fire_and_forget"] += desired
    return counts


def _borrowed(core: OwnerCore) -> dict[str, dict[str, int]]:
    """Return the numbers of borrowed objects by the name of their owner."""
    owners: dict[str, dict[str, int]] = {}
    for row in core.table.all():
        if isinstance(row, Borrowed):
            new = {"objects": 0, "pending": 0, "nbytes": 0}
            counts = owners.setdefault(row.owner_ref[NAME], new)
            counts["objects"] += 1
            counts["pending"] += not row.done
            counts["nbytes"] += row.nbytes if row.state in KINDS else 0
    return owners


def _lent(core: OwnerCore) -> dict[str, int]:
    """Return how many objects each other process borrows, by the name of the borrower."""
    borrowers: dict[str, int] = {}
    for peer in core.peers.known.values():
        if peer.lent:
            name = peer.process[NAME]
            borrowers[name] = borrowers.get(name, 0) + len(peer.lent)
    return borrowers


def _links(owner: Owner) -> dict[str, dict[str, Any]]:
    """Return the state of the links to workers, by the address of the worker."""
    links = {}
    for address, view in owner.core.placement.workers.items():
        link = view.link
        way = owner.reach.way_to(address)
        # All bytes count as relayed while a relay reaches the worker, also earlier direct ones.
        moved = view.byte_counter.sent + view.byte_counter.received
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
