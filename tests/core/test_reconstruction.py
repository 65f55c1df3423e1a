"""What a dead process owned is made again by those who own what led to it."""

from __future__ import annotations

import pytest

from dask_ownership.core.owner.rows.options import Options
from dask_ownership.core.protocol.failure import Failure
from dask_ownership.core.protocol.states import INLINE, LOST, STORED
from dask_ownership.testing import travel
from dask_ownership.testing.virtual import Faults, Task, VirtualCluster

QUIET = Faults(0.0, 0.0)
ROUGH = Faults(0.2, 0.1)


def owner_of(future):
    """The worker whose process owns what a future that was opened stands for."""
    return future.row.owner_ref[1]


class Family:
    """A client's task that returned the futures of its children, which do not end soon."""

    def __init__(self, seed=0, faults=QUIET, clients=1, workers=2, slots=4, options=None, **parent):
        self.cluster = VirtualCluster(seed, workers, slots=slots, clients=clients, faults=faults)
        self.client = self.cluster.clients[0]
        child = {"duration": 300_000.0, **parent.pop("child", {})}
        task = Task(1, children=(Task(10, **child), Task(20, **child)), escape=True, **parent)
        row = self.client.submit("p", task, options=options)
        self.parent = travel.VirtualFuture(self.client, row)
        self.until(lambda: self.parent.row.done)
        self.children = self.client.open(self.parent.row)
        self.cluster.run_for(20_000.0)

    def until(self, condition, limit=3_000_000.0):
        while not condition():
            self.cluster.run_for(1_000.0)
            assert self.cluster.now < limit

    def kill_owner(self):
        self.cluster.kill(owner_of(self.children[0]))

    def values(self):
        self.cluster.run()
        return [self.cluster.outcome(f.owner, f.row) for f in self.children]

    def end(self):
        self.children.clear()
        self.parent = None
        self.cluster.run()
        self.cluster.assert_empty()


@pytest.mark.parametrize("faults", [QUIET, ROUGH])
@pytest.mark.parametrize("seed", range(5))
def test_children_whose_owner_died_are_made_again(seed, faults):
    family = Family(seed, faults)
    family.kill_owner()
    assert family.values() == [10, 20]
    assert family.client.core.history.again["repeated"] == 1
    family.end()


@pytest.mark.parametrize("seed", range(5))
def test_stored_children_are_made_again(seed):
    family = Family(seed, child={"large": True, "duration": 10.0})
    family.kill_owner()
    assert family.values() == [10, 20]
    family.end()


def test_what_is_here_already_is_not_made_again():
    family = Family(child={"duration": 10.0})
    family.kill_owner()
    assert family.values() == [10, 20]
    assert family.client.core.history.again["repeated"] == 0
    family.end()


@pytest.mark.parametrize("seed", range(5))
def test_the_future_of_the_parent_may_be_gone(seed):
    family = Family(seed)
    family.parent = None
    family.cluster.run_for(20_000.0)
    family.kill_owner()
    assert family.values() == [10, 20]
    family.end()


@pytest.mark.parametrize("seed", range(5))
def test_another_client_asks_the_heirs(seed):
    family = Family(seed, clients=2)
    other = family.cluster.clients[1]
    data, found = travel.dumps((0, (family.children[0],)))
    futures = travel.loads(other, data)[1]
    other.core.borrowing.when_acknowledged([f.row for f in futures], found.clear)
    family.cluster.run_for(20_000.0)
    family.kill_owner()
    family.children = futures
    assert family.values() == [10]
    futures.clear()
    family.end()


@pytest.mark.parametrize("seed", range(5))
def test_owners_that_die_one_after_the_other(seed):
    family = Family(seed, workers=3)
    for _ in range(2):
        family.kill_owner()
        family.until(lambda: owner_of(family.children[0]) in family.cluster.workers)
    assert family.values() == [10, 20]
    family.end()


