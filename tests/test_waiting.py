"""`wait` and `as_completed`: ours, and the stock ones on owned futures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import distributed
import pytest
from distributed import CancelledError, LocalCluster
from programs import Oops, inc, odd_fails, oops, sleep, slowly, wait_for_file

import dask_ownership
from dask_ownership import Client

WAITS = pytest.mark.parametrize(
    "wait", [dask_ownership.wait, distributed.wait], ids=["ours", "stock"]
)
BOTH = pytest.mark.parametrize(
    "as_completed",
    [dask_ownership.as_completed, distributed.as_completed],
    ids=["ours", "stock"],
)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A file that lets `wait_for_file` end; at the end of the test it does."""
    path = tmp_path / "gate"
    yield path
    path.touch()


# ---- wait ----


@WAITS
def test_wait_for_all(client: Client, wait: Any) -> None:
    futures = [client.submit(slowly, i, 0.02, pure=False) for i in range(4)]
    done, not_done = wait(futures)
    assert done == set(futures) and not_done == set()
    assert all(f.done() for f in futures)


@WAITS
def test_wait_for_the_first(client: Client, wait: Any, gate: Path) -> None:
    slow, fast = client.submit(wait_for_file, str(gate)), client.submit(inc, 1)
    result = wait([slow, fast], return_when="FIRST_COMPLETED")
    assert result.done == {fast} and result.not_done == {slow}
    gate.touch()
    wait(slow)


@WAITS
def test_wait_for_the_first_until_none_is_left(client: Client, wait: Any) -> None:
    left = set(client.map(slowly, range(40), seconds=0.005, pure=False))
    results = []
    while left:
        done, left = wait(left, return_when="FIRST_COMPLETED")
        assert done and all(f.done() for f in done)
        results += [f.result() for f in done]
    assert sorted(results) == list(range(40))


def test_wait_for_the_first_of_few_while_others_end(client: Client, gate: Path) -> None:
    slow = client.submit(wait_for_file, str(gate), workers=[0])
    many = client.map(slowly, range(20), seconds=0.02, pure=False, workers=[1])
    dask_ownership.wait([slow, *many], return_when="FIRST_COMPLETED")
    # Those that it hangs on for both calls end; they are not what is waited for now.
    with pytest.raises(asyncio.TimeoutError):
        dask_ownership.wait([slow], timeout=0.2, return_when="FIRST_COMPLETED")
    gate.touch()
    assert dask_ownership.wait([slow], return_when="FIRST_COMPLETED").done == {slow}


def test_threads_wait_for_the_first_at_once(client: Client) -> None:
    futures = client.map(slowly, range(30), seconds=0.01, pure=False)

    def drain(left: set[Any]) -> int:
        count = 0
        while left:
            done, left = dask_ownership.wait(left, return_when="FIRST_COMPLETED")
            count += len(done)
        return count

    with ThreadPoolExecutor(3) as pool:
        counts = list(pool.map(drain, [set(futures), set(futures[::2]), set(futures[10:])]))
    assert counts == [30, 15, 20]


@WAITS
def test_wait_with_timeout(client: Client, wait: Any, gate: Path) -> None:
    slow = client.submit(wait_for_file, str(gate))
    start = time.time()
    with pytest.raises(TimeoutError):
        wait([slow], timeout=0.05)
    with pytest.raises(TimeoutError):
        wait([slow], timeout="20ms")
    assert time.time() - start < 1
    gate.touch()
    wait([slow])


@WAITS
def test_wait_for_errors(client: Client, wait: Any) -> None:
    futures = client.map(odd_fails, range(4))
    done, _ = wait(futures)
    assert sorted(f.status for f in done) == ["error", "error", "finished", "finished"]


@WAITS
def test_wait_for_a_cancelled_one(client: Client, wait: Any) -> None:
    future = client.submit(sleep, 0.2, pure=False)
    future.cancel()
    with pytest.raises(CancelledError):
        wait([future, client.submit(inc, 1)])


@WAITS
def test_wait_for_what_ended(client: Client, wait: Any) -> None:
    futures = client.map(inc, range(3))
    client.gather(futures)
    assert wait(futures).done == set(futures)
    assert wait(futures[0]).done == {futures[0]}


@WAITS
def test_wait_for_the_same_twice(client: Client, wait: Any) -> None:
    x = client.submit(slowly, 1, pure=False)
    assert wait([x, x]).done == {x}


def test_wait_with_wrong_arguments(client: Client) -> None:
    with pytest.raises(NotImplementedError, match="return_when"):
        dask_ownership.wait(client.map(inc, range(2)), return_when="FIRST_EXCEPTION")


