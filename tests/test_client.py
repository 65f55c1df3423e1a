"""The client: how it starts and ends, and submitting."""

from __future__ import annotations

import distributed
import numpy as np
import pytest
from distributed import LocalCluster
from live import until
from programs import Oops, inc, keywords, oops, same, sleep, total, where

import dask_ownership
from dask_ownership import Client, ClosedOwner, NotSerializable


def test_is_a_distributed_client(client: Client) -> None:
    assert isinstance(client, distributed.Client)
    assert type(client).__name__ == "Client"
    assert distributed.Client.current() is client
    assert distributed.get_client() is client


def test_submit(client: Client) -> None:
    future = client.submit(inc, 1)
    assert isinstance(future, distributed.Future)
    assert future.result() == 2
    assert client.central_calls == 0


def test_submit_runs_in_workers(client: Client, workers: list[str]) -> None:
    assert client.submit(where).result() in workers


def test_submit_with_keywords(client: Client) -> None:
    x = client.submit(inc, 1)
    assert client.submit(keywords, a=x, b=[x, {"c": x}]).result() == {"a": 2, "b": [2, {"c": 2}]}


def test_futures_as_arguments_at_any_depth(client: Client) -> None:
    x = client.submit(inc, 1)
    y = client.submit(inc, x)
    argument = [x, (y, {"k": [y, {x}]}), "text", None]
    result = client.submit(same, argument).result()
    assert result == [2, (3, {"k": [3, {2}]}), "text", None]


def test_same_future_twice_in_one_call(client: Client) -> None:
    x = client.submit(inc, 1)
    assert client.submit(total, x, x, x).result() == 6


def test_lambda_and_closure(client: Client) -> None:
    n = 5
    assert client.submit(lambda x: x * n, 4).result() == 20


def test_method_and_partial(client: Client) -> None:
    from functools import partial

    assert client.submit("a b".split).result() == ["a", "b"]
    assert client.submit(partial(total, 1), 2).result() == 3


def test_large_value_passes_between_workers(client: Client, workers: list[str]) -> None:
    x = client.submit(np.ones, 1_000_000, workers=workers[:1])
    y = client.submit(np.sum, x, workers=workers[1:])
    assert y.result() == 1_000_000
    assert x.result().shape == (1_000_000,)


def test_not_callable(client: Client) -> None:
    with pytest.raises(TypeError, match="callable"):
        client.submit(1)
    with pytest.raises(TypeError, match="callable"):
        client.map(1, [1])


def test_error_at_its_own_future_only(client: Client) -> None:
    good, bad = client.submit(inc, 1), client.submit(oops)
    with pytest.raises(Oops, match="it broke"):
        bad.result()
    assert good.result() == 2


def test_error_of_an_argument(client: Client) -> None:
    bad = client.submit(oops)
    after = client.submit(inc, bad)
    later = client.submit(inc, after)
    with pytest.raises(Oops, match="it broke"):
        later.result()
    assert later.status == "error"


def test_unpicklable_argument(client: Client) -> None:
    import threading

    with pytest.raises(TypeError, match="pickle") as caught:
        client.submit(same, threading.Lock())
    assert isinstance(caught.value, NotSerializable)
    assert client.submit(inc, 1).result() == 2


def test_many_tasks_of_many_kinds(client: Client) -> None:
    futures = [client.submit(inc, i, pure=bool(i % 2)) for i in range(500)]
    tops = [client.submit(total, *futures[i : i + 10]) for i in range(0, 500, 10)]
    assert client.submit(sum, tops).result() == sum(range(1, 501))


def test_get_returns_values(client: Client) -> None:
    assert client.get({"x": (inc, 1), "y": (inc, "x")}, ["y", ["x"]]) == [3, [2]]


