"""Helpers for tests on real clusters: time limits, and looking into owners and executors."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import distributed
import psutil

from dask_ownership import Client
from dask_ownership.core.executor.session import STATE_NAMES
from dask_ownership.core.protocol.states import PUSHED


def until(condition: Callable[[], Any], seconds: float = 10, what: str = "") -> Any:
    """Wait until the condition gives something true, which is returned."""
    end = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"not so after {seconds} s: {what or condition}")
        time.sleep(0.01)


def without_last_heartbeats(lines: str) -> str:
    """What a program wrote, without what Dask says at the end of slow or still beating workers."""
    lines = re.sub(r"\S+ \S+ - .* during heartbeat\.\n(?!\d{4}-)(.*\n)*?(?=\d{4}-|\Z)", "", lines)
    said = (
        "Received heartbeat from unregistered worker",
        "Scheduler was unaware of this worker",
        "Worker process still alive after",  # of a nanny on a machine with much else to do
    )
    return re.sub(rf".*({'|'.join(said)}).*\n", "", lines)


def small_cluster(**options: Any) -> distributed.LocalCluster:
    """A cluster of two processes of one thread each, unless told otherwise."""
    return distributed.LocalCluster(
        **{"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0", **options}
    )


def wait_for_members(client: Client, count: int) -> list[str]:
    """Wait until the owner knows so many workers; their addresses."""
    workers = client.owner.core.placement.workers
    until(lambda: len(workers) == count, what=f"{count} workers: {list(workers)}")
    return list(workers)


def held_at_worker(dask_worker: Any) -> dict[str, Any]:
    """What the executor and the owner of a worker still have; empty when all is free."""
    side = dask_worker.extensions.get("dask-ownership")
    if side is None:
        return {"no plugin": True}
    core = side.executor.core
    held: dict[str, Any] = {
        f"entries of {owner}": [repr(e) for e in session.entries.values()]
        for owner, session in core.sessions.items()
        # The last answers stay until the owner's next batch says that they arrived.
        if any(e.state != 4 for e in session.entries.values())
    }
    if side.executor.store.sizes:
        held["store"] = dict(side.executor.store.sizes)
    if side.owner.core.table.rows:
        held["rows"] = [repr(row) for row in side.owner.core.table.rows.values()]
    if core.queue.busy or core.queue.queued or len(core.queue.crowd) or core.queue.resuming:
        held["slots"] = (
            core.queue.busy,
            core.queue.queued,
            len(core.queue.crowd),
            len(core.queue.resuming),
        )
    if side.executor.slots.leased:
        held["leased"] = side.executor.slots.leased
    return held


def tasks_at_worker(owner: str, dask_worker: Any) -> dict[Any, str]:
    """What a worker has of an owner, by key: the name of its state, or ``parked``."""
    core = dask_worker.extensions["dask-ownership"].executor.core
    session = core.sessions.get(owner)
    return {
        key: "parked" if entry in core.queue.crowd.waiting else STATE_NAMES[entry.state]
        for key, entry in (session.entries.items() if session is not None else ())
    }


def tasks_of(client: Client) -> dict[Any, str]:
    """What all workers have of a client, as `tasks_at_worker`."""
    found: dict[Any, str] = {}
    for tasks in client.run(tasks_at_worker, client.owner.incarnation).values():
        found.update(tasks)
    return found


def until_there(client: Client, state: str, *futures: Any) -> None:
    """Wait until these tasks are ``running`` or ``parked`` at their workers."""

    def there() -> bool:
        found = tasks_of(client)
        return all(found.get(future.key) == state for future in futures)

    until(there, what=f"{[future.key for future in futures]} are {state}")


def until_handed_out(client: Client) -> None:
    """Wait until the workers have all tasks of a client that may go to them."""

    def handed_out() -> bool:
        rows = client.owner.core.table.all()
        pushed = {row.key for row in rows if row.state == PUSHED}
        taken_in = all(row.state or row.dependencies for row in rows)
        return taken_in and pushed <= tasks_of(client).keys()

    until(handed_out)


def deaths_under(client: Client, future: Any, alone: bool = False) -> int:
    """How many workers died while a task may have run there; or only while nothing else did."""
    story = [e for e in client.owner.core.history.events if e[0] == future.key]
    ran = ("nothing else ran there",) if alone else ("may have run", "nothing else ran there")
    return sum(e[1] == "worker-gone" and any(text in e[2] for text in ran) for e in story)


def sessions_at_worker(dask_worker: Any) -> list[str]:
    """Owners that a worker has anything of."""
    return list(dask_worker.extensions["dask-ownership"].executor.core.sessions)


def assert_nothing_left(client: Client) -> None:
    """Nobody holds a future: every table is empty, here and at the workers."""

    def clean() -> bool:
        gc.collect()
        return not client.owner.core.table.rows

    until(clean, what=f"rows left at the client: {list(client.owner.core.table.rows.values())[:5]}")
    left: dict[str, Any] = {}

    def free() -> bool:
        left.clear()
        left.update({w: h for w, h in client.run(held_at_worker).items() if h})
        return not left

    try:
        until(free)
    except AssertionError:
        raise AssertionError(f"left at the workers: {left}") from None


def threads_of_this_process() -> set[str]:
    """Names of the threads that are alive."""
    return {thread.name for thread in threading.enumerate() if thread.is_alive()}


def child_processes() -> set[int]:
    """Processes that this one started, and theirs; not the helpers of multiprocessing."""
    found = set()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            line = " ".join(child.cmdline())
            if "resource_tracker" not in line and "forkserver" not in line and line:
                found.add(child.pid)
    return found


def pid_of(client: Client, address: str) -> int:
    """The process of a worker."""
    return int(client.run(os.getpid, workers=[address])[address])


def kill(client: Client, address: str) -> None:
    """``kill -9`` a worker."""
    os.kill(pid_of(client, address), signal.SIGKILL)


# ---- tasks ----


def inc(x: int) -> int:
    return x + 1


def slowinc(x: int, delay: float = 0.01) -> int:
    time.sleep(delay)
    return x + 1


def total(*parts: Any) -> Any:
    return sum(parts)


def where() -> str:
    return str(distributed.get_worker().address)


def blob(size: int = 200_000, seed: int = 0) -> bytearray:
    """A value that stays at its worker."""
    return bytearray([seed % 256]) * size


def boom(text: str = "boom") -> None:
    raise ZeroDivisionError(text)
