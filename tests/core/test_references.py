"""What references make of each message: once, twice, late, and for what is gone."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from dask_ownership.core.owner.ownership import OwnerCore
from dask_ownership.core.owner.references.borrowing import MISSES
from dask_ownership.core.owner.references.peers import HANDED_ON
from dask_ownership.core.owner.rows.options import Options
from dask_ownership.core.owner.rows.row import HAS_BORROWERS, Borrowed, Function, Row
from dask_ownership.core.owner.rows.worker_view import WorkerView
from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol import peer_messages as r
from dask_ownership.core.protocol.failure import Failure
from dask_ownership.core.protocol.states import (
    CANCELLED,
    ERROR,
    FORGOTTEN,
    INLINE,
    LOST,
    PUSHED,
    STORED,
    WAITING,
)
from dask_ownership.testing.invariants import check_empty, check_ownership


class Side:
    """One process: its core with one worker that never answers by itself."""

    def __init__(self, name: str) -> None:
        self.process = (name, "", name)
        self.core = OwnerCore(nullcontext(), process=self.process)
        self.function = Function(1, b"f", "f")
        self.view = WorkerView("w", nthreads=4)
        self.core.add_worker(self.view)

    def row(self, key, *dependencies, contains=(), retries=0) -> Row:
        row = Row(key, self.function, b"call", dependencies, 0, Options(retries=retries))
        row.contains = tuple(contains)
        self.core.table.adopt(row)
        self.core.submit([row])
        self.core.schedule(0.0)
        return row

    def answer(self, row, kind, *rest) -> None:
        self.core.receive(self.view, [(kind, row.key, row.attempt, *rest)], 0.0)
        self.core.schedule(0.0)

    def done(self, row, value=b"value", inside=()) -> None:
        rest = (value, 1.0, inside) if inside else (value, 1.0)
        self.answer(row, m.DONE, *rest)

    def failed(self, row, value=b"error", inside=()) -> None:
        rest = (value, 1.0, inside) if inside else (value, 1.0)
        self.answer(row, m.FAILED, *rest)

    def borrow(self, origin) -> Row:
        made = Borrowed(origin)
        row = self.core.table.adopt(made)
        if row is made:
            self.core.submit([row])
        return row

    def release(self, *rows) -> None:
        self.core.release(rows)

    def pass_time(self) -> None:
        """What is to happen later happens."""
        timers, self.core.effects.timers = self.core.effects.timers, []
        for _, due, arguments in timers:
            due(*arguments)


class Pair:
    """An owner and a borrower; what they say is carried when the test says so."""

    def __init__(self) -> None:
        self.owner = Side("owner")
        self.borrower = Side("borrower")

    def carry(self, *, times: int = 1) -> None:
        """Deliver what both have to say until neither has, each batch so many times."""
        busy = True
        while busy:
            busy = False
            for one, other in ((self.owner, self.borrower), (self.borrower, self.owner)):
                for _, post in one.core.peers.flush():
                    if post[1][0] != other.process[0]:
                        continue  # to a third, who never answers
                    busy = True
                    for _ in range(times):
                        other.core.peers.receive(post[2], post[3])
            self.check()

    def check(self) -> None:
        check_ownership(self.owner.core)
        check_ownership(self.borrower.core)

    def tell_owner(self, *message) -> None:
        """As if the borrower had said it."""
        peer = self.borrower.core.peers.peer(self.owner.process)
        self.borrower.core.peers.say(peer, message)

    def tell_borrower(self, *message) -> None:
        peer = self.owner.core.peers.peer(self.borrower.process)
        self.owner.core.peers.say(peer, message)

    def lent(self, row: Row) -> Row:
        borrowed = self.borrower.borrow(self.owner.core.table.origin_of(row))
        self.carry()
        return borrowed


@pytest.fixture
def pair():
    return Pair()


def counts(row):
    return (row.local_refs, row.task_refs, int(bool(row.roles & HAS_BORROWERS)))


# ---- BORROW, BORROW_ACK, BORROW_RELEASE ----


@pytest.mark.parametrize("times", [1, 2])
def test_a_borrower_counts_once_until_it_gives_back(pair, times):
    row = pair.owner.row("x")
    borrowed = pair.borrower.borrow(pair.owner.core.table.origin_of(row))
    pair.carry(times=times)
    assert borrowed.acknowledged and borrowed.state == WAITING
    assert counts(row) == (1, 1, 1)
    pair.owner.release(row)
    assert row.state == PUSHED and counts(row) == (0, 1, 1)
    pair.borrower.release(borrowed)
    pair.carry(times=times)
    assert row.state == FORGOTTEN and not pair.owner.core.table.rows


def test_the_same_borrowing_said_twice_counts_once(pair):
    row = pair.owner.row("x")
    borrowed = pair.lent(row)
    pair.tell_owner(r.BORROW, "x", borrowed.attempt)
    pair.carry()
    assert counts(row) == (1, 1, 1)
    for _ in range(2):
        pair.tell_owner(r.BORROW_RELEASE, "x", borrowed.attempt)
        pair.carry()
        assert counts(row) == (1, 0, 0)


def test_a_return_of_an_earlier_borrowing_takes_nothing_from_a_later_one(pair):
    row = pair.owner.row("x")
    borrowed = pair.lent(row)
    pair.tell_owner(r.BORROW, "x", borrowed.attempt + 1)
    pair.tell_owner(r.BORROW_RELEASE, "x", borrowed.attempt)
    pair.carry()
    assert counts(row) == (1, 1, 1)
    pair.tell_owner(r.BORROW_RELEASE, "x", borrowed.attempt + 7)
    pair.carry()
    assert counts(row) == (1, 1, 1)
    pair.tell_owner(r.BORROW_RELEASE, "x", borrowed.attempt + 1)
    pair.carry()
    assert counts(row) == (1, 0, 0)


def test_returned_before_it_was_lent(pair):
    """The future goes at once: both messages are on their way together."""
    row = pair.owner.row("x")
    borrowed = pair.borrower.borrow(pair.owner.core.table.origin_of(row))
    pair.borrower.release(borrowed)
    assert borrowed.state == FORGOTTEN and borrowed.acknowledged
    pair.carry()
    assert counts(row) == (1, 0, 0)
    again = pair.lent(row)
    assert again.state == WAITING and counts(row) == (1, 1, 1)


def test_borrowing_what_was_freed_loses_it(pair):
    row = pair.owner.row("x")
    origin = pair.owner.core.table.origin_of(row)
    pair.owner.release(row)
    borrowed = pair.borrower.borrow(origin)
    pair.carry(times=2)
    assert borrowed.state == LOST and borrowed.acknowledged
    assert "freed" in borrowed.value.detail
    pair.borrower.release(borrowed)
    pair.carry()
    assert not pair.owner.core.peers.known["borrower"].lent


def test_lent_and_outcome_of_another_borrowing_change_nothing(pair):
    row = pair.owner.row("x")
    borrowed = pair.borrower.borrow(pair.owner.core.table.origin_of(row))
    for kind in (r.BORROW_ACK, r.VALUE_UPDATE):
        pair.tell_borrower(kind, "x", borrowed.attempt + 1, (INLINE, b"not this", []))
        pair.tell_borrower(kind, "y", borrowed.attempt, (INLINE, b"nor this", []))
    for _, post in pair.owner.core.peers.flush():
        pair.borrower.core.peers.receive(post[2], post[3])
    assert borrowed.state == WAITING and not borrowed.acknowledged


# ---- VALUE_UPDATE ----


@pytest.mark.parametrize("early", [True, False])
def test_every_outcome_reaches_a_borrower(pair, early):
    owner = pair.owner
    rows = {name: owner.row(name) for name in ("inline", "stored", "error", "cancelled", "lost")}
    borrowed = {}
    if early:
        borrowed = {name: pair.lent(row) for name, row in rows.items()}
    owner.done(rows["inline"])
    owner.answer(rows["stored"], m.STORED, 1000, b"type", 1.0)
    owner.failed(rows["error"])
    if not early:
        borrowed = {n: pair.lent(rows[n]) for n in ("inline", "stored", "error", "cancelled")}
        borrowed["lost"] = pair.lent(rows["lost"])
    owner.core.cancel([rows["cancelled"]], "by hand")
    owner.core.settle(rows["lost"], Failure("killed-worker", "lost", "why"))
    pair.carry(times=2)
    assert [borrowed[n].state for n in rows] == [INLINE, STORED, ERROR, CANCELLED, ERROR]
    assert borrowed["inline"].value == b"value" and borrowed["error"].value == b"error"
    assert borrowed["stored"].addresses == ("w",)
    assert borrowed["lost"].value.kind == "killed-worker"
    pair.borrower.release(*borrowed.values())
    owner.release(*rows.values())
    pair.carry()
    assert not owner.core.table.rows and not pair.borrower.core.table.rows


def test_an_outcome_that_comes_late_finds_nothing(pair):
    row = pair.owner.row("x")
    borrowed = pair.lent(row)
    pair.owner.done(row)
    pair.borrower.release(borrowed)
    pair.carry(times=2)
    assert borrowed.state == FORGOTTEN and counts(row) == (1, 0, 0)


# ---- futures inside ----


def test_a_value_is_kept_until_the_futures_inside_are_counted(pair):
    third = Side("third")
    inner = third.row("y")
    row = pair.owner.row("x")
    pair.owner.done(row, inside=[third.core.table.origin_of(inner)])
    (kept,) = row.contains
    borrowed = pair.lent(row)
    (mine,) = borrowed.contains
    assert not mine.acknowledged
    assert borrowed.task_refs == 1
    pair.borrower.release(borrowed)
    assert borrowed.state == INLINE, "its owner must keep y until y's owner counts this one"
    pair.borrower.core.borrowing._acknowledged(mine)
    assert borrowed.state == FORGOTTEN and mine.state == FORGOTTEN
    pair.carry()
    assert counts(row) == (1, 0, 0) and kept.task_refs == 1


def test_a_worker_is_told_once_what_it_handed_over_is_counted(pair):
    third = Side("third")
    origin = third.core.table.origin_of(third.row("y"))
    row = pair.owner.row("x")
    pair.owner.view.outbox.clear()
    pair.owner.done(row, inside=[origin])
    assert not [o for o in pair.owner.view.outbox if o[0] == m.REFS_COUNTED]
    pair.owner.core.borrowing._acknowledged(row.contains[0])
    assert [o for o in pair.owner.view.outbox if o[0] == m.REFS_COUNTED] == [
        (m.REFS_COUNTED, "x", 1)
    ]
    pair.owner.answer(row, m.DONE, b"late", 1.0, [origin])
    assert len([o for o in pair.owner.view.outbox if o[0] == m.REFS_COUNTED]) == 2


def test_a_value_with_its_own_future_inside_is_freed(pair):
    row = pair.owner.row("x")
    own = pair.owner.core.table.origin_of(row)
    pair.owner.done(row, inside=[own, own])
    assert row.contains == () and counts(row) == (1, 0, 0)
    pair.owner.release(row)
    assert row.state == FORGOTTEN


# ---- REQUEST ----


@pytest.mark.parametrize("ended", [False, True])
def test_a_borrower_cancels(pair, ended):
    row = pair.owner.row("x")
    borrowed = pair.lent(row)
    if ended:
        pair.owner.done(row)
        pair.carry()
        assert borrowed.state == INLINE
    for _ in range(2):
        pair.borrower.core.cancel([borrowed], "by hand")
        pair.carry()
        assert row.state == borrowed.state == CANCELLED
    pair.borrower.release(borrowed)
    pair.carry()
    pair.borrower.core.cancel([borrowed], "late")
    pair.carry()
    assert counts(row) == (1, 0, 0)


@pytest.mark.parametrize("who", ["owner", "borrower"])
def test_what_is_tried_again_gets_a_value_everywhere(pair, who):
    row = pair.owner.row("x")
    borrowed = pair.lent(row)
    pair.owner.failed(row)
    pair.carry()
    assert borrowed.state == ERROR
    side = getattr(pair, who)
    for _ in range(2):
        side.core.retry([borrowed if who == "borrower" else row])
        pair.carry()
    pair.owner.core.schedule(0.0)
    assert row.state == PUSHED
    pair.owner.done(row)
    pair.carry()
    assert (borrowed.state, borrowed.value) == (INLINE, b"value")


def test_a_task_that_is_tried_again_has_the_borrowed_input_that_failed_tried_again(pair):
    row = pair.owner.row("x")
    borrowed = pair.lent(row)
    task = pair.borrower.row("t", borrowed)
    pair.owner.failed(row)
    pair.carry()
    assert task.state == ERROR
    pair.borrower.core.retry([task])
    pair.carry()
    assert task.state == WAITING
    pair.owner.core.schedule(0.0)
    pair.owner.done(row)
    pair.carry()
    pair.borrower.core.schedule(0.0)
    assert task.state == PUSHED


@pytest.mark.parametrize("who", ["owner", "borrower"])
def test_what_failed_at_a_borrower_because_of_a_borrowed_input_is_tried_again_with_it(pair, who):
    row = pair.owner.row("x")
    borrowed = pair.lent(row)
    task = pair.borrower.row("t", borrowed)
    after = pair.borrower.row("after", task)
    pair.owner.failed(row)
    pair.carry()
    assert {task.state, after.state} == {ERROR}
    side = getattr(pair, who)
    side.core.retry([borrowed if who == "borrower" else row])
    pair.carry()
    assert {borrowed.state, task.state, after.state} == {WAITING}, "as long as it is tried"
    pair.owner.core.schedule(0.0)
    pair.owner.done(row)
    pair.carry()
    pair.borrower.core.schedule(0.0)
    assert task.state == PUSHED
    pair.borrower.done(task)
    pair.borrower.core.schedule(0.0)
    assert after.state == PUSHED


def test_retrying_what_cannot_be_tried_again_is_answered(pair):
    row = pair.owner.row("x")
    borrowed = pair.lent(row)
    pair.owner.core.settle(row, Failure("no-worker", "x", "none"))
    pair.carry()
    row.function = None
    pair.borrower.core.retry([borrowed])
    assert borrowed.state == WAITING
    pair.carry()
    assert borrowed.state == ERROR


def test_an_error_that_is_tried_again_lets_go_of_the_futures_in_it(pair):
    third = Side("third")
    row = pair.owner.row("x")
    pair.owner.failed(row, inside=[third.core.table.origin_of(third.row("y"))])
    borrowed = pair.lent(row)
    (inner,) = borrowed.contains
    pair.borrower.core.borrowing._acknowledged(inner)
    pair.borrower.core.retry([borrowed])
    assert inner.state == FORGOTTEN and borrowed.contains == ()


# ---- locations that do not have it ----


def missing(side, task, row):
    side.answer(task, m.GIVEN_BACK, m.MISSING, ((row.key, row.version, ()),))


def test_a_copy_that_many_tasks_missed_was_missed_once(pair):
    row = pair.owner.row("x")
    borrowed = pair.lent(row)
    pair.owner.answer(row, m.STORED, 1000, None, 1.0)
    pair.carry()
    tasks = [pair.borrower.row(f"t{i}", borrowed) for i in range(2 * MISSES)]
    pushed = [(t, t.attempt) for t in tasks if t.state == PUSHED]
    lacks = ((borrowed.key, borrowed.version, ()),)
    for task, attempt in pushed:
        message = (m.GIVEN_BACK, task.key, attempt, m.MISSING, lacks)
        pair.borrower.core.receive(pair.borrower.view, [message], 0.0)
    assert borrowed.state == WAITING and borrowed.misses == 1
    pair.carry()  # its owner says again where it is
    assert borrowed.state == STORED


def test_a_value_that_is_missed_again_and_again_is_lost(pair):
    row = pair.owner.row("x")
    borrowed = pair.lent(row)
    pair.owner.answer(row, m.STORED, 1000, None, 1.0)
    pair.carry()
    task = pair.borrower.row("t", borrowed)
    for _ in range(MISSES):
        missing(pair.borrower, task, borrowed)
        assert task.state == WAITING
        pair.carry()
        pair.borrower.core.schedule(0.0)
        assert task.state == PUSHED
    missing(pair.borrower, task, borrowed)
    assert (borrowed.state, task.state) == (LOST, ERROR)
    pair.borrower.release(task, borrowed)
    pair.carry()
    assert counts(row) == (1, 0, 0)


def test_a_value_that_is_found_in_between_is_not_lost(pair):
    row = pair.owner.row("x")
    borrowed = pair.lent(row)
    pair.owner.answer(row, m.STORED, 1000, None, 1.0)
    pair.carry()
    for number in range(2 * MISSES):
        task = pair.borrower.row(f"t-{number}", borrowed)
        missing(pair.borrower, task, borrowed)
        pair.carry()
        pair.borrower.core.schedule(0.0)
        pair.borrower.answer(task, m.DONE, b"value", 1.0)
        assert (task.state, borrowed.state) == (INLINE, STORED)
    pair.borrower.release(borrowed)


def test_a_value_whose_locations_change_is_not_lost(pair):
    row = pair.owner.row("x")
    borrowed = pair.lent(row)
    pair.owner.answer(row, m.STORED, 1000, None, 1.0)
    pair.carry()
    for _ in range(2 * MISSES):
        pair.borrower.core.missed(borrowed, ["w"])
        pair.carry()
        pair.owner.core.schedule(0.0)
        pair.owner.answer(row, m.STORED, 1000, None, 1.0)  # it is made again
        pair.carry()
        assert borrowed.state == STORED


@pytest.mark.parametrize("times", [1, 2])
def test_what_a_borrower_does_not_get_is_made_again(pair, times):
    """What a task was to fetch counts as there, and it may end before it has."""
    row = pair.owner.row("x")
    borrowed = pair.lent(row)
    pair.owner.answer(row, m.STORED, 1000, None, 1.0)
    pair.carry()
    made = row.attempt
    pair.borrower.core.missed(borrowed, ["elsewhere"])
    pair.carry(times=times)
    assert (row.state, borrowed.state) == (STORED, STORED), "that one is not said to have it"
    pair.borrower.core.missed(borrowed, ["w"])
    pair.carry(times=times)
    pair.owner.core.schedule(0.0)
    assert row.state == PUSHED and row.attempt > made and borrowed.state == WAITING
    pair.owner.answer(row, m.STORED, 1000, None, 1.0)
    pair.carry(times=times)
    assert borrowed.state == STORED
    pair.borrower.release(borrowed)
    pair.carry(times=times)
    assert counts(row) == (1, 0, 0)


def test_a_worker_that_leaves_keeps_no_copy_of_a_value_that_is_looked_for(pair):
    row = pair.owner.row("x")
    borrowed = pair.lent(row)
    pair.owner.answer(row, m.STORED, 1000, None, 1.0)
    pair.carry()
    reader = pair.borrower.row("reader", borrowed)
    view = pair.borrower.view
    assert view in borrowed.locations
    pair.borrower.done(reader)
    pair.borrower.core.missed(borrowed, ["elsewhere"])
    pair.borrower.core.receive(view, [(m.LEAVING,)], 0.0)
    pair.carry()
    assert borrowed.state == STORED and view not in borrowed.locations
    freed = [message[1] for message in view.outbox if message[0] == m.FREE]
    assert (borrowed.key,) in freed, "else the worker never leaves"


def test_what_was_missed_before_it_was_made_again_is_there(pair):
    row = pair.owner.row("x")
    borrowed = pair.lent(row)
    pair.owner.answer(row, m.STORED, 1000, None, 1.0)
    pair.carry()
    pair.borrower.core.missed(borrowed, ["w"])
    ((_, late),) = pair.borrower.core.peers.flush()
    pair.owner.core.missed(row, ["w"])
    pair.owner.core.schedule(0.0)
    pair.owner.answer(row, m.STORED, 1000, None, 1.0)
    made = row.attempt
    pair.owner.core.peers.receive(late[2], late[3])
    assert (row.state, row.attempt) == (STORED, made)
    pair.carry()
    assert borrowed.state == STORED


def test_who_missed_what_is_gone_hears_so(pair):
    row = pair.owner.row("x")
    borrowed = pair.lent(row)
    pair.owner.answer(row, m.STORED, 1000, None, 1.0)
    pair.carry()
    pair.owner.core.cancel([row], "not needed")
    pair.owner.release(row)
    pair.borrower.core.missed(borrowed, ["w"])
    pair.carry()
    assert borrowed.state == CANCELLED


def test_an_inline_value_that_a_worker_misses_is_sent_again(pair):
    row = pair.owner.row("x")
    borrowed = pair.lent(row)
    pair.owner.done(row, b"v" * 1000)
    pair.carry()
    tasks = [pair.borrower.row(f"t{i}", borrowed) for i in range(2)]
    outbox = pair.borrower.view.outbox
    assert [o[0] for o in outbox].count(m.COPY) == 1
    missing(pair.borrower, tasks[1], borrowed)
    assert [o[0] for o in outbox].count(m.COPY) == 2


# ---- keys that are used again ----


def test_two_lives_of_a_key_are_two_objects_for_a_borrower(pair):
    old = pair.owner.row("x")
    first = pair.borrower.borrow(pair.owner.core.table.origin_of(old))
    pair.carry()
    pair.owner.core.cancel([old], "stop")
    new = pair.owner.row("x")
    second = pair.borrower.borrow(pair.owner.core.table.origin_of(new))
    assert first is not second
    pair.owner.done(new, b"new")
    pair.carry()
    assert (first.state, second.state, second.value) == (CANCELLED, INLINE, b"new")
    pair.borrower.release(first, second)
    pair.owner.release(old)
    pair.carry()
    assert counts(new) == (1, 0, 0)


def test_who_hears_of_a_key_late_does_not_get_its_next_life(pair):
    old = pair.owner.row("x")
    origin = pair.owner.core.table.origin_of(old)
    pair.owner.core.cancel([old], "stop")
    pair.owner.release(old)
    new = pair.owner.row("x")
    pair.owner.done(new, b"new")
    late = pair.borrower.borrow(origin)
    pair.carry()
    assert late.state == CANCELLED
    assert pair.owner.core.borrowing.rows_of([origin]) == ()
    home, _ = pair.owner.core.borrowing.arrive(origin)
    assert home is not new and home.state == LOST
    assert counts(new) == (1, 0, 0)


@pytest.mark.parametrize("what", ["cancel", "retry", "missed"])
def test_a_request_is_about_the_life_that_was_borrowed(pair, what):
    old = pair.owner.row("x")
    borrowed = pair.lent(old)
    pair.owner.core.cancel([old], "stop")
    new = pair.owner.row("x")
    pair.borrower.core.borrowing.request(borrowed, what, ("w",) if what == "missed" else "")
    pair.carry()
    assert (new.state, borrowed.state) == (PUSHED, CANCELLED)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("how", ["lost", "cancelled"])
def test_what_was_inside_a_value_that_is_gone_is_kept_for_who_took_it_out(pair, how, times):
    inner = pair.owner.row("inner")
    pair.owner.done(inner)
    outer = Row("outer", None, None, (), 0)
    outer.contains = (inner,)
    pair.owner.core.table.adopt(outer)
    pair.owner.core.put(outer, [pair.owner.view], 10)
    pair.owner.release(inner)
    borrowed = pair.lent(outer)
    taken = pair.borrower.borrow(pair.owner.core.table.origin_of(inner))
    pair.borrower.core.borrowing.hold_until_acknowledged(borrowed, [taken])
    pair.borrower.release(borrowed)
    if how == "lost":
        pair.owner.core.remove_worker(pair.owner.view)
    else:
        pair.owner.core.cancel([outer], "by a user")
    pair.carry(times=times)
    assert borrowed.state == FORGOTTEN, "it was given back"
    assert taken.state == INLINE and taken.value == b"value"
    pair.borrower.release(taken)
    pair.carry(times=times)
    assert inner.state == FORGOTTEN and not outer.contains
    pair.owner.release(outer)
    check_empty(pair.owner.core)
    check_empty(pair.borrower.core)


# ---- what cannot be taken in, or said ----


def test_what_comes_after_a_word_that_cannot_be_taken_in_is(pair):
    row = pair.owner.row("x")
    borrowed = pair.lent(row)
    for word in ((r.BORROW,), (r.BORROW_ACK, "x"), (99, "x"), (r.ADOPT, "x", 1), ()):
        pair.tell_owner(*word)
    pair.borrower.release(borrowed)
    pair.carry()
    assert counts(row) == (1, 0, 0)
    said = [where.split(" of ")[0] for where, _ in pair.owner.core.effects.broken]
    assert said == ["BORROW", "BORROW_ACK", "ADOPT", "?"]


def test_what_is_said_in_place_of_what_cannot_be_sent(pair):
    row = pair.owner.row("x")
    borrowed = pair.lent(row)
    pair.owner.done(row)
    peer = pair.owner.core.peers.peer(pair.borrower.process)
    peer.outbox = [r.instead_of(message, "it is too large") for message in peer.outbox]
    pair.carry()
    assert borrowed.state == LOST and "too large" in borrowed.value.detail
    assert r.instead_of((r.BORROW_RELEASE, "x", 1), "it is too large") is None
    moved = (r.MOVED, "x", 1, ("a", "b", "c", "x"), (INLINE, b"", ()), None)
    assert r.instead_of(moved, "why")[:5] == (*moved[:4], None)


# ---- ends ----


@pytest.mark.parametrize("how", ["leaves", "is gone"])
def test_a_borrower_that_ends_counts_no_more(pair, how):
    row = pair.owner.row("x")
    borrowed = pair.lent(row)
    pair.owner.release(row)
    if how == "leaves":
        pair.borrower.core.close("closed")
        pair.carry(times=2)
    for _ in range(2):
        pair.owner.core.membership.process_gone("borrower")
    assert row.state == PUSHED, "others may be about to be counted for what it sent them"
    assert [seconds for seconds, _, _ in pair.owner.core.effects.timers] == [HANDED_ON]
    pair.owner.pass_time()
    assert row.state == FORGOTTEN
    late = (7, 0, [(r.BORROW, "x", 99), (r.BORROW_RELEASE, "x", borrowed.attempt)])
    pair.owner.core.peers.receive(pair.borrower.process, late)
    assert not pair.owner.core.table.rows


@pytest.mark.parametrize("how", ["leaves", "is gone", "cannot be reached"])
def test_what_an_owner_that_ends_owned_is_lost(pair, how):
    row = pair.owner.row("x")
    borrowed = pair.lent(row)
    waits = pair.borrower.row("t", borrowed)
    uncounted = pair.borrower.borrow((*pair.owner.process, "y", None, 0))
    called = []
    pair.borrower.core.borrowing.when_acknowledged([uncounted], lambda: called.append(1))
    if how == "leaves":
        pair.owner.core.close("closed")
        pair.carry()
    elif how == "is gone":
        pair.borrower.core.membership.process_gone("owner")
    else:
        pair.borrower.core.peers.receive(pair.owner.process, None)
    assert [borrowed.state, uncounted.state, waits.state] == [LOST, LOST, ERROR]
    losses = pair.borrower.core.losses
    assert {name: n for name, n in losses.items() if n} == {"owners-gone": 1, "owner-lost": 2}
    assert called == [1]
    late = pair.borrower.borrow((*pair.owner.process, "z", None, 0))
    assert late.state == LOST and late.acknowledged
    pair.borrower.core.retry([borrowed, late])
    pair.borrower.core.cancel([borrowed, late], "late")
    pair.borrower.release(borrowed, uncounted, late, waits)
    assert not pair.borrower.core.table.rows


def test_a_worker_that_comes_back_to_an_address_can_own(pair):
    side = pair.borrower
    before = ("first", "there:1", "there")
    lost = side.borrow((*before, "x", None, 0))
    side.core.membership.left("first", "left the cluster")
    side.core.membership.left("first", "left the cluster")
    assert lost.state == LOST
    assert side.core.membership.joined(WorkerView("there:1", incarnation="second"))
    assert side.borrow(("second", "there:1", "there", "x", None, 0)).state == WAITING
    assert side.borrow((*before, "y", None, 0)).state == LOST


def test_a_closed_owner_hears_nothing(pair):
    row = pair.owner.row("x")
    attempt = row.attempt
    pair.owner.core.close("closed")
    pair.owner.core.close("closed")
    for answer in (
        (m.DONE, "x", attempt, b"late", 1.0),
        (m.GIVEN_BACK, "x", attempt, m.RECALLED, ()),
        (m.FAILED, "x", attempt, b"late", 1.0),
    ):
        pair.owner.core.receive(pair.owner.view, [answer], 0.0)
        assert row.state == CANCELLED


def test_one_that_asks_for_what_was_cancelled_hears_that(pair):
    row = pair.owner.row("x")
    origin = pair.owner.core.table.origin_of(row)
    pair.owner.core.cancel([row], "not wanted any more")
    borrowed = pair.borrower.borrow(origin)
    pair.carry()
    assert borrowed.state == CANCELLED and "not wanted" in borrowed.value.detail
    pair.borrower.release(borrowed)
    pair.owner.release(row)


def test_a_gap_in_the_stream_waits_for_what_is_missing(pair):
    row = pair.owner.row("x")
    missing = (1, 0, [(r.BORROW, "x", 1)])
    after = (2, 0, [(r.BORROW_RELEASE, "x", 1)])
    pair.owner.core.peers.receive(pair.borrower.process, after)
    assert counts(row) == (1, 0, 0)
    pair.owner.core.peers.receive(pair.borrower.process, missing)
    assert counts(row) == (1, 1, 1)
    for batch in (after, missing, after):
        pair.owner.core.peers.receive(pair.borrower.process, batch)
    assert counts(row) == (1, 0, 0)
