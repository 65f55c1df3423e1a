"""Why an object has no end yet, in a sentence for people.

What a wait says that has run out of time. Any thread may ask: the functions read the table without
the event loop, which may be the reason for the wait, and so may tell of a moment that has passed.
"""

from __future__ import annotations

from collections.abc import Sequence

from dask_ownership.core.owner.ownership import OwnerCore
from dask_ownership.core.owner.rows.row import Borrowed, Row
from dask_ownership.core.owner.rows.worker_view import WorkerView
from dask_ownership.core.protocol.names import KEY, NAME, is_adopted
from dask_ownership.core.protocol.states import INLINE, PUSHED, READY, STATE_NAMES, STORED, WAITING

LOOKED_AT = 100
"""Objects of one wait that are looked at, and inputs of inputs that are followed."""

TOLD = 3
"""Reasons that one text has, at most."""


def late(core: OwnerCore, rows: Sequence[Row], seconds: float | None) -> str:
    """Return what a wait for rows says that has run out of time: how long it was, and why.

    Parameters
    ----------
    core : OwnerCore
    rows : sequence of Row
        The rows that were waited for, ended or not.
    seconds : float or None
        How long the wait was.
    """
    within = "in time" if seconds is None else f"within {seconds:g} s"
    pending = [row for row in rows if row.state < INLINE]
    if not pending:
        places = [row for row in rows if row.state == STORED]
        if places:
            row = places[0]
            return f"the value of {name_of(row)!r} did not arrive {within}: it is {at(row)}"
        return f"the futures did not end {within}, though they have by now"
    if len(rows) == 1:
        return f"{name_of(rows[0])!r} did not end {within}: {why(core, rows[0])}"
    # Tasks that cannot go on say more than tasks that need some more time.
    first = pending[:LOOKED_AT]
    reasons = {reason: row for row in reversed(first) if (reason := stuck(core, row))}
    told = list(reasons.items())[-TOLD:][::-1] or [(why(core, first[0]), first[0])]
    texts = "; ".join(f"{name_of(row)!r}: {reason}" for reason, row in told)
    return f"{len(pending):,d} of {len(rows):,d} futures did not end {within}. {texts}"


def name_of(row: Row) -> object:
    """Return the key of a row that users know."""
    key = row.origin[KEY] if isinstance(row, Borrowed) else row.key
    # The third item of the key of an object that its owner took over is the key at its first owner.
    return key[2] if isinstance(key, tuple) and is_adopted(key) else key


def at(row: Row) -> str:
    """Return where the value of a stored row is, as text."""
    addresses = [view.address for view in row.locations]
    if isinstance(row, Borrowed):
        addresses = [*row.addresses, *addresses]
    return f"at {', '.join(dict.fromkeys(addresses[:TOLD]))}"


def lingers_at(core: OwnerCore, row: Row) -> list[str]:
    """Return the workers where cancelled attempts of a row go on and keep slots."""
    return [
        view.address
        for view in list(core.placement.workers.values())
        if view.lingering and any(key == row.key for key, _ in list(view.lingering))
    ]


def why(core: OwnerCore, row: Row) -> str:
    """Return why a row has not ended; of a row that waits for inputs, the reason of one of them."""
    root, steps = _root(row)
    reason = _reason(core, root)
    if root is row:
        return reason
    inputs = "its input" if steps == 1 else "an input of its inputs,"
    waiting = row.waiting
    many = f"it waits for {waiting:,d} inputs; " if waiting > 1 else "it waits for "
    return f"{many}{inputs} {name_of(root)!r}: {reason}"


def stuck(core: OwnerCore, row: Row) -> str | None:
    """Return why a row cannot go on until a worker changes; None when the row only needs time.

    No worker may run such a row, or the workers that may take no new tasks, or the worker that has
    the row does not answer. A row that waits for such an input cannot go on, too, and has the
    reason of the input.
    """
    root, _ = _root(row)
    view = root.worker
    if root.state == READY:
        views = core.placement.allowed(root)
        waits = not any(view.accepting for view in views)
    else:
        waits = root.state == PUSHED and isinstance(view, WorkerView) and view.suspended
    return _reason(core, root) if waits else None


def _root(row: Row) -> tuple[Row, int]:
    """Return the first input of the inputs of a row that waits for no input itself, and its depth.

    A task that was handed to a worker behind its inputs waits for these there.
    """
    for steps in range(LOOKED_AT):
        needed = next((d for d in row.dependencies if d.state < INLINE), None)
        if needed is None or row.state not in (WAITING, PUSHED):
            return row, steps
        row = needed
    return row, LOOKED_AT


def _reason(core: OwnerCore, row: Row) -> str:
    """Return why a row has not ended that waits for none of its inputs."""
    state = row.state
    if state >= INLINE:
        return f"it has ended meanwhile ({STATE_NAMES[state]})"
    if isinstance(row, Borrowed):
        owner = row.owner_ref[NAME]
        return f"its owner {owner} has not said that it ended; there client.ownership says why"
    if state == READY:
        return core.infeasible.why(row) or _no_slot(core.placement.allowed(row))
    view = row.worker
    if state == PUSHED and isinstance(view, WorkerView):
        return _handed(core, row, view)
    if row.function is None:
        return "its value comes from another process, and is not here yet"
    return "the event loop of this process has not taken it in yet: is the loop blocked?"


def _no_slot(views: list[WorkerView]) -> str:
    """Return why no worker takes a row that may run at these."""
    taking = [view for view in views if view.accepting]
    if not taking:
        silent = [view.address for view in views if view.suspended]
        if silent:
            return f"the only workers that may run it do not answer: {', '.join(silent[:TOLD])}"
        where = ", ".join(view.address for view in views[:TOLD])
        return (
            "the workers that may run it take no new tasks, because their memory is too full or "
            f"they are about to leave: {where}"
        )
    slots = sum(view.nthreads for view in taking)
    tasks = sum(len(view.pushed) for view in taking)
    return (
        f"it waits for a free slot: the workers that may run it ({len(taking):,d}, with "
        f"{slots:,d} threads) have {tasks:,d} tasks of this process before it"
    )


def attempt_of(core: OwnerCore, row: Row) -> int:
    """Return which attempt of a task runs or ran last, as people count; 0 before the first."""
    return core.attempts.of(row).ordinal if row.attempt else 0


def _handed(core: OwnerCore, row: Row, view: WorkerView) -> str:
    """Return what is known of a row that was handed to a worker."""
    since = core.attempt_times.since(row.attempt)
    ago = "" if since is None else f" {max(0.0, core.attempt_times.clock() - since):.0f} s ago"
    attempt = attempt_of(core, row)
    text = f"it was handed to {view.address}{ago} (attempt {attempt}), and "
    if view.suspended:
        return f"{text}this worker does not answer: it is frozen, cut off or very busy"
    if view.link is not None and not view.link.connected:
        return f"{text}there is no connection to this worker at the moment"
    if not row.estimate:
        return f"{text}waits there, without a slot, for tasks that it submitted"
    others = view.active - 1
    if others < view.nthreads:
        return f"{text}should be running there"
    tasks = "1 other task" if others == 1 else f"{others:,d} other tasks"
    return f"{text}runs or waits its turn there, with {tasks} of this process"
