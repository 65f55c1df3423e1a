"""Tasks that have not ended, and why each of them waits, as its owner knows it."""

from __future__ import annotations

from typing import Any

from dask_ownership.core.owner.ownership import OwnerCore
from dask_ownership.core.owner.rows.row import Borrowed, Row
from dask_ownership.core.protocol.messages import Key
from dask_ownership.core.protocol.names import is_adopted
from dask_ownership.core.protocol.states import INLINE, PUSHED, READY, STATE_NAMES, WAITING

EXAMPLES = 3
"""Tasks of one name and state that are described: the first in the order of the owner."""

DESCRIBED = 60
"""Tasks that are described in one report, at most."""

INPUTS = 2
"""Inputs that one reason names, at most."""


def key_of(key: Key) -> str:
    """Return the key that users know, as text, for a key of the table.

    The two differ for a borrowed object and for an object that its owner took over.
    """
    if type(key) is tuple and len(key) == 4 and (key[0] == "borrowed" or is_adopted(key)):
        return str(key[2])
    return str(key)


def why(core: OwnerCore, row: Row) -> str:
    """Return why a task has not ended. Loop thread."""
    if row.state == READY:
        return core.infeasible.why(row) or _no_room(core, row)
    if row.state == PUSHED:
        return _at_worker(row)
    if isinstance(row, Borrowed):
        return f"its owner {row.owner_ref[2]} has told no outcome yet"
    missing = [one for one in row.dependencies if not one.done]
    named = "; ".join(_input(core, one) for one in missing[:INPUTS])
    more = f"; {len(missing) - INPUTS} more" if len(missing) > INPUTS else ""
    return f"for {len(missing)} of {len(row.dependencies)} inputs: {named}{more}"


def _input(core: OwnerCore, row: Row) -> str:
    """Return an input that has no value yet, with its state, or with why no worker runs it."""
    state = core.infeasible.why(row) or STATE_NAMES[row.state]
    if row.state == PUSHED:
        state = f"handed to {row.worker.address}"
    return f"{key_of(row.key)} ({state})"


def _no_room(core: OwnerCore, row: Row) -> str:
    """Return why a task that some worker may run was not handed to one."""
    views = core.placement.allowed(row)
    silent = [view.address for view in views if view.suspended]
    taking = [view for view in views if view.accepting]
    if not taking and silent:
        return f"no sign of life from {', '.join(silent)}"
    if not taking:
        return "the workers that may run it take no tasks now: they are paused or leave"
    who = taking[0].address if len(taking) == 1 else f"the {len(taking)} workers that may run it"
    before = sum(len(view.pushed) for view in taking)
    return f"for {who}: tasks handed out before it: {before}"


def _at_worker(row: Row) -> str:
    """Return where a task is that was handed out."""
    view = row.worker
    if view.suspended:
        return f"{view.address} gives no sign of life"
    return f"runs at {view.address}, or is next there"


class Unfinished:
    """Tasks that have not ended, a few of each name and state.

    Parameters
    ----------
    core : OwnerCore
    """

    def __init__(self, core: OwnerCore) -> None:
        self._core = core
        self._rows: dict[tuple[str, int], list[Row]] = {}

    def add(self, name: str, row: Row) -> None:
        """Keep a row if it comes before other rows of its name and state."""
        kept = self._rows.get((name, row.state))
        if kept is None:
            kept = self._rows[name, row.state] = []
        # Most rows fail this comparison.
        if len(kept) < EXAMPLES or row.order < kept[-1].order:
            kept.append(row)
            kept.sort(key=lambda one: one.order)
            del kept[EXAMPLES:]

    def told(self) -> list[dict[str, Any]]:
        """Return the tasks, as plain values; those that wait for a worker first."""
        core = self._core
        # A row may have ended since it was counted.
        rows = [
            (name, row)
            for (name, _), kept in self._rows.items()
            for row in kept
            if WAITING <= row.state < INLINE
        ]
        rows.sort(key=lambda one: (one[1].state != READY, one[1].state, one[1].order))
        return [
            {
                "key": key_of(row.key),
                "name": name,
                "state": STATE_NAMES[row.state],
                "attempt": row.attempt,
                "since": core.attempt_times.since(row.attempt) if row.state == PUSHED else None,
                "worker": row.worker.address if row.state == PUSHED else "",
                "stuck": core.infeasible.why(row) is not None,
                "why": why(core, row),
            }
            for name, row in rows[:DESCRIBED]
        ]
