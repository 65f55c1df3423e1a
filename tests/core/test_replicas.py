"""Values of which several copies are kept."""

from __future__ import annotations

import pytest
from test_moving import Bench, places

from dask_ownership.core.owner.rows.options import Options, Replication
from dask_ownership.core.owner.rows.row import Function, Row
from dask_ownership.core.owner.rows.worker_view import WorkerView
from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol.states import INLINE, PUSHED, STORED
from dask_ownership.testing.invariants import check_empty


class Settled(list):
    """Calls of those who wait for copies."""

    def __call__(self, row, error):
        self.append((row.key, error))


def want(bench, row, number, **options):
    settled = Settled()
    bench.core.replicas.want(row, Replication(number, **options), settled)
    bench.step()
    return settled


def going(bench):
    return sorted(copy.target.address for copy in bench.core.copies.under_way.values())


def computed(bench, key, replicas=None):
    """A stored value with a task that makes it again."""
    row = Row(key, Function(2, b"f", "f"), b"call", (), 0, Options(replicas=replicas))
    bench.core.table.adopt(row)
    bench.core.submit([row])
    bench.step()
    store(bench, row)
    return row


def store(bench, row):
    view = row.worker
    bench.core.receive(view, [(m.STORED, row.key, row.attempt, 1000, None, 1.0)], 0.0)
    bench.step()


def not_there(bench):
    """The copies that are being made do not find their value."""
    for task in list(bench.core.copies.under_way):
        (needed,) = task.dependencies
        message = (m.GIVEN_BACK, task.key, task.attempt, m.MISSING, (("x", needed.attempt, ()),))
        bench.core.receive(task.worker, [message], 0.0)
    bench.step()


def die(bench, address):
    bench.core.remove_worker(bench.views.pop(address), "died")
    bench.step()


def join(bench, address):
    view = bench.views[address] = WorkerView(address)
    bench.core.add_worker(view)
    bench.step()


@pytest.fixture
def bench():
    return Bench("a", "b", "c", "d")


def test_so_many_copies_are_made_and_that_is_said_when_they_are_there(bench):
    row = bench.scattered("x", "a")
    settled = want(bench, row, 3)
    assert going(bench) == ["b", "c"] and not settled
    bench.arrive("b")
    assert not settled
    bench.arrive("c")
    assert settled == [("x", None)] and places(row) == ["a", "b", "c"]
    bench.core.release([row])
    bench.step()
    check_empty(bench.core)


def test_a_copy_takes_the_place_of_one_that_died(bench):
    row = bench.scattered("x", "a")
    want(bench, row, 2)
    bench.arrive("b")
    die(bench, "a")
    (there,) = going(bench)
    bench.arrive(there)
    assert places(row) == ["b", there] and row.state == STORED
    die(bench, "b")
    bench.arrive(going(bench)[0])
    assert len(places(row)) == 2 and row.state == STORED


def test_each_copy_gives_two_others_at_once(bench):
    for address in "efgh":
        join(bench, address)
    row = bench.scattered("x", "a")
    settled = want(bench, row, 8)
    assert going(bench) == ["b", "c"]
    bench.arrive("b")
    assert len(going(bench)) == 4
    for _ in range(8):
        for address in going(bench):
            bench.arrive(address)
    assert settled and sorted(places(row)) == list("abcdefgh")


def test_where_there_are_too_few_workers_the_rest_is_made_when_one_joins():
    bench = Bench("a", "b")
    row = bench.scattered("x", "a")
    settled = want(bench, row, 3)
    bench.arrive("b")
    assert settled == [("x", None)]
    join(bench, "c")
    assert going(bench) == ["c"]
    bench.arrive("c")
    assert sorted(places(row)) == ["a", "b", "c"]


def test_a_target_that_dies_leaves_or_pauses_is_replaced(bench):
    row = bench.scattered("x", "a")
    settled = want(bench, row, 2)
    assert going(bench) == ["b"]
    die(bench, "b")
    assert going(bench) == ["c"]
    bench.core.receive(bench.views["c"], [(m.ACCEPTING, False, 1)], 0.0)
    bench.step()
    assert going(bench) == ["d"]
    bench.leave("d")
    bench.arrive("a")  # what "d" was told to fetch is with another, so that it may leave
    assert going(bench) == [] and settled == [("x", None)]
    bench.core.receive(bench.views["c"], [(m.ACCEPTING, True, 1)], 0.0)
    bench.step()
    assert going(bench) == ["c"]


def test_a_location_that_was_only_told_to_fetch_it_does_not_count(bench):
    row = bench.scattered("x", "a")
    user = Row("user", Function(2, b"f", "f"), b"call", (row,), 0, Options(workers=("b",)))
    bench.core.table.adopt(user)
    bench.core.submit([user])
    bench.step()
    assert places(row) == ["a", "b"]
    want(bench, row, 2)
    assert going(bench) == ["b"]  # where it is about to be anyhow
    die(bench, "a")
    assert row.state == STORED


