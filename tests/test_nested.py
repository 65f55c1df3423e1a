"""Tasks that submit tasks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import distributed
import pytest
from distributed import LocalCluster
from live import until
from programs import (
    Oops,
    chain_inside,
    child_error_passes,
    child_fails,
    child_keys,
    children_leave_marks,
    compute_array_inside,
    compute_inside,
    compute_with,
    coroutine_as_completed,
    coroutine_awaits,
    coroutine_deep,
    coroutine_stock_as_completed,
    coroutine_submits,
    deep,
    fan,
    fan_as_completed,
    fan_in_worker_client,
    fan_pids,
    fan_together,
    fan_wait,
    fib,
    impatient,
    inc,
    inc_later,
    kind_of_client,
    large_child,
    lines,
    oops_later,
    parks_and_counts,
    persist_inside,
    scatter_inside,
    secede_and_rejoin,
    secede_only,
    sleep,
)

import dask_ownership
from dask_ownership import Client, wait


@pytest.fixture(scope="module")
def one_slot() -> Iterator[LocalCluster]:
    """One worker process with one thread."""
    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=True, dashboard_address=":0"
    ) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def one_slot_client(one_slot: LocalCluster) -> Iterator[Client]:
    with Client(one_slot, set_as_default=False) as client:
        yield client


# ---- ways to submit and to wait ----


def test_get_client(client: Client) -> None:
    assert client.submit(fan, 20).result() == sum(range(1, 21))


def test_worker_client(client: Client) -> None:
    assert client.submit(fan_in_worker_client, 20).result() == sum(range(1, 21))


def test_children_of_children_as_arguments(client: Client) -> None:
    assert client.submit(fan_together, 20).result() == sum(range(1, 21))
    assert client.submit(chain_inside, 30).result() == 30


def test_dask_compute(client: Client) -> None:
    assert client.submit(compute_inside, 10).result() == sum(range(1, 11))
    assert client.submit(compute_array_inside, 100).result() == 100
    assert client.submit(persist_inside, 100).result() == 100


def test_dask_compute_in_a_graph(client: Client) -> None:
    assert dask.delayed(compute_inside)(10).compute() == sum(range(1, 11))


def test_scatter(client: Client) -> None:
    assert client.submit(scatter_inside, 100_000).result() == 100_000


def test_large_values_between_children(client: Client) -> None:
    assert client.submit(large_child, 100_000).result() == 100_000


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "stock"])
def test_as_completed_and_wait(client: Client, ours: bool) -> None:
    assert client.submit(fan_as_completed, 10, ours).result() == sum(range(1, 11))
    assert client.submit(fan_wait, 10, ours).result() == sum(range(1, 11))


def test_waiting_again_and_again(client: Client) -> None:
    assert client.submit(parks_and_counts, 50).result() == 50


def test_many_parents(client: Client) -> None:
    assert client.gather(client.map(fan, range(30))) == [sum(range(1, n + 1)) for n in range(30)]


def test_explicit_secede_and_rejoin(client: Client) -> None:
    assert client.submit(secede_and_rejoin, 10).result() == sum(range(1, 11)) + 1
    assert client.submit(secede_only, 10).result() == sum(range(1, 11))
    assert client.gather(client.map(secede_only, range(5))) == [0, 1, 3, 6, 10]


def test_children_need_no_scheduler(client: Client) -> None:
    client.submit(fan, 5).result()

    def tasks(dask_scheduler: distributed.Scheduler) -> int:
        return len(dask_scheduler.tasks)

    future = client.submit(fan, 200)
    most = 0
    while not future.done():
        most = max(most, client.run_on_scheduler(tasks))
    assert future.result() == sum(range(1, 201))
    assert most == 0


def test_children_run_on_both_workers(client: Client) -> None:
    pids = client.submit(fan_pids, 20).result()
    assert len(set(pids)) == 2


# ---- coroutine tasks ----


def test_coroutines(client: Client) -> None:
    assert client.submit(inc_later, 1).result() == 2
    assert client.gather(client.map(inc_later, range(20))) == list(range(1, 21))
    with pytest.raises(Oops, match="it broke later"):
        client.submit(oops_later, 1).result()


def test_coroutines_that_submit(client: Client) -> None:
    assert client.submit(coroutine_awaits, 1).result() == 2
    assert client.submit(coroutine_submits, 20).result() == sum(range(1, 21))
    assert client.submit(coroutine_as_completed, 5).result() == sum(range(1, 6))


# ---- recursion ----


def test_recursion(client: Client) -> None:
    assert client.submit(fib, 8).result() == 21


def test_deep_recursion_on_one_slot(one_slot_client: Client) -> None:
    assert one_slot_client.submit(deep, 60).result(timeout=30) == 60


def test_deep_recursion_of_coroutines_on_one_slot(one_slot_client: Client) -> None:
    assert one_slot_client.submit(coroutine_deep, 60).result(timeout=30) == 60


@pytest.mark.parametrize("function", [coroutine_as_completed, coroutine_stock_as_completed])
def test_coroutine_as_completed_on_one_slot(one_slot_client: Client, function: Any) -> None:
    assert one_slot_client.submit(function, 5).result(timeout=10) == sum(range(1, 6))


def test_a_wait_whose_time_runs_out_ends_on_time_on_one_slot(one_slot_client: Client) -> None:
    waited = one_slot_client.submit(impatient, 1.0).result(timeout=10)
    assert 0.1 <= waited < 0.6
    assert one_slot_client.submit(fib, 4).result(timeout=10) == 3


def test_wide_recursion_on_one_slot(one_slot_client: Client) -> None:
    assert one_slot_client.submit(fib, 7).result(timeout=30) == 13
    assert one_slot_client.submit(compute_inside, 10).result(timeout=30) == 55
    assert one_slot_client.submit(fan_in_worker_client, 5).result(timeout=30) == 15
    assert one_slot_client.submit(secede_and_rejoin, 5).result(timeout=30) == 16


def test_ordinary_task_that_uses_the_owner_on_one_slot(
    one_slot: LocalCluster, one_slot_client: Client
) -> None:
    """A task of a stock client gives its slot up as well."""
    with distributed.Client(one_slot, set_as_default=False) as stock:
        assert stock.submit(compute_with, "ownership", 10).result(timeout=20) == 55
        assert stock.submit(inc, 1).result(timeout=20) == 2
    assert one_slot_client.submit(inc, 5).result(timeout=20) == 6


def with_its_own_client(kind: type, address: str) -> int:
    with kind(address, set_as_default=False) as client:
        futures = client.map(inc, range(3))
        distributed.wait(futures) if kind is distributed.Client else dask_ownership.wait(futures)
        return int(client.submit(inc, 1).result() + sum(client.gather(futures)))


@pytest.mark.parametrize("kind", [distributed.Client, Client], ids=["stock", "ours"])
def test_a_task_that_connects_a_client_of_its_own(
    one_slot: LocalCluster, one_slot_client: Client, kind: type
) -> None:
    """What it waits for may need its slot."""
    future = one_slot_client.submit(with_its_own_client, kind, one_slot.scheduler_address)
    assert future.result(timeout=20) == 8


def test_ordinary_tasks_keep_the_stock_client(one_slot: LocalCluster, client: Client) -> None:
    """The plugins change nothing for those who do not use them."""
    with distributed.Client(one_slot, set_as_default=False) as stock:
        kind = stock.submit(kind_of_client, pure=False).result(timeout=20)
        assert kind == "distributed.client"
    with Client(one_slot, set_as_default=False) as owned:
        assert owned.submit(kind_of_client, pure=False).result() == "dask_ownership.client.client"


def test_parents_do_not_exceed_the_slots(one_slot_client: Client) -> None:
    """A parent that waits gives its slot up, and no more than that."""
    start = time.time()
    futures = [one_slot_client.submit(sleep, 0.05, pure=False) for _ in range(6)]
    futures += one_slot_client.map(fan, range(5))
    wait(futures)
    assert time.time() - start >= 0.3


# ---- errors, keys, cancelling ----


def test_error_of_a_child(client: Client) -> None:
    assert client.submit(child_fails).result() == "caught it broke"
    with pytest.raises(Oops, match="it broke"):
        client.submit(child_error_passes).result()


def test_child_keys_are_the_same_each_time(client: Client) -> None:
    first = client.submit(child_keys, 5, key="parent")
    keys = first.result()
    assert len(set(keys)) == 5
    first.release()
    del first
    until(lambda: "parent" not in client.owner.core.table.rows)
    assert client.submit(child_keys, 5, key="parent").result() == keys
    assert client.submit(child_keys, 5, key="another").result() != keys


def test_children_are_cancelled_with_their_parent(client: Client, tmp_path: Path) -> None:
    mark, started = tmp_path / "mark", tmp_path / "started"
    parent = client.submit(children_leave_marks, str(mark), str(started), 20, pure=False)
    until(started.exists)
    parent.cancel()
    time.sleep(0.3)
    ran = len(lines(mark))
    assert ran < 10
    time.sleep(0.3)
    assert len(lines(mark)) <= ran + 2
    assert client.submit(inc, 1).result() == 2


def threads_of_worker(i: int) -> int:
    time.sleep(0.1)
    return int(distributed.get_worker().state.nthreads)


def test_tasks_find_how_many_threads_their_worker_has_and_one_client() -> None:
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=6, processes=False, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        assert set(client.gather(client.map(threads_of_worker, range(6)))) == {6}
        assert client.gather(client.map(fan, [2] * 12, pure=False))
        assert len(cluster.scheduler.clients) == 3, "the user's, and that of the worker's tasks"
