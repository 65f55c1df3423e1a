"""What an owner reports while somebody looks at the cluster.

A `Reporter` belongs to one owner, of a client or of a worker. Until somebody looks it does
nothing, and a submit costs one look at an attribute per batch. Then it samples how long tasks
wait and run, counts the table when something changed, and tells what changed, at most twice a
second; see `dask_ownership.monitoring.feed` for where that goes.
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
"""Seconds for which the table is counted at once."""

PAUSE = 0.05
"""Seconds between two slices of one count."""

SAMPLED = 4
"""Tasks of one batch whose times are measured."""

SAMPLES = 200
"""Tasks that are measured at the same time."""

NAMES = 10_000
"""Names of groups of tasks that are remembered."""

HEX = 32
"""Digits of the hashes that Dask puts at the ends of keys."""

_names: dict[str, str] = {}


def group_of(key: Key) -> str:
    """The name of the group that a task is shown in: ``inc`` for ``inc-<hash>``, as in Dask.

    Faster than Dask's own `key_split`, which is asked once for each name.
    """
    stem: Any = key[0] if type(key) is tuple and key else key
    if type(stem) is not str:
        return _split(key)
    if len(stem) > HEX + 1 and stem[-HEX - 1] == "-":
        stem = stem[: -HEX - 1]
    name = _names.get(stem)
    if name is None:
        if len(_names) > NAMES:
            _names.clear()
        name = _names[stem] = _split(stem)
    return name


def _split(key: Key) -> str:
    try:
        return str(key_split(key))
    except Exception:  # an empty tuple, bytes that are no text
        return "Other"


class Sample(Waiter):
    """Measures one task."""

    __slots__ = ("began", "latencies")

    def __init__(self, latencies: Latencies) -> None:
        self.latencies = latencies
        self.began = perf_counter()

    def row_done(self, row: Row) -> None:
        self.latencies.ended(row, perf_counter() - self.began)


class Latencies:
    """How long tasks of one owner waited and ran, of a sample.

    Attributes
    ----------
    waited, ran, took : Histogram
        From submit to start, from start to end, and both, as far as this owner sees them:
        waiting includes that for inputs and the way to the worker and back.
    parents : dict of str to None
        Incarnations of the owners whose tasks submitted tasks to this one.
    """

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.waited = Histogram()
        self.ran = Histogram()
        self.took = Histogram()
        self.parents: dict[str, None] = {}
        self._under_way = 0

    def submitted(self, rows: list[Row]) -> None:
        """Measure some of these, which are about to be taken in. Loop thread."""
        options = rows[0].options
        if options is not NO_OPTIONS and options.parent is not None:
            self.parents[options.parent[0]] = None
        many = len(rows)
        for _ in range(min(many, SAMPLED, SAMPLES - self._under_way)):
            row = rows[0] if many == 1 else rows[random.randrange(many)]
            if not row.borrowed and not row.done:
                self._under_way += 1
                hang(Sample(self), (row,), self.owner.lock)

    def ended(self, row: Row, seconds: float) -> None:
        """A task that is measured came to its end. Loop thread."""
        self._under_way -= 1
        if row.state == INLINE or row.state == STORED:
            microseconds = seconds * 1e6
            ran = min(row.estimate, microseconds)
            self.ran.add(ran)
            self.waited.add(microseconds - ran)
            self.took.add(microseconds)


class Reporter:
    """Tells what one owner does, while somebody looks.

    Parameters
    ----------
    owner : Owner
    send : callable, optional
        Takes each report; without it they are asked for with `report`.

    Attributes
    ----------
    watching : bool
        Somebody looks.
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
        """Somebody begins to look, or nobody does any more. Loop thread, and stream handler."""
        self._sent = self._seen = None  # who begins to look has to hear all of it
        if on == self.watching:
            return
        self.watching = on
        self.owner.inbox.watch(self._latencies.submitted if on else None)
        if on:
            self._events.new()
            self._tick()
        else:
            self.close()

    def close(self) -> None:
        """Stop."""
        self.owner.inbox.watch(None)
        self.watching = False
        self._census = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def report(self) -> dict[str, Any] | None:
        """What is new since the last report; None when nothing is. Loop thread.

        Returns
        -------
        dict or None
            As ``owners`` in `dask_ownership.monitoring.feed.Feed.activity`, as far as an owner
            knows that itself.
        """
        self.owner.process()
        if self._census is None and self._seen != signature(self.owner.core):
            self._count()
        # While the table is counted who looks is told what is counted anyway.
        complete = self._census is None
        seen = (
            (self._seen, sum(self._latencies.took.counts), exchanged(self.owner.core))
            if complete
            else None
        )
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
            "submitters": list(latencies.parents),
            "events": self._events.new(),
        }

    def _count(self) -> None:
        """Begin to count the table, or go on; a small one is counted at once."""
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
        if self._census is not None and not self.owner.closed:
            self._count()

    def _tick(self) -> None:
        """Send what is new, and do so again later."""
        self._timer = None
        if self.send is None or not self.watching or self.owner.closed:
            return
        report = self.report()
        if report is not None and not self.send(report):
            self._sent = None  # it did not leave: there is no connection now
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(INTERVAL, self._tick)
