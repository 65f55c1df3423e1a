"""What a process that leaves hands over, step by step: once, twice, late, and cut short."""

from __future__ import annotations

import pytest
from test_references import Side

from dask_ownership.core.owner.rows.options import Options
from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol.names import HEIRS, adopted_key, heir_of, task_origin
from dask_ownership.core.protocol.states import ERROR, INLINE, LOST, STORED
from dask_ownership.testing.invariants import check_empty, check_ownership


class Three:
    """One that leaves, the heir of what it owns, and a borrower."""

    def __init__(self) -> None:
        self.leaver, self.heir, self.borrower = self.sides = [
            Side(name) for name in ("leaver", "heir", "borrower")
        ]

    def carry(self, times: int = 1, without: Side | None = None) -> None:
        """Deliver what they have to say until nobody has anything."""
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

    def child(self, key: str, heir: Side | None = None) -> Row:
        """A row of the leaver for a task that a task of the heir submitted."""
        side = self.leaver
        above = ((heir or self.heir).process)[:3]
        options = Options(heir=(*above, "parent", None))
        row = Row(key, side.function, b"call", (), 0, options)
        side.core.table.adopt(row)
        side.core.submit([row])
        side.core.schedule(0.0)
        return row

    def hand_over(self, times: int = 1) -> bool:
        done = False
        for _ in range(5):
            done = self.leaver.core.transfer.hand_over()
            self.carry(times)
        return done

    def gone(self, side: Side) -> None:
        for other in self.sides:
            if other is not side:
                other.core.membership.process_gone(side.process[0])
                other.pass_time()
        self.carry(without=side)


@pytest.fixture
def three() -> Three:
    return Three()


@pytest.mark.parametrize("times", [1, 2])
def test_a_value_lives_on_at_the_heir_and_nothing_is_left(three, times):
    row = three.child("x")
    three.leaver.done(row, b"value")
    borrowed = three.borrower.borrow(three.leaver.core.table.origin_of(row))
    three.carry(times)
    three.leaver.release(row)
    assert three.hand_over(times)
    check_empty(three.leaver.core)
    assert borrowed.owner_ref[0] == "heir" and borrowed.origin[0] == "leaver"
    three.gone(three.leaver)
    assert borrowed.state == INLINE and borrowed.value == b"value"
    kept = three.heir.core.table.rows[adopted_key(borrowed.origin)]
    assert kept.state == INLINE
    assert list(three.heir.core.lending.borrowers[kept]) == ["borrower"]
    three.borrower.release(borrowed)
    three.carry(times)
    check_empty(three.heir.core)
    check_empty(three.borrower.core)


def test_what_has_not_ended_is_waited_for(three):
    row = three.child("x")
    borrowed = three.borrower.borrow(three.leaver.core.table.origin_of(row))
    three.carry()
    assert not three.hand_over() and not three.leaver.core.transfer.under_way
    three.leaver.done(row, b"late")
    three.leaver.release(row)
    assert three.hand_over()
    assert borrowed.value == b"late" and borrowed.owner_ref[0] == "heir"
    three.borrower.release(borrowed)
    three.carry()


def test_the_heir_itself_borrowed_it(three):
    row = three.child("x")
    three.leaver.done(row, b"value")
    borrowed = three.heir.borrow(three.leaver.core.table.origin_of(row))
    three.carry()
    three.leaver.release(row)
    assert three.hand_over()
    three.gone(three.leaver)
    assert borrowed.owner_ref[0] == "heir" and borrowed.value == b"value"
    three.heir.release(borrowed)
    three.carry()
    check_empty(three.heir.core)


def test_an_error_is_taken_over_and_cannot_be_tried_again(three):
    row = three.child("x")
    three.leaver.failed(row, b"error")
    borrowed = three.heir.borrow(three.leaver.core.table.origin_of(row))
    three.carry()
    three.leaver.release(row)
    assert three.hand_over()
    three.gone(three.leaver)
    three.heir.core.retry([borrowed])
    three.carry(without=three.leaver)
    assert borrowed.state == ERROR and borrowed.value == b"error"
    three.heir.release(borrowed)
    three.carry()
    check_empty(three.heir.core)


def test_an_heir_that_dies_is_replaced_by_who_borrows(three):
    row = three.child("x")
    three.leaver.done(row, b"value")
    borrowed = three.borrower.borrow(three.leaver.core.table.origin_of(row))
    three.carry()
    three.leaver.release(row)
    assert not three.leaver.core.transfer.hand_over()
    three.gone(three.heir)
    assert three.hand_over()
    assert borrowed.owner_ref[0] == "borrower" and borrowed.value == b"value"
    three.gone(three.leaver)
    three.borrower.release(borrowed)
    three.carry(without=three.heir)
    check_empty(three.borrower.core)


