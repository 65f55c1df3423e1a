"""What is private to a worker of distributed: its threads, its state machine, its values."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from threading import get_ident
from time import time
from typing import Any

from dask.context import thread_state
from distributed import rejoin, secede, threadpoolexecutor
from distributed.worker import _worker_cvar
from distributed.worker_state_machine import SecedeEvent

__all__ = [
    "DefaultPool",
    "HiddenData",
    "current_worker",
    "pool_state",
    "runs_here",
    "scheduler_gone",
    "secede_coroutine",
    "share_data",
    "thread_of_task",
    "thread_state",
    "watch_stimuli",
    "without_slot",
]

current_worker: contextvars.ContextVar[Any] = _worker_cvar

DefaultPool = threadpoolexecutor.ThreadPoolExecutor
"""What a worker makes for its tasks when it is not given executors."""

pool_state = threadpoolexecutor.thread_state
"""What ``secede()`` and ``rejoin()`` look at in a thread."""

PREFIX = "owned-"
"""How the names of owned values begin in a worker's ``data``."""


@contextmanager
def thread_of_task(worker: Any, pool: Any) -> Iterator[None]:
    """Make another's thread look like one of an owned task while the body runs.

    ``pool`` is what ``secede()`` and ``rejoin()`` find.
    """
    new = {"executor": pool, "proceed": True}
    before = {name: getattr(pool_state, name) for name in new if hasattr(pool_state, name)}
    pool_state.__dict__.update(new)
    thread_state.execution_state = worker.execution_state
    try:
        yield
    finally:
        for name in new:
            delattr(pool_state, name)
        pool_state.__dict__.update(before)
        for name in ("execution_state", "key", "start_time"):
            if hasattr(thread_state, name):
                delattr(thread_state, name)
        worker.active_threads.pop(get_ident(), None)


class HiddenData(MutableMapping[Any, Any]):
    """A worker's ``data`` as its state machine sees it: without owned values.

    The state machine takes every key of ``data`` for one of its tasks.
    """

    def __init__(self, data: MutableMapping[Any, Any]) -> None:
        self.data = data

    def __getitem__(self, key: Any) -> Any:
        return self.data[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self.data[key] = value

    def __delitem__(self, key: Any) -> None:
        del self.data[key]

    def __contains__(self, key: object) -> bool:
        return key in self.data

    def __iter__(self) -> Iterator[Any]:
        for key in list(self.data):
            if not (isinstance(key, str) and key.startswith(PREFIX)):
                yield key

    def __len__(self) -> int:
        return sum(1 for _ in self)


def share_data(worker: Any, shown: Callable[[MutableMapping[Any, Any]], Any]) -> Any:
    """Hide owned values from the worker's state machine, and show them in `Worker.data`.

    Parameters
    ----------
    worker : distributed.Worker
    shown : callable
        From the mapping where values stand to what is shown of it.

    Returns
    -------
    MutableMapping
        Where values stand.
    """
    data = worker.memory_manager.data
    if isinstance(worker.state.data, HiddenData):  # the plugin was set up before
        data = worker.state.data.data
    worker.state.data = HiddenData(data)
    worker.memory_manager.data = shown(data)
    return data


def watch_stimuli(worker: Any, owned: Any, after: Callable[[], None]) -> None:
    """Keep ``secede()`` inside owned tasks from the state machine, and tell of all else.

    It would look for the key among its own tasks, and close the worker when it has
    the same key in another state. ``owned`` says whether a key is an owned task's
    that runs here. ``after`` is called when the state machine did something: a slot may be free.
    """
    stock = worker.handle_stimulus

    def handle_stimulus(*events: Any) -> None:
        kept = [e for e in events if not (isinstance(e, SecedeEvent) and owned(e.key))]
        if kept or not events:
            stock(*kept)
            after()

    worker.handle_stimulus = handle_stimulus


@contextmanager
def without_slot(worker: Any) -> Iterator[None]:
    """Secede while the caller waits, when it is an ordinary Dask task of this worker.

    What it waits for may need the very slot that it holds.
    """
    task = None
    if getattr(pool_state, "executor", None) is worker.executors.get("default") and getattr(
        pool_state, "proceed", False
    ):
        task = worker.state.tasks.get(getattr(thread_state, "key", None))
    if task is None or task.state != "executing":
        yield
        return
    secede()
    try:
        yield
    finally:
        rejoin()


def runs_here(worker: Any, key: Any) -> bool:
    """Whether a worker's state machine has an ordinary Dask task running."""
    task = worker.state.tasks.get(key)
    return task is not None and task.state in ("executing", "long-running")


def secede_coroutine(worker: Any, key: Any) -> None:
    """As ``secede()``, for an ordinary Dask task that is a coroutine: it has no thread."""
    task = worker.state.tasks.get(key)
    if task is not None and task.state == "executing":
        worker.handle_stimulus(
            SecedeEvent(key=key, compute_duration=0.0, stimulus_id=f"ownership-{time()}")
        )


def scheduler_gone(worker: Any) -> bool:
    """Whether a worker that closes does so because its stream to the scheduler broke."""
    return bool(worker.batched_stream is not None and worker.batched_stream.closed())
