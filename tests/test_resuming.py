"""Tasks that keep where they are at their owner, and go on there when they run again."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
from typing import Any

import distributed
import pytest
from live import kill, pid_of, small_cluster, until
from programs import append_line, inc, lines, wait_for_file

from dask_ownership import Client, checkpoint, restore, wait
from dask_ownership.errors import OwnershipError


@pytest.fixture(scope="module")
def own_cluster():
    """Nannies start workers again; each test waits until two are there."""
    with small_cluster() as cluster:
        yield cluster


@pytest.fixture
def fragile(own_cluster):
    """A client on workers that the test kills."""
    with Client(own_cluster, set_as_default=False) as client:
        until(lambda: len(client.owner.core.placement.workers) == 2, 20, "two workers")
        yield client


# ---- going on after a death ----


def steps(path: str, dies_at: int, go: str | None = None) -> int:
    """Ten steps with two children each; the worker dies in one of them, the first time."""
    client = distributed.get_client()
    step, total = restore("state", (0, 0))
    while step < 10:
        append_line(path, str(step))
        if step == dies_at and len(lines(path)) == dies_at + 1:
            if go is None:
                os._exit(1)
            wait_for_file(go)  # until it is killed
        total += sum(client.gather([client.submit(inc, step + i, pure=False) for i in range(2)]))
        step += 1
        checkpoint("state", (step, total))
    return total


WHOLE = sum(2 * step + 3 for step in range(10))


def test_a_task_goes_on_where_it_was_when_its_worker_exits(fragile, tmp_path):
    path = str(tmp_path / "steps")
    assert fragile.submit(steps, path, 5).result(timeout=30) == WHOLE
    assert lines(path) == [str(step) for step in (0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9)]


def test_a_task_goes_on_where_it_was_when_its_worker_is_killed(fragile, tmp_path):
    path = str(tmp_path / "steps")
    future = fragile.submit(steps, path, 5, str(tmp_path / "never"))
    until(lambda: len(lines(path)) == 6, 20)
    kill(fragile, future._row.worker.address)
    assert future.result(timeout=30) == WHOLE
    assert lines(path) == [str(step) for step in (0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9)]


async def steps_later(path: str) -> int:
    """A coroutine that dies once; two checkpoints are on their way at once."""
    step = restore("step", 0)
    while step < 6:
        append_line(path, str(step))
        if step == 3 and len(lines(path)) == 4:
            os._exit(1)
        step += 1
        await asyncio.gather(checkpoint("step", step), checkpoint("other", -step))
    return restore("step") + restore("other")


def test_a_coroutine_awaits_its_checkpoints(fragile, tmp_path):
    path = str(tmp_path / "steps")
    assert fragile.submit(steps_later, path).result(timeout=30) == 0
    assert lines(path) == [str(step) for step in (0, 1, 2, 3, 3, 4, 5)]


def child_with_steps(path: str) -> int:
    """Its owner is the worker that the task which submitted it runs on."""
    return int(distributed.get_client().submit(fails_in_the_middle, path, retries=1).result())


def fails_in_the_middle(path: str) -> int:
    step = restore("step", 0)
    while step < 6:
        append_line(path, str(step))
        if step == 3 and len(lines(path)) == 4:
            raise ValueError("the first time")
        step += 1
        checkpoint("step", step)
        assert restore("step") == step
    return step


def test_checkpoints_survive_retries(client, tmp_path):
    path = str(tmp_path / "steps")
    assert client.submit(fails_in_the_middle, path, retries=1).result() == 6
    assert lines(path) == [str(step) for step in (0, 1, 2, 3, 3, 4, 5)]
    path = str(tmp_path / "more steps")
    future = client.submit(fails_in_the_middle, path)
    wait(future)
    future.retry()
    assert future.result() == 6
    assert lines(path) == [str(step) for step in (0, 1, 2, 3, 3, 4, 5)]


def test_checkpoints_of_tasks_that_a_worker_owns(client, tmp_path):
    futures = [client.submit(child_with_steps, str(tmp_path / f"steps{i}")) for i in range(4)]
    assert client.gather(futures) == [6] * 4
    for i in range(4):
        assert lines(tmp_path / f"steps{i}") == [str(step) for step in (0, 1, 2, 3, 3, 4, 5)]


def counts_starts(path: str) -> bytes:
    append_line(path, str(restore("n", 0)))
    checkpoint("n", 1)
    return bytes(200_000)


def test_a_value_that_is_made_again_is_made_without_checkpoints(fragile, tmp_path):
    path = str(tmp_path / "starts")
    future = fragile.submit(counts_starts, path)
    wait(future)
    assert fragile.owner.core.attempts.of(future._row).checkpoints is None
    kill(fragile, future._row.locations[0].address)
    until(lambda: len(lines(path)) == 2, 20)
    assert len(future.result(timeout=20)) == 200_000
    assert lines(path) == ["0", "0"]


# ---- attempts that are not wanted any more ----


def zombie(path: str, go: str) -> None:
    checkpoint("state", "first")
    append_line(path, "kept")
    wait_for_file(go)
    try:
        checkpoint("state", "zombie")
    except OwnershipError as error:
        append_line(path, type(error).__name__)
        raise
    append_line(path, "no-error")


def reads_state() -> str:
    return str(restore("state", "nothing"))


def test_the_checkpoint_of_a_cancelled_task_raises(client, tmp_path):
    path, go = str(tmp_path / "marks"), tmp_path / "go"
    old = client.submit(zombie, path, str(go), key="stateful")
    until(lambda: lines(path) == ["kept"])
    old.cancel()
    new = client.submit(reads_state, key="stateful")
    go.touch()
    until(lambda: len(lines(path)) == 2)
    assert lines(path)[1] == "Superseded"
    assert new.result() == "nothing"


def keeps_a_count(path: str, stop: str) -> int:
    """Go on for ever, but for the second attempt, which ends when it is told to."""
    attempt = restore("attempt", 0) + 1
    checkpoint("attempt", attempt)
    count = 0
    try:
        while not os.path.exists(stop) or attempt == 1:
            count += 1
            checkpoint("count", (attempt, count))
            append_line(path, f"{attempt}", 0.01)
        return int(restore("count")[0])
    except OwnershipError as error:
        append_line(path, type(error).__name__)
        raise


async def forget_worker(address: str, dask_scheduler: Any) -> None:
    """Have the scheduler take a worker for dead that does not answer."""
    await dask_scheduler.remove_worker(address, stimulus_id="test", close=False)


def test_a_worker_that_was_frozen_does_not_change_what_the_next_attempt_keeps(fragile, tmp_path):
    path, stop = str(tmp_path / "marks"), tmp_path / "stop"
    future = fragile.submit(keeps_a_count, path, str(stop))
    until(lambda: "1" in lines(path), 20)
    frozen = future._row.worker.address
    process = pid_of(fragile, frozen)
    os.kill(process, signal.SIGSTOP)
    try:
        fragile.run_on_scheduler(forget_worker, frozen)
        until(lambda: "2" in lines(path), 20)
        before = lines(path).count("1")
    finally:
        os.kill(process, signal.SIGCONT)
    seen = len(lines(path))
    until(lambda: len(lines(path)) > seen + 20, 20)
    # What it was doing when it was frozen may end; nothing that it keeps is taken.
    assert lines(path).count("1") <= before + 1
    assert (
        fragile.owner.core.attempts.of(future._row).checkpoints["count"][0] == future._row.attempt
    )
    stop.touch()
    assert future.result(timeout=20) == 2


def test_the_checkpoint_of_a_closed_client_raises(own_cluster, tmp_path):
    path, go = str(tmp_path / "marks"), tmp_path / "go"
    with Client(own_cluster, set_as_default=False) as client:
        future = client.submit(zombie, path, str(go), key="stateful")
        until(lambda: lines(path) == ["kept"], 20)
        assert future.status == "pending"
    go.touch()
    until(lambda: len(lines(path)) == 2)
    assert lines(path)[1] in ("Superseded", "ClosedOwner")


# ---- what is refused ----


def refused(what: str) -> str:
    """The error of a bad checkpoint, which harms nothing."""
    checkpoint("good", 1)
    bad: dict[str, Any] = {
        "name": lambda: checkpoint(7, 1),  # type: ignore[arg-type]
        "large": lambda: checkpoint("big", bytes(2**20)),
        "lock": lambda: checkpoint("lock", threading.Lock()),
        "future": lambda: checkpoint("future", [distributed.get_client().submit(inc, 1)]),
    }
    try:
        bad[what]()
    except Exception as error:
        assert restore("good") == 1
        checkpoint("good", 2)
        return f"{type(error).__name__}: {error}"
    return "no error"


@pytest.mark.parametrize(
    ("what", "kind", "says"),
    [
        ("name", "TypeError", "a str, not 7"),
        (
            "large",
            "ValueError",
            "'big' \\(1,048,5.. bytes\\) .* bytes, .* allows 1,048,576",
        ),
        ("lock", "NotSerializable", "could not pickle the checkpoint 'lock'"),
        ("future", "NotSerializable", "holds the future 'inc-.*keep its value"),
    ],
)
def test_a_bad_checkpoint_raises_and_harms_nothing(client, what, kind, says):
    text = client.submit(refused, what).result()
    assert text.startswith(kind)
    assert re.search(says, text), text


def test_outside_of_a_task():
    with pytest.raises(RuntimeError, match=r"checkpoint\(\) is for tasks"):
        checkpoint("x", 1)
    with pytest.raises(RuntimeError, match=r"restore\(\) is for tasks"):
        restore("x")


def in_a_thread_of_its_own() -> str:
    problems: list[str] = []

    def ask() -> None:
        try:
            checkpoint("x", 1)
        except RuntimeError as error:
            problems.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return problems[0]


def test_threads_that_a_task_starts_are_in_no_task(client):
    assert "are in no task" in client.submit(in_a_thread_of_its_own).result()


def test_nothing_is_kept_by_default(client):
    assert client.submit(reads_state).result() == "nothing"