def test_who_dies_in_the_middle_of_handing_over_leaves_what_arrived(three):
    row = three.child("x")
    three.leaver.done(row, b"value")
    borrowed = three.borrower.borrow(three.leaver.core.table.origin_of(row))
    waits = three.borrower.row("y", borrowed)
    three.carry()
    three.leaver.core.transfer.hand_over()
    three.carry()
    three.gone(three.leaver)  # before it told the borrower
    assert borrowed.value == b"value"
    three.borrower.release(borrowed, waits)
    three.carry(without=three.leaver)
    check_empty(three.borrower.core)
    check_empty(three.heir.core)


def test_a_pinned_row_is_pinned_at_the_heir_and_found_there_later(three):
    row = three.child("x")
    three.leaver.done(row, b"value")
    origin = three.leaver.core.table.origin_of(row)
    three.leaver.core.table.pin(row)
    three.leaver.release(row)
    assert three.hand_over()
    check_empty(three.leaver.core)
    # While the leaver is still there it says where; afterwards the origin does.
    early = three.borrower.borrow(origin)
    three.carry()
    assert early.value == b"value" and early.owner_ref[0] == "heir"
    three.borrower.release(early)
    three.carry()
    three.gone(three.leaver)
    late = three.borrower.borrow(origin)
    three.carry(without=three.leaver)
    assert late.value == b"value"
    three.borrower.release(late)


def test_what_comes_home_after_it_was_handed_over_is_borrowed(three):
    row = three.child("x")
    three.leaver.done(row, b"value")
    origin = three.leaver.core.table.origin_of(row)
    three.leaver.core.table.pin(row)
    three.leaver.release(row)
    assert three.hand_over()
    came, new = three.leaver.core.borrowing.arrive(origin)
    assert new and came.borrowed
    three.leaver.core.submit([came])
    (inside,) = three.leaver.core.borrowing.rows_of([origin])
    assert inside is came
    three.carry()
    assert came.value == b"value" and three.leaver.core.table.origin_of(came) == origin
    three.leaver.core.lifecycle.release_task_refs([inside])
    three.leaver.release(came)


def test_nobody_takes_over_what_nobody_has(three):
    row = three.child("x")
    three.leaver.done(row)
    assert three.hand_over()
    assert not three.heir.core.table.rows
    three.leaver.release(row)


def test_an_owner_that_is_gone_without_a_word_is_an_error_that_names_it(three):
    row = three.child("x")
    borrowed = three.borrower.borrow(three.leaver.core.table.origin_of(row))
    three.carry()
    three.gone(three.leaver)
    assert borrowed.state == LOST and "heir" in borrowed.value.detail
    three.borrower.release(borrowed)


def test_stored_values_are_not_handed_over_when_no_worker_stays(three):
    row = three.child("x")
    row.state, row.locations = STORED, (three.leaver.view,)
    row.nbytes, row.worker, row.function = 1000, None, None
    three.leaver.view.pushed.clear()
    three.leaver.view.active, three.leaver.view.load = 0, 0.0
    three.borrower.borrow(three.leaver.core.table.origin_of(row))
    three.carry()
    assert three.leaver.core.transfer.hand_over(stored=False)
    assert not three.leaver.core.transfer.hand_over(stored=True)


def test_a_value_that_the_heir_cannot_take_stays_with_those_who_have_it(three):
    row = three.child("x")
    row.worker.pushed.clear()
    three.leaver.view.active, three.leaver.view.load = 0, 0.0
    row.state, row.locations, row.nbytes = STORED, (three.leaver.view,), 1000
    row.worker, row.function = None, None
    borrowed = three.borrower.borrow(three.leaver.core.table.origin_of(row))
    three.carry()
    three.leaver.release(row)
    three.leaver.core.transfer.hand_over()
    three.carry()
    three.heir.core.schedule(0.0)
    taking = three.heir.core.table.rows[adopted_key(borrowed.origin)]
    three.heir.answer(taking, m.FAILED, b"it cannot be pickled", 1.0)
    three.carry()
    assert three.hand_over()
    assert borrowed.state == STORED and borrowed.owner_ref[0] == "leaver"
    three.borrower.release(borrowed)
    three.carry()
    check_empty(three.leaver.core)
    check_empty(three.heir.core)


# ---- several that leave together ----


