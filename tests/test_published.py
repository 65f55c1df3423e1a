"""Published datasets: they outlive who published them, and leave nothing when unpublished."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import dask
import dask.array as da
import dask.bag as db
import distributed
import pytest
from conftest import FAILED, check_nothing_left
from dask import delayed
from distributed import LocalCluster, wait
from live import blob, boom, inc, kill, slowinc, small_cluster, until, wait_for_members

from dask_ownership import Client
from dask_ownership.core.protocol.states import CANCELLED
from dask_ownership.errors import NotHere
from dask_ownership.testing.invariants import check_empty, check_ownership


def holding_of(cluster: LocalCluster) -> Any:
    return cluster.scheduler.extensions["dask-ownership"].holding


def nothing_held(cluster: LocalCluster, seconds: float = 2.0) -> None:
    """What was put somewhere is let go of, and no value of it is left."""
    holding = holding_of(cluster)
    core = holding.owner.core

    def left() -> Any:
        gc.collect()
        taking = {owner: dict(taken) for owner, taken in holding.taking.items() if taken}
        return [holding.holds, holding.variables, holding.datasets, taking, core.table.all()]

    until(lambda: not any(left()), seconds, what=left)

    async def check() -> None:
        check_ownership(core)
        check_empty(core)

    cluster.sync(check)


@pytest.fixture
def another(client: Client, cluster: LocalCluster, request: Any) -> Iterator[Client]:
    """A second client of the cluster; in the end nothing of either is left."""
    with Client(cluster, set_as_default=False) as another:
        yield another
        if request.node.nodeid in request.config.stash[FAILED]:
            client.unpublish_dataset(list(client.list_datasets()))
            return
        check_nothing_left(another)
    check_nothing_left(client)
    nothing_held(cluster)


def publisher(cluster: LocalCluster) -> Client:
    """A client that is about to go."""
    return Client(cluster, set_as_default=False)


def test_datasets_of_all_shapes_in_another_client(client, another):
    future = client.submit(inc, 1, pure=False)
    several = client.map(inc, range(3), pure=False)
    x = client.persist(da.ones((40, 40), chunks=(20, 20)) + 1)
    bag = client.persist(db.from_sequence(range(6), npartitions=3))
    lazy = client.persist(delayed(inc)(5))
    client.publish_dataset(future, name="future")
    client.publish_dataset(several=several, x=x, bag=bag)
    client.publish_dataset({"lazy": lazy, ("a", 1): {"deep": [future]}})
    client.datasets["plain"] = [1, 2]
    names = {"future", "several", "x", "bag", "lazy", ("a", 1), "plain"}
    assert set(another.list_datasets()) == set(client.datasets) == names
    assert another.get_dataset("future").key == future.key
    assert another.get_dataset("future").client is another
    assert another.get_dataset("future").result() == 2
    assert another.gather(another.datasets["several"]) == [1, 2, 3]
    y = another.get_dataset("x")
    assert type(y) is da.Array and y.name == x.name
    assert {f.client for f in distributed.futures_of(y)} == {another}
    assert another.compute(y.sum(), sync=True) == 3200
    assert another.compute(another.get_dataset("bag").sum(), sync=True) == 15
    assert another.compute(another.get_dataset("lazy"), sync=True) == 6
    assert another.get_dataset(("a", 1))["deep"][0].result() == 2
    assert another.get_dataset("plain") == [1, 2]
    assert client.get_dataset("future").result() == 2
    for name in names:
        del client.datasets[name]
    assert not another.list_datasets()
    with pytest.raises(KeyError, match="future"):
        another.get_dataset("future")
    assert another.get_dataset("future", default=None) is None


def test_published_data_outlives_the_client(client, another, cluster):
    with publisher(cluster) as gone:
        # Integers: a sum of floats may differ in its last bit, by where a chunk lies in memory.
        x = gone.persist(da.random.randint(0, 1000, (400, 400), chunks=200))
        small, large = gone.submit(inc, 1, pure=False), gone.submit(blob, seed=7, pure=False)
        scattered = gone.scatter(bytearray(b"s") * 100_000, hash=False)
        wait([x, small, large])
        total = gone.compute(x.sum(), sync=True)
        gone.publish_dataset(x=x, futures=[small, large, scattered])
    assert another.compute(another.get_dataset("x").sum(), sync=True) == total
    small, large, scattered = another.get_dataset("futures")
    assert (small.result(), large.result()) == (2, blob(seed=7))
    assert scattered.result() == bytearray(b"s") * 100_000
    # What was taken out stays while someone has it.
    client.unpublish_dataset(["x", "futures"])
    time.sleep(0.2)
    assert another.submit(len, large, pure=False).result() == 200_000


def test_what_had_not_ended_is_computed_all_the_same(client, another, cluster):
    with publisher(cluster) as gone:
        start = gone.submit(slowinc, 0, 0.5, pure=False)
        ends = gone.map(inc, [start] * 3, pure=False)
        gone.publish_dataset(ends=ends)
        data = gone.scatter([1, 2, 3], hash=False)
        gone.publish_dataset(gone.submit(sum, data, pure=False), name="sum")
    assert another.gather(another.get_dataset("ends")) == [2, 2, 2]
    assert another.get_dataset("sum").result() == 6
    client.unpublish_dataset(["ends", "sum"])


def test_an_error_is_published_too(client, another, cluster):
    with publisher(cluster) as gone:
        failed = gone.submit(boom, "in the dataset", pure=False)
        wait(failed)
        gone.publish_dataset(failed, name="failed")
    with pytest.raises(ZeroDivisionError, match="in the dataset"):
        another.get_dataset("failed").result()
    client.unpublish_dataset("failed")


def test_a_published_value_takes_no_memory_twice(client, another, cluster):
    future = client.submit(blob, 5_000_000, pure=False)
    wait(future)
    client.publish_dataset(future, name="large")

    def stored(dask_worker: Any) -> int:
        return int(dask_worker.extensions["dask-ownership"].executor.store.nbytes)

    assert 5_000_000 <= sum(client.run(stored).values()) < 6_000_000
    assert len(another.get_dataset("large").result()) == 5_000_000
    client.unpublish_dataset("large")


def test_publishing_waits_for_no_slot(client, another):
    values = client.map(blob, [100_000] * 2, pure=False)
    wait(values)
    busy = client.map(slowinc, range(2), delay=1.5, pure=False)
    until(lambda: sum(client.run(running).values()) == 2)
    client.publish_dataset(values=values)
    assert {future.status for future in busy} == {"pending"}
    wait(busy)
    client.unpublish_dataset("values")


def running(dask_worker: Any) -> int:
    return int(dask_worker.extensions["dask-ownership"].executor.core.queue.busy)


def test_names_are_taken_unless_overridden(client, another):
    old, new = client.map(inc, range(2), pure=False)
    client.publish_dataset(old, name="x")
    with pytest.raises(KeyError, match="already exists"):
        another.publish_dataset(another.submit(inc, 5), name="x")
    with pytest.raises(KeyError, match="already exists"):
        client.publish_dataset({"y": new, "x": new})
    assert another.get_dataset("x").result() == 1
    assert another.get_dataset("y").result() == 2
    client.publish_dataset(new, name="x", override=True)
    assert another.get_dataset("x").result() == 2
    client.unpublish_dataset(["x", "y"])
    client.unpublish_dataset("x")  # twice is once


def test_who_takes_it_out_may_publish_it_again(client, another, cluster):
    with publisher(cluster) as gone:
        gone.publish_dataset(gone.submit(inc, 1, pure=False), name="first")
    another.publish_dataset(another.get_dataset("first"), name="second")
    client.unpublish_dataset("first")
    time.sleep(0.2)
    assert client.get_dataset("second").result() == 2
    client.unpublish_dataset("second")


def test_a_task_publishes(client, another):
    def publishes() -> None:
        here = distributed.get_client()
        here.publish_dataset(here.submit(slowinc, 1, 0.3), name="by-a-task")

    client.submit(publishes, pure=False).result()
    assert another.get_dataset("by-a-task").result() == 2
    client.unpublish_dataset("by-a-task")


def test_a_client_of_the_central_scheduler_is_told(client, another, cluster):
    client.publish_dataset(ours=[client.submit(inc, 1)])
    queue = distributed.Queue("ours", client=client)
    queue.put(client.submit(inc, 2))
    program = (
        "import distributed, sys\n"
        f"with distributed.Client({cluster.scheduler_address!r}) as client:\n"
        "    for future in (*client.get_dataset('ours'), distributed.Queue('ours').get()):\n"
        "        try: future.result()\n"
        "        except Exception as error: print(type(error).__name__)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=40
    )
    assert ran.stdout.split() == [NotHere.__name__] * 2, ran
    client.unpublish_dataset("ours")
    queue.close()


# ---- deaths ----


@pytest.fixture(scope="module")
def frail() -> Iterator[LocalCluster]:
    """A cluster whose workers die, and are started again."""
    with small_cluster() as cluster:
        yield cluster


@pytest.fixture
def mortal(frail: LocalCluster) -> Iterator[tuple[LocalCluster, Client]]:
    with Client(frail) as client:
        until(lambda: len(client.owner.core.placement.workers) == 2, 20)
        yield frail, client
        check_nothing_left(client)
        nothing_held(frail)


def test_it_is_made_again_when_its_workers_die(mortal):
    cluster, client = mortal
    with publisher(cluster) as gone:
        parts = gone.map(blob, [100_000] * 6, range(6), pure=False)
        sizes = gone.map(lambda part: bytes(part[:3]) * 100_000, parts, pure=False)
        wait(sizes)
        gone.publish_dataset(sizes=sizes)
    for _ in range(2):
        kill(client, wait_for_members(client, 2)[0])
        time.sleep(0.5)
        values = client.gather(client.get_dataset("sizes"))
        assert [value[0] for value in values] == list(range(6))
    client.unpublish_dataset("sizes")


def test_a_publisher_that_is_killed(mortal):
    cluster, client = mortal
    program = (
        "import os, distributed, dask_ownership\n"
        "from live import *\n"
        f"client = dask_ownership.Client({cluster.scheduler_address!r})\n"
        "values = client.map(blob, [100_000] * 2, [1, 2])\n"
        "distributed.wait(values)\n"
        "client.publish_dataset(values=values, slow=client.submit(slowinc, 1, 1.0))\n"
        "os._exit(1)\n"
    )
    with dask.config.set({"ownership.grace": "500ms"}):
        subprocess.run([sys.executable, "-c", program], timeout=40)
        assert client.gather(client.get_dataset("values")) == [
            blob(100_000, 1),
            blob(100_000, 2),
        ]
        assert client.get_dataset("slow").result(timeout=30) == 2
        client.unpublish_dataset(["values", "slow"])


def test_workers_with_published_data_are_retired(mortal):
    cluster, client = mortal
    with publisher(cluster) as gone:
        values = gone.map(blob, [100_000] * 4, range(4), pure=False)
        wait(values)
        gone.publish_dataset(values=values)
    client.retire_workers(wait_for_members(client, 2)[:1])
    wait_for_members(client, 1)
    values = client.gather(client.get_dataset("values"))
    assert [value[0] for value in values] == list(range(4))
    client.unpublish_dataset("values")


def test_a_restart_of_the_cluster_ends_what_is_held() -> None:
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        client.publish_dataset(x=client.submit(inc, 1))
        holder = cluster.scheduler.plugins["dask-ownership"].holding.owner
        # The holder borrows the value from the client until the value has come to be its own.
        until(lambda: len(holder.core.table.all()) == 1)
        client.restart(wait_for_workers=False)
        until(lambda: all(row.state == CANCELLED for row in holder.core.table.all()))
