"""The record of a run of the virtual cluster: events that decide which invariants hold."""

from __future__ import annotations

from collections import Counter
from typing import Any

from dask_ownership.core.owner.rows.row import Row
from dask_ownership.testing.clock import Clock


class Record:
    """Counts runs and steps of tasks, and notes events that may have cost a value.

    Parameters
    ----------
    clock : Clock

    Attributes
    ----------
    clock : Clock
    killed, cancelled, retiring, watchful : bool
        Whether a worker died, a task was cancelled, a worker was to leave in good order, and
        a process was stopped or cut off.
    lost, remade : set of tuple
        Owner and key of each stored value of which every copy was gone at some time: values that
        nothing can make again, and values that lineage makes again.
    started, runs : Counter
        How often each task began, and how often it came to its end.
    ended : list of float
        Times at which tasks came to their ends.
    kept : dict of Row to int
        The last step of a task of which the task heard that the checkpoint is kept.
    steps_taken, resumed, superseded : int
        Numbers of steps, of attempts beginning with a later step than the first, and of attempts
        that heard of another attempt in their place.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.killed = self.cancelled = self.retiring = self.watchful = False
        self.lost: set[tuple[str, Any]] = set()
        self.remade: set[tuple[str, Any]] = set()
        self.started: Counter[Any] = Counter()
        self.runs: Counter[Any] = Counter()
        self.ended: list[float] = []
        self.kept: dict[Row, int] = {}
        self.steps_taken = self.resumed = self.superseded = 0

    @property
    def lax(self) -> bool:
        """Whether an event happened that may cost a value: a death or a cancellation."""
        return self.killed or self.cancelled

    def ran(self, name: Any) -> int:
        """Count an end of a task; the number of its ends so far."""
        self.ended.append(self.clock.now)
        self.runs[name] += 1
        return self.runs[name]

    def submitted(self, identity: Any) -> int:
        """Count a run of a task about to submit its children; the number of such runs."""
        self.runs[identity, "children"] += 1
        return self.runs[identity, "children"]
