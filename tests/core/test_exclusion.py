"""Suspects run alone at a worker, whoever owns what else is there."""

from __future__ import annotations

import gc
import weakref

import pytest
from test_executor import Bench, push

from dask_ownership.core.executor.exclusion import HEARD, IDLE
from dask_ownership.core.executor.session import RUNNING
from dask_ownership.core.owner.rows.attempts import ALONE, LENGTHENED, LONGER, Attempts
from dask_ownership.core.protocol import messages as m
from dask_ownership.testing.invariants import check_executor, check_executor_empty


class Worker(Bench):
    """A worker of two threads, a suspect, and another owner."""

    def __init__(self) -> None:
        super().__init__(slots=2)
        self.other = self.core.open("other")
        self.said(self.other)

    def nothing(self) -> None:
        assert self.core.queue.next_work() is None
        check_executor(self.core)

    def start(self):
        assert self.core.queue.startable, "no thread is woken for it"
        return super().start()

    def suspect(self, key="s", **more):
        self.tell(push(key, alone=ALONE, **more))
        return self.session.entries[key]

    def alone(self, key="s", **more):
        """A suspect that runs alone."""
        entry = self.suspect(key, **more)
        self.nothing()
        assert self.said()[-1] == ("ALONE", key, entry.attempt, True)
        self.go(entry)
        assert self.start() is entry
        return entry

    def submits(self, parent, *keys) -> None:
        """A task submits some to the owner beside it, and waits for them."""
        heir = (parent.session.owner, "", "", parent.key, None, 1)
        for key in keys:
            self.tell(push(key, heir=heir, depth=parent.depth + 1), session=self.other)
        self.core.queue.parked(parent)

    def go(self, entry, yes=True) -> None:
        self.tell((m.GO, entry.key, entry.attempt, yes))

    def part(self, entry) -> None:
        """It is not alone any more, and its owner hears that."""
        self.nothing()
        assert self.said()[-1] == ("ALONE", entry.key, entry.attempt, False)
        self.go(entry, False)


@pytest.fixture
def worker():
    return Worker()


def test_it_waits_until_nothing_else_runs_and_its_owner_knows(worker):
    worker.tell(push("x"), session=worker.other)
    running = worker.start()
    entry = worker.suspect()
    worker.tell(push("y"), session=worker.other)
    worker.nothing()
    assert worker.said() == [], "x still runs"
    worker.inline(running)
    worker.nothing()
    assert worker.core.queue.startable == 0
    assert worker.said() == [("ALONE", "s", entry.attempt, True)]
    worker.tell((m.GO, "s", entry.attempt - 1, True))  # of an earlier attempt
    worker.tell((m.GO, "s", entry.attempt, True), session=worker.other)
    worker.nothing()
    worker.go(entry)
    worker.go(entry)
    assert worker.core.queue.startable == 1
    assert worker.start() is entry
    worker.nothing()
    worker.inline(entry)
    worker.part(entry)
    assert worker.start().key == "y"


def test_two_suspects_one_after_the_other(worker):
    one = worker.alone("one")
    two = worker.suspect("two")
    worker.nothing()
    worker.inline(one)
    worker.part(one)
    worker.nothing()
    assert worker.said() == [("ALONE", "two", two.attempt, True)]
    worker.go(two)
    worker.inline(worker.start())
    worker.part(two)
    worker.acknowledge()
    worker.core.close("other")
    check_executor_empty(worker.core)


@pytest.mark.parametrize("when", ["waiting", "asked", "running"])
@pytest.mark.parametrize("how", ["cancelled", "owner closed"])
def test_it_is_not_wanted_any_more(worker, when, how):
    worker.tell(push("x"), session=worker.other)
    if when == "waiting":
        running = worker.start()
        entry = worker.suspect()
    elif when == "asked":
        running = None
        entry = worker.suspect()
        worker.nothing()
    else:
        running = None
        worker.suspect()
        worker.nothing()
        entry = worker.session.entries["s"]
        worker.go(entry)
        worker.start()
    if how == "cancelled":
        worker.tell((m.CANCEL, "s", entry.attempt))
        if when != "waiting":
            worker.part(entry)
    else:
        worker.core.close("owner")
    if running is None:
        assert worker.start().key == "x"
    else:
        worker.tell(push("y"), session=worker.other)
        assert worker.start().key == "y"
    if when == "running":
        assert entry.state == RUNNING and entry.cancelled
        worker.fails(entry)


