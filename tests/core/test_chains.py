"""Chains of any length end without recursion, whatever they are made of and however they end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import pairwise

import pytest
from test_ownership import Bench

from dask_ownership.core.owner.rows.row import Function, Row
from dask_ownership.core.owner.rows.worker_view import WorkerView
from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol.failure import Failure
from dask_ownership.core.protocol.states import (
    CANCELLED,
    DORMANT,
    ERROR,
    INLINE,
    LOST,
    PUSHED,
    STORED,
    WAITING,
)
from dask_ownership.testing.invariants import check_ownership

LONG = 1_000

CHECKED = 50
"""Of how many answers one is followed by a look at all rows, of which there are many."""


@pytest.fixture(autouse=True)
def little_stack() -> Iterator[None]:
    """Recursion over a chain would need far more than this."""
    depth = len(list(frames()))
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(depth + 100)
    yield
    sys.setrecursionlimit(limit)


def frames() -> Iterator[object]:
    frame = sys._getframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


class Chain(Bench):
    """Many rows, each of which needs the one before it, and nobody else has but the last."""

    answers = 0

    def answer(self, address: str, *messages) -> None:
        self.core.receive(self.views[address], messages, 0.0)
        self.core.schedule(0.0)
        self.answers += 1
        if self.answers % CHECKED == 1:
            check_ownership(self.core)

    def grow(self, first: Row, function: Function | None = None, hold: bool = False) -> list[Row]:
        rows = [first]
        for number in range(LONG):
            row = Row(f"row-{number}", function or self.function, b"call", (rows[-1],), number)
            assert self.core.table.adopt(row) is row
            rows.append(row)
        self.core.submit(rows[1:])
        if not hold:
            self.core.release(rows[:-1])
        self.step()
        return rows

    def finish(self, rows: list[Row]) -> None:
        """Answer for those that are at a worker, which then are done."""
        while any(pushed := [row for row in rows if row.state == PUSHED]):
            for row in pushed:
                self.done(row)
        check_ownership(self.core)

    def run(self, rows: list[Row]) -> None:
        """Have each end with a stored value."""
        for row in rows:
            assert row.state == PUSHED
            view = row.worker
            message = (m.STORED, row.key, row.attempt, 10**6, None, 10.0)
            self.core.receive(view, [message], 0.0)
            self.core.schedule(0.0)


def test_aliases():
    bench = Chain("a")
    first = bench.row("first")
    rows = bench.grow(first, bench.core.functions.identity)
    assert rows[-1].state == WAITING
    bench.finish(rows)
    assert rows[-1].state == INLINE and rows[-1].value == b"value"
    assert len(bench.core.table.rows) == 1
    bench.release(rows[-1])
    assert not bench.core.table.rows


def test_an_error():
    bench = Chain("a")
    first = bench.row("first")
    rows = bench.grow(first, bench.core.functions.identity, hold=True)
    bench.answer("a", (m.FAILED, "first", first.attempt, b"error", 10.0))
    assert {row.state for row in rows} == {ERROR}
    bench.core.retry([rows[-1]])
    assert rows[-1].state == WAITING
    bench.step()
    bench.finish(rows)
    assert {row.state for row in rows} == {INLINE}


def test_cancelling():
    bench = Chain("a")
    first = bench.row("first")
    rows = bench.grow(first)
    bench.core.cancel([first], "by the user")
    check_ownership(bench.core)
    assert rows[-1].state == CANCELLED


def test_lost_values_are_made_again_and_freed():
    bench = Chain("a", "b")
    first = bench.row("first")
    rows = bench.grow(first)
    bench.run(rows)
    assert rows[-1].state == STORED
    assert {row.state for row in rows[:-1]} == {DORMANT}
    view = rows[-1].locations[0]
    bench.dies(view)
    assert {row.state for row in rows[1:]} == {WAITING}
    bench.step()
    bench.run(rows)
    assert rows[-1].state == STORED
    bench.release(rows[-1])
    assert not bench.core.table.rows


def test_a_chain_that_cannot_be_made_again():
    bench = Chain("a", "b")
    first = bench.row("first", at_most_once=True)
    rows = bench.grow(first, hold=True)
    bench.run(rows)
    for view in list(bench.views.values()):
        bench.dies(view)
    bench.views["c"] = WorkerView("c")
    bench.core.add_worker(bench.views["c"])
    bench.step()  # what was ready finds that something it needs is gone
    assert {row.state for row in rows} <= {LOST, ERROR, CANCELLED}
    assert isinstance(rows[-1].value, Failure)
    bench.release(*rows)
    assert not bench.core.table.rows


def test_delegates():
    """Each task ends by delegating to the next one."""
    bench = Chain("a")
    tasks = [bench.row(f"task-{number}") for number in range(LONG)]
    for task, following in pairwise(tasks):
        origin = bench.core.table.origin_of(following)
        worker = task.worker
        message = (m.DELEGATED, task.key, task.attempt, b"", 10.0, (origin,))
        bench.core.receive(worker, [message], 0.0)
        bench.core.release([following])
        bench.core.schedule(0.0)
    bench.done(tasks[-1])
    assert tasks[0].state == INLINE
    assert len(bench.core.table.rows) == 1
