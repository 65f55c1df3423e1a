"""Tasks that have not ended, and why each of them waits, as its owner knows it."""

from __future__ import annotations

from typing import Any

from dask_ownership.core.owner.ownership import OwnerCore
from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.protocol.states import INLINE, PUSHED, READY, STATE_NAMES, WAITING
from dask_ownership.runtime.owner.pending import attempt_of, name_of, stuck, why

EXAMPLES = 3
"""Tasks of one name and state that are described: the first in the order of the owner."""

DESCRIBED = 60
"""Tasks that are described in one report, at most."""


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
                "key": str(name_of(row)),
                "name": name,
                "state": STATE_NAMES[row.state],
                "attempt": attempt_of(core, row),
                "since": core.attempt_times.since(row.attempt) if row.state == PUSHED else None,
                "worker": row.worker.address if row.state == PUSHED else "",
                "stuck": stuck(core, row) is not None,
                "why": why(core, row),
            }
            for name, row in rows[:DESCRIBED]
        ]
