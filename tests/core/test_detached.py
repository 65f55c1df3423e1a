"""What the cluster holds for those who put it there, step by step: once, twice, late, cut short."""

from __future__ import annotations

import pytest
from test_references import Side

from dask_ownership.core.owner.references.detached import NOT_NEEDED, OPTIONS, LineageSpec
from dask_ownership.core.owner.rows.options import Options
from dask_ownership.core.owner.rows.row import HAS_BORROWERS, Row
from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol.names import adopted_key, held_at, holder_ref
from dask_ownership.core.protocol.states import CANCELLED, ERROR, INLINE, PUSHED, STORED, WAITING
from dask_ownership.testing.invariants import check_empty, check_ownership


class Three:
    """One that puts something somewhere, the one that holds it, and one that takes it out."""

    def __init__(self) -> None:
        self.giver, self.holder, self.taker = self.sides = [
            Side(name) for name in ("giver", "holder", "taker")
        ]
        self.holder.core.detached.holds = True

    def carry(self, times: int = 1, without: Side | None = None) -> None:
        by_name = {side.process[0]: side for side in self.sides if side is not without}
        busy = True
        while busy:
            busy = False
            for side in by_name.values():
                for _, post in side.core.peers.flush():
                    busy = True
                    for _ in range(times):
                        if post[1][0] in by_name:
                            by_name[post[1][0]].core.peers.receive(post[2], post[3])
                check_ownership(side.core)
                side.core.schedule(0.0)

    def put(self, *rows: Row) -> list[Row]:
        """What of the holder stands for these rows of the giver."""
        functions, tasks, also = self.giver.core.detached.describe(rows)
        spec = LineageSpec(("giver", "", "giver"), functions, tasks)
        origins = [self.giver.core.table.origin_of(row) for row in rows]
        held = self.holder.core.detached.hold([*origins, *also], spec)
        self.carry()
        return held

    def name(self, row: Row) -> tuple:
        return held_at(self.giver.core.table.origin_of(row), self.holder.process)

    def gone(self, side: Side) -> None:
        for other in self.sides:
            if other is not side:
                other.core.membership.process_gone(side.process[0])
                other.pass_time()
        self.carry(without=side)


@pytest.fixture
def three() -> Three:
    return Three()


def stored(side: Side, row: Row, nbytes: int = 10) -> None:
    side.answer(row, m.STORED, nbytes, b"type", 1.0)


@pytest.mark.parametrize("times", [1, 2])
def test_a_value_is_there_when_who_put_it_is_gone(three, times):
    row = three.giver.row("x")
    three.giver.done(row, b"value")
    [held] = three.put(row)
    assert held.state == INLINE and not row.roles & HAS_BORROWERS
    name = three.name(row)
    three.gone(three.giver)
    taken = three.taker.borrow(name)
    three.carry(times, without=three.giver)
    assert taken.origin[3] == "x" and taken.value == b"value"
    three.holder.release(held)
    three.carry(times, without=three.giver)
    assert taken.state == INLINE and three.holder.core.lending.borrowers[held] == {
        "taker": taken.attempt
    }
    three.taker.release(taken)
    three.carry(times, without=three.giver)
    check_empty(three.holder.core)
    check_empty(three.taker.core)


def test_nothing_is_left_at_either_end_when_it_is_let_go(three):
    row = three.giver.row("x")
    [held] = three.put(row)
    assert list(three.giver.core.lending.borrowers[row]) == ["holder"] and held.state == WAITING
    three.holder.release(held)
    three.carry()
    assert not row.roles & HAS_BORROWERS
    check_empty(three.holder.core)
    three.giver.release(row)
    check_empty(three.giver.core)


@pytest.mark.parametrize("gone", [False, True])
def test_a_key_that_is_put_again_for_something_else_is_another_object(three, gone):
    first = three.giver.row("x")
    [one] = three.put(first)
    three.giver.core.cancel([first], "stop")
    a = three.giver.row("a")
    second = three.giver.row("x", a)
    [other] = three.put(second)
    assert one is not other
    if gone:
        three.gone(three.giver)
        (needed,) = other.dependencies
        assert (needed.state, other.state) == (PUSHED, PUSHED)
        three.holder.done(needed)
        three.holder.done(other, b"second")
    else:
        three.giver.done(a)
        three.giver.core.schedule(0.0)
        three.giver.done(second, b"second")
        three.carry()
        assert other.value == b"second"
    three.holder.release(one, other)
    check_empty(three.holder.core)


