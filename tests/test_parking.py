"""Tasks that wait for others while they hold something else."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import distributed
import programs
import pytest
from distributed import (
    Event,
    Lock,
    MultiLock,
    Queue,
    Semaphore,
    Variable,
    get_client,
    get_worker,
    secede,
    worker_client,
)
from live import small_cluster, until

from dask_ownership import Client
from dask_ownership.runtime import parking

pytestmark = pytest.mark.alone  # it says how long things may take


def note(x: int) -> int:
    client = get_client()
    with Lock("notes"):
        assert client.get_metadata("noted") is False
        client.set_metadata("noted", True)
        client.set_metadata("noted", False)
    return x


def test_a_task_keeps_its_slot_for_a_short_request(client: Client) -> None:
    """Else all the others would start and wait for the lock that it has."""
    client.set_metadata("noted", False)
    started = time.time()
    assert client.gather(client.map(note, range(10))) == list(range(10))
    assert time.time() - started < 5


def hold(x: int, elsewhere: str) -> int:
    lock = get_worker().__dict__.setdefault("lock_of_test_parking", threading.Lock())
    with lock:
        time.sleep(0.2)
        return int(get_client().submit(programs.inc, x, workers=elsewhere).result())


def test_a_task_that_holds_a_lock_goes_on_past_those_that_wait_for_it(
    client: Client, workers: list[str]
) -> None:
    here, elsewhere = workers
    tasks = [client.submit(hold, x, elsewhere, workers=here) for x in range(3)]
    assert client.gather(tasks) == [1, 2, 3]


def total() -> int:
    with worker_client() as client:
        return sum(client.gather(client.map(programs.inc, range(10))))


def more_than_total() -> Any:
    with worker_client() as client:
        future = client.submit(programs.inc, total())
        return future.result()


def test_worker_client_inside_worker_client(client: Client) -> None:
    assert client.submit(more_than_total).result() == 56


# ---- locks of the process ----


def local_lock() -> threading.Lock:
    """A lock of the worker's process, as libraries have around their files."""
    lock: threading.Lock = get_worker().__dict__.setdefault("local_lock", threading.Lock())
    return lock


def with_lock(i: int, name: str) -> int:
    with local_lock(), Lock(name):
        time.sleep(0.01)
    return i


def with_semaphore(i: int, name: str) -> int:
    with local_lock(), Semaphore(max_leases=1, name=name):
        time.sleep(0.01)
    return i


def with_multi_lock(i: int, name: str) -> int:
    with local_lock(), MultiLock([name]):
        time.sleep(0.01)
    return i


def with_event(i: int, name: str) -> int:
    with local_lock():
        Event(name).wait()
    return i


def with_variable(i: int, name: str) -> int:
    with local_lock():
        Variable(name).get()
    return i


def with_queue(i: int, name: str) -> int:
    with local_lock():
        Queue(name).get()
    return i


def with_full_queue(i: int, name: str) -> int:
    with local_lock():
        Queue(name, maxsize=1).put(i)
    return i


def with_future(i: int, name: str) -> int:
    with local_lock():
        future = get_client().submit(programs.slowly, i, pure=False, workers=[name])
        return int(future.result())


def with_gather(i: int, name: str) -> int:
    with local_lock():
        client = get_client()
        futures = client.map(programs.slowly, [i, 0], pure=False, workers=[name])
        return sum(client.gather(futures))


def with_completed(i: int, name: str) -> int:
    with local_lock():
        futures = get_client().map(programs.slowly, [i, 0], pure=False, workers=[name])
        return sum(future.result() for future in distributed.as_completed(futures))


@pytest.fixture(scope="module")
def narrow() -> Iterator[Client]:
    """Two workers of one thread."""
    with small_cluster() as cluster, Client(cluster) as client:
        yield client


@pytest.mark.parametrize(
    "task",
    [
        with_lock,
        with_semaphore,
        with_multi_lock,
        with_event,
        with_variable,
        with_queue,
        with_full_queue,
    ],
)
def test_tasks_that_hold_a_lock_of_the_process_while_they_wait_all_end(narrow, task):
    name = f"of-{task.__name__}"
    queue = Queue(name, maxsize=1 if task is with_full_queue else 0, client=narrow)
    futures = narrow.map(task, range(12), name=name, pure=False)
    if task in (with_event, with_variable, with_queue, with_full_queue):
        time.sleep(0.5)
        assert sum(f.done() for f in futures) <= 1
        Event(name, client=narrow).set()
        Variable(name, client=narrow).set(1)
        for _ in range(12):
            queue.get(timeout=5) if task is with_full_queue else queue.put(1)
    assert sum(narrow.gather(futures)) == sum(range(12))
    queue.close()


@pytest.mark.parametrize("task", [with_future, with_gather, with_completed])
def test_tasks_that_hold_a_lock_of_the_process_while_they_wait_for_others_all_end(narrow, task):
    here, elsewhere = list(narrow.owner.core.placement.workers)
    futures = narrow.map(task, range(12), name=elsewhere, workers=[here], pure=False)
    assert sum(narrow.gather(futures)) == sum(range(12))


def waits_and_says_when(name: str) -> float:
    Event(name).wait()
    return time.time()


def blocks_the_slot(seconds: float) -> None:
    time.sleep(seconds)


