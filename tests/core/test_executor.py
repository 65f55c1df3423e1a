from __future__ import annotations

import pytest

from dask_ownership.core.executor import session as ex
from dask_ownership.core.executor.crowd import WAITING_PER_THREAD
from dask_ownership.core.executor.executor import ExecutorCore
from dask_ownership.core.executor.session import Entry, Session
from dask_ownership.core.protocol import messages as m
from dask_ownership.testing.invariants import check_executor, check_executor_empty

_attempts = iter(range(1, 1 << 30))


def push(key, deps=(), attempt=None, order=None, **options):
    attempt = next(_attempts) if attempt is None else attempt
    extra = {"depth": 0, **options} if options else None
    place = attempt if order is None else order
    return (m.PUSH, key, attempt, 1, b"call", place, tuple(deps), extra)


class Bench:
    """An executor, one owner, and what a runtime does for them."""

    def __init__(self, slots=1, resources=None):
        self.core = ExecutorCore(slots, resources)
        self.session = self.core.open("owner")
        self.said()

    def tell(self, *batch, session: Session | None = None):
        self.core.commands.receive(session or self.session, batch)
        check_executor(self.core)

    def start(self) -> Entry:
        entry = self.core.queue.next_work()
        assert isinstance(entry, Entry), entry
        check_executor(self.core)
        return entry

    def inline(self, entry, value="value"):
        message = (m.DONE, entry.key, entry.attempt, b"value", 1.0)
        kept = self.core.lifecycle.succeeded(entry, message, ex.HELD, value)
        self.core.queue.released_slot()
        check_executor(self.core)
        return kept

    def stored(self, entry):
        entry.stored = f"{entry.key}-{entry.attempt}"
        message = (m.STORED, entry.key, entry.attempt, 8, None, 1.0)
        kept = self.core.lifecycle.succeeded(entry, message, ex.KEPT, None)
        self.core.queue.released_slot()
        check_executor(self.core)
        return kept

    def fails(self, entry):
        self.core.lifecycle.failed(entry, (m.FAILED, entry.key, entry.attempt, b"error", 1.0))
        self.core.queue.released_slot()
        check_executor(self.core)

    def said(self, session: Session | None = None):
        session = session or self.session
        out, session.outbox = session.outbox, []
        return [(m.NAMES[message[0]], *message[1:]) for message in out]

    def acknowledge(self):
        self.pack(1)
        self.core.acknowledged(self.session, 1)

    def pack(self, batch):
        fresh, self.session.fresh = self.session.fresh, []
        self.core.packed(self.session, batch, fresh)


@pytest.fixture
def bench():
    return Bench()


def test_a_session_is_opened_once_and_says_whether_it_takes_tasks():
    core = ExecutorCore(2)
    session = core.open("owner")
    assert core.open("owner") is session
    assert session.outbox == [(m.ACCEPTING, True, 2)]


def test_a_task_runs_once_however_often_it_is_pushed(bench):
    message = push("x", attempt=7)
    bench.tell(message, message)
    entry = bench.start()
    bench.tell(message)
    assert bench.core.queue.next_work() is None
    bench.inline(entry)
    bench.tell(message)
    assert bench.core.queue.next_work() is None
    assert bench.said() == [("DONE", "x", 7, b"value", 1.0)]
    bench.acknowledge()
    check_executor_empty(bench.core)


def test_owners_take_turns_and_deeper_tasks_come_first(bench):
    other = bench.core.open("other")
    bench.tell(push("a1"), push("a2"))
    bench.tell(push("b1"), push("deep", depth=1), session=other)
    ran = []
    while (entry := bench.core.queue.next_work()) is not None:
        ran.append(entry.key)
        bench.inline(entry)
    assert ran == ["deep", "a1", "b1", "a2"]


def test_a_parked_task_comes_before_new_ones_and_keeps_to_the_slots(bench):
    bench.tell(push("p"), push("x"), push("y"))
    parent = bench.start()
    bench.core.queue.parked(parent)
    x = bench.start()
    bench.core.queue.wants_slot("token", parent)
    assert bench.core.queue.next_work() is None
    bench.inline(x)
    assert bench.core.queue.next_work() == "token"
    assert bench.core.queue.next_work() is None
    assert (bench.core.queue.busy, len(bench.core.queue.crowd)) == (1, 0)