@pytest.mark.parametrize("seed", range(5))
def test_what_was_taken_over_is_made_again_too(seed):
    family = Family(seed, workers=3, child={"large": True, "duration": 10.0})
    owner = owner_of(family.children[0])
    family.cluster.retire(owner)
    family.until(lambda: owner not in family.cluster.workers)
    family.cluster.run_for(20_000.0)
    assert family.client.core.history.again["repeated"] == 0
    for _ in range(2):
        row = family.children[0].row
        addresses = [view.address for view in row.locations] + list(row.addresses)
        for address in set(addresses) & set(family.cluster.workers):
            family.cluster.add_worker(f"{address}+", 4)
            family.cluster.kill(address)
        family.until(lambda: family.children[0].row.state == STORED)
    assert family.values() == [10, 20]
    assert family.client.core.history.again["repeated"] > 0
    family.end()


def test_a_parent_that_does_not_make_them_again_says_so():
    family = Family(makes=1)
    chain = family.children[0].row.origin
    family.kill_owner()
    assert family.values() == ["lost", "lost"]
    row = family.children[0].row
    failure = row.value
    assert row.state == LOST and isinstance(failure, Failure)
    assert failure.kind == "owner-lost" and failure.key == chain[3]
    assert failure.chain == (chain[2], "client0")
    assert "'p'" in failure.detail and "did not submit" in failure.detail
    family.end()


def test_nothing_is_kept_once_the_children_are_gone():
    family = Family(child={"duration": 10.0})
    assert family.parent.row.lineage is not None
    family.children.clear()
    family.cluster.run()
    # Its value has their futures.
    assert family.parent.row.lineage is not None and family.parent.row.state == INLINE
    family.end()


@pytest.mark.parametrize("seed", range(8))
def test_two_levels_of_owners_die(seed):
    cluster = VirtualCluster(seed, 4, slots=1, faults=QUIET)
    client = cluster.clients[0]
    leaf = Task(5, duration=400_000.0)
    middle = Task(1, children=(leaf,), escape=True, duration=10_000.0)
    top = travel.VirtualFuture(
        client, client.submit("top", Task(1, children=(middle,), escape=True))
    )
    cluster.run_for(60_000.0)
    middles = client.open(top.row)
    cluster.run_for(60_000.0)
    leaves = client.open(middles[0].row)
    cluster.run_for(20_000.0)
    victims = {owner_of(middles[0]), owner_of(leaves[0])}
    for victim in victims:
        cluster.kill(victim)
    cluster.run()
    assert cluster.outcome(client, leaves[0].row) == 5
    leaves.clear()
    middles.clear()
    top = None
    cluster.run()
    cluster.assert_empty()


def test_a_parent_that_runs_at_most_once_is_not_run_again():
    family = Family(options=Options(at_most_once=True))
    family.kill_owner()
    assert family.values() == ["lost", "lost"]
    assert "at most once" in family.children[0].row.value.detail
    assert family.client.core.history.again["repeated"] == 0
    family.end()


def nested(depth, leaf, **each):
    """A task whose task's task ... returned the future of a leaf; ends soon."""
    task = leaf
    for _ in range(depth):
        task = Task(1, children=(task,), escape=True, duration=1_000.0, **each)
    return task


@pytest.mark.parametrize("depth", [2, 3, 6, 12])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_however_deep_tasks_are_nested_and_wherever_they_ran(workers, depth):
    cluster = VirtualCluster(depth, workers, slots=1, faults=QUIET)
    client = cluster.clients[0]
    task = nested(depth, Task(5, duration=900_000.0))
    futures = [travel.VirtualFuture(client, client.submit("top", task))]
    for _ in range(depth):
        cluster.run_for(30_000.0)
        futures.append(client.open(futures[-1].row)[0])
    cluster.run_for(20_000.0)
    cluster.add_worker("new", 1)
    cluster.kill(owner_of(futures[-1]))
    cluster.run()
    assert cluster.outcome(client, futures[-1].row) == 5
    futures.clear()
    cluster.run()
    cluster.assert_empty()


@pytest.mark.parametrize("faults", [QUIET, ROUGH])
@pytest.mark.parametrize("seed", range(5))
def test_the_repeat_dies_after_it_named_a_child(seed, faults):
    family = Family(seed, faults, workers=3, lingers=100_000.0)
    family.kill_owner()
    family.until(lambda: owner_of(family.children[0]) in family.cluster.workers)
    assert family.client.core.reconstruction.searches
    family.kill_owner()
    assert family.values() == [10, 20]
    family.end()


