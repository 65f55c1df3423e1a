from __future__ import annotations

from test_executor import Bench, push

from dask_ownership.core.protocol import messages as m
from dask_ownership.testing.invariants import check_executor

ONE, TWO = {"gpu": 1}, {"gpu": 2}


class Lender:
    """What another has of the same resources, and lends."""

    def __init__(self, **free: float) -> None:
        self.free = free

    def borrow(self, wanted: dict[str, float]) -> bool:
        if any(self.free.get(k, 0) < v for k, v in wanted.items()):
            return False
        for name, amount in wanted.items():
            self.free[name] -= amount
        return True


def borrowing(slots: int = 3) -> Bench:
    bench = Bench(slots, {"gpu": 2, "disk": 1})
    bench.core.queue.resources.available = {}
    return bench


def test_less_does_not_overtake_more():
    bench = Bench(3, {"gpu": 2})
    bench.tell(push("a", resources=ONE), push("much", resources=TWO), push("b", resources=ONE))
    a = bench.start()
    assert bench.core.queue.next_work() is None
    bench.tell(push("plain"), push("c", resources=ONE))
    plain = bench.start()
    assert plain.key == "plain" and bench.core.queue.next_work() is None
    bench.inline(a)
    much = bench.start()
    assert much.key == "much" and bench.core.queue.next_work() is None
    bench.fails(much)
    assert [bench.start().key, bench.start().key] == ["b", "c"]


def test_what_waits_behind_one_that_is_cancelled_goes_on():
    bench = Bench(3, {"gpu": 2})
    bench.tell(push("a", resources=ONE), push("much", resources=TWO), push("b", resources=ONE))
    bench.start()
    assert bench.core.queue.next_work() is None
    bench.tell((m.CANCEL, "much", bench.session.entries["much"].attempt))
    assert bench.start().key == "b"


def test_other_names_are_not_held_up():
    bench = Bench(3, {"gpu": 1, "disk": 1})
    bench.tell(push("a", resources=ONE), push("b", resources=ONE), push("d", resources={"disk": 1}))
    assert [bench.start().key, bench.start().key] == ["a", "d"]


def test_lending_gives_each_all_or_nothing_in_order():
    bench = borrowing()
    lender = Lender(gpu=2, disk=0)
    both = {"gpu": 1, "disk": 1}
    bench.tell(push("both", resources=both), push("g", resources=ONE), push("plain"))
    assert bench.start().key == "plain" and bench.core.queue.next_work() is None
    bench.core.queue.lend(lender.borrow)
    assert bench.core.queue.next_work() is None and lender.free == {"gpu": 2, "disk": 0}
    lender.free["disk"] = 1
    bench.core.queue.lend(lender.borrow)
    assert [bench.start().key, bench.start().key] == ["both", "g"]
    assert lender.free == {"gpu": 0, "disk": 0}
    check_executor(bench.core)


def test_no_more_is_lent_than_slots_can_use():
    bench = borrowing(slots=1)
    lender = Lender(gpu=2)
    bench.tell(push("a", resources=ONE), push("b", resources=ONE))
    assert bench.core.queue.next_work() is None
    bench.core.queue.lend(lender.borrow)
    assert lender.free == {"gpu": 1} and bench.start().key == "a"


def test_what_is_yielded_is_not_taken_again():
    bench = borrowing()
    lender = Lender(gpu=1, disk=1)
    bench.tell(push("a", resources=ONE), push("b", resources=ONE), push("d", resources={"disk": 1}))
    assert bench.core.queue.next_work() is None
    bench.core.queue.lend(lender.borrow)
    a, d = bench.start(), bench.start()
    assert (a.key, d.key) == ("a", "d")
    bench.core.queue.resources.yielding = {"gpu"}
    bench.inline(a)
    bench.core.queue.lend(lender.borrow)
    assert bench.core.queue.next_work() is None
    assert bench.core.queue.resources.available == {"gpu": 1, "disk": 0}
    bench.core.queue.resources.yielding = frozenset()
    bench.core.queue.lend(lender.borrow)
    assert bench.start().key == "b"


def test_what_became_impossible_goes_back():
    totals = {"gpu": 2.0}
    bench = Bench(2, totals)
    bench.tell(push("a", resources=TWO), push("b", resources=TWO, attempt=5000), push("c"))
    a = bench.start()
    assert bench.start().key == "c"
    bench.said()
    totals["gpu"] = 1.0
    bench.core.resources_changed()
    assert bench.said() == [("GIVEN_BACK", "b", 5000, m.REFUSED, ((("gpu", 1.0),),))]
    bench.inline(a)


def test_a_pool_gets_as_many_tasks_as_it_has_threads_and_no_slot_waits_for_it():
    bench = Bench(3, {"gpu": 1})
    bench.core.queue.resources.threads = {"pool": 1, "other": 2}.__getitem__
    bench.tell(*[push(name, executor="pool") for name in "abc"], push("d", executor="other"))
    bench.tell(push("e", executor="other", resources=ONE), push("plain"))
    a, d, e = bench.start(), bench.start(), bench.start()
    assert [a.key, d.key, e.key] == ["a", "d", "e"] and bench.core.queue.next_work() is None
    bench.fails(d)
    assert bench.start().key == "plain"
    bench.core.queue.lend(lambda lacking: False)
    assert bench.core.queue.queued == 0, "nothing can be done about them"
    bench.inline(a)
    b = bench.start()
    assert b.key == "b" and bench.core.queue.next_work() is None
    bench.tell((m.CANCEL, "b", b.attempt))
    assert bench.core.queue.next_work() is None, "its thread is still there"
    bench.inline(b)
    assert bench.start().key == "c"


def test_nothing_is_lent_to_one_whose_pool_has_no_thread_left():
    bench = borrowing()
    bench.core.queue.resources.threads = {"pool": 1}.__getitem__
    lender = Lender(gpu=2)
    bench.tell(push("a", executor="pool"), push("b", executor="pool", resources=ONE))
    a = bench.start()
    assert a.key == "a" and bench.core.queue.next_work() is None
    bench.core.queue.lend(lender.borrow)
    assert lender.free == {"gpu": 2}, "it could not begin with it"
    bench.inline(a)
    assert bench.core.queue.next_work() is None
    bench.core.queue.lend(lender.borrow)
    assert lender.free == {"gpu": 1} and bench.start().key == "b"