def test_a_parked_task_that_waits_again_before_it_has_a_slot_stays_parked(bench):
    bench.tell(push("p"), push("x"))
    parent = bench.start()
    queue = bench.core.queue
    queue.parked(parent)
    x = bench.start()
    queue.wants_slot("first wait", parent)
    assert queue.stays_parked(parent) == "first wait"
    assert queue.stays_parked(parent) is None
    bench.inline(x)
    assert queue.next_work() is None, "the wish for a slot is withdrawn"
    assert (queue.busy, len(queue.crowd)) == (0, 1)
    queue.wants_slot("second wait", parent)
    assert queue.next_work() == "second wait"
    assert (queue.busy, len(queue.crowd)) == (1, 0)


def test_a_value_that_is_held_goes_when_its_owner_has_it_but_not_for_tasks_here(bench):
    x = (m.LOCAL, "x", 900)
    bench.tell(push("x", attempt=900), push("y", [x]), push("z", [x]))
    bench.inline(bench.start(), 42)
    y = bench.start()
    bench.acknowledge()
    bench.acknowledge()
    assert "x" not in bench.session.entries
    assert [d.value for d in y.dependencies] == [42]
    bench.inline(y)
    assert bench.start().dependencies[0].value == 42


def test_acknowledging_again_spares_a_later_attempt(bench):
    bench.tell(push("x"))
    bench.inline(bench.start())
    bench.pack(1)
    bench.tell(push("x"))
    bench.core.acknowledged(bench.session, 1)
    assert bench.start().key == "x"


@pytest.mark.parametrize("end", ["fails", "cancel", "gives back"])
def test_tasks_behind_one_that_ends_without_a_value_are_returned_with_it(bench, end):
    bench.tell(
        push("x", attempt=1001),
        push("y", [(m.LOCAL, "x", 1001)], 1002),
        push("z", [(m.LOCAL, "y", 1002)], 1003),
    )
    entry = bench.start()
    if end == "fails":
        bench.fails(entry)
        first = [("FAILED", "x", 1001, b"error", 1.0)]
    elif end == "cancel":
        bench.tell((m.CANCEL, "x", 1001), (m.CANCEL, "x", 1001))
        first = [("LINGERS", "x", 1001, True)]
    else:
        bench.core.lifecycle.could_not_start(entry, m.UNKNOWN_FUNCTION)
        bench.core.queue.released_slot()
        first = [("GIVEN_BACK", "x", 1001, m.UNKNOWN_FUNCTION, ())]
    assert bench.said() == [
        *first,
        ("GIVEN_BACK", "y", 1002, m.BLOCKED, ()),
        ("GIVEN_BACK", "z", 1003, m.BLOCKED, ()),
    ]
    assert bench.core.queue.next_work() is None
    if end == "cancel":
        assert bench.core.effects.interrupted == [entry]
        assert not bench.inline(entry)
        assert bench.said() == [("LINGERS", "x", 1001, False)]
    check_executor_empty(bench.core)


def test_cancelling_another_attempt_or_what_is_gone_changes_nothing(bench):
    bench.tell(push("x", attempt=2000), (m.CANCEL, "x", 1999), (m.CANCEL, "nothing", 1))
    bench.inline(bench.start())
    assert bench.said() == [("DONE", "x", 2000, b"value", 1.0)]


def test_cancelling_a_queued_a_parked_and_a_stored_task(bench):
    bench.tell(push("q", attempt=3000), (m.CANCEL, "q", 3000))
    assert bench.core.queue.next_work() is None
    bench.tell(push("p", attempt=3001))
    parked = bench.start()
    bench.core.queue.parked(parked)
    bench.said()
    bench.tell((m.CANCEL, "p", 3001))
    bench.core.queue.wants_slot("token", parked)
    assert bench.core.queue.next_work() == "token"
    assert not bench.inline(parked)
    bench.tell(push("s", attempt=3002))
    bench.stored(bench.start())
    bench.said()
    bench.tell((m.CANCEL, "s", 3002), (m.CANCEL, "s", 3002))
    assert bench.core.effects.freed == ["s-3002"]
    assert bench.said() == []
    check_executor_empty(bench.core)
    assert bench.core.queue.busy == 0


