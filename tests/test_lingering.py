"""Cancelled functions that go on, and cancelling what a notebook's cell submitted."""

from __future__ import annotations

import asyncio
import io
import os
import time
from collections.abc import Iterator
from pathlib import Path

import distributed
import pytest
from live import until, until_there
from programs import inc, wait_for_file

from dask_ownership import Client, cancelled, get_client
from dask_ownership.cli.frame import frame
from dask_ownership.errors import FutureCancelledError


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[str]:
    """A file that lets tasks end; at the end of the test it does."""
    path = tmp_path / "gate"
    yield str(path)
    path.touch()


def run_until(path: str) -> bool:
    """Goes on when it is cancelled, as a function that does not ask does."""
    deadline = time.time() + 20
    while not os.path.exists(path) and time.time() < deadline:
        time.sleep(0.01)
    return cancelled()


def children(path: str) -> int:
    client = get_client()
    futures = [client.submit(run_until, path, pure=False) for _ in range(4)]
    count = int(client.cancel_pending())
    assert all(future.cancelled() for future in futures)
    return count


def test_a_cancelled_function_that_goes_on_is_shown(client: Client, gate: str) -> None:
    future = client.submit(run_until, gate, key="stubborn")
    other = client.submit(run_until, gate, timeout="50ms", key="late")
    until_there(client, "running", future)
    there = client.ownership(future).worker
    future.cancel()
    until(lambda: client.ownership(future).lingers_at == [there])
    assert repr(future) == (
        f"<Future: cancelled, key: stubborn, its function still runs at {there}>"
    )
    # A task whose time is up keeps its slot in the same way.
    assert isinstance(other.exception(), TimeoutError)

    def lingering() -> list[str]:
        return sorted(key for keys in client.ownership().lingering.values() for key in keys)

    until(lambda: lingering() == ["late", "stubborn"])
    assert "cancelled-but-running=2" in repr(client)
    shown = repr(client.ownership())
    assert "cancelled, still running" in shown and "stubborn" in shown
    Path(gate).touch()
    until(lambda: client.ownership().lingering == {})
    assert repr(future) == "<Future: cancelled, key: stubborn>"


def test_top_shows_them(client: Client, gate: str) -> None:
    rich = pytest.importorskip("rich.console")
    future = client.submit(run_until, gate)
    until_there(client, "running", future)
    future.cancel()

    def picture() -> str:
        told = client.sync(client.scheduler.ownership_activity)
        console = rich.Console(width=140, file=io.StringIO())
        console.print(frame(told, "tcp://here", "rate", 140, None, {}))
        return str(console.file.getvalue())

    text = until(lambda: "1 cancelled but still running" in (found := picture()) and found)
    assert "lingers" in text


def test_one_call_cancels_what_is_pending(client: Client, gate: str) -> None:
    ended = client.submit(inc, 1)
    assert ended.result() == 2
    running = client.submit(wait_for_file, gate)
    until_there(client, "running", running)
    futures = [client.submit(wait_for_file, gate, pure=False) for _ in range(50)]
    others = client.map(inc, range(10), workers=["nowhere"], pure=False)
    behind = client.submit(inc, futures[0])
    assert client.cancel_pending("wait_for_file") == 51
    assert running.cancelled() and all(future.cancelled() for future in [*futures, behind])
    assert not any(future.done() for future in others)
    assert client.cancel_pending() == 10
    assert client.cancel_pending() == 0
    assert all(future.cancelled() for future in others)
    with pytest.raises(FutureCancelledError, match=r"cancel_pending\(\) of its client"):
        others[0].result()
    assert ended.result() == 2
    Path(gate).touch()


def test_in_a_task_its_own_children_only(client: Client, gate: str) -> None:
    mine = client.submit(run_until, gate, pure=False)
    assert client.submit(children, gate).result() == 4
    assert not mine.done()
    Path(gate).touch()
    mine.result()


def test_asynchronous(cluster: distributed.LocalCluster) -> None:
    async def main() -> None:
        async with Client(cluster.scheduler_address, asynchronous=True) as client:
            future = client.submit(inc, 1, workers=["nowhere"])
            assert await client.cancel_pending() == 1
            assert future.cancelled()

    asyncio.run(main())