def test_wait_for_a_collection(client: Client) -> None:
    import dask.array as da

    x = da.ones(10, chunks=5).persist()
    done, not_done = dask_ownership.wait(x)
    assert len(done) == 2 and not not_done


def test_progress(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    futures = [client.submit(slowly, i, pure=False) for i in range(3)]
    dask_ownership.wait(futures)
    assert [f.result() for f in futures] == [0, 1, 2]


# ---- as_completed ----


@BOTH
def test_in_order_of_completion(client: Client, as_completed: Any, gate: Path) -> None:
    slow, fast = client.submit(wait_for_file, str(gate)), client.submit(slowly, 1, pure=False)
    found = as_completed([slow, fast])
    assert next(found) is fast
    gate.touch()
    assert list(found) == [slow]


@BOTH
def test_all_come_out(client: Client, as_completed: Any) -> None:
    futures = client.map(inc, range(100))
    assert sorted(f.result() for f in as_completed(futures)) == list(range(1, 101))


@BOTH
def test_nothing(client: Client, as_completed: Any) -> None:
    assert list(as_completed([])) == []


@BOTH
def test_results(client: Client, as_completed: Any) -> None:
    futures = client.map(inc, range(5))
    found = list(as_completed(futures, with_results=True))
    assert sorted(value for _, value in found) == [1, 2, 3, 4, 5]
    assert {f for f, _ in found} == set(futures)


@BOTH
def test_results_of_errors_raise(client: Client, as_completed: Any) -> None:
    with pytest.raises(Oops, match="it broke"):
        list(as_completed([client.submit(oops)], with_results=True))


@BOTH
def test_results_of_errors_as_values(client: Client, as_completed: Any) -> None:
    [(future, (kind, error, frames))] = as_completed(
        [client.submit(oops)], with_results=True, raise_errors=False
    )
    assert kind is Oops and isinstance(error, Oops) and frames is not None
    assert future.status == "error"


@BOTH
def test_errors_come_out_as_futures(client: Client, as_completed: Any) -> None:
    assert [f.status for f in as_completed([client.submit(oops)])] == ["error"]


@BOTH
def test_cancelled_come_out(client: Client, as_completed: Any, gate: Path) -> None:
    x, y = client.submit(wait_for_file, str(gate)), client.submit(inc, 1)
    found = as_completed([x, y])
    x.cancel()
    assert {f.status for f in found} == {"cancelled", "finished"}


@BOTH
def test_add_while_iterating(client: Client, as_completed: Any) -> None:
    seq = as_completed(client.map(inc, range(3)))
    values = []
    for future in seq:
        values.append(future.result())
        if len(values) <= 5:
            seq.add(client.submit(inc, 10 * len(values)))
    assert len(values) == 8
    assert seq.is_empty() and seq.count() == 0


@BOTH
def test_update_with_what_ended(client: Client, as_completed: Any) -> None:
    ended = client.map(inc, range(3))
    client.gather(ended)
    seq = as_completed()
    seq.update(ended)
    assert sorted(f.result() for f in seq) == [1, 2, 3]


@BOTH
def test_the_same_future_twice(client: Client, as_completed: Any) -> None:
    x = client.submit(slowly, 1, pure=False)
    assert list(as_completed([x, x])) == [x, x]


@BOTH
def test_count_and_has_ready(client: Client, as_completed: Any, gate: Path) -> None:
    x, y = client.submit(wait_for_file, str(gate)), client.submit(inc, 1)
    seq = as_completed([x, y])
    deadline = time.time() + 5
    while not seq.has_ready() and time.time() < deadline:
        time.sleep(0.01)
    assert seq.has_ready() and seq.count() == 2 and not seq.is_empty()
    assert next(seq) is y
    assert seq.count() == 1 and not seq.has_ready()
    gate.touch()
    assert next(seq) is x
    with pytest.raises(StopIteration):
        next(seq)


@BOTH
def test_batches(client: Client, as_completed: Any) -> None:
    futures = client.map(inc, range(10))
    client.gather(futures)
    seq = as_completed(futures)
    values = [f.result() for batch in seq.batches() for f in batch]
    assert sorted(values) == list(range(1, 11))


@BOTH
def test_next_batch_without_blocking(client: Client, as_completed: Any, gate: Path) -> None:
    x = client.submit(wait_for_file, str(gate))
    seq = as_completed([x])
    assert list(seq.next_batch(block=False)) == []
    gate.touch()
    assert list(seq.next_batch(block=True)) == [x]


@BOTH
def test_clear(client: Client, as_completed: Any, gate: Path) -> None:
    seq = as_completed([client.submit(wait_for_file, str(gate)), client.submit(inc, 1)])
    seq.clear()
    assert seq.count() == 0
    assert list(seq) == []


@BOTH
def test_timeout(client: Client, as_completed: Any, gate: Path) -> None:
    x = client.submit(wait_for_file, str(gate))
    seq = as_completed([x], timeout=0.1)
    with pytest.raises(TimeoutError):
        next(seq)
    gate.touch()
    x.result()


def test_ours_takes_owned_futures_only(client: Client) -> None:
    with pytest.raises(TypeError, match="future"):
        dask_ownership.as_completed([1])


# ---- coroutines ----


def test_asynchronous(cluster: LocalCluster) -> None:
    async def main() -> None:
        async with Client(cluster.scheduler_address, asynchronous=True) as client:
            for as_completed in (dask_ownership.as_completed, distributed.as_completed):
                futures = client.map(inc, range(5))
                values = [await f async for f in as_completed(futures)]
                assert sorted(values) == [1, 2, 3, 4, 5]
                pairs = [p async for p in as_completed(futures, with_results=True)]
                assert sorted(value for _, value in pairs) == [1, 2, 3, 4, 5]
                bad = client.submit(oops)
                with pytest.raises(Oops):
                    async for _ in as_completed([bad], with_results=True):
                        pass
                seq = as_completed([client.submit(sleep, 0.3, pure=False)], timeout=0.05)
                with pytest.raises(TimeoutError):
                    async for _ in seq:
                        pass
            for wait in (dask_ownership.wait, distributed.wait):
                futures = [client.submit(slowly, i, 0.01, pure=False) for i in range(3)]
                done, not_done = await wait(futures)
                assert done == set(futures) and not not_done
                late = client.submit(sleep, 0.3, pure=False)
                with pytest.raises(TimeoutError):
                    await wait([late], timeout=0.02)
                first = await wait([late, *futures], return_when="FIRST_COMPLETED")
                assert first.not_done == {late}

    asyncio.run(main())


def test_added_from_another_coroutine(cluster: LocalCluster) -> None:
    async def main() -> None:
        async with Client(cluster.scheduler_address, asynchronous=True) as client:
            seq = dask_ownership.as_completed([client.submit(slowly, 0, pure=False)])
            values = []
            async for future in seq:
                values.append(await future)
                if len(values) < 4:
                    seq.add(client.submit(slowly, len(values), 0.01, pure=False))
            assert values == [0, 1, 2, 3]

    asyncio.run(main())


# ---- the stock class ----


def test_the_stock_class_becomes_ours_for_owned_futures(client: Client) -> None:
    """So that unchanged code is as fast."""
    seq = distributed.as_completed(client.map(inc, range(5)), with_results=True)
    assert isinstance(seq, dask_ownership.as_completed)
    assert sorted(value for _, value in seq) == [1, 2, 3, 4, 5]
    empty = distributed.as_completed()
    assert type(empty) is distributed.as_completed
    empty.add(client.submit(inc, 1))
    assert isinstance(empty, dask_ownership.as_completed)
    assert [f.result() for f in empty] == [2]
    generated = distributed.as_completed(client.submit(inc, i) for i in range(3))
    assert sorted(f.result() for f in generated) == [1, 2, 3]


def test_futures_of_several_clients(client: Client, cluster: LocalCluster) -> None:
    with Client(cluster, set_as_default=False) as other:
        futures = [one.submit(slowly, i, 0.02) for i, one in enumerate([client, other] * 3)]
        assert sorted(f.result() for f in distributed.as_completed(futures)) == list(range(6))
        del futures


def test_owned_futures_and_then_others(client: Client, cluster: LocalCluster, gate: Path) -> None:
    """It goes on as the stock one, also for a thread that waits in it already."""
    with distributed.Client(cluster, set_as_default=False) as stock, ThreadPoolExecutor(1) as pool:
        central = stock.submit(inc, 10, pure=False)
        distributed.wait(central)  # the scheduler may give it to the worker that waits below
        waits = client.submit(wait_for_file, str(gate))
        seq = distributed.as_completed([client.submit(inc, 1), waits])
        assert next(seq).result() == 2
        first = pool.submit(next, seq)
        seq.add(central)
        assert type(seq) is distributed.as_completed
        assert first.result(10) is central
        gate.touch()
        assert next(seq) is waits
        assert seq.is_empty()
        del central, first