def test_a_superseded_attempt_that_ends_late_touches_nothing_of_the_next(bench):
    bench.core.queue.slots = 2
    bench.tell(push("x", attempt=4000))
    old = bench.start()
    bench.tell((m.CANCEL, "x", 4000), push("x", attempt=4001))
    new = bench.start()
    assert bench.stored(new)
    assert not bench.stored(old)
    assert bench.core.effects.freed == ["x-4000"], "only what the old attempt made"
    assert bench.said() == [
        ("LINGERS", "x", 4000, True),
        ("STORED", "x", 4001, 8, None, 1.0),
        ("LINGERS", "x", 4000, False),
    ]
    assert bench.session.entries["x"] is new and new.stored == "x-4001"


def test_a_push_supersedes_an_older_attempt_even_without_a_cancel(bench):
    bench.core.queue.slots = 2
    bench.tell(push("x", attempt=4100))
    old = bench.start()
    bench.tell(push("x", attempt=4101))
    assert bench.core.effects.interrupted == [old]
    new = bench.start()
    bench.inline(old)
    bench.inline(new)
    assert bench.said() == [
        ("LINGERS", "x", 4100, True),
        ("LINGERS", "x", 4100, False),
        ("DONE", "x", 4101, b"value", 1.0),
    ]


def test_a_copy_is_there_until_it_is_freed(bench):
    bench.tell((m.COPY, "c", 7, b"bytes"), push("x", [(m.LOCAL, "c", 7), (m.VALUE, b"v")]))
    entry = bench.start()
    assert entry.dependencies[0].value == b"bytes" and entry.dependencies[1] == b"v"
    bench.inline(entry)
    bench.acknowledge()
    bench.tell((m.FREE, ("c",), 7), (m.FREE, ("c", "never"), 7))
    check_executor_empty(bench.core)


def test_a_dependency_that_is_not_here_returns_the_task_but_counts_its_fetches(bench):
    far = (m.REMOTE, "far", 7, 8, ("there",), None)
    bench.tell(push("x", [(m.LOCAL, "no", 6), far], 5000))
    assert bench.said() == [("GIVEN_BACK", "x", 5000, m.MISSING, (("no", 6, ()),))]
    # The owner now counts on the copy, and will free it.
    assert [entry.key for entry in bench.core.effects.fetches] == ["far"]
    bench.tell((m.FREE, ("far",), 5000))
    check_executor_empty(bench.core)


def test_a_value_is_fetched_once_for_all_that_need_it(bench):
    far = (m.REMOTE, "far", 7, 8, ("there",), None)
    bench.tell(push("x", [far]), push("y", [far]))
    (entry,) = bench.core.effects.fetches
    assert bench.core.queue.next_work() is None
    entry.stored = "far-copy"
    bench.core.lifecycle.fetched(entry)
    bench.inline(bench.start())
    bench.inline(bench.start())
    bench.acknowledge()
    bench.tell((m.FREE, ("far",), 1 << 30))
    assert bench.core.effects.freed == ["far-copy"]
    check_executor_empty(bench.core)


def test_a_fetch_that_ends_after_it_was_freed_deletes_its_own_value_only(bench):
    far = (m.REMOTE, "far", 7, 8, ("there",), None)
    bench.tell(push("x", [far], 5100), (m.CANCEL, "x", 5100), (m.FREE, ("far",), 5100))
    bench.tell(push("y", [far], 5101))
    first, second = bench.core.effects.fetches
    second.stored = "second"
    bench.core.lifecycle.fetched(second)
    bench.core.lifecycle.fetched(first)
    bench.core.lifecycle.fetch_failed(first, ("there",))
    bench.core.lifecycle.fetch_impossible(first, b"error")
    assert bench.core.effects.freed == []
    first.stored = "first"
    bench.core.lifecycle.fetched(first)
    assert bench.core.effects.freed == ["first"]
    assert bench.start().dependencies == [second]


def test_a_fetch_that_fails_says_who_does_not_have_the_value(bench):
    bench.tell(push("x", [(m.REMOTE, "far", 7, 8, ("a", "b"), None)], 5200))
    (entry,) = bench.core.effects.fetches
    for _ in range(2):
        bench.core.lifecycle.fetch_failed(entry, ("a",))
    assert bench.said() == [("GIVEN_BACK", "x", 5200, m.MISSING, (("far", 7, ("a",)),))]
    check_executor_empty(bench.core)


