"""Futures that travel: borrowed where they are unpickled, freed when nobody holds them."""

from __future__ import annotations

import gc
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import distributed
import pytest
from conftest import FAILED, check_nothing_left
from live import blob, inc, slowinc, small_cluster, until, wait_for_members

import dask_ownership
from dask_ownership import Client
from dask_ownership.errors import ClosedOwner, FutureCancelledError, LostData, NotHere


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
    rows = list(owner.core.table.pinned)
    owner.core.table.pinned.clear()
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
    from dask_ownership.futures.future import Future
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


# ---- many hands ----


def many_times(box: Box, count: int) -> int:
    """Each unpickling is one more future of the same value."""
    pickled = pickle.dumps(box)
    boxes = [pickle.loads(pickled) for _ in range(count)]
    return sum(add(b) for b in boxes)


def test_one_future_is_unpickled_many_times(client):
    future = client.submit(slowinc, 1, 0.05, pure=False)
    boxes = [Box(future) for _ in range(50)]
    assert client.gather(client.map(add, boxes, pure=False)) == [2] * 50
    got = client.submit(many_times, Box(future), 100, pure=False).result(timeout=10)
    assert got == 200
    client.run(unpin)


def test_a_future_goes_to_the_worker_that_makes_its_value(client):
    for address in wait_for_members(client, 2):
        future = client.submit(blob, 300_000, workers=[address], pure=False)
        got = client.submit(length, Box(future), workers=[address], pure=False)
        assert got.result(timeout=10) == 300_000
        slow = client.submit(slowinc, 1, 0.1, workers=[address], pure=False)
        box = client.submit(give_back, Box(slow), workers=[address], pure=False)
        assert client.submit(add, box, workers=[address], pure=False).result(timeout=10) == 2


def bounce(box: Box, workers: list[str], depth: int) -> Any:
    """Each passes it on to the other worker, and gives back what comes back."""
    if not depth:
        return Box(*box.content)
    there = workers[depth % 2]
    return (
        here()
        .submit(bounce, Box(*box.content), workers, depth - 1, workers=[there], pure=False)
        .result()
    )


@pytest.mark.parametrize("size", [0, 300_000])
def test_borrowers_of_borrowers_on_both_workers(client, size):
    addresses = wait_for_members(client, 2)
    outer = client.submit(make, 2, size=size, workers=[addresses[0]], pure=False)
    box = outer.result(timeout=10)
    del outer
    back = client.submit(bounce, box, addresses, 5, pure=False).result(timeout=10)
    del box
    time.sleep(0.2)
    assert (length(back) if size else add(back)) == (2 * size or 3)


async def coroutine_parent(box: Box) -> Any:
    client = here()
    mine = client.submit(inc, box.content[0], pure=False)
    return Box(mine, box.content[0]), await mine


def test_coroutine_tasks_borrow_and_give_back(client):
    future = client.submit(slowinc, 1, 0.05, pure=False)
    box, value = client.submit(coroutine_parent, Box(future), pure=False).result(timeout=10)
    assert value == 3
    assert [f.result(timeout=10) for f in box.content] == [3, 2]
    assert box.content[1]._row is future._row


def with_worker_client(box: Box) -> Any:
    with distributed.worker_client() as client:
        mine = client.submit(inc, box.content[0], pure=False)
        return Box(mine, *box.content), mine.result()


def test_worker_client_borrows_and_gives_back(client):
    future = client.submit(slowinc, 1, 0.05, pure=False)
    box, value = client.submit(with_worker_client, Box(future), pure=False).result(timeout=10)
    assert value == 3
    assert [f.result(timeout=10) for f in box.content] == [3, 2]


def in_a_thread(box: Box, unpickle: bool) -> Any:
    """A thread that a task starts by itself uses what the task has."""
    from concurrent.futures import ThreadPoolExecutor

    pickled = pickle.dumps(box)
    with ThreadPoolExecutor(1) as pool:
        if unpickle:
            return pool.submit(lambda: add(pickle.loads(pickled))).result()
        return pool.submit(add, box).result()


@pytest.mark.parametrize("unpickle", [False, True])
def test_a_thread_that_a_task_starts_uses_its_futures(client, unpickle):
    future = client.submit(slowinc, 1, 0.05, pure=False)
    got = client.submit(in_a_thread, Box(future), unpickle, pure=False)
    assert got.result(timeout=10) == 2
    client.run(unpin)


def leave_a_thread(box: Box, path: str) -> str:
    """The task ends before the thread that has its futures."""
    import threading

    def late() -> None:
        time.sleep(0.5)
        value = str(add(box))
        with open(path, "w") as file:
            file.write(value)

    threading.Thread(target=late).start()
    return "left"


def test_a_thread_outlives_the_task_whose_futures_it_has(client, tmp_path):
    future = client.submit(slowinc, 1, 0.05, pure=False)
    path = tmp_path / "value"
    assert client.submit(leave_a_thread, Box(future), str(path), pure=False).result() == "left"
    del future
    assert until(lambda: path.exists() and path.read_text()) == "2"


