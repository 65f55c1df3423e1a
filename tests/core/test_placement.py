from __future__ import annotations

import pytest

from dask_ownership.core.owner.rows.options import Options
from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.owner.rows.worker_view import WINDOW, WorkerView
from dask_ownership.core.owner.scheduling.placement import OVERTAKING, Placement
from dask_ownership.core.protocol.order import ordered
from dask_ownership.core.protocol.states import CANCELLED, PUSHED, READY, STORED


def view(address, **kwargs):
    return WorkerView(address, **kwargs)


def ready(key, order=0, dependencies=(), **options):
    row = Row(key, None, None, dependencies, order, Options(**options))
    row.state = READY
    return row


def stored(key, nbytes, *locations):
    row = Row(key, None, None, (), 0)
    row.state, row.nbytes, row.locations = STORED, nbytes, locations
    return row


def test_orders_decide_and_rows_that_are_no_longer_ready_are_skipped():
    placement = Placement()
    rows = [ready("b", 2), ready("a", 1), ready("c", 3)]
    for row in rows:
        placement.add_ready(row)
    rows[1].state = CANCELLED
    got = []
    assert placement.any_ready and placement.take_ready() is None  # no worker
    placement.add_worker(view("w"))
    while placement.any_ready:
        taken = placement.take_ready()
        assert taken is not None and taken[1].address == "w"
        taken[0].state = PUSHED
        got.append(taken[0].key)
    assert got == ["b", "c"] and placement.ready_count == 0


def test_a_row_that_is_queued_twice_is_taken_once():
    placement = Placement()
    row = ready("x")
    placement.add_ready(row)
    placement.add_ready(row)
    placement.add_worker(view("w"))
    assert placement.take_ready() is not None
    row.state = PUSHED
    assert placement.take_ready() is None and not placement.any_ready


@pytest.mark.parametrize("name", ["tcp://h:1", "h:1", "h", "7"])
def test_a_worker_answers_to_its_address_host_and_name(name):
    one = view("tcp://h:1", name=7, host="h")
    assert one.answers_to(name)
    assert not one.answers_to("other")


def test_restrictions_of_one_kind_queue_together_and_wait_for_their_workers():
    placement = Placement()
    a, b = view("a"), view("b", resources={"gpu": 1})
    placement.add_worker(a)
    placement.add_worker(b)
    rows = [ready("x", 1, workers=("a",)), ready("y", 0, workers=("a",))]
    gpu = ready("g", resources={"gpu": 1})
    much = ready("m", resources={"gpu": 2})
    for row in (*rows, gpu, much):
        placement.add_ready(row)
    assert not placement.any_ready
    found = dict(placement.restricted())
    assert found == {rows[1]: [a], gpu: [b], much: []}
    placement.take_restricted(rows[1])
    assert rows[0] in dict(placement.restricted())
    for row in (*rows, gpu, much):
        row.state = CANCELLED
    assert placement.restricted() == [] and placement.ready_count == 0


def test_a_free_slot_comes_before_room_in_a_window():
    placement = Placement()
    a, b = view("a"), view("b")
    placement.add_worker(a)
    placement.add_worker(b)
    a.active = 1
    assert placement.choose(ready("x")) is b
    b.active = 1
    a.load = b.load = WINDOW
    assert placement.choose(ready("x")) is None
    b.load = WINDOW / 2
    assert placement.choose(ready("x")) is b
    b.accepting = False
    assert placement.choose(ready("x")) is None


def test_a_task_goes_to_its_data_unless_moving_it_is_faster():
    placement = Placement()
    a, b = view("a"), view("b")
    placement.add_worker(a)
    placement.add_worker(b)
    for location in (a, b):
        large = ready("x", dependencies=(stored("d", 10**8, location), stored("e", 10, a)))
        assert placement.choose(large) is location
    a.active, a.load = 1, 9_000.0
    assert placement.choose(ready("y", dependencies=(stored("d", 10**8, a),))) is a
    assert placement.choose(ready("y", dependencies=(stored("d", 10, a),))) is b
    assert placement.choose(ready("y", dependencies=(stored("d", 10**8, a),)), [b]) is b


def test_home_comes_first_and_a_worker_that_left_is_not_chosen():
    placement = Placement("home")
    home, other = view("home"), view("other")
    placement.add_worker(other)
    placement.add_worker(home)
    assert placement.choose(ready("x")) is home
    for _ in range(2):
        placement.remove_worker(home)
    assert placement.choose(ready("x")) is other
    placement.remove_worker(other)
    assert placement.choose(ready("x")) is None


def test_what_is_more_urgent_goes_where_the_window_is_full_of_less():
    placement = Placement()
    a, b = view("a"), view("b")
    placement.add_worker(a)
    placement.add_worker(b)
    for worker in (a, b):
        worker.active, worker.load = 2, 15_000.0
    b.reserved = True
    placement.add_ready(ready("usual", order=ordered(7)))
    assert placement.take_ready() is None
    urgent = ready("urgent", order=ordered(8, 1))
    placement.add_ready(urgent)
    assert placement.take_ready() == (urgent, a)
    a.active = 1 + OVERTAKING
    placement.add_ready(urgent)
    assert placement.take_ready() is None, "there is an end to it"
    a.active, placement.any_low = 2, True
    a.low = ordered(9, -1)
    for name in ("urgent", "usual"):
        taken = placement.take_ready()
        assert taken is not None and (taken[0].key, taken[1]) == (name, a)