def test_a_value_that_cannot_travel_fails_the_tasks_that_need_it(bench):
    bench.tell(
        push("x", [(m.REMOTE, "far", 7, 8, ("a",), None)], 5300),
        push("y", [(m.LOCAL, "x", 5300)], 5301),
    )
    for _ in range(2):
        bench.core.lifecycle.fetch_impossible(bench.core.effects.fetches[0], b"error")
    assert bench.said() == [
        ("FAILED", "x", 5300, b"error", 0.0),
        ("GIVEN_BACK", "y", 5301, m.BLOCKED, ()),
    ]
    check_executor_empty(bench.core)


def test_a_scattered_value_is_not_freed_by_what_the_link_says_of_an_older_one(bench):
    first, second = Entry(bench.session, "s", 10), Entry(bench.session, "s", 20)
    first.stored, second.stored = "first", "second"
    bench.core.lifecycle.keep(first)
    bench.core.lifecycle.keep(first)
    assert bench.core.effects.freed == []
    bench.core.lifecycle.keep(second)  # overtakes the FREE of the first
    assert bench.core.effects.freed == ["first"]
    late = Entry(bench.session, "s", 15)
    late.stored = "late"
    bench.core.lifecycle.keep(late)
    assert bench.core.effects.freed == ["first", "late"]
    bench.tell((m.FREE, ("s",), 12))
    assert bench.session.entries["s"] is second and second.state == ex.KEPT
    bench.tell((m.FREE, ("s",), 20))
    assert bench.core.effects.freed == ["first", "late", "second"]
    check_executor_empty(bench.core)


def test_what_waits_for_a_task_does_not_get_what_was_scattered_under_its_key(bench):
    bench.tell(push("x", attempt=1), push("y", [(m.LOCAL, "x", 1)], attempt=2))
    running = bench.start()
    scattered = Entry(bench.session, "x", 3)
    bench.core.lifecycle.keep(scattered)
    assert running.cancelled and bench.session.entries["x"] is scattered
    assert bench.said() == [("LINGERS", "x", 1, True), ("GIVEN_BACK", "y", 2, m.BLOCKED, ())]
    assert bench.core.queue.next_work() is None


def test_recall_gives_back_the_last_ones_once_and_says_that_it_is_over(bench):
    bench.tell(push("a"), push("b"), push("c"), push("d", moved=True))
    bench.start()
    bench.said()
    bench.tell((m.RECALL, 1))
    said = bench.said()
    assert [(s[1], s[3]) for s in said] == [("c", m.RECALLED), (None, m.RECALLED)]
    bench.tell((m.RECALL, 10))
    assert [s[1] for s in bench.said()] == ["b", None]


def test_recall_leaves_tasks_that_others_here_wait_for(bench):
    bench.tell(push("a"), push("b", attempt=5900), push("c", [(m.LOCAL, "b", 5900)]))
    bench.start()
    bench.tell((m.RECALL, 10))
    assert [s[1] for s in bench.said()] == [None]


def test_pausing_gives_back_what_did_not_start_and_going_on_takes_again(bench):
    bench.tell(push("a", attempt=6000), push("b", attempt=6001))
    running = bench.start()
    for _ in range(2):
        bench.core.set_accepting(False, 1)
    assert bench.said() == [("ACCEPTING", False, 1), ("GIVEN_BACK", "b", 6001, m.REFUSED, ())]
    bench.tell(push("c", attempt=6002))
    assert bench.said() == [("GIVEN_BACK", "c", 6002, m.REFUSED, ())]
    bench.inline(running)
    assert bench.core.queue.next_work() is None
    bench.core.set_accepting(True, 2)
    bench.tell(push("c", attempt=6003))
    bench.inline(bench.start())
    assert [s[:3] for s in bench.said()] == [
        ("DONE", "a", 6000),
        ("ACCEPTING", True, 2),
        ("DONE", "c", 6003),
    ]


def test_a_paused_worker_lets_parked_tasks_go_on(bench):
    bench.tell(push("p"))
    parent = bench.start()
    bench.core.queue.parked(parent)
    bench.core.set_accepting(False, 1)
    bench.core.queue.wants_slot("token", parent)
    assert bench.core.queue.next_work() == "token"