def test_a_task_that_looks_again_and_again_takes_its_turn_once(worker):
    """Such as at a variable, faster than the owner of the suspect can answer."""
    worker.tell(push("x"), session=worker.other)
    looks = worker.start()
    worker.core.queue.parked(looks)
    entry = worker.suspect()
    worker.nothing()
    worker.core.queue.wants_slot("first", looks)
    worker.go(entry)
    worker.go(entry, False)
    assert worker.core.queue.next_work() == "first"
    worker.core.queue.parked(looks)
    worker.nothing()
    worker.core.queue.wants_slot("second", looks)
    worker.nothing()
    assert worker.said()[-1] == ("ALONE", "s", entry.attempt, True)
    worker.go(entry)
    assert worker.core.queue.next_work() is entry
    worker.nothing()
    worker.inline(entry)
    worker.nothing()
    assert worker.said()[-1] == ("ALONE", "s", entry.attempt, False), "before the other goes on"
    worker.go(entry, False)
    assert worker.core.queue.next_work() == "second"
    worker.inline(looks)


def test_a_task_that_waits_for_it_goes_on_beside_it_after_a_while(worker):
    worker.tell(push("x"), session=worker.other)
    looks = worker.start()
    worker.core.queue.parked(looks)
    entry = worker.suspect()
    worker.nothing()
    worker.core.queue.wants_slot("first", looks)
    worker.go(entry, False)
    assert worker.core.queue.next_work() == "first"
    worker.core.queue.parked(looks)
    worker.nothing()
    worker.core.queue.wants_slot("second", looks)
    worker.go(entry)
    assert worker.core.queue.next_work() is entry
    assert worker.core.queue.stops_waiting("second", looks)
    worker.part(entry)
    worker.inline(looks)
    worker.inline(entry)


def test_one_whose_turn_is_ended_again_and_again_begins_beside_the_others(worker):
    """Parked tasks that go on for a moment and without a slot end its turn."""
    worker.tell(push("x"), session=worker.other)
    looks = worker.start()
    worker.core.queue.parked(looks)
    entry = worker.suspect()
    for now in range(int(ALONE) + 1):
        worker.nothing()
        worker.core.queue.goes_on(looks)
        worker.go(entry)
        worker.go(entry, False)
        worker.core.queue.parked(looks)
        if now % 2:
            worker.nothing()  # it is its turn again as the clock looks
        worker.core.queue.exclusion.look(float(now))
    worker.go(entry, False)
    assert worker.start() is entry


def test_an_owner_that_does_not_answer_holds_nobody_up_for_long(worker):
    entry = worker.alone()
    worker.tell(push("x"), session=worker.other)
    worker.core.queue.exclusion.look(10.0)
    worker.inline(entry)
    worker.nothing()
    worker.core.queue.exclusion.look(10.1)
    worker.core.queue.exclusion.look(10.0 + HEARD)
    worker.nothing()
    worker.core.queue.exclusion.look(10.2 + HEARD)
    assert worker.start().key == "x"


def test_it_is_alone_for_so_long_only(worker):
    entry = worker.alone()
    worker.tell(push("x"), session=worker.other)
    worker.core.queue.exclusion.look(1.0)
    worker.core.queue.exclusion.look(0.9 + ALONE)
    worker.nothing()
    worker.core.queue.exclusion.look(1.0 + ALONE)
    worker.part(entry)
    assert worker.start().key == "x"
    worker.inline(entry)
    assert worker.said() == [("DONE", "s", entry.attempt, b"value", 1.0)]


@pytest.mark.parametrize("asked", [False, True])
def test_it_waits_for_so_long_only(worker, asked):
    """What runs, or its owner, may wait for this very task."""
    if not asked:
        worker.tell(push("x"), session=worker.other)
        worker.start()
    entry = worker.suspect()
    worker.nothing()
    worker.core.queue.exclusion.look(1.0)
    worker.core.queue.exclusion.look(1.0 + ALONE)
    assert worker.said()[-1] == ("ALONE", "s", entry.attempt, False)
    worker.go(entry)  # late
    worker.nothing()
    worker.go(entry, False)
    assert worker.start() is entry
    worker.tell(push("y"), session=worker.other)
    if asked:
        assert worker.start().key == "y"


def test_one_that_others_wait_for_is_not_kept_by_a_queue(worker):
    entry = worker.suspect()
    worker.core.queue.awaited([("owner", "s")])
    worker.nothing()
    worker.go(entry)
    worker.inline(worker.start())
    worker.part(entry)
    worker.acknowledge()
    worker.core.close("other")
    check_executor_empty(worker.core)


def test_an_owner_that_does_not_say_go_holds_nobody_up_for_long(worker):
    """However long its suspect may be alone."""
    entry = worker.suspect()
    worker.session.entries["s"].options["alone"] = 1000 * ALONE
    worker.tell(push("x"), session=worker.other)
    worker.nothing()
    worker.core.queue.exclusion.look(1.0)
    worker.core.queue.exclusion.look(1.0 + HEARD)
    worker.part(entry)
    assert {worker.start().key, worker.start().key} == {"s", "x"}


