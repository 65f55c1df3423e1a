"""Tasks that delegate to each other end with an error, and leave nothing behind."""

from __future__ import annotations

import gc
import weakref
from itertools import permutations

import pytest
from test_references import Pair, Side

from dask_ownership.core.owner.rows.row import Borrowed, Function, Row
from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol.failure import Failure
from dask_ownership.core.protocol.states import ERROR, INLINE, PUSHED, WAITING
from dask_ownership.testing.invariants import check_ownership


def delegate(side: Side, row: Row, source: tuple) -> None:
    """The task of a row ends: its value is to be that of a future."""
    side.answer(row, m.DELEGATED, b"", 10.0, (source,))
    check_ownership(side.core)


def test_two_tasks_of_one_owner():
    side = Side("owner")
    one, two = side.row("one"), side.row("two")
    name = side.core.table.origin_of
    delegate(side, one, name(two))
    assert one.state == WAITING
    delegate(side, two, name(one))
    assert (one.state, two.state) == (ERROR, ERROR)
    assert (
        isinstance(two.value, Failure) and "none of them can ever have a value" in two.value.detail
    )
    side.release(one, two)
    check_ownership(side.core)
    assert not side.core.table.rows


def test_a_task_that_delegates_to_what_needs_it():
    """Not to a task that delegated: to one that has it as an argument."""
    side = Side("owner")
    one = side.row("one")
    two = side.row("two", one)
    three = side.row("three", two)
    delegate(side, one, side.core.table.origin_of(three))
    assert {row.state for row in (one, two, three)} == {ERROR}
    side.release(one, two, three)
    assert not side.core.table.rows


def test_a_cycle_is_not_tried_again():
    side = Side("owner")
    one = side.row("one")
    two = side.row("two", one)
    delegate(side, one, side.core.table.origin_of(two))
    side.core.retry([two])
    assert (one.state, two.state) == (ERROR, ERROR)
    side.release(one, two)
    assert not side.core.table.rows


def test_what_only_waits_for_the_same_is_no_cycle():
    side = Side("owner")
    source = side.row("source")
    rows = [side.row(f"row-{number}") for number in range(3)]
    after = side.row("after", *rows)
    for row in rows:
        delegate(side, row, side.core.table.origin_of(source))
    side.done(source)
    for row in (*rows, after):
        if row.state == PUSHED:  # that value lies at the worker
            side.done(row)
    assert {row.state for row in (*rows, after)} == {INLINE}


class Ring:
    """Processes with a task each, which delegates to the next one's."""

    def __init__(self, number: int) -> None:
        self.sides = [Side(f"p{i}") for i in range(number)]
        self.rows = [side.row(f"task-{side.core.name}") for side in self.sides]
        self.names = [
            side.core.table.origin_of(row) for side, row in zip(self.sides, self.rows, strict=True)
        ]

    def delegate(self, index: int) -> None:
        delegate(self.sides[index], self.rows[index], self.names[(index + 1) % len(self.rows)])

    def carry(self, times: int = 1) -> None:
        by_name = {side.core.name: side for side in self.sides}
        busy = True
        while busy:
            busy = False
            for side in self.sides:
                for _, post in side.core.peers.flush():
                    busy = True
                    for _ in range(times):
                        by_name[post[1][0]].core.peers.receive(post[2], post[3])
                check_ownership(side.core)

    def ended(self) -> None:
        assert {row.state for row in self.rows} == {ERROR}
        for side, row in zip(self.sides, self.rows, strict=True):
            side.release(row)
        self.carry()
        for side in self.sides:
            assert not side.core.table.rows


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("times", [1, 2])
def test_a_cycle_of_several_owners(order, times):
    ring = Ring(3)
    for index in order:
        ring.delegate(index)
        ring.carry(times)
    ring.ended()


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_a_cycle_that_closes_before_anybody_hears_of_anything(order):
    ring = Ring(3)
    for index in order:
        ring.delegate(index)
    ring.carry()
    ring.ended()


def test_a_search_that_comes_to_a_cycle_without_its_own_task_ends():
    """Those in the cycle find it; the one before it waits for one of them."""
    ring = Ring(3)
    before = ring.sides[0].row("before")
    waits = ring.sides[0].row("waits", before)
    for index in (0, 1):
        ring.delegate(index)
    ring.carry()
    delegate(ring.sides[0], before, ring.names[1])
    ring.delegate(2)
    ring.carry()
    assert (before.state, waits.state) == (ERROR, ERROR)
    ring.sides[0].release(before, waits)
    ring.carry()
    ring.ended()


def test_a_borrower_is_asked_about_what_it_gave_back():
    pair = Pair()
    row = pair.owner.row("x")
    borrowed = pair.lent(row)
    assert isinstance(borrowed, Borrowed)
    pair.borrower.core.borrowing.request(borrowed, "follow", ("borrower", "y", 1))
    pair.borrower.release(borrowed)
    pair.carry(times=2)
    pair.owner.release(row)
    assert not pair.owner.core.table.rows


def test_a_task_that_delegates_to_what_has_failed_already():
    """What failed keeps what it needs, so that it may be tried again."""
    side = Side("owner")
    one, two = side.row("one"), side.row("two")
    total = side.row("total", one, two)
    side.answer(one, m.FAILED, b"an error", 10.0)
    assert total.state == ERROR
    delegate(side, two, side.core.table.origin_of(total))
    assert two.state == ERROR
    side.core.retry([total])
    side.core.schedule(0.0)
    assert (one.state, total.state) == (PUSHED, ERROR)
    side.core.cancel([one], "so that it ends")
    side.release(one, two, total)
    assert not side.core.table.rows


def test_two_tasks_that_delegate_to_the_sum_of_them():
    side = Side("owner")
    one, two = side.row("one"), side.row("two")
    total = side.row("total", one, two)
    for row in (one, two):
        delegate(side, row, side.core.table.origin_of(total))
    assert {row.state for row in (one, two, total)} == {ERROR}
    side.release(one, two, total)
    assert not side.core.table.rows


def test_a_future_that_was_unpickled_just_now():
    """Its owner is asked what it waits for before it has heard of it otherwise."""
    ring = Ring(2)
    there, here = ring.sides
    waits = there.row("waits", ring.rows[0])
    delegate(there, ring.rows[0], ring.names[1])
    ring.carry()
    arrived, new = here.core.borrowing.arrive(there.core.table.origin_of(waits))
    assert new
    delegate(here, ring.rows[1], there.core.table.origin_of(waits))
    here.core.submit([arrived])
    ring.carry()
    assert (ring.rows[1].state, waits.state) == (ERROR, ERROR)
    here.release(arrived)
    there.release(waits)
    ring.carry()
    ring.ended()


def test_a_search_keeps_no_row():
    """Nor the function that a row has."""
    side = Side("owner")
    row = side.row("row")
    row.function = Function(9, b"f", "f")
    known = weakref.ref(row.function)
    side.core.delegations.follow(row, ("another", "task", 1))
    side.answer(row, m.DONE, b"value", 10.0)
    side.release(row)
    del row
    side.core.history.events.clear()
    gc.collect()
    assert known() is None