def leave_together(three: Three, *sides: Side, times: int = 1) -> bool:
    """Whether all of them have handed over what they own, within some rounds."""
    done = [False]
    for _ in range(20):
        done = [side.core.transfer.hand_over() for side in sides]
        three.carry(times)
        for side in three.sides:
            side.core.schedule(0.0)
    return all(done)


@pytest.mark.parametrize("times", [1, 2])
def test_an_heir_that_leaves_too_takes_nothing_over(three, times):
    """The next one is asked: here who borrows it."""
    row = three.child("x")
    three.leaver.done(row, b"value")
    borrowed = three.borrower.borrow(three.leaver.core.table.origin_of(row))
    three.carry(times)
    three.leaver.release(row)
    assert leave_together(three, three.heir, three.leaver, times=times)
    assert not three.heir.core.table.rows
    assert borrowed.owner_ref[0] == "borrower"
    for side in (three.leaver, three.heir):
        check_empty(side.core)
        three.gone(side)
    assert borrowed.state == INLINE and borrowed.value == b"value"
    three.borrower.release(borrowed)
    three.carry(times)
    check_empty(three.borrower.core)


@pytest.mark.parametrize("times", [1, 2])
def test_an_heir_that_leaves_later_hands_it_on_and_not_back(three, times):
    row = three.child("x")
    three.leaver.done(row, b"value")
    borrowed = three.borrower.borrow(three.leaver.core.table.origin_of(row))
    three.carry(times)
    three.leaver.release(row)
    three.leaver.core.transfer.hand_over()
    three.carry(times, without=three.borrower)  # which has not heard that it moved
    assert list(three.heir.core.table.rows) == [adopted_key(borrowed.origin)]
    three.heir.core.transfer.hand_over()
    three.carry(times, without=three.borrower)
    assert "x" in three.leaver.core.table.rows
    assert adopted_key(borrowed.origin) not in three.leaver.core.table.rows, "not back"
    assert leave_together(three, three.heir, three.leaver, times=times)
    assert borrowed.owner_ref[0] == "borrower"
    for side in (three.leaver, three.heir):
        check_empty(side.core)
        three.gone(side)
    assert borrowed.state == INLINE and borrowed.value == b"value"


def test_one_that_stays_after_all_keeps_what_nobody_was_told_to_borrow_elsewhere(three):
    row = three.child("x")
    three.leaver.done(row, b"value")
    borrowed = three.borrower.borrow(three.leaver.core.table.origin_of(row))
    three.carry()
    three.leaver.release(row)
    three.leaver.core.transfer.hand_over()
    three.leaver.core.transfer.stay()
    three.carry()
    assert borrowed.owner_ref[0] == "leaver" and borrowed.value == b"value"
    assert not three.leaver.core.transfer.refuses("other", "x"), "it takes over what others leave"
    check_empty(three.heir.core)
    three.borrower.release(borrowed)
    three.carry()
    check_empty(three.leaver.core)


# ---- who is an heir ----

A, B, C, CLIENT = [(name, name, name) for name in ("a", "b", "c", "client")]


def levels(origin):
    names = []
    while origin is not None:
        names.append((origin[0], origin[3]))
        origin = origin[4]
    return names


def test_the_nearest_that_lives_with_all_above_it_is_asked():
    origin = (*A, "x", (*B, "p", (*C, "q", (*CLIENT, "r", None))))

    def asked(*gone):
        found = heir_of(origin, lambda process: process[0] in gone)
        return None if found is None else found[0]

    assert asked("a") == "b"
    assert asked("a", "b") == "c"
    assert asked("a", "c") == "client"  # what b had was submitted by a task of c
    assert asked("a", "b", "c") == "client"
    assert asked("client") is None
    assert heir_of((*CLIENT, "x", None), lambda process: False) is None


def test_recursion_of_any_depth_names_the_first_levels_and_itself():
    heir = None
    for depth in range(1000):
        process = (A, B)[depth % 2] if depth else CLIENT
        heir = task_origin(process, depth, heir)
    assert len(levels(heir)) <= HEIRS
    assert levels(heir)[0] == ("b", 999)
    assert levels(heir)[-3:] == [("a", 2), ("b", 1), ("client", 0)]


def test_no_level_is_left_out_while_there_are_few():
    heir = None
    for depth in range(HEIRS - 1):
        heir = task_origin(A if depth else CLIENT, depth, heir)
    assert [key for _, key in levels(heir)] == list(range(HEIRS - 1))[::-1]


def test_a_chain_of_many_processes_is_cut():
    heir = None
    for depth in range(100):
        heir = task_origin((str(depth), "", ""), depth, heir)
    assert len(levels(heir)) == HEIRS
