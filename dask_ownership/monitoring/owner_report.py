"""What an owner reports while the cluster is watched.

A `Reporter` belongs to one owner, of a client or of a worker. Until the cluster is watched the
reporter does nothing, and a submit costs one look at an attribute per batch. Then the reporter
samples how long tasks wait and run, counts the table when something changed, and sends the changes,
at most twice a second; see `dask_ownership.monitoring.feed` for the receiver.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from time import perf_counter, time
from typing import Any

from dask.utils import key_split

from dask_ownership.core.owner.rows.options import NO_OPTIONS
from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.protocol.messages import Key
from dask_ownership.core.protocol.names import is_adopted
from dask_ownership.core.protocol.states import INLINE, STORED
from dask_ownership.monitoring.census import (
    Census,
    Events,
    Histogram,
    exchanged,
    signature,
    totals,
)
from dask_ownership.runtime.owner.owner import Owner
from dask_ownership.runtime.owner.waiting import Waiter, hang

INTERVAL = 0.5
"""Seconds between two reports."""

SLICE = 0.003
"""Seconds of the event loop that one slice of a count takes."""

PAUSE = 0.05
"""Seconds between two slices of a count."""

SAMPLED = 4
"""Tasks of one batch that are measured, at most."""

SAMPLES = 200
"""Tasks that are measured at the same time, at most."""

NAMES = 10_000
"""Names of groups of tasks in the cache of `group_of`."""

HEX = 32
"""Digits of the hashes that Dask puts at the ends of keys."""

_names: dict[str, str] = {}


def group_of(key: Key) -> str:
    """Return the name of the group that shows a task: ``inc`` for ``inc-<hash>``, as in Dask.

    Faster than Dask's own `key_split`, which runs once for each name.
    """
    if type(key) is tuple and is_adopted(key):
        key = key[2]  # an object that its owner took over keeps its name
    stem: Any = key[0] if type(key) is tuple and key else key
    if type(stem) is not str:
        return _split(key)
    # Without its hash, the key of every pure call of a function has the same stem, which is then in
    # the cache.
    if len(stem) > HEX + 1 and stem[-HEX - 1] == "-":
        stem = stem[: -HEX - 1]
    name = _names.get(stem)
    if name is None:
        if len(_names) > NAMES:
            # Rare, and simpler than an order of use: the cache fills again.
            _names.clear()
        name = _names[stem] = _split(stem)
    return name


def _split(key: Key) -> str:
    """Return Dask's name of the group of a key; "Other" if Dask finds none."""
    try:
        return str(key_split(key))
    except Exception:  # for example an empty tuple, or bytes that are no text
        return "Other"


class Sample(Waiter):
    """Measures one task, from submit to end."""

    __slots__ = ("began", "latencies")

    def __init__(self, latencies: Latencies) -> None:
        self.latencies = latencies
        self.began = perf_counter()

    def row_done(self, row: Row) -> None:
        """Pass the time since the submit on."""
        self.latencies.ended(row, perf_counter() - self.began)


class Latencies:
    """How long sampled tasks of one owner waited and ran.

    Parameters
    ----------
    owner : Owner

    Attributes
    ----------
    owner : Owner
    waited, ran, took : Histogram
        Times from submit to start, from start to end, and from submit to end, as far as the owner
        can tell: ``waited`` includes the wait for inputs and the way to the worker and back.
    parents : dict of str to None
        Incarnations of the owners whose tasks submitted tasks to this owner.
    """

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.waited = Histogram()
        self.ran = Histogram()
        self.took = Histogram()
        self.parents: dict[str, None] = {}
        self._under_way = 0

    def submitted(self, rows: list[Row]) -> None:
        """Measure some rows of a batch that is about to be taken in. Loop thread."""
        # The rows of one batch mostly have the same submitter, so the first row stands for all.
        options = rows[0].options
        if options is not NO_OPTIONS and options.parent is not None:
            owner, _key, _attempt = options.parent
            self.parents[owner] = None
        many = len(rows)
        for _ in range(min(many, SAMPLED, SAMPLES - self._under_way)):
            # Two samples may fall on one row, which then counts twice.
            row = rows[0] if many == 1 else rows[random.randrange(many)]
            # A borrowed row is the task of another owner, and an ended row is a literal.
            if not row.borrowed and not row.done:
                self._under_way += 1
                hang(Sample(self), (row,), self.owner.lock)

    def ended(self, row: Row, seconds: float) -> None:
        """Count the times of a measured task that ended. Loop thread."""
        self._under_way -= 1
        if row.state == INLINE or row.state == STORED:
            microseconds = seconds * 1e6
            # Once a task has run, `estimate` is the running time that its worker measured.
            ran = min(row.estimate, microseconds)
            self.ran.add(ran)
            self.waited.add(microseconds - ran)
            self.took.add(microseconds)