def hears_late(owner, monkeypatch):
    """Have an owner not hear of deaths until what is returned is called."""
    missed = []
    left = owner.core.membership.left
    monkeypatch.setattr(owner.core.membership, "left", lambda *of: missed.append(of))

    def hear():
        monkeypatch.undo()
        for of in missed:
            left(*of)
        owner.wants_step()

    return hear


@pytest.mark.parametrize("wait", range(18_000, 20_000, 100))
def test_a_child_is_asked_for_when_the_repeat_ends(wait, monkeypatch):
    family = Family(1, clients=2, workers=3, duration=20_000.0)
    cluster, other = family.cluster, family.cluster.clients[1]
    data, found = travel.dumps((0, (family.children.pop(),)))
    theirs = travel.loads(other, data)[1]
    other.core.borrowing.when_acknowledged([f.row for f in theirs], found.clear)
    family.parent = None
    cluster.run_for(20_000.0)
    hear = hears_late(other, monkeypatch)
    family.kill_owner()
    family.until(lambda: family.client.core.reconstruction.searches)
    cluster.run_for(wait)
    hear()
    family.children += theirs
    theirs.clear()
    assert family.values() == [10, 20]
    assert family.client.core.history.again["repeated"] <= 2
    family.end()


@pytest.mark.parametrize("parent", [{}, {"large": True}, {"uses": "raise"}])
@pytest.mark.parametrize("evicted", [False, True])
def test_a_parent_is_not_kept_by_children_that_it_keeps_itself(parent, evicted):
    family = Family(child={"duration": 10.0}, **parent)
    if evicted:
        family.client.core.lineages.limits.lineage_bytes = 0
        family.client.core.lineages._evict(family.parent.row)
    family.end()


def test_children_in_an_error_are_made_again():
    family = Family(uses="raise")
    family.parent = None
    family.cluster.run_for(20_000.0)
    family.kill_owner()
    assert family.values() == [10, 20]
    family.end()


def test_what_kills_its_owners_comes_to_an_end():
    family = Family(workers=3)
    family.client.core.limits.allowed_failures = 0
    for number in range(5):
        family.cluster.add_worker(f"new-{number}", 4)
        family.until(lambda: owner_of(family.children[0]) in family.cluster.workers)
        family.kill_owner()
    assert family.values() == ["lost", "lost"]
    failure = family.children[0].row.value
    assert "died before it ended" in failure.detail and "owner-of-new-" in failure.detail
    assert 4 <= family.client.core.history.again["repeated"] <= 5
    family.end()


def test_a_child_is_not_taken_for_another_of_the_same_key():
    """A task returns a future that came to it, whose key is that of its own child."""
    cluster = VirtualCluster(0, 2, slots=4, clients=1, faults=QUIET)
    client = cluster.clients[0]
    child = Task(10, duration=300_000.0)
    key = None
    for came in (False, True):
        carries = ()
        if came:
            carries = (travel.VirtualFuture(client, client.submit(key, Task(7))),)
        task = Task(1, children=(child,), escape=True, carries=carries, uses="return")
        parent = travel.VirtualFuture(client, client.submit("p", task))
        cluster.run_for(20_000.0)
        if not came:
            (future,) = client.open(parent.row)
            key = future.row.origin[3]
            future = parent = None
            cluster.run()
    found = client.open(parent.row)
    cluster.run_for(20_000.0)
    future = next(f for f in found if f.row.borrowed)
    assert future.row.origin[3] == key == carries[0].row.key
    found = task = carries = None
    cluster.kill(owner_of(future))
    cluster.run()
    assert cluster.outcome(client, future.row) == 10
    future = parent = None
    cluster.run()
    cluster.assert_empty()