# ---- shapes ----


def test_a_list_that_contains_itself(client):
    future = client.submit(slowinc, 1, 0.05, pure=False)
    knot: list[Any] = [future]
    knot.append(knot)
    got = client.submit(in_a_knot, Box(knot), pure=False)
    assert got.result(timeout=10) == 2
    back = client.submit(tie, Box(future), pure=False).result(timeout=10)
    assert back[1] is back and back[0].result() == 2
    back.clear()
    knot.clear()
    del got, future
    # Nothing else ends a knot at a worker.
    until(lambda: client.run(collect_garbage) and not client.owner.core.table.rows)


def collect_garbage() -> None:
    gc.collect()


def in_a_knot(box: Box) -> Any:
    (knot,) = box.content
    assert knot[1] is knot
    try:
        return knot[0].result()
    finally:
        knot.clear()


def tie(box: Box) -> Any:
    knot: list[Any] = [box.content[0]]
    knot.append(knot)
    return knot


def test_a_list_that_contains_itself_as_an_argument(client):
    """Futures in it travel as futures: looking for them to put their values there has no end."""
    future = client.submit(inc, 1, pure=False)
    knot: list[Any] = [future]
    knot.append(knot)
    assert client.submit(of_knot, knot, pure=False).result(timeout=10) == 2
    knot.clear()


def of_knot(knot: list[Any]) -> int:
    assert knot[1] is knot
    return int(knot[0].result())


def test_the_same_future_in_a_list_and_in_an_object(client):
    future = client.submit(slowinc, 1, 0.05, pure=False)
    got = client.submit(value_and_box, [future, {"box": Box(future)}], pure=False)
    assert got.result(timeout=10) == (2, 2)


def value_and_box(items: Any) -> Any:
    return items[0], add(items[1]["box"])


def test_a_result_that_holds_its_own_task(client):
    """A task that was given a future on itself cannot be; one on its sibling can."""
    first = client.submit(slowinc, 1, 0.05, pure=False)
    second = client.submit(give_back, Box(first), pure=False)
    third = client.submit(give_back, Box(second, first), pure=False)
    del first, second
    box = third.result(timeout=10)
    del third
    assert box.content[0].result().content[0].result() == box.content[1].result() == 2


# ---- what a borrowed future offers ----


@pytest.fixture
def borrowed(client):
    """A slow future that a worker owns."""
    made = list(client.submit(make_slow, 0.3, pure=False).result(timeout=10).content)
    assert made[0].status == "pending"
    yield made
    made.clear()


def make_slow(delay: float) -> Box:
    return Box(here().submit(slowinc, 1, delay, pure=False))


def test_a_borrowed_future_is_released_twice(client, borrowed):
    borrowed[0].release()
    borrowed[0].release()
    assert borrowed[0].status == "cancelled"
    until(lambda: not client.owner.core.table.rows)


def test_a_borrowed_future_calls_back(client, borrowed):
    seen: list[Any] = []
    borrowed[0].add_done_callback(lambda f: seen.append(f.result()))
    assert until(lambda: seen) == [2]
    borrowed[0].add_done_callback(lambda f: seen.append(f.status))
    assert until(lambda: len(seen) == 2 and seen) == [2, "finished"]


def test_borrowed_futures_are_waited_for_with_own_ones(client, borrowed):
    quick = client.submit(inc, 1, pure=False)
    slow = client.submit(slowinc, 1, 1, pure=False)
    futures = [slow, quick, borrowed[0]]
    done, not_done = dask_ownership.wait(futures, timeout=5, return_when="FIRST_COMPLETED")
    assert quick in done and slow in not_done
    done, not_done = distributed.wait([slow, borrowed[0]], timeout=5, return_when="FIRST_COMPLETED")
    assert borrowed[0] in done and slow in not_done
    order = list(dask_ownership.as_completed(futures))
    assert order[-1] is slow and set(order) == set(futures)
    with_results = dask_ownership.as_completed(futures, with_results=True)
    assert sorted(result for _, result in with_results) == [2, 2, 2]
    del done, not_done, order, futures, with_results


def make_mixed() -> Box:
    client = here()
    return Box(
        client.submit(inc, 1, pure=False),
        client.submit(raise_with, "plain", pure=False),
        client.submit(blob, 200_000, pure=False),
    )


def test_borrowed_futures_that_failed_are_skipped(client):
    box = client.submit(make_mixed, pure=False).result(timeout=10)
    values = client.gather(list(box.content), errors="skip")
    assert [type(v) for v in values] == [int, bytearray]
    with pytest.raises(WithFutures, match="plain"):
        client.gather(list(box.content))
    with pytest.raises(WithFutures, match="plain"):
        box.content[1].result(timeout=5)
    assert box.content[1].status == "error"
    assert client.submit(gather_skip, box, pure=False).result(timeout=10) == 2