def test_all_whose_wait_is_over_go_on_soon_whatever_has_the_slots(narrow):
    """Not one after the other: three waiters, and a task that keeps the only slot for seconds."""
    here = next(iter(narrow.owner.core.placement.workers))
    on = {"workers": [here], "pure": False}
    futures = [narrow.submit(waits_and_says_when, "start", **on) for _ in range(3)]
    until(lambda: waiting_at(narrow)[here] == 3, what="three wait")
    blocker = narrow.submit(blocks_the_slot, 3, **on)
    until(lambda: running_at(narrow)[here] == 1, what="the slot is taken")
    started = time.time()
    Event("start", client=narrow).set()
    went_on = narrow.gather(futures)
    assert max(went_on) - started < 0.5
    assert not blocker.done()
    blocker.cancel()


def waiting_at(client: Client) -> dict[str, int]:
    return client.run(lambda dask_worker: len(core_of(dask_worker).queue.crowd))


def running_at(client: Client) -> dict[str, int]:
    return client.run(lambda dask_worker: core_of(dask_worker).queue.busy)


def core_of(worker: Any) -> Any:
    return worker.extensions["dask-ownership"].executor.core


# ---- how many begin ----


def begins(name: str, leaves: bool = False) -> None:
    worker = get_worker()
    worker.begun = getattr(worker, "begun", 0) + 1
    if leaves:
        secede()
    Event(name).wait()


def begun(client: Client) -> int:
    return max(client.run(lambda dask_worker: getattr(dask_worker, "begun", 0)).values())


@pytest.mark.parametrize("leaves", [False, True])
def test_waiting_begins_a_few_more_and_seceding_all_of_them(leaves):
    with small_cluster(n_workers=1) as cluster, Client(cluster) as client:
        futures = client.map(begins, ["go"] * 40, leaves=leaves, pure=False)
        if leaves:
            until(lambda: begun(client) == 40, what="all began")
        else:
            time.sleep(1.5)
            assert 4 <= begun(client) <= 7
        Event("go", client=client).set()
        client.gather(futures)
        assert begun(client) == 40


def test_cancelled_tasks_that_wait_leave_the_worker_to_others():
    with small_cluster(n_workers=1) as cluster, Client(cluster) as client:
        futures = client.map(begins, [f"never-{i}" for i in range(20)], leaves=True, pure=False)
        until(lambda: begun(client) == 20, what="all wait")
        futures += client.map(begins, [f"never-{i}" for i in range(6)], pure=False)
        until(lambda: waiting_at(client).popitem()[1] >= 23, what="it is full")
        client.cancel(futures)
        started = time.time()
        assert client.gather(client.map(programs.inc, range(100), pure=False))
        assert time.time() - started < 2
        for i in range(20):
            Event(f"never-{i}", client=client).set()


def test_a_short_word_to_the_scheduler_keeps_the_slot(narrow):
    """As much of it as a task has while another waits for its slot."""
    here = next(iter(narrow.owner.core.placement.workers))
    on = {"workers": [here], "pure": False}
    # On a busy machine a word may take longer than what counts as long otherwise.
    before = narrow.run(what_counts_as_long, 2.0, workers=[here])[here]
    first = narrow.submit(talks, **on)
    second = narrow.submit(begins, "never-waited-for", **on)
    assert first.result() == 0
    narrow.run(what_counts_as_long, before, workers=[here])
    Event("never-waited-for", client=narrow).set()
    second.result()


def what_counts_as_long(seconds: float) -> float:
    """Have tasks keep their slots for so long while they wait; return the time until now."""
    before, parking.LONG = parking.LONG, seconds
    return before


def talks() -> int:
    """How many others began meanwhile."""
    worker = get_worker()
    before = getattr(worker, "begun", 0)
    client = get_client()
    lock, variable, queue = Lock("short"), Variable("short"), Queue("short")
    for i in range(20):
        lock.acquire()
        variable.set(i)
        variable.get()
        queue.put(i)
        queue.qsize()
        queue.get()
        client.log_event("short", i)
        client.set_metadata("short", i)
        client.get_metadata("short")
        Event("short").is_set()
        lock.release()
    return int(getattr(worker, "begun", 0)) - before


async def awaits(name: str) -> str:
    await Event(name).wait()
    return name


def test_coroutines_give_their_slot_up_too(narrow):
    futures = narrow.map(awaits, [f"coroutine-{i}" for i in range(6)], pure=False)
    until(lambda: sum(waiting_at(narrow).values()) == 6, what="all wait")
    assert narrow.submit(programs.inc, 1, pure=False).result() == 2
    for i in range(6):
        Event(f"coroutine-{i}", client=narrow).set()
    assert narrow.gather(futures) == [f"coroutine-{i}" for i in range(6)]


def short_sleep(x: int) -> int:
    time.sleep(0.003)
    return x


async def waits_many_times(n: int) -> int:
    client = get_client()

    async def one(i: int) -> int:
        await asyncio.sleep(0.004 * i)
        return int(await client.submit(programs.inc, i, pure=False, priority=1))

    return sum(await asyncio.gather(*map(one, range(n))))


def test_a_coroutine_that_waits_for_a_slot_can_begin_another_wait(narrow):
    # The others take the slot whenever the coroutine task waits, so it has to wait for the slot.
    others = narrow.map(short_sleep, range(300), pure=False)
    assert narrow.submit(waits_many_times, 200, pure=False, priority=2).result(timeout=20) == 20100
    assert narrow.gather(others) == list(range(300))