def test_tasks_share_resources_and_those_without_do_not_count_as_queued():
    bench = Bench(slots=3, resources={"gpu": 1})
    one = {"gpu": 1}
    bench.tell(push("a", resources=one), push("b", resources=one), push("c", resources=one))
    a = bench.start()
    assert bench.core.queue.next_work() is None
    assert bench.core.queue.queued == 0, "nothing can be done about them now: no thread is to look"
    bench.tell((m.CANCEL, "b", bench.session.entries["b"].attempt))
    bench.tell(push("plain"))
    assert bench.start().key == "plain"
    bench.inline(a)
    c = bench.start()
    assert c.key == "c"
    bench.fails(c)
    assert bench.core.queue.resources.available == {"gpu": 1}


@pytest.mark.parametrize("how", ["recall", "pause", "close"])
def test_tasks_that_wait_for_resources_can_be_taken_back(how):
    bench = Bench(slots=2, resources={"gpu": 1})
    bench.tell(push("a", resources={"gpu": 1}), push("b", resources={"gpu": 1}))
    a = bench.start()
    assert bench.core.queue.next_work() is None
    bench.said()
    if how == "recall":
        bench.tell((m.RECALL, 5))
        assert [s[1] for s in bench.said()] == ["b", None]
    elif how == "pause":
        bench.core.set_accepting(False, 2)
        assert [s[1] for s in bench.said()] == [False, "b"]
    else:
        bench.core.close("owner")
    bench.inline(a)
    assert bench.core.queue.next_work() is None and bench.core.queue.resources.available == {
        "gpu": 1
    }
    check_executor(bench.core)


def test_resources_that_are_not_here_are_said_and_other_tasks_go_on(bench):
    bench.tell(push("x", attempt=7000, resources={"gpu": 1}), push("y"))
    assert bench.said() == [("GIVEN_BACK", "x", 7000, m.REFUSED, ((),))]
    bench.inline(bench.start())


def test_closing_drops_everything_and_late_messages_of_that_owner_change_nothing(bench):
    bench.core.queue.slots = 2
    bench.tell(push("s", attempt=8000))
    bench.stored(bench.start())
    bench.tell(push("r"), push("q"), push("far", [(m.REMOTE, "f", 7, 1, ("a",), None)]))
    running = bench.start()
    fetching = bench.core.effects.fetches[0]
    assert bench.core.close("owner") == 3  # neither the value nor what is fetched
    assert bench.core.close("owner") == 0
    assert bench.core.effects.freed == ["s-8000"] and bench.core.effects.interrupted == [running]
    bench.tell(push("late"), (m.COPY, "c", 7, b"v"), (m.RECALL, 3), (m.FREE, ("s",), 1 << 30))
    bench.core.acknowledged(bench.session, 5)
    fetching.stored = "f"
    bench.core.lifecycle.fetched(fetching)
    late = Entry(bench.session, "scattered", 9000)
    late.stored = "late"
    bench.core.lifecycle.keep(late)
    assert bench.core.queue.next_work() is None
    assert not bench.stored(running)
    assert sorted(bench.core.effects.freed) == sorted(
        ["s-8000", "f", "late", f"r-{running.attempt}"]
    )
    assert bench.said() == [] and not bench.session.entries
    assert bench.core.queue.busy == 0 and bench.core.queue.queued == 0


def test_two_owners_may_use_the_same_key(bench):
    bench.core.queue.slots = 2
    other = bench.core.open("other")
    bench.tell(push("x", attempt=1))
    bench.tell(push("x", attempt=1), session=other)
    first, second = bench.start(), bench.start()
    bench.stored(first)
    second.stored = "of the other"
    bench.core.lifecycle.succeeded(second, (m.STORED, "x", 1, 1, None, 1.0), ex.KEPT, None)
    bench.tell((m.FREE, ("x",), 99), session=other)
    assert bench.core.effects.freed == ["of the other"]
    assert bench.session.entries["x"] is first


def test_with_many_parked_only_deeper_tasks_start_and_no_thread_looks_for_others(bench):
    bench.tell(*[push(f"p{i}", depth=1) for i in range(WAITING_PER_THREAD + 1)])
    for _ in range(WAITING_PER_THREAD):
        bench.core.queue.parked(bench.start())
    assert bench.core.queue.next_work() is None
    assert (bench.core.queue.queued, bench.core.queue.startable) == (1, 0)
    bench.tell(push("child", depth=2))
    assert bench.core.queue.startable == 1
    bench.inline(bench.start())
    bench.core.queue.crowd.relieve(0.9)
    assert bench.core.queue.startable == 0
    bench.core.queue.crowd.relieve(1.0)
    assert bench.core.queue.startable == 1 and bench.start().key == f"p{WAITING_PER_THREAD}"


