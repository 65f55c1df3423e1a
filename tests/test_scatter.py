"""``Client.scatter``."""

from __future__ import annotations

import asyncio
import queue
import time

import distributed
import numpy as np
import pytest
from dask.dataframe import from_pandas
from distributed import LocalCluster
from live import until
from programs import SlowToArrive, inc, leftovers, where

from dask_ownership import Client, Future, get_client, get_worker


def test_one_value(client: Client) -> None:
    future = client.scatter(5)
    assert isinstance(future, Future)
    assert future.result() == 5
    assert future.status == "finished"
    assert client.submit(inc, future).result() == 6


@pytest.mark.parametrize("kind", [list, tuple, set, frozenset])
def test_containers(client: Client, kind: type) -> None:
    futures = client.scatter(kind([1, 2, 3]))
    assert type(futures) is kind
    assert sorted(f.result() for f in futures) == [1, 2, 3]


def test_dict_names_the_keys(client: Client) -> None:
    futures = client.scatter({"x": 1, "y": [2]})
    assert futures["x"].key == "x"
    assert client.gather(futures) == {"x": 1, "y": [2]}


def test_a_name_that_is_used_again(client: Client) -> None:
    """It names another value once nobody has a future of the last one."""
    seen = []
    for number in range(4):
        future = client.scatter({"again": [number]})["again"]
        seen.append(client.gather(future))
        del future
    assert seen == [[0], [1], [2], [3]]


def test_range_and_empty(client: Client) -> None:
    assert client.gather(client.scatter(range(3))) == [0, 1, 2]
    assert client.scatter([]) == []
    assert client.scatter({}) == {}


def test_array(client: Client) -> None:
    x = np.arange(100_000)
    future = client.scatter(x)
    assert (future.result() == x).all()
    assert client.submit(np.sum, future).result() == x.sum()
    assert future.type is np.ndarray


def test_hash(client: Client) -> None:
    assert client.scatter(5).key == client.scatter(5).key
    assert client.scatter(5, hash=False).key != client.scatter(5, hash=False).key


def test_same_value_twice(client: Client) -> None:
    futures = client.scatter([1, 1, 2])
    assert client.gather(futures) == [1, 1, 2]


def test_workers(client: Client, workers: list[str]) -> None:
    for address in workers:
        future = client.scatter(np.ones(1000 + workers.index(address)), workers=[address])
        assert client.submit(where, future, pure=False).result() == address
    assert client.scatter("by address", workers=workers[0]).result() == "by address"


def test_unknown_worker(client: Client) -> None:
    with pytest.raises(ValueError, match="nobody"):
        client.scatter(1, workers=["nobody"], timeout=0.2)


@pytest.mark.parametrize("broadcast", [True, 2])
def test_broadcast(client: Client, workers: list[str], broadcast: bool | int) -> None:
    future = client.scatter(np.ones(100_000), broadcast=broadcast)
    for address in workers:
        assert client.submit(np.sum, future, workers=address, pure=False).result() == 100_000
    held = client.run(
        lambda dask_worker: (
            dask_worker.extensions["dask-ownership"].store.nbytes
            if hasattr(dask_worker.extensions["dask-ownership"], "store")
            else dask_worker.extensions["dask-ownership"].executor.store.nbytes
        )
    )
    assert all(nbytes >= 800_000 for nbytes in held.values())


def test_values_are_spread(client: Client, workers: list[str]) -> None:
    futures = client.scatter([np.ones(1000 + i) for i in range(4)])
    at = client.run(
        lambda dask_worker: len(dask_worker.extensions["dask-ownership"].executor.store.sizes)
    )
    assert sorted(at.values()) == [2, 2]
    assert len(client.gather(futures)) == 4


def test_iterators_are_refused(client: Client) -> None:
    with pytest.raises(TypeError, match="Iterators"):
        client.scatter(iter([1]))
    with pytest.raises(TypeError, match="Queues"):
        client.scatter(queue.Queue())


def test_unpicklable(client: Client) -> None:
    import threading

    with pytest.raises(TypeError, match="pickle"):
        client.scatter(threading.Lock())
    assert client.scatter(1).result() == 1


def test_dataframe(client: Client) -> None:
    import pandas as pd

    frame = pd.DataFrame({"a": range(1000), "b": list("ab") * 500})
    future = client.scatter(frame)
    pd.testing.assert_frame_equal(future.result(), frame)
    assert client.submit(len, future).result() == 1000
    assert from_pandas(frame, npartitions=2).a.sum().compute() == 499500


def test_cancel(client: Client) -> None:
    future = client.scatter(np.ones(1000))
    future.cancel()
    assert future.cancelled()


def test_wrong_address_does_not_disturb(client: Client, cluster: LocalCluster) -> None:
    with pytest.raises(ValueError):
        client.scatter({"x": 1}, workers="nobody:1", timeout="100ms")
    assert client.scatter({"x": 1})["x"].result() == 1


def test_none_and_futures_inside(client: Client) -> None:
    assert client.scatter(None).result() is None
    assert client.gather(client.scatter([None, None])) == [None, None]


def scatter_first() -> int:
    client = get_client()
    (future,) = client.scatter([b"x" * 1000])
    return int(client.submit(len, future, workers=[get_worker().address]).result(timeout=10))


def test_what_a_client_scattered_goes_when_the_client_closes(cluster: LocalCluster) -> None:
    """A client that submits nothing has no link by which its workers hear that it closes."""
    with distributed.Client(cluster.scheduler_address, set_as_default=False) as stock:
        with Client(cluster) as client:
            client.scatter(np.ones(1000), broadcast=True)
            owner = client.owner.incarnation
            assert all(stock.run(leftovers, owner).values())
        until(lambda: not any(stock.run(leftovers, owner).values()), 3)


def test_a_client_that_closes_while_it_scatters_leaves_nothing(cluster: LocalCluster) -> None:
    """The value is being unpickled at the worker when the worker hears that the client closes."""
    with distributed.Client(cluster.scheduler_address, set_as_default=False) as stock:
        with Client(cluster) as client:
            address, *_ = stock.scheduler_info(n_workers=-1)["workers"]
            client.submit(inc, 1, workers=address, pure=False).result()  # the client has a link
            owner = client.owner.incarnation
            scattering = client.loop.asyncio_loop
            future = asyncio.run_coroutine_threadsafe(
                client.scatter(SlowToArrive(), workers=address, hash=False, asynchronous=True),
                scattering,
            )
            time.sleep(0.3)
            assert not future.done()
        time.sleep(2)  # the value has arrived
        left = stock.run(leftovers, owner)
    assert not any(left.values()), left


def test_a_task_scatters_before_it_submits() -> None:
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        assert client.submit(scatter_first).result(timeout=20) == 1000