def test_what_has_not_ended_is_run_by_the_holder_when_its_owner_is_gone(three):
    a = three.giver.row("a")
    b = three.giver.row("b", a)
    c = three.giver.row("c", b, retries=2)
    [held] = three.put(c)
    taken = three.taker.borrow(three.name(c))
    three.carry()
    three.gone(three.giver)
    rows = three.holder.core.table.rows
    made = {key[2]: row for key, row in rows.items() if key[:2] == ("adopted", "giver")}
    made = [made[key] for key in "abc"]
    assert made[2] is held and held.options.retries == 2
    assert [row.function.pickled for row in made] == [b"f"] * 3
    assert held.dependencies == (made[1],) and made[0].state == PUSHED
    for row in made:
        three.holder.core.schedule(0.0)
        three.holder.done(row, b"made again")
    three.carry(without=three.giver)
    assert taken.value == b"made again"
    three.holder.release(held)
    three.taker.release(taken)
    three.carry(without=three.giver)
    check_empty(three.holder.core)


def test_the_owner_runs_it_while_it_lives(three):
    row = three.giver.row("x")
    [held] = three.put(row)
    three.giver.done(row, b"value")
    three.carry()
    assert held.state == INLINE and held.value == b"value"
    assert three.holder.core.counts["submitted"] == 1  # the taking over alone


def test_a_lost_copy_is_asked_for_at_the_owner_and_made_here_without_it(three):
    row = three.giver.row("x")
    stored(three.giver, row)
    [held] = three.put(row)
    assert held.state == PUSHED  # it takes over what lies at the worker
    stored(three.holder, held)
    three.carry()
    assert held.state == STORED and not row.roles & HAS_BORROWERS
    three.holder.core.missed(held, [h.address for h in held.locations])
    three.carry()
    assert list(three.giver.core.lending.borrowers[row]) == ["holder"] and held.state == PUSHED
    stored(three.holder, held)
    three.carry()
    three.gone(three.giver)
    assert held.state == STORED
    three.holder.core.missed(held, [h.address for h in held.locations])
    assert held.function.pickled == b"f"
    three.holder.core.schedule(0.0)
    stored(three.holder, held)
    # From here on it is as any other of the holder's.
    assert held.lineage.function.pickled == b"f"
    three.holder.core.missed(held, [h.address for h in held.locations])
    three.holder.core.schedule(0.0)
    assert held.state == PUSHED
    stored(three.holder, held)
    three.holder.release(held)
    check_empty(three.holder.core)


def test_the_owner_may_have_freed_it_when_it_is_asked_again(three):
    row = three.giver.row("x")
    stored(three.giver, row)
    [held] = three.put(row)
    stored(three.holder, held)
    three.carry()
    three.giver.release(row)
    check_empty(three.giver.core)
    three.holder.core.missed(held, [h.address for h in held.locations])
    three.carry()
    assert held.function.pickled == b"f" and held.state == PUSHED


def test_inputs_that_are_there_go_with_it(three):
    a = three.giver.row("a")
    three.giver.done(a, b"input")
    b = three.giver.row("b", a)
    [held] = three.put(b)
    three.gone(three.giver)
    [made] = held.dependencies
    assert made.state == INLINE and made.value == b"input"
    three.holder.release(held)
    check_empty(three.holder.core)


def test_scattered_inputs_of_what_has_not_ended_are_held_too(three):
    a = Row("a", None, None, (), 0)
    three.giver.core.table.adopt(a)
    three.giver.core.put(a, [three.giver.view], 10)
    b = three.giver.row("b", a)
    held, also = three.put(b)
    assert also.key == adopted_key(("giver", "", "", "a", None, a.life)) and also.state == PUSHED
    stored(three.holder, also)
    three.carry()
    three.gone(three.giver)
    assert held.dependencies == (also,) and held.state == PUSHED
    three.holder.release(held, also)
    check_empty(three.holder.core)


def test_one_that_runs_at_most_once_does_not_run_again(three):
    row = Row("x", three.giver.function, b"call", (), 0, Options(at_most_once=True))
    three.giver.core.table.adopt(row)
    three.giver.core.submit([row])
    three.giver.core.schedule(0.0)
    [held] = three.put(row)
    three.gone(three.giver)
    assert held.state == ERROR and held.value.kind == "owner-lost"
    three.holder.release(held)
    check_empty(three.holder.core)


def test_an_error_is_held_as_it_is(three):
    row = three.giver.row("x")
    [held] = three.put(row)
    three.giver.failed(row, b"error")
    three.carry()
    assert held.state == ERROR and held.value == b"error"
    three.gone(three.giver)
    assert held.value == b"error"
    three.holder.release(held)
    check_empty(three.holder.core)


def test_what_its_owner_cancels_goes_on_where_it_is_held(three):
    row = three.giver.row("x")
    [held] = three.put(row)
    three.giver.core.cancel([row], "no more")
    assert row.state == CANCELLED
    three.carry()
    assert held.state == PUSHED and held.function.pickled == b"f"