@pytest.mark.parametrize("how", ["cancelled", "owner closed"])
def test_a_thread_is_woken_when_it_is_over(worker, how):
    entry = worker.alone()
    worker.tell(push("x"), session=worker.other)
    assert not worker.core.queue.startable
    if how == "cancelled":
        worker.tell((m.CANCEL, "s", entry.attempt))
        assert worker.core.queue.startable
        worker.part(entry)
    else:
        worker.core.close("owner")
    assert worker.start().key == "x"


def test_what_it_submitted_runs_with_it(worker):
    parent = worker.alone()
    worker.tell(push("x"), session=worker.other)
    worker.submits(parent, "child")
    child = worker.start()
    assert child.key == "child"
    worker.submits(child, "grandchild")
    grandchild = worker.start()
    assert grandchild.key == "grandchild"
    worker.nothing()
    worker.inline(grandchild)
    worker.core.queue.wants_slot("child goes on", child)
    assert worker.core.queue.next_work() == "child goes on"
    worker.inline(child)
    worker.core.queue.goes_on(parent)
    worker.nothing()
    worker.inline(parent)
    worker.part(parent)
    assert worker.start().key == "x"


def test_others_begin_soon_while_it_is_parked_and_nothing_of_it_is_here(worker):
    parent = worker.alone()
    worker.tell(push("x"), session=worker.other)
    worker.submits(parent, "child")
    child = worker.start()
    worker.core.queue.exclusion.look(1.0)
    worker.core.queue.exclusion.look(0.9 + ALONE)
    worker.nothing()
    worker.inline(child)
    worker.core.queue.exclusion.look(1.0)
    worker.core.queue.exclusion.look(1.0 + IDLE * ALONE)
    worker.part(parent)
    assert worker.start().key == "x"


def test_what_it_submitted_runs_beside_others_when_it_is_not_alone_any_more(worker):
    parent = worker.alone()
    worker.submits(parent, *[f"child-{number}" for number in range(3)])
    first = worker.start()
    worker.core.queue.exclusion.look(1.0)
    worker.core.queue.exclusion.look(1.0 + ALONE)
    worker.part(parent)
    assert {first.key, worker.start().key} <= {f"child-{number}" for number in range(3)}


def test_another_task_that_was_parked_goes_on_when_the_owner_knows(worker):
    """Whoever ends the process from then on, the suspect is not the only one that can be."""
    worker.tell(push("p"), session=worker.other)
    parked = worker.start()
    worker.core.queue.parked(parked)
    entry = worker.alone()
    worker.core.queue.wants_slot("goes on", parked)
    worker.part(entry)
    assert worker.core.queue.next_work() == "goes on"
    assert entry.state == RUNNING
    worker.inline(entry)
    worker.inline(parked)


def test_one_that_did_not_begin_waits_again(worker):
    worker.tell(push("p"), session=worker.other)
    parked = worker.start()
    worker.core.queue.parked(parked)
    entry = worker.suspect()
    worker.nothing()
    worker.core.queue.goes_on(parked)
    worker.go(entry)
    worker.part(entry)
    worker.inline(parked)
    worker.nothing()
    assert worker.said()[-1] == ("ALONE", "s", entry.attempt, True)
    worker.go(entry)
    assert worker.start() is entry


def test_it_is_given_back_when_the_worker_pauses(worker):
    entry = worker.suspect()
    worker.nothing()
    worker.said()
    worker.core.set_accepting(False, 2)
    assert ("GIVEN_BACK", "s", entry.attempt, m.REFUSED, ()) in worker.said()
    worker.core.set_accepting(True, 2)
    worker.tell(push("x"), session=worker.other)
    worker.nothing()
    worker.go(entry, False)
    assert worker.start().key == "x"


def test_nothing_of_it_is_kept_when_it_is_over(worker):
    entry = worker.alone()
    worker.core.queue.exclusion.look(0.0)
    worker.inline(entry)
    worker.nothing()
    worker.core.queue.exclusion.look(0.1)
    worker.go(entry, False)
    assert worker.core.queue.exclusion.idle, "nobody looks any more"
    value = entry.value = Bench()
    kept = weakref.ref(value)
    worker.session.fresh.clear()  # the answer went
    del worker.session.entries[entry.key], entry, value
    gc.collect()
    assert kept() is None


def test_the_time_gets_longer():
    def seconds_alone(unknown):
        return Attempts(died=("died",) * (unknown + 1), deaths=1).seconds_alone

    assert [seconds_alone(n) for n in (0, 1, 2, 3)] == [ALONE, ALONE, LONGER * ALONE, 16 * ALONE]
    assert seconds_alone(1000) == ALONE * LONGER**LENGTHENED
