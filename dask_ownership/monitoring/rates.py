"""How much goes from whom to whom, from what owners and workers count."""

from __future__ import annotations

from collections import deque
from typing import Any

Counts = dict[tuple[str, str], int]
"""From whom and to whom, with how much that was since the start."""


SECONDS = 5.0
"""Over which rates are taken."""

STEP = 0.25
"""Seconds between two rounds that are remembered, at least: who asks all the time makes more."""


class Flow:
    """Rates of one kind over the last seconds."""

    def __init__(self) -> None:
        self._rounds: deque[tuple[float, dict[str, Counts]]] = deque()

    def record(self, now: float, counts: dict[str, Counts]) -> None:
        """Remember a round: what each that counts said last."""
        rounds = self._rounds
        if len(rounds) > 1 and now - rounds[-2][0] < STEP:
            rounds.pop()
        rounds.append((now, counts))
        while len(rounds) > 2 and rounds[1][0] <= now - SECONDS:
            rounds.popleft()

    def clear(self) -> None:
        """Forget all rounds: they are no more those before the next one."""
        self._rounds.clear()

    def rates(self) -> list[list[Any]]:
        """``[from, to, per second]`` for each pair.

        One that was not heard of at the beginning is counted from when it was: what it did
        before is not of these rounds.
        """
        if not self._rounds:
            return []
        after, last = self._rounds[-1]
        found: list[list[Any]] = []
        for who, counts in last.items():
            before, first = next((when, then[who]) for when, then in self._rounds if who in then)
            if before < after:
                seconds = after - before
                found += [
                    [*pair, max(0, many - first.get(pair, 0)) / seconds]
                    for pair, many in counts.items()
                ]
        return found
