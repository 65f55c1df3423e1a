"""Futures whose owner was killed: what they stand for is made again, or it is said why not."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import distributed
import pytest
from conftest import FAILED, check_nothing_left
from dask import delayed
from live import blob, inc, kill, slowinc, small_cluster, until, until_there
from test_borrowing import Box, add, here
from test_borrowing_failures import load_at, unpin_here

from dask_ownership import Client, LostData, OwnerLost, delegate, get_worker


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[Any]:
    with small_cluster(n_workers=3, threads_per_worker=2) as cluster:
        yield cluster


@pytest.fixture
def client(own_cluster: Any, request: Any) -> Iterator[Client]:
    """A client of three workers that may be killed; nannies start them again."""
    with Client(own_cluster) as client:
        until(lambda: len(client.owner.core.placement.workers) == 3, 30, "three workers")
        yield client
        if request.node.nodeid not in request.config.stash[FAILED]:
            check_nothing_left(client)


def elsewhere() -> list[str]:
    """Workers of which this one is none: what runs there outlives it."""
    mine = get_worker().address
    return [a for a in here().owner.core.placement.workers if a != mine]


def note(path: str, what: str) -> None:
    with open(path, "a") as file:
        file.write(f"{what}\n")


def noted(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def parent(path: str, count: int, seconds: float, size: int = 0) -> tuple[str, Box]:
    """Returns where it ran, and futures of what it submitted."""
    note(path, "ran")
    client = here()
    make = blob if size else slowinc
    args = [(size + i, seconds) if size else (i, seconds) for i in range(count)]
    made = [client.submit(make, *a[: 1 if size else 2]) for a in args]
    if size:
        distributed.wait(made)
    return get_worker().address, Box(*made)


def inc_when_there(x: int, gate: str) -> int:
    """``x + 1``, as soon as there is a file of that name."""
    until(lambda: Path(gate).exists(), 60)
    return x + 1


def parent_of_gated(path: str, count: int, gate: str) -> tuple[str, Box]:
    """Return as `parent`; what it submits ends when the gate is there, however slow all else is."""
    note(path, "ran")
    made = [here().submit(inc_when_there, i, gate) for i in range(count)]
    return get_worker().address, Box(*made)


def opened(future: Any) -> tuple[str, tuple[Any, ...]]:
    """The worker whose process owns the children, and their futures."""
    _, box = future.result(timeout=20)
    return box.content[0]._row.owner_ref[1], box.content


def test_what_a_killed_owner_had_not_made_yet_is_made_again(client, tmp_path):
    outer = client.submit(parent, str(tmp_path / "ran"), 4, 1.5, pure=False)
    owner, futures = opened(outer)
    needs = client.submit(inc, futures[1], pure=False)
    kill(client, owner)
    assert client.gather(list(futures)) == [1, 2, 3, 4]
    assert needs.result(timeout=20) == 3
    assert noted(tmp_path / "ran") == ["ran", "ran"]
    story = client.story(outer.key)
    assert [event for _, event, *_ in story].count("repeated") == 1


def test_large_values_of_a_killed_owner_are_made_again(client, tmp_path):
    outer = client.submit(parent, str(tmp_path / "ran"), 2, 0, 300_000, pure=False)
    owner, futures = opened(outer)
    kill(client, owner)
    assert [len(f.result(timeout=20)) for f in futures] == [300_000, 300_001]
    assert noted(tmp_path / "ran") == ["ran", "ran"]


def test_the_future_of_the_task_that_submitted_them_may_be_gone(client, tmp_path):
    outer = client.submit(parent, str(tmp_path / "ran"), 2, 1.5, pure=False)
    owner, futures = opened(outer)
    del outer
    time.sleep(0.3)
    kill(client, owner)
    assert [f.result(timeout=20) for f in futures] == [1, 2]


def test_another_client_that_has_them_gets_them(client, own_cluster, tmp_path):
    with Client(own_cluster, set_as_default=False) as other:
        outer = client.submit(parent, str(tmp_path / "ran"), 2, 1.5, pure=False)
        owner, futures = opened(outer)
        theirs = load_at(other, pickle.dumps(list(futures)))
        time.sleep(0.3)
        kill(client, owner)
        assert [f.result(timeout=20) for f in theirs] == [1, 2]
        assert [f.result(timeout=20) for f in futures] == [1, 2]
        assert noted(tmp_path / "ran") == ["ran", "ran"]
        del theirs
        unpin_here(client)


def test_a_task_elsewhere_that_waits_for_them_goes_on(client, tmp_path):
    gate = tmp_path / "gate"
    outer = client.submit(parent_of_gated, str(tmp_path / "ran"), 2, str(gate), pure=False)
    owner, futures = opened(outer)
    staying = [a for a in client.owner.core.placement.workers if a != owner]
    waits = [client.submit(add, Box(f), workers=staying, pure=False) for f in futures]
    until_there(client, "parked", *waits)
    kill(client, owner)
    gate.touch()
    assert client.gather(waits) == [1, 2]


def put_in_queue(name: str, path: str) -> int:
    note(path, "ran")
    future = here().submit(slowinc, 10, 1.0)
    distributed.Queue(name).put(future)
    return 1


def test_one_that_lies_in_a_queue_is_read_after_the_death(client, tmp_path):
    queue = distributed.Queue("climbing", client=client)
    outer = client.submit(put_in_queue, "climbing", str(tmp_path / "ran"), pure=False)
    assert outer.result(timeout=20) == 1
    address = next(a for a, n in client.run(owned_at).items() if n)
    kill(client, address)
    until(lambda: address not in client.owner.core.placement.workers, 10)
    time.sleep(1.0)
    future = queue.get(timeout=10)
    assert future.result(timeout=20) == 11


def owned_at(dask_worker: Any) -> int:
    return len(dask_worker.extensions["dask-ownership"].owner.core.table.rows)


def unpin_at_workers(client: Client) -> None:
    def unpin(dask_worker: Any) -> None:
        owner = dask_worker.extensions["dask-ownership"].owner
        rows = list(owner.core.table.pinned)
        owner.core.table.pinned.clear()
        for row in rows:
            owner.drop(row)

    client.run(unpin)
    unpin_here(client)


def only_once(path: str) -> Box:
    note(path, "ran")
    first = len(noted(Path(path))) == 1
    return Box(here().submit(slowinc, 1 if first else 2, 2.0))


def test_what_is_not_made_again_is_lost_with_its_owner(client, tmp_path):
    outer = client.submit(only_once, str(tmp_path / "ran"), key="fickle", pure=False)
    (future,) = outer.result(timeout=20).content
    owner = future._row.owner_ref[1]
    kill(client, owner)
    with pytest.raises(OwnerLost, match=r"fickle.*did not submit") as caught:
        future.result(timeout=20)
    error = caught.value
    assert error.key == future.key and error.owner == owner
    assert error.chain == (owner, client.id)
    assert isinstance(error, LostData) and isinstance(pickle.loads(pickle.dumps(error)), OwnerLost)


def fails_again(path: str) -> Box:
    note(path, "ran")
    if len(noted(Path(path))) > 1:
        raise ZeroDivisionError("the second time")
    return Box(here().submit(slowinc, 1, 2.0))


def test_a_task_that_fails_when_it_runs_again_is_named(client, tmp_path):
    outer = client.submit(fails_again, str(tmp_path / "ran"), key="brittle", pure=False)
    (future,) = outer.result(timeout=20).content
    kill(client, future._row.owner_ref[1])
    with pytest.raises(OwnerLost, match=r"brittle.*failed"):
        future.result(timeout=20)
    assert isinstance(outer.result(timeout=10), Box)  # its own value is what it was


def top(path: str) -> Box:
    return Box(here().submit(middle, path, workers=elsewhere()))


def middle(path: str) -> Box:
    note(path, "middle")
    return Box(here().submit(slowinc, 20, 2.0))


def test_two_owners_one_above_the_other_are_killed(client, tmp_path):
    path = str(tmp_path / "ran")
    outer = client.submit(top, path, pure=False).result(timeout=20)
    inner = outer.content[0].result(timeout=20)
    leaf = inner.content[0]
    above, below = outer.content[0]._row.owner_ref[1], leaf._row.owner_ref[1]
    assert above != below
    kill(client, above)
    kill(client, below)
    assert leaf.result(timeout=30) == 21
    assert noted(tmp_path / "ran") == ["middle", "middle"]


def delegating(path: str, seconds: float) -> Any:
    note(path, get_worker().address.rpartition(":")[2])
    return delegate(here().submit(slowinc, 30, seconds))


def test_a_delegated_value_is_made_again(client, tmp_path):
    outer = client.submit(delegating, str(tmp_path / "ran"), 2.0, pure=False)
    until(lambda: noted(tmp_path / "ran"), 10)
    time.sleep(0.5)
    port = noted(tmp_path / "ran")[0]
    owner = next(a for a in client.owner.core.placement.workers if a.endswith(f":{port}"))
    kill(client, owner)
    assert outer.result(timeout=30) == 31
    assert len(noted(tmp_path / "ran")) == 2


def of_many_kinds() -> tuple[str, Box]:
    client = here()
    scattered = client.scatter([b"s" * 200_000])[0]
    whole = da.ones((1000, 100), chunks=(500, 100)).persist()
    total = client.compute(whole.sum())
    first = client.submit(blob, 150_000)
    of_first = client.submit(len, first)
    mapped = client.map(slowinc, range(3), delay=2.0)
    return get_worker().address, Box(scattered, total, first, of_first, *mapped)


def test_whatever_way_they_were_made(client):
    outer = client.submit(of_many_kinds, pure=False)
    owner, futures = opened(outer)
    kill(client, owner)
    values = [f.result(timeout=30) for f in futures]
    assert len(values[0]) == 200_000 and values[1] == 100_000.0 and len(values[2]) == 150_000
    assert values[3:] == [150_000, 1, 2, 3]


def computed(path: str) -> tuple[str, Box]:
    note(path, "ran")
    client = here()
    x = da.ones((1000, 100), chunks=(500, 100)).map_blocks(slowly)
    one, two = delayed(slowinc)(1, delay=2), delayed(slowinc)(5, delay=2)
    return get_worker().address, Box(
        *client.compute([x.sum(), x.mean(), one, two, delayed(sum)([one, two])])
    )


def slowly(block: Any) -> Any:
    time.sleep(2)
    return block


def test_collections_that_were_computed_are_made_again(client, tmp_path):
    """Dask gives random names to what is computed and to what is delayed."""
    outer = client.submit(computed, str(tmp_path / "ran"), pure=False)
    owner, futures = opened(outer)
    kill(client, owner)
    assert [f.result(timeout=30) for f in futures] == [100_000.0, 1.0, 2, 6, 8]
    assert len(noted(tmp_path / "ran")) == 2


def test_a_task_that_still_runs_makes_them_for_those_who_ask(client, tmp_path):
    path = str(tmp_path / "ran")
    outer = client.submit(passes_on_and_waits, "climbing-2", path, pure=False)
    queue = distributed.Queue("climbing-2", client=client)
    future = queue.get(timeout=20)
    assert future.key
    kill(client, future._row.origin[1])
    assert future.result(timeout=30) == 41
    assert outer.result(timeout=30) == 41
    assert noted(tmp_path / "ran") == ["ran", "ran"]
    unpin_at_workers(client)
    while queue.qsize():
        queue.get()
    unpin_at_workers(client)


def passes_on_and_waits(name: str, path: str) -> int:
    note(path, "ran")
    future = here().submit(slowinc, 40, 2.5)
    distributed.Queue(name).put(future)
    return int(future.result())


def test_owners_are_killed_again_and_again(client, tmp_path):
    outer = client.submit(parent, str(tmp_path / "ran"), 2, 2.0, pure=False)
    _, futures = opened(outer)
    for _ in range(3):
        owner = until(
            lambda: (
                (a := futures[0]._row.owner_ref[1])
                and a in client.owner.core.placement.workers
                and a
            ),
            20,
        )
        if futures[0].done():
            break
        kill(client, owner)
        until(lambda owner=owner: owner not in client.owner.core.placement.workers, 10)
    assert [f.result(timeout=30) for f in futures] == [1, 2]
    assert len(noted(tmp_path / "ran")) >= 3


def in_another_order(path: str) -> list[tuple[int, Box]]:
    """Submits the same call on two inputs, in an order that the clock decides."""
    client = here()
    note(path, "ran")
    inputs = [client.submit(inc, 10, pure=False), client.submit(inc, 20, pure=False)]
    if len(noted(Path(path))) > 1:
        inputs.reverse()
    of_dependency = [(f.result() + 1, client.submit(slowinc, f, 2.0, pure=False)) for f in inputs]
    inside = Box(inputs[0] if inputs[0].result() == 11 else inputs[1])
    numbers = [1, 2] if len(noted(Path(path))) == 1 else [2, 1]
    of_inside = [(12 + n, client.submit(adds_later, inside, n, pure=False)) for n in numbers]
    return [(value, Box(future)) for value, future in of_dependency + of_inside]


def adds_later(box: Box, number: int) -> int:
    time.sleep(2.0)
    return int(box.content[0].result()) + number + 1


def test_a_call_is_the_same_whatever_the_order_and_differs_by_its_inputs(client, tmp_path):
    outer = client.submit(in_another_order, str(tmp_path / "ran"), pure=False)
    made = outer.result(timeout=20)
    kill(client, made[0][1].content[0]._row.owner_ref[1])
    for expected, box in made:
        assert box.content[0].result(timeout=30) == expected
    assert noted(tmp_path / "ran") == ["ran", "ran"]


def of_what_came(box: Box) -> Box:
    return Box(here().submit(slowinc, box.content[0], 2.0), here().submit(read_later, box))


def read_later(box: Box) -> int:
    time.sleep(2.0)
    return int(box.content[0].result())


def test_a_pure_call_on_what_came_from_elsewhere_is_made_again(client):
    given = client.submit(inc, 1, pure=False)
    outer = client.submit(of_what_came, Box(given), pure=False)
    futures = outer.result(timeout=20).content
    kill(client, futures[0]._row.owner_ref[1])
    assert [f.result(timeout=30) for f in futures] == [3, 2]
