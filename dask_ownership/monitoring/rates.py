"""How much goes between owners and workers per second, from counts since the start."""

from __future__ import annotations

from collections import deque
from typing import Any

Counts = dict[tuple[str, str], int]
"""From a pair of sender and receiver to how much has gone that way since the start."""


SECONDS = 5.0
"""Seconds over which rates are taken."""

STEP = 0.25
"""Seconds between two remembered rounds, at least: a viewer that asks very often causes more."""


class Flow:
    """Rates of one kind over the last seconds."""

    def __init__(self) -> None:
        self._rounds: deque[tuple[float, dict[str, Counts]]] = deque()

    def record(self, now: float, counts: dict[str, Counts]) -> None:
        """Remember a round: the last counts of each owner or worker that counts, by its name."""
        rounds = self._rounds
        # The new round replaces the last one if the second-last is less than `STEP` old.
        if len(rounds) > 1 and now - rounds[-2][0] < STEP:
            rounds.pop()
        rounds.append((now, counts))
        # One round from before the last `SECONDS` stays as the beginning.
        while len(rounds) > 2 and rounds[1][0] <= now - SECONDS:
            rounds.popleft()

    def clear(self) -> None:
        """Forget all rounds, because the next round does not follow them directly."""
        self._rounds.clear()

    def rates(self) -> list[list[Any]]:
        """Return ``[from, to, per second]`` for each pair.

        An owner or worker that is missing in the oldest rounds is counted from its first round on:
        its earlier counts do not belong to the time of these rounds.
        """
        if not self._rounds:
            return []
        after, last = self._rounds[-1]
        found: list[list[Any]] = []
        for who, counts in last.items():
            # The oldest round with this owner or worker.
            before, first = next((when, then[who]) for when, then in self._rounds if who in then)
            if before < after:
                seconds = after - before
                found += [
                    # A restarted process counts from zero: its rate is zero then, not negative.
                    [*pair, max(0, many - first.get(pair, 0)) / seconds]
                    for pair, many in counts.items()
                ]
        return found
