"""Limits that a user may set for an owner."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Limits:
    """How much an owner keeps, and how often a task is tried."""

    #: How many workers may die under a task before the task is given up as `KilledWorker`.
    allowed_failures: int = 3
    #: Bytes of inline values above which results over 1 KiB stay at their workers.
    inline_bytes: int = 1 << 30
    #: Bytes of lineage above which the oldest lineage is evicted.
    lineage_bytes: int = 1 << 30