# ---- cancelling and time limits ----


def test_a_task_whose_time_is_up_fails_then_and_keeps_its_slot_and_resources_until_it_ends():
    bench = Bench(resources={"gpu": 1})
    bench.tell(
        push("x", attempt=1, resources={"gpu": 1}, timeout=1.0),
        push("behind", [(m.LOCAL, "x", 1)], attempt=2),
    )
    x = bench.start()
    failure = (m.FAILED, "x", 1, b"its time is up", 1.0)
    for _ in range(2):  # twice is once
        bench.core.lifecycle.expired(x, failure)
        assert (
            x.cancelled
            and bench.core.queue.busy == 1
            and bench.core.queue.resources.available == {"gpu": 0}
        )
    assert bench.said() == [
        ("FAILED", "x", 1, b"its time is up", 1.0),
        ("LINGERS", "x", 1, True),
        ("GIVEN_BACK", "behind", 2, m.BLOCKED, ()),
    ]
    assert bench.core.effects.interrupted == [x]
    # Another attempt comes here while the first still runs.
    bench.tell(push("x", attempt=3, resources={"gpu": 1}, timeout=1.0))
    assert bench.core.queue.next_work() is None
    assert not bench.inline(x), "nobody wants it"
    again = bench.start()
    assert again.attempt == 3 and not again.cancelled
    bench.inline(again)
    bench.core.lifecycle.expired(again, failure)  # a clock that rang late
    assert bench.said() == [("LINGERS", "x", 1, False), ("DONE", "x", 3, b"value", 1.0)]
    bench.acknowledge()
    check_executor_empty(bench.core)
    assert bench.core.queue.busy == 0 and bench.core.queue.resources.available == {"gpu": 1}


def test_the_time_of_a_task_that_was_cancelled_or_whose_owner_is_gone_says_nothing(bench):
    bench.tell(push("x", attempt=1, timeout=1.0), push("y", attempt=2, timeout=1.0))
    x = bench.start()
    bench.tell((m.CANCEL, "x", 1))
    bench.core.lifecycle.expired(x, (m.FAILED, "x", 1, b"late", 1.0))
    assert bench.said() == [("LINGERS", "x", 1, True)]
    bench.fails(x)
    y = bench.start()
    bench.core.close("owner")
    bench.core.lifecycle.expired(y, (m.FAILED, "y", 2, b"late", 1.0))
    assert bench.session.outbox == [] and y.cancelled
    bench.fails(y)
    assert bench.core.queue.busy == 0


@pytest.mark.parametrize("given", [False, True], ids=["waiting for a slot", "just given one"])
def test_a_parked_task_that_stops_waiting_for_a_slot_leaves_nothing(bench, given):
    bench.tell(push("p"), push("x"))
    parent = bench.start()
    bench.core.queue.parked(parent)
    x = bench.start()
    bench.core.queue.wants_slot("token", parent)
    if given:
        bench.inline(x)
        assert bench.core.queue.next_work() == "token"
    bench.core.queue.stops_waiting("token", parent)
    assert not bench.core.queue.resuming and not bench.core.queue.crowd.waiting
    assert bench.core.queue.busy == (1 if given else 2), (
        "for a while on one slot more than there are"
    )
    bench.fails(parent)
    if not given:
        bench.inline(x)
    assert bench.core.queue.busy == 0
    bench.acknowledge()
    check_executor_empty(bench.core)


def test_an_alias_keeps_the_very_value_and_needs_no_slot(bench):
    bench.tell(push("x", attempt=1))
    bench.stored(bench.start())
    bench.said()
    bench.core.queue.slots = 0
    bench.tell(push("y", [(m.LOCAL, "x", 1)], attempt=2, alias=True))
    alias = bench.session.entries["y"]
    assert alias.state == ex.KEPT and alias.stored == "x-1" and not bench.core.queue.queued
    assert bench.said() == [("STORED", "y", 2, None, None, 0.0)]
    bench.tell((m.FREE, ("x",), 9))
    assert bench.core.effects.freed == [] and not bench.core.lifecycle.shared
    bench.tell((m.FREE, ("y",), 9))
    assert bench.core.effects.freed == ["x-1"]
    check_executor_empty(bench.core)