def gather_skip(box: Box) -> int:
    return len(here().gather(list(box.content), errors="skip"))


def test_a_borrowed_future_is_an_argument_elsewhere(client):
    for address in wait_for_members(client, 2):
        for size in (0, 300_000):
            box = client.submit(make, 1, size=size, pure=False).result(timeout=10)
            got = client.submit(size_of, box.content[0], workers=[address], pure=False)
            assert got.result(timeout=10) == size
            many = client.map(size_of, [box.content[0]] * 5, workers=[address], pure=False)
            assert client.gather(many) == [size] * 5


def size_of(value: Any) -> int:
    return len(value) if isinstance(value, bytearray) else 0


def test_a_borrowed_future_is_cancelled_by_a_borrower(client):
    box = client.submit(make_slow, 1, pure=False).result(timeout=10)
    needs = client.submit(inc, box.content[0], pure=False)
    box.content[0].cancel()
    with pytest.raises(FutureCancelledError):
        box.content[0].result(timeout=5)
    with pytest.raises(FutureCancelledError):
        needs.result(timeout=5)
    assert box.content[0].cancelled()


def fail_once(path: str) -> str:
    from pathlib import Path

    if not Path(path).exists():
        Path(path).touch()
        raise WithFutures("once")
    return "at last"


def make_failing(path: str) -> Box:
    future = here().submit(fail_once, path, pure=False)
    distributed.wait(future)
    return Box(future)


def test_a_borrowed_future_that_failed_is_retried_by_a_borrower(client, tmp_path):
    box = client.submit(make_failing, str(tmp_path / "x"), pure=False).result(timeout=10)
    with pytest.raises(WithFutures):
        box.content[0].result(timeout=5)
    box.content[0].retry()
    until(lambda: box.content[0].status != "error", what="the retry is heard of")
    assert box.content[0].result(timeout=5) == "at last"


def test_a_future_of_another_cluster(client):
    """No worker here can reach its owner, and that is found out."""
    with (
        small_cluster(n_workers=1) as other_cluster,
        Client(other_cluster, set_as_default=False) as other,
    ):
        future = other.submit(inc, 1, key="of-another-cluster", pure=False)
        assert future.result(timeout=10) == 2
        with pytest.raises(NotHere, match="of-another-cluster"):
            client.submit(add, Box(future), pure=False)
        strange = unpickled_at(client, pickle.dumps(future))
        with pytest.raises(LostData, match=f"(?s)of-another-cluster.*{other.id}"):
            strange.result(timeout=20)
        with pytest.raises(LostData, match="of-another-cluster"):
            client.submit(inc, strange, pure=False).result(timeout=20)


# ---- very many ----


def count_futures(box: Box) -> int:
    return len(box.content)


def make_in_bulk(count: int) -> Box:
    return Box(*here().map(inc, range(count), pure=False))


@pytest.mark.slow
def test_a_hundred_thousand_futures_inside_one_object(client):
    count = 100_000
    futures = client.map(inc, range(count), pure=False)
    distributed.wait(futures)
    box = Box(*futures)
    del futures
    started = time.perf_counter()
    task = client.submit(count_futures, box, pure=False)
    submitted = time.perf_counter()
    assert task.result(timeout=120) == count
    done = time.perf_counter()
    print(
        f"\nargument: pickled in {(submitted - started) / count * 1e6:.1f} us per future, ", end=""
    )
    print(f"back after {(done - started) / count * 1e6:.1f}")
    started = time.perf_counter()
    back = client.submit(give_back, box, pure=False).result(timeout=120)
    print(f"there and back: {(time.perf_counter() - started) / count * 1e6:.1f} us per future")
    assert len(back.content) == count and back.content[-1]._row is box.content[-1]._row
    del box, back, task
    started = time.perf_counter()
    until(lambda: not client.owner.core.table.rows, 60)
    print(f"freed: {(time.perf_counter() - started) / count * 1e6:.1f} us per future")
    started = time.perf_counter()
    made = client.submit(make_in_bulk, count, pure=False).result(timeout=120)
    brought = time.perf_counter()
    distributed.wait(list(made.content))
    print(f"made by a task: {(brought - started) / count * 1e6:.1f} us per future, ", end="")
    print(f"waited for: {(time.perf_counter() - brought) / count * 1e6:.1f}")
    assert client.gather(list(made.content[:10])) == list(range(1, 11))
    del made
    started = time.perf_counter()
    until(lambda: not client.owner.core.table.rows, 60)
    print(f"freed: {(time.perf_counter() - started) / count * 1e6:.1f} us per future")
    until(lambda: sum(client.run(rows_at).values()) == 0, 60)


def rows_at(dask_worker: Any) -> int:
    return len(dask_worker.extensions["dask-ownership"].owner.core.table.rows)
