"""Values on their way from workers that leave."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from dask_ownership.core.owner.ownership import OwnerCore
from dask_ownership.core.owner.rows.options import Options
from dask_ownership.core.owner.rows.row import Function, Row
from dask_ownership.core.owner.rows.worker_view import WorkerView
from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol.states import PUSHED, STORED, WAITING
from dask_ownership.testing.invariants import check_empty, check_ownership


class Bench:
    """An owner and workers that answer when the test says so."""

    def __init__(self, *addresses: str) -> None:
        self.core = OwnerCore(nullcontext())
        self.views = {address: WorkerView(address) for address in addresses}
        for view in self.views.values():
            self.core.add_worker(view)

    def scattered(self, key: str, address: str) -> Row:
        row = self.core.table.adopt(Row(key, None, None, (), 0))
        self.core.put(row, [self.views[address]], 1000)
        return row

    def leave(self, address: str) -> None:
        self.core.receive(self.views[address], [(m.LEAVING,)], 0.0)
        self.step()

    def step(self) -> None:
        self.core.schedule(0.0)
        check_ownership(self.core)

    def under_way_to(self, address: str) -> list[Row]:
        return [t for t in self.core.copies.under_way if t.worker is self.views[address]]

    def arrive(self, address: str) -> None:
        for task in self.under_way_to(address):
            message = (m.DONE, task.key, task.attempt, b"none", 1.0)
            self.core.receive(self.views[address], [message], 0.0)
        self.step()


@pytest.fixture
def bench() -> Bench:
    return Bench("a", "b", "c")


def places(row: Row) -> list[str]:
    return [view.address for view in row.locations]


def test_a_value_is_freed_where_it_was_when_it_has_arrived(bench):
    row = bench.scattered("x", "a")
    bench.leave("a")
    (task,) = bench.core.copies.under_way
    assert task.state == PUSHED and places(row)[0] == "a"
    there = task.worker.address
    bench.views["a"].outbox.clear()
    bench.arrive(there)
    assert places(row) == [there]
    assert (m.FREE, ("x",), bench.core.lifecycle.numbers) in bench.views["a"].outbox
    bench.core.release([row])
    bench.step()
    check_empty(bench.core)


def test_a_value_does_not_go_to_a_worker_that_leaves_too(bench):
    row = bench.scattered("x", "a")
    bench.leave("a")
    (task,) = bench.core.copies.under_way
    first = task.worker.address
    other = ({"b", "c"} - {first}).pop()
    bench.leave(first)
    assert not bench.under_way_to(first)
    bench.arrive(other)
    bench.arrive(other)
    assert places(row) == [other] and row.state == STORED


def test_a_result_that_ends_at_a_leaving_worker_is_moved(bench):
    function = Function(2, b"f", "f")
    row = Row("r", function, b"call", (), 0)
    bench.core.table.adopt(row)
    bench.core.submit([row])
    bench.step()
    view = row.worker
    bench.leave(view.address)
    bench.core.receive(view, [(m.STORED, "r", row.attempt, 1000, None, 1.0)], 0.0)
    bench.step()
    (task,) = bench.core.copies.under_way
    there = task.worker.address
    bench.arrive(there)
    assert places(row) == [there] != [view.address]


def test_a_worker_that_stays_after_all_keeps_its_values(bench):
    row = bench.scattered("x", "a")
    bench.leave("a")
    bench.core.receive(bench.views["a"], [(m.ACCEPTING, True, 1)], 0.0)
    (task,) = bench.core.copies.under_way
    bench.arrive(task.worker.address)
    assert places(row)[0] == "a"


def test_a_copy_of_an_inline_value_stays_for_tasks_that_are_on_their_way(bench):
    function = Function(2, b"f", "f")
    value = bench.core.table.adopt(Row("v", function, b"call", (), 0))
    bench.core.submit([value])
    bench.step()
    view = value.worker
    message = (m.DONE, "v", value.attempt, b"x" * 1000, 1.0)
    bench.core.receive(view, [message], 0.0)
    users = [Row(f"u{i}", function, b"call", (value,), i) for i in range(3)]
    for row in users:
        bench.core.table.adopt(row)
    bench.core.submit(users)
    bench.step()
    (there, *_) = value.locations
    there.outbox.clear()
    bench.leave(there.address)
    assert not any(message[0] == m.FREE for message in there.outbox)


def test_leaving_twice_and_with_nowhere_to_go_changes_nothing():
    bench = Bench("a")
    row = bench.scattered("x", "a")
    for _ in range(2):
        bench.leave("a")
    assert places(row) == ["a"] and not bench.core.copies.under_way


def test_a_copy_of_what_is_looked_for_elsewhere_is_called_off(bench):
    parent = Row("parent", Function(2, b"f", "f"), b"call", (), 0)
    bench.core.table.adopt(parent)
    bench.core.submit([parent])
    bench.step()
    above = (*bench.core.peers.process, "parent", None)
    options = Options(heir=above, adopted=("gone", "", "gone", "child", above, 1))
    row = bench.core.table.adopt(Row("taken over", None, None, (), 0, options))
    location = next(a for a, view in bench.views.items() if view is not parent.worker)
    bench.core.put(row, [bench.views[location]], 1000)
    bench.leave(location)
    assert [task.dependencies for task in bench.core.copies.under_way] == [(row,)]
    bench.core.remove_worker(bench.views[location], "died")
    [task] = bench.core.copies.under_way
    missing = ((row.key, row.attempt, ()),)
    message = (m.GIVEN_BACK, task.key, task.attempt, m.MISSING, missing)
    bench.core.receive(task.worker, [message], 0.0)
    bench.step()
    assert row.state == WAITING and row in bench.core.reconstruction.questions
    assert not bench.core.copies.under_way and not bench.core.moves.under_way
    bench.core.release([row, parent])
    check_empty(bench.core)
