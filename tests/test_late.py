"""What is said when a wait runs out of time, and of tasks that no worker can run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import distributed
import pytest
from live import small_cluster, until, until_handed_out, until_there
from programs import inc, wait_for_file

import dask_ownership
from dask_ownership import Client, get_client
from dask_ownership.runtime.owner import event_log


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[str]:
    """A file that lets `wait_for_file` end; at the end of the test it does."""
    path = tmp_path / "gate"
    yield str(path)
    path.touch()


def wait_for_child(path: str) -> bool:
    return bool(get_client().submit(wait_for_file, path, pure=False).result())


def test_workers_that_name_none(client: Client) -> None:
    future = client.submit(inc, 1, workers=3)
    with pytest.raises(TimeoutError) as told:
        future.result(timeout="100ms")
    text = str(told.value)
    assert text.startswith(f"{future.key!r} did not end within 0.1 s: workers=[3] names no worker")
    assert "named 0" in text and "named 1" in text and "allow_other_workers" in text
    assert client.ownership(future).why in text
    with pytest.raises(TimeoutError, match="names no worker"):
        future.exception(timeout=0.01)


def test_what_waits_for_such_a_task(client: Client, gate: str) -> None:
    """Of many the reason that only a person can mend is told first."""
    blocked = client.submit(inc, 1, resources={"GPU": 1})
    behind = client.submit(inc, client.submit(inc, blocked))
    running = client.submit(wait_for_file, gate)
    until_there(client, "running", running)
    for wait in (dask_ownership.wait, distributed.wait):
        with pytest.raises(asyncio.TimeoutError) as told:
            wait([running, behind, client.submit(inc, 5)], timeout=0.1)
        text = str(told.value)
        assert text.startswith("2 of 3 futures did not end within 0.1 s.")
        assert f"{behind.key!r}: no worker has resources={{'GPU': 1}}" in text
    with pytest.raises(TimeoutError, match=f"an input of its inputs, {blocked.key!r}: no worker"):
        behind.result(timeout=0.01)
    waits = dask_ownership.as_completed([behind, running], timeout=0.05)
    with pytest.raises(asyncio.TimeoutError, match=r"2 of 2 futures did not end within 0\.05 s"):
        next(waits)
    waits.clear()
    client.cancel([blocked, running])  # Dask's `wait` keeps what it waited for


def test_tasks_that_run_and_tasks_behind_them(client: Client, gate: str) -> None:
    futures = [client.submit(wait_for_file, gate, pure=False) for _ in range(6)]
    until_handed_out(client)
    with pytest.raises(TimeoutError, match=r"was handed to tcp:.* ago \(attempt 1\), and "):
        futures[0].result(timeout=0.01)
    with pytest.raises(TimeoutError, match=r"free slot: .* \(2, with 2 threads\) have \d tasks"):
        futures[-1].result(timeout=0.01)
    Path(gate).touch()
    client.gather(futures)


def test_a_task_that_waits_for_the_tasks_that_it_submitted(client: Client, gate: str) -> None:
    parent = client.submit(wait_for_child, gate)
    until_there(client, "parked", parent)
    with pytest.raises(TimeoutError, match="waits there, without a slot, for tasks that it"):
        parent.result(timeout=0.01)
    Path(gate).touch()
    parent.result()


def test_asynchronous_waits(cluster: distributed.LocalCluster) -> None:
    async def main() -> None:
        async with Client(cluster.scheduler_address, asynchronous=True) as client:
            future = client.submit(inc, 1, workers=["nowhere"])
            reason = r"within 0.05 s: workers=\[nowhere\] names no worker"
            for awaitable in (
                future.result(timeout=0.05),
                future.exception(timeout=0.05),
                dask_ownership.wait([future], timeout=0.05),
                distributed.wait([future], timeout=0.05),
                anext(dask_ownership.as_completed([future], timeout=0.05)),
            ):
                with pytest.raises(asyncio.TimeoutError, match=reason):
                    await awaitable

    asyncio.run(main())


def test_errors_of_tasks_stay_what_they_are(client: Client) -> None:
    def late() -> None:
        raise TimeoutError("of the task")

    with pytest.raises(TimeoutError) as told:
        client.submit(late).result(timeout=20)
    assert str(told.value) == "of the task"


def test_warning_once_for_each_reason(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(event_log, "PATIENCE", 0.05)
    monkeypatch.setattr(event_log, "LOOK", 0.01)

    def lines() -> list[str]:
        return [r.getMessage() for r in caplog.records if "no worker can run" in r.getMessage()]

    with caplog.at_level(logging.WARNING, "dask_ownership.owner"):
        several = [client.submit(inc, i, workers=["nowhere"]) for i in range(3)]
        until(lambda: len(lines()) == 1)
        other = client.submit(inc, 100, resources={"GPU": 2})
        until(lambda: len(lines()) == 2)
        client.gather(client.map(inc, range(200, 220)))
    first, second = lines()
    assert any(
        f"no worker can run {n}, which wait" in first for n in ("3 tasks", "2 tasks", "1 task")
    )
    assert "workers=[nowhere] names no worker" in first and several[0].key in first
    assert "no worker has resources={'GPU': 2}" in second and other.key in second


def test_no_worker_at_all(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(event_log, "PATIENCE", 0.05)
    monkeypatch.setattr(event_log, "LOOK", 0.01)
    with small_cluster(n_workers=0) as cluster, Client(cluster) as client:
        futures = client.map(inc, range(5))
        with pytest.raises(TimeoutError, match=r"5 of 5 futures .* there is no worker"):
            dask_ownership.wait(futures, timeout=0.2)
        until(lambda: "no worker can run 5 tasks, which wait; one of them is" in caplog.text)
