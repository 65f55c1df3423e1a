"""Futures that travel: borrowed where they are unpickled, freed when nobody holds them."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import distributed
import pytest
from conftest import FAILED, check_nothing_left
from live import blob, inc, slowinc, until, wait_for_members

import dask_ownership
from dask_ownership import Client
from dask_ownership.errors import ClosedOwner, FutureCancelledError, LostData


@pytest.fixture
def client(cluster: Any, request: Any) -> Iterator[Client]:
    """A client; at the end no table of any process has anything left."""
    with Client(cluster) as client:
        yield client
        if request.node.nodeid not in request.config.stash[FAILED]:
            check_nothing_left(client)


class Box:
    """Hides what is inside from Dask's search for futures."""

    def __init__(self, *content: Any) -> None:
        self.content = content


def here() -> Any:
    return distributed.get_client()


def ask(box: Box, question: str) -> Any:
    answer = getattr(box.content[0], question)
    return answer() if callable(answer) else answer


def add(box: Box) -> int:
    return sum(future.result() for future in box.content)


def gather(box: Box) -> Any:
    return here().gather(list(box.content))


def submit(box: Box) -> Any:
    return here().submit(inc, box.content[0], pure=False).result()


def wait_for(box: Box) -> Any:
    done = dask_ownership.wait(list(box.content), timeout=5).done
    return sum(future.result() for future in done)


def in_turn(box: Box) -> Any:
    return sum(future.result() for future in dask_ownership.as_completed(list(box.content)))


def stock_wait(box: Box) -> Any:
    done = distributed.wait(list(box.content), timeout=5).done
    return sum(future.result() for future in done)


def twice(box: Box) -> Any:
    return pickle.loads(pickle.dumps(box)).content[0].result()


async def awaits(box: Box) -> Any:
    return sum([await future for future in box.content])


def give_back(box: Box) -> Any:
    return Box(*box.content)


def pass_on(box: Box, depth: int) -> Any:
    if depth:
        return here().submit(pass_on, Box(*box.content), depth - 1, pure=False).result()
    return add(box)


def make(count: int, *, size: int = 0) -> Box:
    client = here()
    if size:
        return Box(*[client.submit(blob, size, pure=False) for _ in range(count)])
    return Box(*[client.submit(slowinc, i, 0.01, pure=False) for i in range(count)])


def length(box: Box) -> int:
    return sum(len(future.result()) for future in box.content)


def raise_with(box: Box) -> Any:
    raise WithFutures(box)


class WithFutures(Exception):
    """An exception with futures inside."""


# ---- into tasks ----


@pytest.mark.parametrize("question", ["result", "exception", "traceback", "cancelled"])
def test_a_future_inside_an_object_answers_in_a_task(client, question):
    future = client.submit(slowinc, 1, 0.05, pure=False)
    answer = client.submit(ask, Box(future), question, pure=False).result(timeout=10)
    assert (
        answer == {"result": 2, "exception": None, "traceback": None, "cancelled": False}[question]
    )


@pytest.mark.parametrize(
    "function", [add, gather, submit, wait_for, in_turn, stock_wait, twice, awaits]
)
def test_a_future_inside_an_object_is_used_in_a_task(client, function):
    future = client.submit(slowinc, 1, 0.02, pure=False)
    got = client.submit(function, Box(future), pure=False).result(timeout=10)
    assert got == {"gather": [2], "submit": 3}.get(function.__name__, 2)
    if function is twice:
        client.run(unpin)


def unpin(dask_worker: Any) -> None:
    """What was pickled by hand is kept for good; the test ends that."""
    owner = dask_worker.extensions["dask-ownership"].owner
    rows = list(owner.pinned)
    owner.pinned.clear()
    for row in rows:
        owner.drop(row)


def test_a_closure_brings_its_future(client):
    future = client.submit(inc, 1, pure=False)
    assert client.submit(lambda: future.result() + 1, pure=False).result(timeout=10) == 3


def test_a_stored_value_is_read_by_a_borrower(client):
    future = client.submit(blob, 300_000, pure=False)
    assert client.submit(length, Box(future), pure=False).result(timeout=10) == 300_000


def test_a_scattered_value_is_read_by_a_borrower(client):
    for address in wait_for_members(client, 2):
        value = client.scatter(b"x" * 300_000, workers=[address])
        for there in wait_for_members(client, 2):
            got = client.submit(length, Box(value), workers=[there], pure=False)
            assert got.result(timeout=10) == 300_000


@pytest.mark.parametrize("depth", [1, 4])
def test_borrowers_pass_futures_on(client, depth):
    futures = [client.submit(slowinc, i, 0.02, pure=False) for i in range(3)]
    assert client.submit(pass_on, Box(*futures), depth, pure=False).result(timeout=10) == 6


def test_a_future_whose_task_failed_raises_where_it_is_borrowed(client):
    bad = client.submit(ask, None, "x", pure=False)
    with pytest.raises(AttributeError):
        client.submit(add, Box(bad), pure=False).result(timeout=10)


def test_a_borrowed_future_is_an_argument_and_depends(client):
    slow = client.submit(slowinc, 1, 0.1, pure=False)
    assert client.submit(submit, Box(slow), pure=False).result(timeout=10) == 3


# ---- out of tasks ----


def test_futures_that_a_task_made_are_read_by_the_client(client):
    box = client.submit(make, 4, pure=False).result(timeout=10)
    assert [future.result(timeout=10) for future in box.content] == [1, 2, 3, 4]
    assert client.gather(list(box.content)) == [1, 2, 3, 4]
    assert client.submit(sum, list(box.content), pure=False).result(timeout=10) == 10
    assert client.submit(add, box, pure=False).result(timeout=10) == 10


