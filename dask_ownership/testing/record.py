"""What happened in a run of the virtual cluster, as far as it decides what must hold then."""

from __future__ import annotations

from collections import Counter
from typing import Any

from dask_ownership.core.owner.rows.row import Row
from dask_ownership.testing.clock import Clock


class Record:
    """Counts what tasks did, and notes what may have cost a value.

    Attributes
    ----------
    killed, cancelled, retiring, watchful : bool
        Whether a worker died, something was cancelled, a worker was to leave in good order, and
        a process was stopped or cut off.
    lost, remade : set of tuple
        Owner and key of each stored value of which every copy was gone at some time: those that
        nothing makes again, and the others.
    started, runs : Counter
        How often each task began, and how often it came to its end.
    ended : list of float
        When tasks came to their ends.
    kept : dict of Row to int
        The last step that a task heard to be kept.
    steps_taken, resumed, superseded : int
        Steps, attempts that did not begin with the first step, and those that were told that
        another attempt has taken their place.
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
        """Whether something happened that may cost a value."""
        return self.killed or self.cancelled

    def ran(self, name: Any) -> int:
        """How often a task came to its end, this time included."""
        self.ended.append(self.clock.now)
        self.runs[name] += 1
        return self.runs[name]

    def submitted(self, identity: Any) -> int:
        """How often a task came to where it submits its children, this time included."""
        self.runs[identity, "children"] += 1
        return self.runs[identity, "children"]
