"""What a user may set for the decisions of an owner."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Limits:
    """How much is kept, and how often a task is tried."""

    #: How many workers may die under a task before it is given up.
    allowed_failures: int = 3
    #: Bytes of inline values above which further results stay at their workers.
    inline_bytes: int = 1 << 30
    #: Bytes of lineage above which the oldest is given up.
    lineage_bytes: int = 1 << 30
