"""Who is in the cluster, as one process knows it."""

from __future__ import annotations

import pytest
from test_ownership import Bench

from dask_ownership.core.owner.rows.worker_view import WorkerView
from dask_ownership.core.protocol.names import worker_of
from dask_ownership.core.protocol.states import PUSHED, READY


def view(address: str, incarnation: str, **more) -> WorkerView:
    return WorkerView(address, incarnation=incarnation, nthreads=1, **more)


@pytest.fixture
def bench():
    return Bench()


def test_a_worker_that_comes_back_at_its_address_is_another_one(bench):
    members = bench.core.membership
    first = view("a", "one")
    assert members.joined(first)
    row = bench.row("x")
    assert row.worker is first
    members.left("one", "died")
    bench.step()
    assert row.state == READY
    assert not members.joined(view("a", "one")), "it was said to be gone"
    second = view("a", "two")
    assert members.joined(second)
    bench.step()
    assert (row.state, row.worker) == (PUSHED, second)
    members.left("one", "died")  # said late
    assert row.worker is second


def test_the_new_one_may_be_heard_of_first(bench):
    members = bench.core.membership
    first, second = view("a", "one"), view("a", "two")
    members.joined(first)
    row = bench.row("x")
    assert members.joined(second)
    assert not first.alive and members.is_gone("one")
    bench.step()
    assert row.worker is second
    assert not members.joined(first)


def test_the_owner_at_a_worker_may_go_before_the_worker(bench):
    """It has the incarnation of the worker, which still is one, and then goes, too."""
    members = bench.core.membership
    there = view("a", "one")
    members.joined(there)
    row = bench.row("x")
    members.process_gone("one")
    assert members.is_gone("one")
    assert not members.is_gone("one#2")
    assert row.worker is there
    there.resources = {}
    assert not members.joined(view("a", "one", resources={"GPU": 1}))
    assert there.resources == {"GPU": 1}
    members.left("one", "died")
    assert row.state == READY
    assert members.is_gone("one#2")


def test_a_worker_that_refuses_is_a_member(bench):
    members = bench.core.membership
    there = view("a", "one")
    members.joined(there)
    members.refuse(there, "another version", reached=False)
    assert "one" in members.ask().workers
    assert not members.joined(view("a", "one"))
    assert members.refused_no_more(there)
    assert members.joined(view("a", "one"))
    members.refuse(members.view_of("one"), "another version", reached=False)
    members.left("one", "died")
    assert not members.refused and not bench.core.refusals
    assert not members.refused_no_more(there)


def test_names_of_owners_say_where_they_are():
    assert worker_of("one#2") == worker_of("one") == "one"


def test_a_new_one_that_refuses_too_does_so_when_the_old_one_is_gone(bench):
    members = bench.core.membership
    for incarnation in ("one", "two"):
        there = view("a", incarnation)
        members.joined(there)
        members.refuse(there, "another version", reached=False)
    members.left("one", "died")
    assert bench.core.refusals == {"a": "another version"}
    members.left("two", "died")
    assert not bench.core.refusals