def test_two_clients_of_one_cluster(client: Client, cluster: LocalCluster) -> None:
    with Client(cluster, set_as_default=False) as other:
        mine, theirs = client.submit(inc, 1), other.submit(inc, 1)
        assert mine.key == theirs.key
        assert mine.result() == theirs.result() == 2
        mine.release()
        assert theirs.result() == 2
        assert client.gather(theirs) == 2
        large = other.submit(bytes, 300_000)
        mine = client.submit(inc, 2)
        assert client.gather({"a": [mine, large]}) == {"a": [3, bytes(300_000)]}
        failing = other.submit(oops)
        with pytest.raises(Oops):
            client.gather([theirs, failing])
        assert client.gather([theirs, failing], errors="skip") == [2]
        del theirs, large, failing


def test_stock_client_beside(client: Client, cluster: LocalCluster) -> None:
    with distributed.Client(cluster, set_as_default=False) as stock:
        assert stock.submit(inc, 1).result() == client.submit(inc, 1).result()
        assert stock.submit(sleep, 0.01, 5).result() == 5


def test_current_client_after_close(cluster: LocalCluster) -> None:
    with Client(cluster) as client:
        assert distributed.Client.current() is client
    with pytest.raises(ValueError):
        distributed.Client.current()


def test_use_after_close(cluster: LocalCluster) -> None:
    client = Client(cluster)
    done = client.submit(inc, 1)
    assert done.result() == 2
    pending = client.submit(sleep, 0.3)
    client.close()
    client.close()
    with pytest.raises(ClosedOwner):
        client.submit(inc, 2)
    with pytest.raises(ClosedOwner):
        client.map(inc, [2])
    with pytest.raises(ClosedOwner):
        client.get({"x": (inc, 1)}, "x")
    with pytest.raises(ClosedOwner):
        pending.result(timeout=1)
    with pytest.raises(ClosedOwner):
        done.result()


def test_close_ends_those_who_wait(cluster: LocalCluster) -> None:
    import threading

    client = Client(cluster)
    future = client.submit(sleep, 1, pure=False)
    caught: list[BaseException] = []

    def ask() -> None:
        try:
            future.result()
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    until(lambda: future._row.waiters)
    client.close()
    thread.join(2)
    assert not thread.is_alive()
    assert isinstance(caught[0], ClosedOwner)


def test_close_restores_configuration(cluster: LocalCluster) -> None:
    import dask

    name = "dataframe.shuffle.method"
    before = dask.config.get(name, None)
    with Client(cluster) as first:
        assert dask.config.get(name) == "tasks"
        with Client(cluster):
            first.close()
            assert dask.config.get(name) == "tasks"
    assert dask.config.get(name, None) == before
    with dask.config.set({name: "p2p"}), Client(cluster):
        assert dask.config.get(name) == "p2p"
    assert dask.config.get(name, None) == before


def test_address_of_a_running_cluster(cluster: LocalCluster) -> None:
    with Client(cluster.scheduler_address, set_as_default=False) as client:
        assert client.submit(inc, 1).result() == 2


def test_scheduler_file(cluster: LocalCluster, tmp_path: object) -> None:
    import json
    from pathlib import Path

    path = Path(str(tmp_path)) / "scheduler.json"
    path.write_text(json.dumps({"address": cluster.scheduler_address}))
    with Client(scheduler_file=str(path), set_as_default=False) as client:
        assert client.submit(inc, 1).result() == 2


def test_embedded_cluster() -> None:
    with Client(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0"
    ) as client:
        assert client.gather(client.map(inc, range(10))) == list(range(1, 11))
        assert client.nthreads() and sum(client.nthreads().values()) == 2


def test_names_of_the_package() -> None:
    for name in dask_ownership.__all__:
        assert hasattr(dask_ownership, name)


def test_cluster_administration(client: Client, workers: list[str]) -> None:
    assert set(client.run(inc, 1)) == set(workers)
    assert set(client.nthreads()) == set(workers)
    assert "Client" in repr(client)
    assert client.dashboard_link


def test_a_key_may_name_something_else_once_its_future_is_gone(client: Client) -> None:
    for value in range(20):
        future = client.submit(inc, value, key="reused")
        assert future.result() == value + 1
        del future
    for value in range(20):
        assert client.get({"x": (inc, value), "y": (inc, "x")}, "y") == value + 2
