"""The states of a row; `rows.lifecycle` says what each state requires.

An owner tells borrowers the final state of a row, so the states are a part of the protocol.
"""

from __future__ import annotations

DORMANT = -1
"""Only the lineage of other rows needs the row: its value was freed, and can be made again."""
WAITING = 0
"""Some dependency has no value yet."""
READY = 1
"""The task could start, and waits at the owner until a worker wants more."""
PUSHED = 2
"""The task is handed to a worker; the row names the worker before the message leaves."""
INLINE = 3
"""The value is in the owner's table, pickled."""
STORED = 4
"""The value is at the workers in the row's locations."""
ERROR = 5
"""The task has failed; the row keeps what a retry needs."""
CANCELLED = 6
"""The task was cancelled, by a user or by its owner."""
LOST = 7
"""The value is gone and cannot be made again."""
FORGOTTEN = 8
"""Nothing keeps the row any more; the row is not in the table."""

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
"""Names of the states by number, for people; -1, `DORMANT`, finds the last name."""