def test_an_heir_that_hears_late_of_a_death_is_not_asked_again_and_again(monkeypatch):
    family = Family(clients=2, workers=3)
    cluster, other = family.cluster, family.cluster.clients[1]
    data, found = travel.dumps((0, (family.children[0],)))
    theirs = travel.loads(other, data)[1]
    other.core.borrowing.when_acknowledged([f.row for f in theirs], found.clear)
    cluster.run_for(20_000.0)
    family.kill_owner()
    family.until(lambda: owner_of(family.children[0]) in cluster.workers)
    family.until(lambda: owner_of(theirs[0]) in cluster.workers)
    hear = hears_late(family.client, monkeypatch)
    heir = other.core.peers.peer(family.client.process)
    before = heir.stream.sent
    family.kill_owner()
    cluster.run_for(250_000.0)
    assert heir.stream.sent - before < 10
    hear()
    assert family.values() == [10, 20]
    theirs.clear()
    family.end()


@pytest.mark.parametrize("how", ["kill", "retire"])
def test_what_a_gone_owner_led_to_elsewhere_is_kept_by_the_one_above(how):
    cluster = VirtualCluster(0, 4, slots=1, faults=QUIET)
    client = cluster.clients[0]
    middle = Task(1, children=(Task(5, duration=9_000_000.0),), escape=True, duration=60_000.0)
    top = Task(1, children=(Task(3, duration=40_000.0), middle), escape=True)
    future = travel.VirtualFuture(client, client.submit("top", top))
    while not future.row.done:
        cluster.run_for(500.0)
    future = client.open(future.row)[1]
    above = owner_of(future)
    cluster.workers[above].accept(False)  # its task runs elsewhere
    while not future.row.done:
        cluster.run_for(1_000.0)
    (future,) = client.open(future.row)
    below = owner_of(future)
    assert above != below
    cluster.run_for(20_000.0)
    if how == "retire":
        cluster.workers[above].accept(True)
    getattr(cluster, how)(above)
    cluster.run_for(4_500_000.0)
    assert above not in cluster.workers and not client.core.retention.orphans
    cluster.kill(below)
    cluster.run()
    assert cluster.outcome(client, future.row) == 5
    future = None
    cluster.run()
    cluster.assert_empty()


def test_a_task_of_a_worker_ends_when_its_owner_has_heard_that_it_is_kept():
    cluster = VirtualCluster(0, 2, slots=1, faults=QUIET)
    client = cluster.clients[0]
    middle = Task(1, children=(Task(5, duration=9_000_000.0),), escape=True, duration=60_000.0)
    top = Task(1, children=(Task(3, duration=40_000.0), middle), escape=True)
    future = travel.VirtualFuture(client, client.submit("top", top))
    while not future.row.done:
        cluster.run_for(500.0)
    future = client.open(future.row)[1]
    above = owner_of(future)
    cluster.workers[above].accept(False)  # the middle one runs at the other
    (below,) = cluster.workers.keys() - {above}
    slow = next(
        pipe
        for pipe in cluster.network.pipes
        if pipe.owner is cluster.workers[below].owner and pipe.worker is cluster.workers[above]
    )
    slow.to_worker_at = cluster.now + 500_000.0  # the answer goes another way
    while not future.row.done:
        cluster.run_for(500.0)
    (future,) = client.open(future.row)
    assert owner_of(future) == below
    cluster.workers[above].accept(True)
    cluster.kill(below)
    cluster.run()
    assert cluster.outcome(client, future.row) == 5
    future = None
    cluster.run()
    cluster.assert_empty()


@pytest.mark.parametrize("seed", range(3))
def test_owners_die_one_after_the_other_under_a_task_that_delegated(seed):
    """It is run once more for the child that it delegated to, and delegates again."""
    cluster = VirtualCluster(seed, workers=3, slots=1, faults=Faults(0.0, 0.0, 200.0))
    client = cluster.clients[0]
    child = Task(constant=5, duration=600_000.0)
    row = client.submit("t", Task(children=(child,), uses="delegate"))
    for number in range(3):
        cluster.run_for(200_000.0)
        cluster.kill(row.dependencies[0].owner_ref[1])
        cluster.add_worker(f"new-{number}", 1)
    cluster.run()
    assert cluster.outcome(client, row) == 5
    client.dropped.append(row)
    cluster.dirty.add(client)
    cluster.run()
    cluster.assert_empty()
