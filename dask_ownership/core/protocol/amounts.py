"""Amounts of the abstract resources of a worker."""

from __future__ import annotations

Amounts = dict[str, float]


def provides(totals: Amounts, wanted: Amounts) -> bool:
    """Whether a worker with these may run a task: it has to have even that of which it takes 0."""
    return all(k in totals and totals[k] >= v for k, v in wanted.items())