class Reporter:
    """Reports on one owner while the cluster is watched.

    Parameters
    ----------
    owner : Owner
    send : callable, optional
        Takes each report and returns whether the report left. Without ``send`` the scheduler asks
        for reports by way of `report`.

    Attributes
    ----------
    owner, send
        The parameters.
    watching : bool
        Whether the cluster is watched.
    """

    def __init__(self, owner: Owner, send: Callable[[dict[str, Any]], bool] | None = None) -> None:
        self.owner = owner
        self.send = send
        self.watching = False
        self._latencies = Latencies(owner)
        self._events = Events(owner.core)
        self._census: Census | None = None
        self._counted = Census(owner.core, group_of).result()
        self._seen: Any = None
        self._sent: Any = None
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, on: bool = True) -> None:
        """Begin or stop to report. Loop thread; for clients the stream handler of `WATCH`."""
        self._sent = self._seen = None  # a new viewer needs a full report
        if on == self.watching:
            return
        self.watching = on
        self.owner.inbox.watch(self._latencies.submitted if on else None)
        if on:
            # Events from before the cluster was watched are not reported.
            self._events.new()
            self._tick()
        else:
            self.close()

    def close(self) -> None:
        """Stop reporting."""
        self.owner.inbox.watch(None)
        self.watching = False
        self._census = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def report(self) -> dict[str, Any] | None:
        """Return a report if anything changed since the last report, else None. Loop thread.

        Returns
        -------
        dict or None
            An item of ``owners`` in `dask_ownership.monitoring.feed.Feed.activity`, without the
            entries that only the scheduler knows.
        """
        # Threads may have submitted rows since the loop looked last.
        self.owner.process()
        if self._census is None and self._seen != signature(self.owner.core):
            self._count()
        # While the table is being counted the report has new totals and the last census. Such a
        # report sets `_sent` to None, so that another report follows.
        complete = self._census is None
        with self.owner.lock:
            streams = [stream.told() for stream in self.owner.streams]
        sampled = sum(self._latencies.took.counts)
        seen = (self._seen, sampled, exchanged(self.owner.core), streams) if complete else None
        if complete and seen == self._sent:
            return None
        self._sent = seen
        latencies = self._latencies
        return {
            "time": time(),
            **totals(self.owner.core),
            **self._counted,
            "complete": complete,
            "latency": {
                "waited": list(latencies.waited.counts),
                "ran": list(latencies.ran.counts),
                "took": list(latencies.took.counts),
            },
            "streams": streams,
            "submitters": list(latencies.parents),
            "events": self._events.new(),
        }

    def _count(self) -> None:
        """Count the table for one slice; a small table is finished within the first slice."""
        if self._census is None:
            self._seen = signature(self.owner.core)
            self._census = Census(self.owner.core, group_of)
        end = perf_counter() + SLICE
        if self._census.advance(lambda: perf_counter() > end):
            self._counted = self._census.result()
            self._census = None
        else:
            asyncio.get_running_loop().call_later(PAUSE, self._go_on)

    def _go_on(self) -> None:
        """Count the next slice."""
        # Since the last slice the watching may have ended, or the owner closed.
        if self._census is not None and not self.owner.closed:
            self._count()

    def _tick(self) -> None:
        """Send a report if anything changed, and schedule the next tick."""
        self._timer = None
        if self.send is None or not self.watching or self.owner.closed:
            return
        report = self.report()
        if report is not None and not self.send(report):
            # Without a connection the report did not leave; the next tick sends it again.
            self._sent = None
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(INTERVAL, self._tick)