def test_values_that_leave_with_a_worker_are_replaced(bench):
    row = bench.scattered("x", "a")
    want(bench, row, 2)
    bench.arrive("b")
    bench.leave("a")
    for _ in range(3):
        for address in going(bench):
            bench.arrive(address)
    assert "a" not in places(row) and len(places(row)) == 2


def test_named_workers_only(bench):
    row = bench.scattered("x", "a")
    settled = want(bench, row, 2, workers=("c", "d"))
    assert going(bench) == ["c", "d"]
    bench.arrive("c")
    bench.arrive("d")
    assert settled and sorted(places(row)) == ["a", "c", "d"]
    die(bench, "c")
    assert going(bench) == []
    die(bench, "d")
    assert places(row) == ["a"]


def test_less_is_freed(bench):
    row = bench.scattered("x", "a")
    want(bench, row, 3)
    bench.arrive("b")
    bench.arrive("c")
    bench.views["c"].outbox.clear()
    settled = want(bench, row, 2)
    assert settled == [("x", None)] and places(row) == ["a", "b"]
    assert [message[0] for message in bench.views["c"].outbox] == [m.FREE]


def test_a_value_that_cannot_be_copied_is_not_tried_again(bench):
    row = bench.scattered("x", "a")
    settled = want(bench, row, 2)
    (task,) = bench.core.copies.under_way
    failed = (m.FAILED, task.key, task.attempt, b"error", 1.0)
    bench.core.receive(bench.views["b"], [failed, failed], 0.0)
    bench.step()
    assert settled == [("x", b"error")] and going(bench) == []
    assert row.state == STORED and row.options.replicas is None


def test_asked_before_it_has_a_value_and_made_again_when_all_are_gone(bench):
    row = computed(bench, "x", Replication(2))
    first = places(row)[0]
    die(bench, first)  # before there was another
    not_there(bench)
    assert row.state == PUSHED
    store(bench, row)
    bench.arrive(going(bench)[0])
    assert len(places(row)) == 2


def test_nothing_is_done_for_a_value_that_travelled(bench):
    row = Row("x", Function(2, b"f", "f"), b"call", (), 0, Options(replicas=Replication(2)))
    bench.core.table.adopt(row)
    bench.core.submit([row])
    bench.step()
    bench.core.receive(row.worker, [(m.DONE, "x", row.attempt, b"v", 1.0)], 0.0)
    bench.step()
    assert row.state == INLINE and going(bench) == []
    assert want(bench, row, 3) == [("x", None)]


def test_cancelling_ends_the_wait(bench):
    row = bench.scattered("x", "a")
    settled = want(bench, row, 2)
    bench.core.cancel([row], "stop")
    bench.step()
    not_there(bench)
    assert settled == [("x", None)]


@pytest.mark.parametrize("end", ["close", "abandon"])
def test_the_end_of_the_client_or_the_cluster_ends_the_wait(bench, end):
    row = bench.scattered("x", "a")
    settled = want(bench, row, 2)
    getattr(bench.core, end)("it is over")
    assert settled == [("x", None)] and not bench.core.copies.under_way
    bench.core.release([row])
    assert not bench.core.table.rows


def test_many_values_are_spread(bench):
    for i in range(12):
        row = bench.scattered(f"x{i}", "a")
        bench.core.replicas.want(row, Replication(2))
    bench.step()
    targets = [copy.target.address for copy in bench.core.copies.under_way.values()]
    assert {address: targets.count(address) for address in "bcd"} == {"b": 4, "c": 4, "d": 4}


def test_what_was_asked_for_later_holds_for_a_value_that_is_made_again(bench):
    row = computed(bench, "x")
    want(bench, row, 2)
    bench.arrive(going(bench)[0])
    for address in places(row):
        bench.core.remove_worker(bench.views.pop(address), "died")
    bench.step()
    assert row.state == PUSHED
    store(bench, row)
    bench.arrive(going(bench)[0])
    assert len(places(row)) == 2


def test_a_worker_that_answers_again_gets_a_copy():
    bench = Bench("a", "b")
    bench.core.suspensions.silent([(bench.views["b"], 1.0)])
    row = bench.scattered("x", "a")
    want(bench, row, 2)
    assert going(bench) == []
    bench.core.suspensions.heard(bench.views["b"])
    bench.step()
    assert going(bench) == ["b"]


def test_copies_that_options_ask_for_are_made_when_a_worker_joins():
    bench = Bench("a")
    row = computed(bench, "x", replicas=Replication(2))
    assert [view.address for view in row.locations] == ["a"] and not going(bench)
    join(bench, "b")
    assert going(bench) == ["b"]