def test_putting_it_twice_holds_it_once(three):
    row = three.giver.row("x")
    [one] = three.put(row)
    [two] = three.put(row)
    assert one is two and one.local_refs == 2
    three.holder.release(one)
    three.carry()
    assert row.roles & HAS_BORROWERS
    three.holder.release(one)
    three.carry()
    assert not row.roles & HAS_BORROWERS
    three.giver.release(row)
    check_empty(three.giver.core)


def test_who_took_it_out_may_put_it_in_again(three):
    row = three.giver.row("x")
    three.giver.done(row, b"value")
    [held] = three.put(row)
    taken = three.taker.borrow(three.name(row))
    three.carry()
    functions, tasks, also = three.taker.core.detached.describe([taken])
    assert not functions and not tasks and not also
    origin = three.taker.core.table.origin_of(taken)
    assert holder_ref(origin) == ("holder", "", "holder", held.key)
    assert three.holder.core.detached.hold(
        [origin], LineageSpec(("taker", "", "taker"), [], [])
    ) == [held]
    assert held.local_refs == 2


def test_its_owner_finds_its_own_while_that_is_there_and_the_held_one_later(three):
    row = three.giver.row("x")
    three.giver.done(row, b"value")
    [held] = three.put(row)
    name = three.name(row)
    back, new = three.giver.core.borrowing.arrive(name)
    assert back is row and not new
    three.giver.release(row, row)
    back, new = three.giver.core.borrowing.arrive(name)
    assert new and back.borrowed
    three.giver.core.submit([back])
    three.carry()
    assert back.value == b"value" and list(three.holder.core.lending.borrowers[held]) == ["giver"]


def test_one_that_had_it_from_its_owner_learns_that_it_is_held(three):
    row = three.giver.row("x")
    stored(three.giver, row)
    taken = three.taker.borrow(three.giver.core.table.origin_of(row))
    [held] = three.put(row)
    stored(three.holder, held)
    [again] = three.taker.core.borrowing.rows_of([three.name(row)])
    assert again is taken
    three.carry()
    assert taken.owner_ref[0] == "holder" and not row.roles & HAS_BORROWERS
    three.gone(three.giver)
    assert taken.state == STORED
    three.taker.core.lifecycle.release_task_refs([taken])
    three.taker.release(taken)
    three.holder.release(held)
    three.carry(without=three.giver)
    check_empty(three.holder.core)


def test_what_is_inside_of_a_value_is_held_with_it(three):
    inner = three.giver.row("inner")
    three.giver.done(inner, b"value")
    row = three.giver.row("x")
    [held] = three.put(row)
    three.giver.done(row, b"with inner", inside=(three.giver.core.table.origin_of(inner),))
    three.carry()
    three.gone(three.giver)
    taken = three.taker.borrow(three.name(row))
    three.carry(without=three.giver)
    three.holder.release(held)
    three.carry(without=three.giver)
    assert taken.contains[0].value == b"value"
    three.taker.release(taken)
    three.carry(without=three.giver)
    check_empty(three.taker.core)
    check_empty(three.holder.core)


def test_a_value_with_futures_of_what_is_held(three):
    row = three.giver.row("x")
    three.giver.done(row, b"value")
    [held] = three.put(row)
    other = three.giver.row("other", contains=[row])
    three.giver.done(other, b"with x", inside=(three.name(row),))
    [outer] = three.put(other)
    three.carry()
    assert outer.state == INLINE and outer.contains == (held,)
    three.giver.release(other, row)
    three.carry()
    assert not three.giver.core.table.rows
    three.holder.release(held)
    assert held.state == INLINE  # it is inside the other
    three.holder.release(outer)
    check_empty(three.holder.core)


def test_what_is_to_be_held_was_freed(three):
    origin = ("giver", "", "giver", "x", None, 0)
    [held] = three.holder.core.detached.hold([origin], LineageSpec(("giver", "", "giver"), [], []))
    three.carry()
    assert held.state == ERROR and held.value.kind == "lost-data"
    three.holder.release(held)
    three.carry()
    check_empty(three.holder.core)


def test_whether_the_owner_may_go(three):
    row = three.giver.row("x")
    functions, tasks, _ = three.giver.core.detached.describe([row])
    origin = three.giver.core.table.origin_of(row)
    [held] = three.holder.core.detached.hold(
        [origin], LineageSpec(("giver", "", "giver"), functions, tasks)
    )
    settled = three.holder.core.detached.settled
    assert not settled(held)
    three.carry()
    assert settled(held)  # all is known of it that there is
    stored(three.giver, row)
    three.carry()
    assert not settled(held)  # what lies at the worker is being taken over
    stored(three.holder, held)
    assert settled(held)
    three.gone(three.giver)
    assert held.state == STORED


def test_each_option_is_told_to_other_owners_or_has_a_reason_not_to_be():
    assert set(Options._fields) == {*OPTIONS, *NOT_NEEDED, "replicas"}
