"""Amounts of the abstract resources that a worker has or a task takes."""

from __future__ import annotations

Amounts = dict[str, float]
"""Name of each resource to how much of the resource."""


def provides(totals: Amounts, wanted: Amounts) -> bool:
    """Return whether a worker that has ``totals`` may run a task that takes ``wanted``.

    The worker has to have also a resource of which the task takes 0.
    """
    return all(k in totals and totals[k] >= v for k, v in wanted.items())
