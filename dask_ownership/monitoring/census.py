"""What an owner reports to viewers: totals that it counts anyway, and a census of its rows.

No task pays for this. Totals are counted as things happen (`OwnerCore.counts`, `History.again`).
How many rows there are of each kind is counted when a viewer asks (`Census`), a few shards of the
table at a time, so that a large table does not block the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from dask_ownership.core.owner.ownership import OwnerCore
from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.protocol.messages import Key
from dask_ownership.core.protocol.states import (
    DORMANT,
    ERROR,
    INLINE,
    STATE_NAMES,
    STORED,
    WAITING,
)
from dask_ownership.monitoring.unfinished import Unfinished
from dask_ownership.runtime.owner.pending import attempt_of, name_of

GROUPS = 100
"""Names of tasks that a census tells apart; tasks of further names are counted as `OTHERS`."""

OTHERS = "(others)"

LISTED = 12
"""Rows in the list of the largest rows, and in the list of the oldest rows."""

EVENTS = 30
"""Unusual events in one report, at most: the latest ones."""

COUNTED = (*range(ERROR + 1), DORMANT)
"""States of rows in the table."""


def totals(core: OwnerCore) -> dict[str, Any]:
    """Return the totals of an owner, which are counted whether or not a viewer asks.

    The cost grows with the number of workers, not with the number of rows.
    """
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
            address: [view.byte_counter.sent, view.byte_counter.received]
            for address, view in workers.items()
            if view.byte_counter.sent or view.byte_counter.received
        },
    }


class Census:
    """Counts the rows of one owner by state, name of the task, worker and submitter.

    Parameters
    ----------
    core : OwnerCore
    name_of : callable
        Returns the name of the group of tasks for a key.

    Attributes
    ----------
    core, name_of
        The parameters.
    states : list of int
        Owned objects by state, indexed as in `protocol.states`; `DORMANT` (-1) is the last item.
        Borrowed objects are not included.
    groups : dict of str to list of int
        The same numbers for each name of tasks.
    nbytes : dict of str to list of int
        For each name of tasks the bytes of inline values, and those of stored values, where a copy
        counts at each worker.
    borrowed, borrowed_pending : int
        Borrowed rows, and borrowed rows without an outcome.
    stored : dict of str to int
        Bytes of stored values by the address of the holding worker.
    parents : dict of str to int
        Rows by the incarnation of the owner whose task submitted the row.
    """

    def __init__(self, core: OwnerCore, name_of: Callable[[Key], str]) -> None:
        self.core = core
        self.name_of = name_of
        self.states = [0] * len(STATE_NAMES)
        self.groups: dict[str, list[int]] = {}
        self.nbytes: dict[str, list[int]] = {}
        self.borrowed = 0
        self.borrowed_pending = 0
        self.stored: dict[str, int] = {}
        self.parents: dict[str, int] = {}
        self._unfinished = Unfinished(core)
        self._largest: list[tuple[int, int, Row]] = []
        self._oldest: list[tuple[int, int, Row]] = []
        self._shards: Iterator[dict[Key, Row]] = iter(core.table.rows.shards)

    def advance(self, over: Callable[[], bool]) -> bool:
        """Count further shards of the table until ``over()`` returns True.

        Returns
        -------
        bool
            Whether all shards are counted.
        """
        lock = self.core.table.lock
        for shard in self._shards:
            if not shard:
                continue
            # Only copying a shard needs the lock: threads that submit do not wait while rows are
            # counted.
            with lock:
                rows = list(shard.values())
            self._count(rows)
            if over():
                return False
        return True

    def _count(self, rows: list[Row]) -> None:
        """Add rows of one shard to the counts."""
        states = self.states
        groups = self.groups
        for row in rows:
            state = row.state
            if state > ERROR:
                continue  # a cancelled, lost or forgotten row is about to leave the table
            if row.borrowed:
                self.borrowed += 1
                # A state below `INLINE` is no outcome yet.
                self.borrowed_pending += state < INLINE
                continue
            states[state] += 1
            name = self.name_of(row.key)
            group = groups.get(name)
            if group is None:
                # A program that makes up a name for each task must not grow the report without
                # bound.
                if len(groups) >= GROUPS:
                    name = OTHERS
                group = groups.setdefault(name, [0] * len(states))
            group[state] += 1
            # What a client submits has no parent.
            if row.options.parent is not None:
                submitter, _key, _attempt = row.options.parent
                self.parents[submitter] = self.parents.get(submitter, 0) + 1
            if state == STORED:
                for view in row.locations:
                    self.stored[view.address] = self.stored.get(view.address, 0) + row.nbytes
            if state == INLINE or state == STORED:
                nbytes = self.nbytes.get(name) or self.nbytes.setdefault(name, [0, 0])
                nbytes[state - INLINE] += row.nbytes * (len(row.locations) or 1)
                self._list(row)
            elif WAITING <= state < INLINE:
                self._unfinished.add(name, row)

    def _list(self, row: Row) -> None:
        """Put a row with a value into the lists of the largest and the oldest rows if due."""
        largest, oldest = self._largest, self._oldest
        # Short sorted lists, cut after each insertion: most rows fail the first comparison.
        # ``id(row)`` decides between equal numbers, because rows cannot be compared.
        if len(largest) < LISTED or row.nbytes > largest[-1][0]:
            largest.append((row.nbytes, id(row), row))
            largest.sort(reverse=True)
            del largest[LISTED:]
        # A literal has attempt 0: no worker ran it, so it has no age.
        if row.attempt and (len(oldest) < LISTED or row.attempt < oldest[-1][0]):
            oldest.append((row.attempt, id(row), row))
            oldest.sort()
            del oldest[LISTED:]

    def result(self) -> dict[str, Any]:
        """Return the counts as plain values that can be serialized."""
        return {
            # `DORMANT` is -1: the last item of the lists, and of the names.
            "states": {STATE_NAMES[s]: self.states[s] for s in COUNTED},
            "groups": {
                name: {STATE_NAMES[s]: group[s] for s in COUNTED if group[s]}
                for name, group in self.groups.items()
            },
            "group_nbytes": self.nbytes,
            "borrowed": self.borrowed,
            "borrowed_pending": self.borrowed_pending,
            "stored_nbytes": self.stored,
            "parents": self.parents,
            "unfinished": self._unfinished.told(),
            "largest": [self._described(row) for _, _, row in self._largest],
            "oldest": [self._described(row) for _, _, row in self._oldest],
        }

    def _described(self, row: Row) -> dict[str, Any]:
        """Return a row with all counts that keep the row in the table, as plain values."""
        return {
            "key": str(name_of(row)),
            "state": STATE_NAMES[row.state],
            "nbytes": row.nbytes,
            "attempt": attempt_of(self.core, row),
            "since": self.core.attempt_times.since(row.attempt),
            "workers": [view.address for view in row.locations],
            "local_refs": row.local_refs,
            "task_refs": row.task_refs,
            "borrowers": len(self.core.lending.borrowers.get(row, ())),
            "lineage_refs": row.lineage_refs,
            "pinned": row in self.core.table.pinned,
        }


def signature(core: OwnerCore) -> tuple[Any, ...]:
    """Return a tuple that changes whenever a new census could give another result.

    The cost grows with the number of workers. An owner takes a new census only when the tuple has
    changed.
    """
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
        # These decide why tasks wait.
        len(core.placement.workers),
        sum([view.accepting for view in core.placement.workers.values()]),
        len(core.refusals),
    )


def exchanged(core: OwnerCore) -> int:
    """Return the number of bytes exchanged with workers.

    Reading a value changes this number and no item of `signature`.
    """
    views = core.placement.workers.values()
    return sum([view.byte_counter.sent + view.byte_counter.received for view in views])


class Events:
    """Gives the unusual events of one owner, each event once, and at most `EVENTS` in one report.

    Parameters
    ----------
    core : OwnerCore
    """

    def __init__(self, core: OwnerCore) -> None:
        """Begin after the events that the history has now."""
        self.core = core
        self._last: object = core.history.events[-1] if core.history.events else None

    def new(self) -> list[tuple[str, str, str, float]]:
        """Return the latest events since the last call, oldest first, at most `EVENTS`."""
        found: list[tuple[str, str, str, float]] = []
        history = self.core.history.events
        # The history drops its oldest events, so positions in the history shift. The last reported
        # event itself marks the place up to which all is reported.
        for event in reversed(history):
            if event is self._last or len(found) == EVENTS:
                break
            key, what, detail, when = event
            # A detail may hold the long text of an error.
            found.append((str(key), what, detail[:300], when))
        if history:
            self._last = history[-1]
        found.reverse()
        return found


BUCKETS = 40
"""Buckets of a `Histogram`; the last one takes all times from ``2**38`` µs (3 days) on."""


class Histogram:
    """Counts how often a duration occurred, in buckets by powers of two of microseconds.

    Attributes
    ----------
    counts : list of int
        ``counts[n]`` is for durations of less than ``2**n`` microseconds and at least half of that;
        the last bucket has no upper bound.
    """

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts = [0] * BUCKETS

    def add(self, microseconds: float) -> None:
        """Count one duration."""
        self.counts[min(int(max(microseconds, 0.0)).bit_length(), BUCKETS - 1)] += 1


def percentile(counts: list[int], part: float) -> float | None:
    """Return the microseconds that a fraction of the counted durations took at most.

    Parameters
    ----------
    counts : list of int
        Counts of a `Histogram`.
    part : float
        The fraction, from 0 to 1.

    Returns
    -------
    float or None
        Interpolated within a bucket; None if no duration was counted.
    """
    wanted = part * sum(counts)
    if not any(counts):
        return None
    seen = 0.0
    for number, count in enumerate(counts):
        if count and seen + count >= wanted:
            # Durations count as spread evenly within their bucket.
            low = 0.0 if number == 0 else float(1 << (number - 1))
            return low + (float(1 << number) - low) * (wanted - seen) / count
        seen += count
    return float(1 << len(counts))
