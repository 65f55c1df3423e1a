"""What is said when a wait runs out of time, and of tasks that cannot go on."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import distributed
import pytest
from live import (
    pid_of,
    small_cluster,
    until,
    until_handed_out,
    until_there,
    wait_for_members,
)
from programs import inc, wait_for_file
from test_activity import activity, mine

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


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log warns at once of tasks that cannot go on."""
    monkeypatch.setattr(event_log, "PATIENCE", 0.05)
    monkeypatch.setattr(event_log, "LOOK", 0.01)


@pytest.mark.usefixtures("soon")
def test_warning_once_for_each_reason(client: Client, caplog: pytest.LogCaptureFixture) -> None:
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


@pytest.mark.usefixtures("soon")
def test_no_worker_at_all(caplog: pytest.LogCaptureFixture) -> None:
    with small_cluster(n_workers=0) as cluster, Client(cluster) as client:
        futures = client.map(inc, range(5))
        with pytest.raises(TimeoutError, match=r"5 of 5 futures .* there is no worker"):
            dask_ownership.wait(futures, timeout=0.2)
        until(lambda: "no worker can run 5 tasks, which wait; one of them is" in caplog.text)


def pause(yes: bool, dask_worker: Any) -> None:
    """Have a worker find that its memory is too full, or not."""
    dask_worker.memory_manager.memory_pause_fraction = 1e-9 if yes else 0.99


def takes_tasks(dask_worker: Any) -> bool:
    return bool(dask_worker.extensions["dask-ownership"].executor.core.queue.accepting)


def stuck_on_the_page(client: Client) -> dict[str, str]:
    """The tasks that the dashboard shows first, each with the reason."""
    unfinished = mine(client, activity(client))["unfinished"]
    return {task["key"]: task["why"] for task in unfinished if task["stuck"]}


@pytest.mark.usefixtures("soon")
def test_all_workers_are_paused(caplog: pytest.LogCaptureFixture) -> None:
    with small_cluster() as cluster, Client(cluster) as client:
        wait_for_members(client, 2)
        client.run(pause, True)
        until(lambda: not any(client.run(takes_tasks).values()))
        futures = client.map(inc, range(3), key=["a", "b", "c"])
        after = client.submit(inc, futures[0], key="after")
        until(lambda: "no worker can run 3 tasks, which wait; one of them is 'a': " in caplog.text)
        reason = client.ownership(futures[0]).why
        assert reason.startswith("the workers that may run it take no new tasks, because their")
        assert reason in caplog.text
        assert reason in futures[0]._repr_html_()
        with pytest.raises(TimeoutError) as told:
            futures[0].result(timeout=0.01)
        assert str(told.value) == f"'a' did not end within 0.01 s: {reason}"
        shown = stuck_on_the_page(client)
        assert shown["a"] == reason
        assert shown["after"] == f"it waits for its input 'a': {reason}"
        client.run(pause, False)
        assert client.gather([*futures, after]) == [1, 2, 3, 2]
        assert caplog.text.count("no worker can run") == 1


@pytest.mark.usefixtures("soon")
def test_the_only_worker_does_not_answer(caplog: pytest.LogCaptureFixture, gate: str) -> None:
    quick = {"ownership.silence": "500ms"}
    with dask.config.set(quick), small_cluster(n_workers=1) as cluster, Client(cluster) as client:
        [worker] = wait_for_members(client, 1)
        pid = pid_of(client, worker)
        running = client.submit(wait_for_file, gate, key="running")
        until_there(client, "running", running)
        os.kill(pid, signal.SIGSTOP)
        try:
            until(lambda: "1 task waits for a worker that does not answer" in caplog.text)
            later = client.submit(inc, 1, key="later")
            until(lambda: "no worker can run 1 task, which waits" in caplog.text)
            because = "this worker does not answer: it is frozen, cut off or very busy"
            handed = rf"it is 'running': it was handed to {worker} \d s ago \(attempt 1\), and "
            assert re.search(handed + because, caplog.text)
            reason = f"the only workers that may run it do not answer: {worker}"
            assert f"it is 'later': {reason}" in caplog.text
            shown = stuck_on_the_page(client)
            assert shown["running"].endswith(because)
            assert shown["later"] == reason
        finally:
            os.kill(pid, signal.SIGCONT)
        Path(gate).touch()
        assert running.result(timeout=20) == gate
        assert later.result(timeout=20) == 2
        until(lambda: not stuck_on_the_page(client))
