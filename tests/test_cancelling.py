"""Cancelling goes down the tree of what tasks submitted, whatever they are doing."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import LocalCluster, get_client
from live import inc, kill, small_cluster, until, wait_for_members
from programs import append_line, lines

from dask_ownership import Client, cancelled
from dask_ownership.errors import FutureCancelledError


@pytest.fixture(scope="module")
def one_slot() -> Iterator[LocalCluster]:
    """One worker process with one thread."""
    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=True, dashboard_address=":0"
    ) as cluster:
        yield cluster


@pytest.fixture
def one_slot_client(one_slot: LocalCluster) -> Iterator[Client]:
    with Client(one_slot, set_as_default=False) as client:
        yield client
        assert_slots_are_free(client)


def assert_slots_are_free(client: Client) -> None:
    """No task runs, waits, is parked or has a clock at the workers."""

    def free() -> bool:
        return not any(client.run(unfinished).values())

    until(free, what="slots are free again")
    assert client.submit(inc, 1, pure=False).result(timeout=10) == 2


def unfinished(dask_worker: Any) -> Any:
    executor = dask_worker.extensions["dask-ownership"].executor
    core = executor.core
    left = (
        core.queue.busy,
        core.queue.queued,
        len(core.queue.crowd),
        len(core.queue.resuming),
        len(executor.endings.timeouts),
    )
    return left if any(left) or executor.coroutines else None


# ---- tasks; each leaves a line for what happened to it ----


def spin(path: str, name: str, seconds: float = 20) -> str:
    """Run until nobody wants it any more."""
    append_line(path, f"{name}:started")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if cancelled():
            append_line(path, f"{name}:cancelled")
            return "nobody sees this"
        time.sleep(0.005)
    return "nobody cancelled it"


async def doze(path: str, name: str) -> None:
    """As `spin`, on the event loop."""
    append_line(path, f"{name}:started")
    try:
        await asyncio.sleep(20)
    except asyncio.CancelledError:
        append_line(path, f"{name}:CancelledError:{cancelled()}")
        raise


async def awaits_child(path: str, name: str) -> Any:
    append_line(path, f"{name}:started")
    try:
        return await get_client().submit(spin, path, f"{name}-child", pure=False)
    except asyncio.CancelledError:
        append_line(path, f"{name}:CancelledError")
        raise


async def awaits_several(path: str, name: str) -> Any:
    client = get_client()
    append_line(path, f"{name}:started")
    children = [client.submit(spin, path, f"{name}-child{i}", pure=False) for i in range(3)]
    return await asyncio.gather(*children)


async def does_not_listen(path: str, name: str) -> str:
    """Goes on after it was cancelled."""
    append_line(path, f"{name}:started")
    try:
        await asyncio.sleep(20)
    except asyncio.CancelledError:
        pass
    while not os.path.exists(path + ".end"):
        await asyncio.sleep(0.01)
    return "nobody sees this"


def branch(path: str, name: str) -> list[Any]:
    """Children of all kinds, more than there are slots for, and waits for them."""
    client = get_client()
    append_line(path, f"{name}:started")
    futures = [client.submit(f, path, f"{name}-{f.__name__}", pure=False) for f in (doze, spin)]
    futures += [client.submit(spin, path, f"{name}-queued{i}", pure=False) for i in range(20)]
    try:
        return list(client.gather(futures))
    except FutureCancelledError:
        append_line(path, f"{name}:FutureCancelledError")
        raise


def root(path: str) -> list[Any]:
    client = get_client()
    append_line(path, "root:started")
    futures = [client.submit(awaits_child, path, "coroutine", pure=False)]
    while "coroutine-child:started" not in lines(path):
        time.sleep(0.005)  # before the branches take all slots
    futures += [client.submit(branch, path, f"branch{i}", pure=False) for i in range(2)]
    return list(client.gather(futures))


def submits_when_cancelled(path: str) -> None:
    append_line(path, "parent:started")
    while not cancelled():
        time.sleep(0.005)
    future = get_client().submit(append_line, path, "late:ran", pure=False)
    try:
        future.result()
    except FutureCancelledError:
        append_line(path, "late:FutureCancelledError")


def told(path: Path, what: str, count: int = 1, seconds: float = 10) -> list[str]:
    """Wait until so many lines end with this."""
    until(
        lambda: sum(line.endswith(what) for line in lines(path)) >= count,
        seconds,
        f"{count} times {what!r}",
    )
    return lines(path)


# ---- asking ----


def test_where_there_is_no_owned_task_nothing_is_cancelled(client: Client) -> None:
    assert cancelled() is False
    assert client.submit(cancelled, pure=False).result() is False

    async def ask() -> bool:
        return cancelled()

    assert client.submit(ask, pure=False).result() is False
    assert set(client.run(cancelled).values()) == {False}


def test_a_thread_hears_that_its_future_was_cancelled_or_dropped(
    client: Client, tmp_path: Path
) -> None:
    for number, end in enumerate((lambda f: f.cancel(), lambda f: f.release())):
        path = tmp_path / f"lines{number}"
        future = client.submit(spin, str(path), "task", pure=False)
        told(path, "task:started")
        end(future)
        del future
        told(path, "task:cancelled")


def test_a_thread_hears_that_its_owner_is_gone(cluster: LocalCluster, tmp_path: Path) -> None:
    path = tmp_path / "lines"
    with Client(cluster, set_as_default=False) as client:
        future = client.submit(spin, str(path), "task", pure=False)
        told(path, "task:started")
    told(path, "task:cancelled")
    del future


def test_threads_that_a_task_starts_are_in_no_task(one_slot_client: Client) -> None:
    future = one_slot_client.submit(in_its_own_thread, pure=False)
    assert future.result(timeout=10) is False


def in_its_own_thread() -> bool:
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(cancelled()))
    thread.start()
    thread.join()
    return answers[0]


# ---- the tree ----


def test_the_whole_tree_is_cancelled(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    with (
        small_cluster(threads_per_worker=4) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        wait_for_members(client, 2)
        future = client.submit(root, str(path), pure=False)
        # All parents wait, and a leaf has each of the eight slots.
        parents = {"root", "branch0", "branch1", "coroutine"}

        def under_way() -> bool:
            started = {line.partition(":")[0] for line in lines(path)}
            return started >= parents | {"coroutine-child"} and len(started - parents) == 8

        until(under_way, 10, "it is under way")
        asleep = sum(line.endswith("doze:started") for line in lines(path))
        assert asleep
        future.cancel()
        told(path, "doze:CancelledError:True", asleep)
        told(path, "coroutine:CancelledError")
        told(path, "FutureCancelledError", 2)
        assert_slots_are_free(client)
        after = lines(path)
        started = {line.partition(":")[0] for line in after if line.endswith(":started")}
        ended = {line.partition(":")[0] for line in after if not line.endswith(":started")}
        assert started - ended == {"root"}
        assert len(started - parents) == 8, "those that were queued never start"


def test_what_a_cancelled_task_still_submits_does_not_run(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "lines"
    future = client.submit(submits_when_cancelled, str(path), pure=False)
    told(path, "parent:started")
    future.cancel()
    told(path, "late:FutureCancelledError")
    assert "late:ran" not in lines(path)


def test_the_children_of_a_worker_that_died_are_cancelled(tmp_path: Path) -> None:
    """They run at another worker, and their owner is gone."""
    path = tmp_path / "lines"
    with small_cluster() as cluster, Client(cluster, set_as_default=False) as client:
        here, there = wait_for_members(client, 2)
        future = client.submit(sends_elsewhere, str(path), there, workers=here, pure=False)
        told(path, "elsewhere:started")
        kill(client, here)
        told(path, "elsewhere:cancelled", 1, 20)
        future.cancel()


def sends_elsewhere(path: str, address: str) -> Any:
    client = get_client()
    return client.submit(spin, path, "elsewhere", workers=address, pure=False).result()


# ---- slots ----


def test_a_slot_stays_taken_until_the_thread_is_free(
    one_slot_client: Client, tmp_path: Path
) -> None:
    path = tmp_path / "lines"
    client = one_slot_client
    future = client.submit(deaf, str(path), pure=False)
    told(path, "deaf:started")
    future.cancel()
    behind = client.submit(append_line, str(path), "behind:ran", pure=False)
    assert future.cancelled()
    with pytest.raises(TimeoutError):
        behind.result(timeout=0.3)
    (tmp_path / "lines.end").touch()
    behind.result(timeout=10)
    assert lines(path) == ["deaf:started", "deaf:ended", "behind:ran"]


def deaf(path: str) -> None:
    """A function that cannot be stopped and does not ask."""
    append_line(path, "deaf:started")
    while not os.path.exists(path + ".end"):
        time.sleep(0.01)
    append_line(path, "deaf:ended")


def test_a_coroutine_that_goes_on_keeps_its_slot(one_slot_client: Client, tmp_path: Path) -> None:
    path = tmp_path / "lines"
    client = one_slot_client
    future = client.submit(does_not_listen, str(path), "it", pure=False)
    told(path, "it:started")
    future.cancel()
    behind = client.submit(inc, 1, pure=False)
    with pytest.raises(TimeoutError):
        behind.result(timeout=0.3)
    (tmp_path / "lines.end").touch()
    assert behind.result(timeout=10) == 2


# ---- coroutine tasks ----


@pytest.mark.parametrize("task", [doze, awaits_child, awaits_several])
def test_a_coroutine_that_is_cancelled_leaves_nothing(
    one_slot_client: Client, tmp_path: Path, task: Any
) -> None:
    """Running, or parked while it awaits one or more of its children."""
    path = tmp_path / "lines"
    future = one_slot_client.submit(task, str(path), "it", pure=False)
    told(path, ":started", 1 if task is doze else 2)
    future.cancel()
    assert_slots_are_free(one_slot_client)


def test_a_coroutine_that_waits_for_a_slot_is_cancelled(
    one_slot_client: Client, tmp_path: Path
) -> None:
    """Its child ended, and another task has the slot."""
    path = tmp_path / "lines"
    client = one_slot_client
    future = client.submit(awaits_then_ends, str(path), pure=False)
    told(path, "child:ran")
    blocker = client.submit(deaf, str(path), pure=False)
    told(path, "deaf:started")
    (tmp_path / "lines.go").touch()
    until(lambda: any(client.run(wants_slot).values()), 10, "it wants a slot")
    future.cancel()
    until(lambda: not any(client.run(wants_slot).values()), 10, "it wants none any more")
    (tmp_path / "lines.end").touch()
    blocker.result(timeout=10)
    assert "it:went-on" not in lines(path)


async def awaits_then_ends(path: str) -> None:
    client = get_client()
    child = client.submit(append_line, path, "child:ran", pure=False)
    await child
    # An await of the runtime that ends when the test says so, while another has the slot.
    await client.owner.executor.parking.wait_async(file_is_there(path + ".go"))
    append_line(path, "it:went-on")


async def file_is_there(path: str) -> None:
    while not os.path.exists(path):
        await asyncio.sleep(0.01)


def wants_slot(dask_worker: Any) -> int:
    return len(dask_worker.extensions["dask-ownership"].executor.core.queue.resuming)


def test_coroutines_that_are_cancelled_as_they_start(one_slot_client: Client) -> None:
    """At any moment between the push and the first await."""
    client = one_slot_client
    for pause in (0, 0.0002, 0.0005, 0.001, 0.002) * 20:
        future = client.submit(naps, pure=False)
        time.sleep(pause)
        future.cancel()
    del future
    assert_slots_are_free(client)


async def naps() -> None:
    await asyncio.sleep(20)


def test_a_coroutine_that_is_cancelled_before_its_first_step(one_slot_client: Client) -> None:
    client = one_slot_client
    client.run(cancel_as_they_start, True)
    future = client.submit(naps, pure=False)
    until(lambda: any(client.run(how_many_started).values()))
    until(lambda: not any(client.run(unfinished).values()), what="it gave its slot back")
    client.run(cancel_as_they_start, False)
    future.cancel()


async def cancel_as_they_start(yes: bool, dask_worker: Any) -> None:
    """Have the cancel of a coroutine task arrive between its start and its first step."""
    executor = dask_worker.extensions["dask-ownership"].executor
    coroutines = executor.coroutines
    executor.started_by_test = 0

    def start(call: Any) -> None:
        type(coroutines)._start(coroutines, call)
        executor.started_by_test += 1
        with executor.lock:
            executor.core.lifecycle.cancel(call[0])
        executor.flush()

    if yes:
        coroutines._start = start
    else:
        del coroutines._start, executor.started_by_test


def how_many_started(dask_worker: Any) -> int:
    return dask_worker.extensions["dask-ownership"].executor.started_by_test
