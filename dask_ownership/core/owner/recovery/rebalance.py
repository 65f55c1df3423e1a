"""Rebalancing: which values to move, so that all workers have about as many bytes.

Again and again the fullest worker gives a value to the emptiest worker: the value whose size is
nearest to half of the difference between the two workers. Each move makes the fullest worker less
full. The moves end when the two workers differ by little, or no value is small enough.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping
from typing import TypeAlias

Move: TypeAlias = tuple[int, str, str]
"""Number of a value, the worker that gives the value, and the worker that gets the value."""


def moves(
    stored: Mapping[str, int], values: Iterable[tuple[int, Iterable[str]]], gap: float = 0.1
) -> list[Move]:
    """Return the moves that even out the bytes at workers.

    Parameters
    ----------
    stored : dict of str to int
        Bytes of all values at each worker that takes part, by address.
    values : iterable of tuple
        For each value that may move: its bytes, and the addresses of all workers with a copy.
    gap : float
        Part of the mean bytes by which the fullest and the emptiest worker may differ.

    Returns
    -------
    list of Move
        Each value is named by its place in ``values``.
    """
    loads = dict(stored)
    # ``there`` has the workers of each value, by number. ``at`` has the bytes and number of each
    # value, by worker and in ascending order, so that `_nearest` can bisect.
    there: list[set[str]] = []
    at: dict[str, list[tuple[int, int]]] = {worker: [] for worker in loads}
    for number, (nbytes, locations) in enumerate(values):
        there.append(set(locations))
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
            del loads[fullest]  # no value there evens anything out: the worker takes part no more
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
    """Return bytes and number of the value that evens out a difference best.

    Values that the target has already do not count, nor do values of 0 bytes. Return None when no
    value is left.
    """
    half = bisect_left(values, (difference // 2 + 1, -1))
    below = next(((b, n) for b, n in reversed(values[:half]) if b and target not in there[n]), None)
    above = next(((b, n) for b, n in values[half:] if target not in there[n]), None)
    # A value as large as the difference would only swap the roles of the two workers.
    fit = [one for one in (below, above) if one is not None and one[0] < difference]
    return min(fit, key=lambda one: abs(difference - 2 * one[0]), default=None)


def _once_each(made: list[Move]) -> list[Move]:
    """Return the moves without detours: each copy goes straight to the last worker of its way.

    A worker that gives a copy of a value away and gets another copy of it keeps the first copy.
    """
    lost: dict[int, list[str]] = {}
    gained: dict[int, list[str]] = {}
    for number, source, target in made:
        gives = lost.setdefault(number, [])
        takes = gained.setdefault(number, [])
        for worker, before, after in ((source, takes, gives), (target, gives, takes)):
            if worker in before:
                before.remove(worker)  # one of the two moves undoes the other
            else:
                after.append(worker)
    return [
        (number, source, target)
        for number, gives in lost.items()
        for source, target in zip(gives, gained[number], strict=True)
    ]
