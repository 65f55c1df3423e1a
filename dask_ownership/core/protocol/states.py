"""The states of a row. What each requires is said in `rows.lifecycle`.

Owners tell borrowers the final ones, so they are a part of the protocol.
"""

from __future__ import annotations

DORMANT = -1
"""Only lineage needs it: its value was freed, and can be made again."""
WAITING = 0
"""Some dependency has no value yet."""
READY = 1
"""Could start; waits here, at the owner, until a slot wants it."""
PUSHED = 2
"""Handed to a worker, which is written here before the message leaves."""
INLINE = 3
"""The value is here, pickled."""
STORED = 4
"""The value is with its holders."""
ERROR = 5
CANCELLED = 6
LOST = 7
"""The value is gone and cannot be made again."""
FORGOTTEN = 8
"""Nobody can reach it; the row is not in the table any more."""

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
