"""Values cross between what is owned and what the central scheduler runs."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import distributed
import pytest
from distributed import LocalCluster
from live import kill, small_cluster, until, until_there, wait_for_members
from programs import (
    Adder,
    Box,
    Oops,
    add,
    double,
    inc,
    is_same,
    lines,
    marked_blob,
    oops,
    open_box,
    same,
    shuffles_inside,
    size_and_place,
    through_both_planes,
    total,
    traced,
)

from dask_ownership import Client, Future, NotHere, get_client
from dask_ownership.errors import ClosedOwner, FutureCancelledError

LARGE = 300_000
"""Bytes of a value that stays at its worker."""


@pytest.fixture
def stock(client: Client) -> Iterator[distributed.Client]:
    """A stock client on the cluster of the tests, and nothing of it left afterwards."""
    with distributed.Client(client.scheduler.address, set_as_default=False) as stock:
        yield stock
    until(lambda: gc.collect() >= 0 and not client.owner.promoted)


# ---- owned values in central tasks ----


def test_owned_futures_are_arguments_of_a_stock_client(
    client: Client, stock: distributed.Client
) -> None:
    x, y = client.submit(inc, 1), client.submit(inc, 2)
    assert stock.submit(inc, x).result(timeout=10) == 3
    assert stock.submit(total, x, x, y).result(timeout=10) == 7
    assert stock.submit(same, [x, {"y": (y, 1)}]).result(timeout=10) == [2, {"y": (3, 1)}]
    assert stock.gather(stock.map(inc, [x, y])) == [3, 4]
    assert stock.submit(dict, a=x).result(timeout=10) == {"a": 2}
    assert stock.submit(open_box, Box(x)).result(timeout=10) == 2
    x.cancel()  # what was pickled inside an object is kept


def test_equal_calls_of_a_stock_client_share_a_task(
    client: Client, stock: distributed.Client
) -> None:
    x = client.submit(inc, 1)
    first, second = stock.submit(inc, x), stock.submit(inc, x)
    assert first.key == second.key
    assert len(client.owner.promoted) == 1


def test_owned_futures_in_graphs_of_a_stock_client(
    client: Client, stock: distributed.Client
) -> None:
    array = pytest.importorskip("dask.array")
    x = array.ones(100, chunks=10).persist()
    assert {type(f) for f in distributed.futures_of(x)} == {Future}
    assert stock.compute((x + 1).sum()).result(timeout=10) == 200
    kept = stock.persist(x)
    assert {f.client for f in distributed.futures_of(kept)} == {stock}
    assert stock.compute(kept.sum()).result(timeout=10) == 100
    one = client.submit(inc, 0)
    assert stock.compute(dask.delayed(total)(one, 2)).result(timeout=10) == 3
    assert stock.get({"x": (total, one, 5)}, "x") == 6


def test_an_owned_future_that_is_released_after_the_submit(
    client: Client, stock: distributed.Client
) -> None:
    x = client.submit(time.sleep, 0.3, pure=False)
    y = stock.submit(same, x)
    x.release()
    del x
    assert y.result(timeout=10) is None
    assert client.owner.core.table.rows  # y may have to be computed again
    del y
    until(lambda: gc.collect() >= 0 and not client.owner.core.table.rows)


def test_errors_of_owned_tasks_reach_central_ones(
    client: Client, stock: distributed.Client
) -> None:
    with pytest.raises(Oops, match="it broke"):
        stock.submit(inc, client.submit(oops)).result(timeout=10)
    cancelled = client.submit(inc, 1, resources={"nothing-has-it": 1})
    future = stock.submit(inc, cancelled)
    cancelled.cancel()
    with pytest.raises(FutureCancelledError):
        future.result(timeout=10)


def test_two_owners_with_one_key(
    cluster: LocalCluster, client: Client, stock: distributed.Client
) -> None:
    with Client(cluster, set_as_default=False) as other:
        x = client.submit(inc, 1, key="the-same-key")
        y = other.submit(inc, 10, key="the-same-key")
        assert stock.submit(total, x, y).result(timeout=10) == 13
        assert stock.gather(stock.map(double, [x, y])) == [4, 22]
        del x, y


def test_what_cannot_be_promoted_says_so_at_once(
    cluster: LocalCluster, client: Client, stock: distributed.Client
) -> None:
    with Client(cluster, set_as_default=False) as other:
        closed = other.submit(inc, 1, key="of-a-closed-one")
    with pytest.raises(ClosedOwner, match="'of-a-closed-one' cannot be the input"):
        stock.submit(inc, closed)
    released = client.submit(inc, 1, key="let-go")
    released.release()
    with pytest.raises(FutureCancelledError, match="let-go"):
        stock.submit(inc, released)
    with (
        small_cluster(n_workers=1) as elsewhere,
        distributed.Client(elsewhere, set_as_default=False) as stranger,
    ):
        x = client.submit(inc, 1, key="of-another-cluster")
        with pytest.raises(NotHere, match=r"'of-another-cluster' .* of another cluster"):
            stranger.submit(inc, x)
        strange = stranger.submit(inc, 1)
        with pytest.raises(NotHere, match="scheduler of another cluster"):
            client.submit(inc, strange)


def test_waiting_for_an_owned_value_takes_no_slot(
    client: Client, stock: distributed.Client
) -> None:
    never = [client.submit(same, i, resources={"nothing-has-it": 1}) for i in range(20)]
    waiting = stock.map(inc, never)
    assert [stock.submit(inc, i, pure=False).result(timeout=10) for i in range(3)] == [1, 2, 3]
    assert [client.submit(inc, i, pure=False).result(timeout=10) for i in range(3)] == [1, 2, 3]
    assert {future.status for future in waiting} == {"pending"}
    client.cancel(never)


def test_large_values_are_read_where_they_are(
    client: Client, stock: distributed.Client, workers: list[str], tmp_path: Path
) -> None:
    """Neither client nor scheduler has them, and at their own worker there is no copy."""
    path = str(tmp_path / "processes")
    here = {"workers": workers[0], "pure": False}
    there = {"workers": workers[1], "pure": False}
    x = client.submit(traced, path, **here)
    distributed.wait(x)
    assert stock.submit(size_and_place, x, **here).result(timeout=10) == (LARGE, workers[0])
    y = stock.submit(same, x, **here)
    assert client.submit(is_same, x, y, **here).result(timeout=10)
    assert len(lines(path)) == 1
    assert stock.submit(size_and_place, x, **there).result(timeout=10) == (LARGE, workers[1])
    central = stock.submit(traced, path, **there)
    distributed.wait(central)
    assert client.submit(size_and_place, central).result(timeout=10) == (LARGE, workers[1])
    assert client.submit(size_and_place, central, **here).result(timeout=10) == (
        LARGE,
        workers[0],
    )
    assert str(os.getpid()) not in lines(path) and len(set(lines(path))) == 2


# ---- central values in owned tasks ----


def test_central_futures_are_arguments_of_owned_tasks(
    client: Client, stock: distributed.Client
) -> None:
    x = stock.submit(inc, 1)
    slow = stock.submit(time.sleep, 0.3, pure=False)
    before = client.central_calls
    assert client.submit(inc, x).result(timeout=10) == 3
    assert client.submit(same, [x, {"a": (x, slow)}]).result(timeout=10) == [2, {"a": (2, None)}]
    assert client.gather(client.map(total, [x, 1, x], [1, x, x])) == [3, 3, 4]
    assert client.submit(dict, a=x).result(timeout=10) == {"a": 2}
    assert client.get({"y": (total, x, 5)}, "y") == 7
    assert client.compute(dask.delayed(total)(x, 2)).result(timeout=10) == 4
    assert client.central_calls > before
    one = client.submit(inc, 5)
    assert client.compute(dask.delayed(total)(x, one)).result(timeout=10) == 8


def test_a_central_future_that_is_released_after_the_submit(
    client: Client, stock: distributed.Client
) -> None:
    x = stock.submit(time.sleep, 0.3, pure=False)
    y = client.submit(same, x)
    x.release()
    del x
    assert y.result(timeout=10) is None
    gone = stock.submit(inc, 1, key="gone")
    gone.cancel()
    with pytest.raises(FutureCancelledError, match="gone"):
        client.submit(inc, gone)


def test_errors_of_central_tasks_reach_owned_ones(
    client: Client, stock: distributed.Client
) -> None:
    failed = stock.submit(oops, pure=False)
    with pytest.raises(Oops, match="it broke"):
        client.submit(inc, failed).result(timeout=10)
    with pytest.raises(Oops, match="it broke"):
        client.submit(inc, failed, pure=False).result(timeout=10)
    later = stock.submit(oops, stock.submit(time.sleep, 0.2, pure=False))
    with pytest.raises(Oops, match="it broke"):
        client.submit(inc, later).result(timeout=10)
    cancelled = stock.submit(time.sleep, 1, pure=False)
    future = client.submit(inc, cancelled)
    stock.cancel([cancelled])
    with pytest.raises(FutureCancelledError):
        future.result(timeout=10)


def test_inside_tasks(client: Client) -> None:
    pytest.importorskip("dask.array")
    assert client.submit(shuffles_inside, 4).result(timeout=20) == 16 * 17 / 2
    assert client.submit(through_both_planes, 1).result(timeout=20) == 2 + 3

    async def in_a_coroutine(x: int) -> int:
        client = get_client()
        owned = client.submit(inc, x)
        actor = await client.submit(Adder, owned, actor=True)
        return int(await client.submit(add, actor, 10))

    assert client.submit(in_a_coroutine, 1).result(timeout=20) == 12
    client.run(gc.collect)  # calls of an actor leave cycles with its handle, in any Dask


def test_an_asynchronous_client(cluster: LocalCluster) -> None:
    async def run() -> None:
        address = cluster.scheduler_address
        async with (
            Client(address, asynchronous=True) as client,
            distributed.Client(address, asynchronous=True, set_as_default=False) as stock,
        ):
            x = client.submit(inc, 1)
            y = stock.submit(inc, x)
            assert await client.submit(total, x, y) == 5
            actor = await client.submit(Adder, x, actor=True)
            assert await actor.add(y.key and 1) == 3
            assert await client.submit(inc, actor.add(1)) == 5

    asyncio.run(run())


# ---- workers that die ----


def test_workers_that_die_after_a_crossing(tmp_path: Path) -> None:
    """Each plane computes again what the other needs again."""
    path = str(tmp_path / "mark")
    with (
        small_cluster() as cluster,
        Client(cluster) as client,
        distributed.Client(cluster, set_as_default=False) as stock,
    ):
        workers = wait_for_members(client, 2)
        actor = client.submit(Adder, actor=True, workers=workers[0])
        assert actor.result(timeout=10).add(1).result() == 1
        here = {"workers": workers[0], "allow_other_workers": True}
        owned = client.submit(marked_blob, LARGE, path, **here)
        promoted = stock.submit(bytes, owned, **here)
        central = stock.submit(marked_blob, LARGE, path, pure=False, **here)
        imported = client.submit(bytes, central, **here)
        assert len(promoted.result(timeout=10)) == len(imported.result(timeout=10)) == LARGE
        assert set(stock.who_has([promoted])[promoted.key]) == {workers[0]}
        assert [view.address for view in imported._row.locations] == [workers[0]]
        again = 1 + (stock.who_has([central])[central.key] == (workers[0],))
        del owned, central
        assert len(lines(path)) == 2
        kill(client, workers[0])
        assert len(promoted.result(timeout=30)) == LARGE
        assert len(imported.result(timeout=30)) == LARGE
        assert len(lines(path)) == 2 + again
        with pytest.raises(RuntimeError, match="Actor was lost"):
            client.submit(same, actor).result(timeout=10)
        del promoted, imported, actor
        rows = client.owner.core.table.rows
        until(lambda: gc.collect() >= 0 and not rows, 10, "nothing is left at the client")


# ---- shuffles ----


def test_p2p_shuffles_take_owned_inputs(client: Client) -> None:
    pd = pytest.importorskip("pandas")
    dd = pytest.importorskip("dask.dataframe")
    table = pd.DataFrame({"k": [i % 7 for i in range(100)], "v": range(100)})
    df = dd.from_pandas(table, npartitions=4).persist()
    shuffled = df.shuffle("k", shuffle_method="p2p")
    assert sorted(shuffled.compute().v) == list(range(100))
    both = dask.persist(df, shuffled)
    assert [{type(f) for f in distributed.futures_of(c)} for c in both] == [
        {Future},
        {distributed.Future},
    ]
    doubled = both[1].map_partitions(lambda part: part.assign(w=part.v * 2)).persist()
    assert {type(f) for f in distributed.futures_of(doubled)} == {Future}
    assert doubled.w.sum().compute() == 2 * sum(range(100))
    merged = df.merge(doubled, on="k", shuffle_method="p2p").compute()
    expected = table.merge(table.assign(w=table.v * 2), on="k")
    columns = list(expected.columns)
    assert (
        merged[columns].sort_values(columns).to_numpy().tolist()
        == expected.sort_values(columns).to_numpy().tolist()
    )


def test_p2p_rechunks_take_owned_inputs(client: Client) -> None:
    array = pytest.importorskip("dask.array")
    x = array.arange(400, chunks=100).reshape(20, 20).persist()
    expected = x.compute()
    y = x.rechunk((20, 4), method="p2p")
    assert (y.compute() == expected).all()
    y = y.persist()
    assert {type(f) for f in distributed.futures_of(y)} == {distributed.Future}
    assert ((y + y.T).compute() == expected + expected.T).all()
    assert ((x.rechunk((20, 5), method="p2p") @ y).compute() == expected @ expected).all()


# ---- actors ----


def test_actors_take_owned_futures_and_are_arguments(client: Client) -> None:
    x = client.submit(inc, 1)
    future = client.submit(Adder, x, actor=True)
    adder = future.result(timeout=10)
    assert adder.add(1).result() == 3
    assert client.submit(add, future, 2).result(timeout=10) == 5
    assert client.submit(add, adder, 2, pure=False).result(timeout=10) == 7
    assert client.submit(add, Adder, 0).exception(timeout=10) is not None
    adders = client.gather(client.map(Adder, [x, 5], actor=True))
    assert client.gather(client.map(add, adders, [x, x])) == [4, 7]
    assert client.compute(dask.delayed(add)(adders[0], 1)).result(timeout=10) == 5


def test_results_of_actors_are_passed_on(client: Client) -> None:
    adder = client.submit(Adder, 1, actor=True).result()
    assert client.submit(inc, adder.add(1)).result(timeout=10) == 3
    assert client.submit(total, adder.add(1), adder.add(1)).result(timeout=10) == 7
    with pytest.raises(Oops, match="it broke"):
        client.submit(inc, adder.fail()).result(timeout=10)
    owned = client.submit(inc, 1)
    assert client.gather([client.submit(same, adder.n), owned]) == [4, 2]


def test_waiting_for_an_actor_takes_no_slot(client: Client, workers: list[str]) -> None:
    adder = client.submit(Adder, 1, actor=True, workers=workers[0]).result()

    def ask(adder: Any) -> int:
        return adder.slow().result()

    started = time.monotonic()
    asking = client.submit(ask, adder, workers=workers[1])
    assert client.submit(inc, 1, workers=workers[1], pure=False).result(timeout=10) == 2
    assert not asking.done() and time.monotonic() - started < 0.5
    assert asking.result(timeout=10) == 1


# ---- coordination ----


def test_waiting_for_a_semaphore_takes_no_slot(client: Client, workers: list[str]) -> None:
    """Who waits for it lets the one run that gives it back."""
    semaphore = distributed.Semaphore(max_leases=1, name="one-slot")

    def take(semaphore: distributed.Semaphore) -> bool:
        with semaphore:
            return True

    def give_back(semaphore: distributed.Semaphore) -> None:
        semaphore.release()

    semaphore.acquire()
    taking = [client.submit(take, semaphore, workers=workers[0], pure=False) for _ in range(2)]
    until_there(client, "parked", *taking)
    assert client.submit(inc, 1, workers=workers[0], pure=False).result(timeout=10) == 2
    semaphore.release()
    assert client.gather(taking) == [True, True]
    semaphore.close()


def test_waiting_for_an_event_or_variable_takes_no_slot(client: Client, workers: list[str]) -> None:
    def wait() -> bool:
        return bool(distributed.Event("crossing").wait(20))

    def read() -> Any:
        return distributed.Variable("crossing").get(20)

    def lock() -> bool:
        many = distributed.MultiLock(["a", "b"])
        assert many.acquire(timeout=20)
        many.release()
        return True

    def set_all() -> None:
        distributed.Variable("crossing").set(5)
        distributed.Event("crossing").set()

    held = distributed.MultiLock(["b"])
    held.acquire()
    here = {"workers": workers[0], "pure": False}
    waiting = [client.submit(f, **here) for f in (wait, read, lock)]
    client.submit(set_all, **here).result(timeout=10)
    held.release()
    assert client.gather(waiting) == [True, 5, True]
    distributed.Variable("crossing").delete()
    distributed.Event("crossing").clear()


# ---- sharing slots ----


def test_two_planes_share_a_worker(
    client: Client, stock: distributed.Client, workers: list[str]
) -> None:
    """Neither a stock client nor an owner starves beside the other."""
    counts = {"owned": 0, "stock": 0}
    over = threading.Event()

    def count(name: str, futures: list[Any]) -> None:
        for _ in distributed.as_completed(futures, loop=futures[0].client.loop):
            if not over.is_set():
                counts[name] += 1
        over.set()

    here = {"workers": workers[0], "pure": False}
    groups = {
        "stock": [stock.submit(time.sleep, 0.01, **here) for _ in range(100)],
        "owned": [client.submit(time.sleep, 0.01, **here) for _ in range(100)],
    }
    threads = [threading.Thread(target=count, args=item) for item in groups.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    stock.gather(groups["stock"])
    client.gather(groups["owned"])
    assert min(counts.values()) >= 0.25 * sum(counts.values()), counts


def test_two_owners_of_one_cluster(client: Client, cluster: Any) -> None:
    """Futures of one client are inputs of the other's tasks and graphs, while these need them."""
    with Client(cluster, set_as_default=False) as other:
        theirs = other.submit(inc, 1, key="theirs")
        large = other.submit(bytes, LARGE, pure=False)
        array = other.persist(da.ones((100, 100), chunks=50))
        mine = client.submit(inc, theirs, key="mine")
        assert client.gather(client.map(inc, [1, theirs], key="both")) == [2, 3]
        length = client.submit(len, large)
        del theirs, large
        assert (mine.result(timeout=10), length.result(timeout=10)) == (3, LARGE)
        assert client.compute(array.sum()).result(timeout=10) == 10_000
        del array, length, mine
        until(lambda: not client.owner.core.table.all(), 5, "nothing left here")
        until(lambda: not other.owner.core.table.all(), 5, "nothing left there")
