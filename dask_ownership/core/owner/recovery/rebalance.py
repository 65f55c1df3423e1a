"""Which values to move, so that workers have about as many bytes each.

The fullest worker gives to the emptiest, again and again, the value that comes nearest to
half of what they differ by. That makes the fullest less full with each move, and ends when
they differ by little or no value is small enough.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping
from typing import TypeAlias

Move: TypeAlias = tuple[int, str, str]
"""Number of a value, from where, to where."""


def moves(
    stored: Mapping[str, int], values: Iterable[tuple[int, Iterable[str]]], gap: float = 0.1
) -> list[Move]:
    """What to move.

    Parameters
    ----------
    stored : dict of str to int
        Bytes at each worker that takes part, of all values there.
    values : iterable of tuple
        Bytes of each value that may move, and all workers that have it.
    gap : float
        Part of the mean by which the fullest and the emptiest may differ.
    """
    loads = dict(stored)
    there: list[set[str]] = []
    at: dict[str, list[tuple[int, int]]] = {worker: [] for worker in loads}
    for number, (nbytes, holders) in enumerate(values):
        there.append(set(holders))
        for worker in there[number]:
            if worker in at:
                at[worker].append((nbytes, number))
    for sorted_values in at.values():
        sorted_values.sort()
    allowed = gap * sum(loads.values()) / max(1, len(loads))
    made: list[Move] = []
    while loads:
        fullest = max(loads, key=loads.__getitem__)
        emptiest = min(loads, key=loads.__getitem__)
        difference = loads[fullest] - loads[emptiest]
        if difference <= allowed:
            break
        chosen = _nearest(at[fullest], difference, there, emptiest)
        if chosen is None:
            del loads[fullest]  # what it has is too large to go anywhere
            continue
        nbytes, number = chosen
        at[fullest].remove(chosen)
        insort(at[emptiest], chosen)
        there[number] = there[number] - {fullest} | {emptiest}
        loads[fullest] -= nbytes
        loads[emptiest] += nbytes
        made.append((number, fullest, emptiest))
    return _once_each(made)


def _nearest(
    values: list[tuple[int, int]], difference: int, there: list[set[str]], target: str
) -> tuple[int, int] | None:
    """The value that evens a difference out best, and is not at the target."""
    half = bisect_left(values, (difference // 2 + 1, -1))
    below = next(((b, n) for b, n in reversed(values[:half]) if b and target not in there[n]), None)
    above = next(((b, n) for b, n in values[half:] if target not in there[n]), None)
    fit = [one for one in (below, above) if one is not None and one[0] < difference]
    return min(fit, key=lambda one: abs(difference - 2 * one[0]), default=None)


def _once_each(made: list[Move]) -> list[Move]:
    """The moves without detours: each copy goes straight to where one is wanted in the end.

    A worker that gave its copy away and got another one keeps the one that it has.
    """
    lost: dict[int, list[str]] = {}
    gained: dict[int, list[str]] = {}
    for number, source, target in made:
        gives = lost.setdefault(number, [])
        takes = gained.setdefault(number, [])
        for worker, before, after in ((source, takes, gives), (target, gives, takes)):
            if worker in before:
                before.remove(worker)
            else:
                after.append(worker)
    return [
        (number, source, target)
        for number, gives in lost.items()
        for source, target in zip(gives, gained[number], strict=True)
    ]