def test_an_alias_of_what_is_on_its_way_is_done_when_that_is_here(bench):
    bench.tell(push("y", [(m.REMOTE, "x", 1, 8, ("w",), ("other", "x", 5))], attempt=2, alias=True))
    [fetched] = bench.core.effects.fetches
    fetched.stored = "x-0"
    bench.core.lifecycle.fetched(fetched)
    assert bench.said() == [("STORED", "y", 2, None, None, 0.0)]
    assert bench.core.queue.next_work() is None


def test_an_alias_of_what_travelled_runs(bench):
    bench.tell((m.COPY, "x", 1, b"value"), push("y", [(m.LOCAL, "x", 1)], alias=True))
    assert bench.start().key == "y"


def test_functions_are_kept_within_bounds_of_bytes_and_until_they_are_forgotten(bench, monkeypatch):
    functions = bench.session.functions
    monkeypatch.setattr("dask_ownership.core.executor.commands.FUNCTION_BYTES", 100)
    bench.tell((m.FUNCTION, 1, bytes(40)), (m.FUNCTION, 2, bytes(40)), (m.FUNCTION, 3, bytes(40)))
    assert list(functions) == [2, 3]
    bench.tell((m.FORGET, 2), (m.FORGET, 2), (m.FORGET, 1))
    assert list(functions) == [3]
    bench.tell((m.FUNCTION, 3, bytes(60)), (m.FUNCTION, 4, bytes(40)))
    assert list(functions) == [3, 4]
    bench.tell((m.FUNCTION, 5, bytes(1000)))
    assert list(functions) == [5]  # it is needed now, however large it is
    bench.tell((m.FORGET, 5))
    assert bench.session.function_bytes == 0
    bench.core.close("owner")
    bench.tell((m.FORGET, 5))


def test_very_many_functions_are_not_kept(bench, monkeypatch):
    monkeypatch.setattr("dask_ownership.core.executor.commands.KNOWN_FUNCTIONS", 2)
    bench.tell(*[(m.FUNCTION, i, b"f") for i in range(5)])
    assert list(bench.session.functions) == [3, 4]


# ---- keys that are used again ----


def test_a_held_value_of_another_life_of_its_key_is_not_taken(bench):
    bench.tell(push("x", attempt=1))
    old = bench.start()
    bench.inline(old, "old")
    bench.tell(
        push("local", [(m.LOCAL, "x", 2)], attempt=3),
        push("remote", [(m.REMOTE, "x", 2, 8, ("there",), None)], attempt=4),
    )
    assert bench.said()[1:] == [("GIVEN_BACK", "local", 3, m.MISSING, (("x", 2, ()),))]
    (fetched,) = bench.core.effects.fetches
    assert fetched.value_name == ("owner", "x", 2)
    fetched.stored = "new"
    bench.core.lifecycle.fetched(fetched)
    assert bench.start().dependencies == [fetched]


def test_a_task_that_is_queued_keeps_the_value_that_it_was_pushed_with(bench):
    x = (m.LOCAL, "x", 1)
    bench.tell(push("x", attempt=1), push("y", [x], attempt=2))
    bench.inline(bench.start(), "old")
    bench.tell((m.COPY, "x", 5, b"new"), push("z", [(m.LOCAL, "x", 5)], attempt=6))
    y, z = bench.start(), None
    assert y.dependencies[0].value == "old"
    bench.inline(y)
    z = bench.start()
    assert z.dependencies[0].value == b"new"


def test_futures_in_a_held_value_stay_until_they_are_counted_though_its_key_is_used_again(bench):
    bench.tell(push("x", attempt=1))
    old = bench.start()
    old.contains = ["a future"]
    message = (m.DONE, "x", 1, b"value", 1.0, ("origin",))
    bench.core.lifecycle.succeeded(old, message, ex.HELD, "old")
    bench.core.queue.released_slot()
    bench.tell(push("x", attempt=2))
    assert old.contains == ["a future"]
    bench.inline(bench.start(), "new")
    bench.tell((m.REFS_COUNTED, "x", 1))
    assert old.contains is None
    assert bench.session.entries["x"].value == "new"


