"""What an owner tells those who look at it: what it counts anyway, and a census of its rows.

Nothing is written per task for this. Totals are counted as things happen (`OwnerCore.counts`,
`History.again`); how many rows there are of each kind is counted when somebody asks
(`Census`), a few shards of the table at a time, so that a large table holds nobody up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from dask_ownership.core.owner.ownership import OwnerCore
from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.protocol.messages import Key
from dask_ownership.core.protocol.states import DORMANT, ERROR, INLINE, STATE_NAMES, STORED

GROUPS = 100
"""Names of tasks that are told apart; what is beyond them is counted as `OTHERS`."""

OTHERS = "(others)"

LISTED = 12
"""Rows that are listed as the largest, and as the oldest."""

EVENTS = 30
"""Unusual events that are told of at once, the latest of them."""

COUNTED = (*range(ERROR + 1), DORMANT)
"""States of rows that are in the table."""


def totals(core: OwnerCore) -> dict[str, Any]:
    """What is counted anyway; the time it takes is that for the workers."""
    workers = core.placement.workers
    lineages = core.lineages
    return {
        **core.counts,
        "attempts": core.lifecycle.numbers,
        "again": dict(core.history.again),
        "losses": dict(core.losses),
        "objects": len(core.table.rows),
        "inline_nbytes": core.lifecycle.inline_bytes,
        "lineage_nbytes": lineages.nbytes,
        "recovered": lineages.recovered,
        "evicted": lineages.evicted,
        "recoveries": [list(recovery) for recovery in lineages.recoveries],
        "lent": sum(len(peer.lent) for peer in core.peers.known.values()),
        "links": {
            address: {
                "pushed": len(view.pushed),
                "given": view.handed,
                "nthreads": view.nthreads,
                "accepting": view.accepting,
            }
            for address, view in workers.items()
            if view.link is not None
        },
        "traffic": {
            address: [view.traffic.sent, view.traffic.received]
            for address, view in workers.items()
            if view.traffic.sent or view.traffic.received
        },
    }


class Census:
    """Counts the rows of one owner by what they are.

    Parameters
    ----------
    core : OwnerCore
    name_of : callable
        The name of the group of tasks that a key belongs to.

    Attributes
    ----------
    states : list of int
        Objects by state, as in `rows.table`; the last one is `DORMANT`. What is borrowed is
        not among them.
    groups : dict of str to list of int
        The same for each name.
    borrowed, borrowed_pending : int
        Rows of what others own, and those of them without an outcome.
    stored : dict of str to int
        Bytes of stored values by the worker that has them.
    parents : dict of str to int
        Rows by the incarnation of the owner whose task submitted them.
    """

    def __init__(self, core: OwnerCore, name_of: Callable[[Key], str]) -> None:
        self.core = core
        self.name_of = name_of
        self.states = [0] * len(STATE_NAMES)
        self.groups: dict[str, list[int]] = {}
        self.borrowed = 0
        self.borrowed_pending = 0
        self.stored: dict[str, int] = {}
        self.parents: dict[str, int] = {}
        self._largest: list[tuple[int, int, Row]] = []
        self._oldest: list[tuple[int, int, Row]] = []
        self._shards: Iterator[dict[Key, Row]] = iter(core.table.rows.shards)

    def advance(self, over: Callable[[], bool]) -> bool:
        """Count on until ``over()`` says that it is enough for now; whether all is counted."""
        lock = self.core.table.lock
        for shard in self._shards:
            if not shard:
                continue
            with lock:
                rows = list(shard.values())
            self._count(rows)
            if over():
                return False
        return True

    def _count(self, rows: list[Row]) -> None:
        states = self.states
        groups = self.groups
        for row in rows:
            state = row.state
            if state > ERROR:
                continue  # it is about to leave the table
            if row.borrowed:
                self.borrowed += 1
                self.borrowed_pending += state < INLINE
                continue
            states[state] += 1
            name = self.name_of(row.key)
            group = groups.get(name)
            if group is None:
                if len(groups) >= GROUPS:
                    name = OTHERS
                group = groups.setdefault(name, [0] * len(states))
            group[state] += 1
            if row.options.parent is not None:
                submitter = row.options.parent[0]
                self.parents[submitter] = self.parents.get(submitter, 0) + 1
            if state == STORED:
                for view in row.locations:
                    self.stored[view.address] = self.stored.get(view.address, 0) + row.nbytes
            if state == INLINE or state == STORED:
                self._list(row)

    def _list(self, row: Row) -> None:
        """Keep it in mind when it is among the largest, or the oldest."""
        largest, oldest = self._largest, self._oldest
        # In lists that are cut now and then: most rows fail the first comparison.
        if len(largest) < LISTED or row.nbytes > largest[-1][0]:
            largest.append((row.nbytes, id(row), row))
            largest.sort(reverse=True)
            del largest[LISTED:]
        if row.attempt and (len(oldest) < LISTED or row.attempt < oldest[-1][0]):
            oldest.append((row.attempt, id(row), row))
            oldest.sort()
            del oldest[LISTED:]

    def result(self) -> dict[str, Any]:
        """What was counted, as plain values."""
        return {
            "states": {STATE_NAMES[s]: self.states[s] for s in COUNTED},
            "groups": {
                name: {STATE_NAMES[s]: group[s] for s in COUNTED if group[s]}
                for name, group in self.groups.items()
            },
            "borrowed": self.borrowed,
            "borrowed_pending": self.borrowed_pending,
            "stored_nbytes": self.stored,
            "parents": self.parents,
            "largest": [self._described(row) for _, _, row in self._largest],
            "oldest": [self._described(row) for _, _, row in self._oldest],
        }

    def _described(self, row: Row) -> dict[str, Any]:
        """One row, and what keeps it."""
        return {
            "key": str(row.key),
            "state": STATE_NAMES[row.state],
            "nbytes": row.nbytes,
            "attempt": row.attempt,
            "since": self.core.attempt_times.since(row.attempt),
            "workers": [view.address for view in row.locations],
            "handles": row.local_refs,
            "uses": row.task_refs,
            "borrowers": len(self.core.lending.borrowers.get(row, ())),
            "descendants": row.lineage_refs,
            "pinned": row in self.core.table.pinned,
        }


def signature(core: OwnerCore) -> tuple[Any, ...]:
    """What differs whenever a census could give something else; costs little."""
    return (
        *core.counts.values(),
        *core.history.again.values(),
        *core.losses.values(),
        core.lifecycle.numbers,
        len(core.table.rows),
        core.lifecycle.inline_bytes,
        core.lineages.nbytes,
        core.lineages.recovered,
        sum([len(view.pushed) for view in core.placement.workers.values()]),
        sum([view.link is not None for view in core.placement.workers.values()]),
    )


def exchanged(core: OwnerCore) -> int:
    """Bytes that went to workers and came from them; reading a value changes nothing else."""
    views = core.placement.workers.values()
    return sum([view.traffic.sent + view.traffic.received for view in views])


class Events:
    """The unusual events of one owner, each told of once, as far as not too many are new."""

    def __init__(self, core: OwnerCore) -> None:
        self.core = core
        self._last: object = core.history.events[-1] if core.history.events else None

    def new(self) -> list[tuple[str, str, str, float]]:
        """The latest of those since it was asked last, oldest first."""
        found: list[tuple[str, str, str, float]] = []
        history = self.core.history.events
        for event in reversed(history):
            if event is self._last or len(found) == EVENTS:
                break
            key, what, detail, when = event
            found.append((str(key), what, detail[:300], when))
        if history:
            self._last = history[-1]
        found.reverse()
        return found


BUCKETS = 40
"""Of a `Histogram`: the last one is for more than six days."""


class Histogram:
    """How often something took how long: counts by powers of two of microseconds.

    Attributes
    ----------
    counts : list of int
        ``counts[n]`` is for less than ``2**n`` microseconds and at least half of that.
    """

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts = [0] * BUCKETS

    def add(self, microseconds: float) -> None:
        self.counts[min(int(max(microseconds, 0.0)).bit_length(), BUCKETS - 1)] += 1


def percentile(counts: list[int], part: float) -> float | None:
    """Microseconds that this part of what was counted took at most, interpolated; None of none."""
    wanted = part * sum(counts)
    if not any(counts):
        return None
    seen = 0.0
    for number, count in enumerate(counts):
        if count and seen + count >= wanted:
            low = 0.0 if number == 0 else float(1 << (number - 1))
            return low + (float(1 << number) - low) * (wanted - seen) / count
        seen += count
    return float(1 << len(counts))
