"""Tasks that wait for others while they hold something else."""

from __future__ import annotations

import threading
import time
from typing import Any

import programs
from distributed import Lock, get_client, get_worker, worker_client

from dask_ownership import Client


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