def test_they_outlive_the_value_that_brought_them(client):
    outer = client.submit(make, 2, size=200_000, pure=False)
    box = outer.result(timeout=10)
    del outer
    time.sleep(0.3)
    assert [len(future.result(timeout=10)) for future in box.content] == [200_000] * 2


def test_they_live_as_long_as_the_value_that_nobody_opened(client):
    outer = client.submit(make, 2, size=200_000, pure=False)
    distributed.wait(outer)
    time.sleep(0.3)
    assert client.submit(length, outer, pure=False).result(timeout=10) == 400_000


def test_a_large_value_with_futures_inside(client):
    """It is stored at its worker and fetched by another and by the client."""
    outer = client.submit(large_box, pure=False)
    data, box = outer.result(timeout=10)
    assert len(data) == 300_000 and add(box) == 6
    for address in wait_for_members(client, 2):
        got = client.submit(second_of, outer, workers=[address], pure=False)
        assert got.result(timeout=10) == 6


def large_box() -> Any:
    return b"x" * 300_000, make(3)


def second_of(value: Any) -> int:
    return add(value[1])


def test_a_future_comes_back_to_its_owner(client):
    future = client.submit(inc, 1, key="returns", pure=False)
    back = client.submit(give_back, Box(future), pure=False).result(timeout=10).content[0]
    assert back.key == "returns" and back._row is future._row
    del future
    assert back.result() == 2


def test_a_task_returns_the_future_itself(client):
    back = client.submit(make_one, pure=False).result(timeout=10)
    assert isinstance(back, dask_ownership.Future)
    assert back.result(timeout=10) == 6


def make_one() -> Any:
    return here().submit(inc, 5, pure=False)


def test_an_exception_brings_futures(client):
    future = client.submit(inc, 1, pure=False)
    failed = client.submit(raise_with, Box(future), pure=False)
    with pytest.raises(WithFutures) as info:
        failed.result(timeout=10)
    assert info.value.args[0].content[0].result() == 2
    del info


def test_a_scattered_value_brings_futures(client):
    future = client.submit(slowinc, 1, 0.05, pure=False)
    boxes = client.scatter([Box(future), Box(future, future)], broadcast=True)
    del future
    for address in wait_for_members(client, 2):
        got = client.map(add, boxes, workers=[address], pure=False)
        assert client.gather(got) == [2, 4]


# ---- between clients ----


def test_a_future_is_borrowed_by_another_client(cluster, client):
    with Client(cluster, set_as_default=False) as other:
        future = client.submit(slowinc, 1, 0.05, pure=False)
        box = client.submit(give_back, Box(future), pure=False)
        pickled = pickle.dumps(box)
        with other.as_current():
            theirs = unpickled_at(other, pickled)
        assert theirs.result(timeout=10).content[0].result(timeout=10) == 2
        theirs.release()
        box.cancel()


def unpickled_at(client: Client, pickled: bytes) -> Any:
    """As another process would: this one has both clients."""
    from dask_ownership.future import Future
    from dask_ownership.runtime.serialize import arriving

    come_home, origin = pickle.loads(pickled).__reduce__()
    del come_home
    with arriving(client):
        return Future(client, client.owner.arrive(origin))


# ---- the end of things ----


def test_cancel_of_a_borrowed_future_goes_to_its_owner(client):
    slow = client.submit(slowinc, 1, 1, pure=False)
    assert client.submit(ask, Box(slow), "cancel", pure=False).result(timeout=10) is None
    with pytest.raises(FutureCancelledError):
        slow.result(timeout=5)


def test_everything_is_freed_within_a_second_of_the_last_reference(client):
    outer = client.submit(make, 3, size=200_000, pure=False)
    box = outer.result(timeout=10)
    distributed.wait(list(box.content))
    assert client.submit(length, box, pure=False).result(timeout=10) == 600_000

    def stored() -> int:
        return sum(client.run(stored_bytes).values())

    assert stored() >= 600_000
    del outer, box
    until(lambda: stored() == 0, seconds=1.5)


def stored_bytes(dask_worker: Any) -> int:
    return int(dask_worker.extensions["dask-ownership"].executor.store.nbytes)


def test_pickled_by_hand_it_lives_as_long_as_its_owner(client):
    future = client.submit(inc, 41, key="by-hand", pure=False)
    pickled = pickle.dumps(future)
    del future
    time.sleep(0.2)
    back = pickle.loads(pickled)
    assert back.result(timeout=5) == 42
    back.cancel()
    with pytest.raises(LostData, match="by-hand"):
        pickle.loads(pickled).result()


def test_a_future_of_a_closed_client(cluster, client):
    with Client(cluster, set_as_default=False) as other:
        pickled = pickle.dumps(other.submit(inc, 1, key="orphan", pure=False))
    late = pickle.loads(pickled)
    with pytest.raises(ClosedOwner, match="orphan"):
        late.result(timeout=10)


def test_a_future_where_there_is_no_client(cluster):
    with Client(cluster, set_as_default=False) as other:
        pickled = pickle.dumps(other.submit(inc, 1, key="orphan", pure=False))
    code = f"import pickle; pickle.loads({pickled!r}).result()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "NotHere: the future 'orphan' is owned by Client-" in done.stderr
    assert "make one of the same cluster" in done.stderr