def test_a_stored_value_of_another_life_is_freed_when_the_new_one_is_fetched(bench):
    bench.tell(push("x", attempt=1))
    bench.stored(bench.start())
    bench.tell(push("y", [(m.LOCAL, "x", 1)], attempt=2))
    far = (m.REMOTE, "x", 5, 8, ("there",), None)
    bench.tell(push("z", [far], attempt=6))
    assert bench.core.effects.freed == ["x-1"]
    assert bench.core.find_value("owner", "x", 1) is None
    (fetched,) = bench.core.effects.fetches
    fetched.stored = "new"
    bench.core.lifecycle.fetched(fetched)
    assert bench.core.find_value("owner", "x", 5) is fetched
    assert bench.core.find_value("owner", "x", 1) is None
    assert bench.core.find_value("other", "x", 5) is None


def test_what_waits_for_a_fetch_of_another_life_is_given_back(bench):
    old = (m.REMOTE, "x", 1, 8, ("there",), None)
    new = (m.REMOTE, "x", 5, 8, ("there",), None)
    bench.tell(push("y", [old], attempt=2), push("z", [new], attempt=6))
    assert bench.said() == [("GIVEN_BACK", "y", 2, m.BLOCKED, ())]
    first, second = bench.core.effects.fetches
    first.stored, second.stored = "old", "new"
    bench.core.lifecycle.fetched(first)
    bench.core.lifecycle.fetched(second)
    assert bench.core.effects.freed == ["old"]
    assert bench.start().dependencies == [second]


# ---- what cannot be said, and what cannot be taken in ----


@pytest.mark.parametrize("state", ["held", "kept", "with futures", "failed"])
def test_an_answer_that_cannot_be_packed_is_an_error_of_its_task(bench, state):
    bench.tell(push("x", attempt=1), push("y", [(m.LOCAL, "x", 1)], attempt=2))
    entry = bench.start()
    message = (m.DONE, "x", 1, b"value", 1.0)
    if state == "kept":
        bench.stored(entry)
        message = (m.STORED, "x", 1, 8, None, 1.0)
    elif state == "with futures":
        entry.contains = ["future"]
        message = (*message, ("origin",))
        bench.core.lifecycle.succeeded(entry, message, ex.HELD, 1)
        bench.core.queue.released_slot()
    elif state == "failed":
        bench.fails(entry)
        message = (m.FAILED, "x", 1, b"error", 1.0)
    else:
        bench.inline(entry)
    bench.said()
    bench.core.lifecycle.unsendable(bench.session, message, b"cannot be sent")
    assert ("FAILED", "x", 1, b"cannot be sent", 0.0) in bench.said()
    assert "x" not in bench.session.entries and not bench.session.handed
    if state == "kept":
        assert bench.core.effects.freed == ["x-1"]


def test_messages_after_one_that_cannot_be_taken_in_are_taken_in(bench):
    bad = [(m.PUSH, "bad", 2), (m.FUNCTION,), (m.COPY, "c"), (m.WATCH_CHILDREN, "x"), (), (99, 1)]
    bench.tell(push("x", attempt=1), *bad, push("y", attempt=3))
    assert [bench.start().key for _ in range(1)] == ["x"]
    assert bench.core.queue.queued == 1
    kinds = [message[:1] for _, message, _ in bench.core.effects.broken]
    assert kinds == [one[:1] for one in bad[:4]] + [()], "an unknown kind is passed over"
    session, message, _ = bench.core.effects.broken[0]
    bench.core.lifecycle.unsendable(session, message, b"cannot be taken in")
    assert bench.said() == [("FAILED", "bad", 2, b"cannot be taken in", 0.0)]
    for other in bad[1:]:
        bench.core.lifecycle.unsendable(session, other, b"cannot be taken in")
    assert bench.said() == []


def test_of_several_priorities_what_starts_last_goes_back_first():
    bench = Bench(slots=1)
    bench.tell(push("urgent", order=-(1 << 40)), push("usual", order=1), push("low", order=1 << 40))
    bench.tell(push("urgent too", order=-(1 << 40) + 1))
    bench.tell((m.RECALL, 2))
    assert [said[1] for said in bench.said()] == ["low", "usual", None]
