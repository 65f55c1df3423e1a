"""``dask.annotate(executor=...)``: which of a worker's executors runs a task."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import LocalCluster, WorkerPlugin, get_client, get_worker, rejoin, secede
from distributed.worker import thread_state
from live import assert_nothing_left, inc, small_cluster, until
from programs import Oops, oops, wait_for_file

from dask_ownership import Client, cancelled


class Pools(WorkerPlugin):
    """Gives a worker two pools of its own."""

    name = "pools"

    def setup(self, worker: Any) -> None:
        worker.executors["gpu"] = ThreadPoolExecutor(1, thread_name_prefix="Gpu")
        worker.executors["processes"] = ProcessPoolExecutor(1, mp_context=get_context("spawn"))


@pytest.fixture(scope="module")
def pools() -> Iterator[LocalCluster]:
    with small_cluster(n_workers=1, threads_per_worker=3, processes=False) as cluster:
        yield cluster


@pytest.fixture
def owner(pools: LocalCluster) -> Iterator[Client]:
    with Client(pools, set_as_default=False) as client:
        client.register_plugin(Pools())
        yield client
        assert_nothing_left(client)


def thread(*args: Any) -> str:
    return threading.current_thread().name


@pytest.mark.parametrize("name", ["gpu", "offload", "actor", "default", None])
def test_executors_by_name(owner: Client, name: str | None) -> None:
    expected = {"gpu": "Gpu", "offload": "Dask-Offload", "actor": "Dask-Actor"}.get(str(name), "")
    with dask.annotate(executor=name):
        futures = [owner.submit(thread, pure=False), *owner.map(thread, range(3), pure=False)]
        compute = owner.compute([dask.delayed(thread, pure=False)()])
        layer = dask.delayed(thread, pure=False)()
    for found in owner.gather([*futures, *compute]):
        assert expected in found
    assert owner.compute(layer, optimize_graph=False).result().count(expected)
    if name == "gpu":
        assert not owner.submit(thread, pure=False).result().startswith("Gpu")


def test_an_unknown_executor(owner: Client) -> None:
    with dask.annotate(executor="bad"):
        future = owner.submit(inc, 1)
    expected = "Invalid executor 'bad'; expected one of: \\['actor', 'default'"
    with pytest.raises(ValueError, match=expected):
        future.result()
    with dask.annotate(executor=3), pytest.raises(TypeError, match="executor="):
        owner.submit(inc, 2)
    assert owner.submit(inc, 3).result() == 4


def test_a_task_in_a_pool_has_a_slot_and_those_that_wait_for_the_pool_have_none(
    owner: Client, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    with dask.annotate(executor="gpu"):
        first = owner.submit(wait_for_file, str(go))
        others = owner.map(thread, range(4))
    until(lambda: owner.cluster.workers[0].active_threads)
    assert owner.submit(inc, 1).result(timeout=5) == 2
    slots = owner.map(wait_for_file, [str(go)] * 2, pure=False)
    time.sleep(0.05)
    plain = owner.submit(inc, 5)
    time.sleep(0.1)
    assert not any(future.done() for future in [plain, *others])
    go.touch()
    assert plain.result(timeout=5) == 6
    assert owner.gather(others) == ["Gpu_0"] * 4
    owner.gather([first, *slots])


def all_that_a_task_may() -> tuple[Any, ...]:
    worker = get_worker()
    client = get_client()
    key = worker.get_current_task()
    assert thread_state.key == key and not cancelled()
    found = client.submit(inc, 1).result()
    with dask.annotate(executor="offload"):
        other = client.submit(thread, pure=False).result()
    secede()
    rejoin()
    return key, found, other[:12], threading.current_thread().name


def test_what_a_task_may_do_in_a_pool(owner: Client) -> None:
    with dask.annotate(executor="gpu"):
        futures = [owner.submit(all_that_a_task_may, pure=False) for _ in range(5)]
        assert owner.gather(futures) == [(f.key, 2, "Dask-Offload", "Gpu_0") for f in futures]
        with pytest.raises(Oops):
            owner.submit(oops).result()
        assert owner.submit(inc, owner.submit(inc, 1)).result() == 3

    def state() -> dict[str, Any]:
        return dict(vars(thread_state))

    (worker,) = owner.cluster.workers.values()
    assert worker.executors["gpu"].submit(state).result() == {}
    assert not worker.active_threads


async def loop_thread() -> str:
    return threading.current_thread().name


def test_coroutines_run_on_the_loop_all_the_same(owner: Client) -> None:
    with dask.annotate(executor="gpu"):
        assert not owner.submit(loop_thread).result().startswith("Gpu")


def die() -> None:
    os._exit(1)


def test_processes(owner: Client) -> None:
    with dask.annotate(executor="processes"):
        pid = owner.submit(os.getpid, pure=False).result()
        assert pid != os.getpid()
        assert owner.submit(lambda x, n: x + n, 1, n=owner.submit(inc, 5)).result() == 7
        with pytest.raises(Oops):
            owner.submit(oops).result()
        large = owner.submit(bytes, 300_000)
        assert owner.submit(len, large).result() == 300_000
        with pytest.raises(BrokenProcessPool, match="terminated abruptly"):
            owner.submit(die).result()


def test_a_worker_with_an_executor_of_its_own() -> None:
    pool = ThreadPoolExecutor(1, thread_name_prefix="Mine")
    with (
        small_cluster(n_workers=1, processes=False, executor=pool) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        until(lambda: client.owner.core.placement.workers)
        assert client.submit(thread).result().startswith("Mine")
