"""Private parts of workers of distributed: their threads, state machine and values."""

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
"""The class of the pool that a worker makes for its tasks when it is given no default executor."""

pool_state = threadpoolexecutor.thread_state
"""State of a thread, in which ``secede()`` and ``rejoin()`` find the pool of the thread."""

PREFIX = "owned-"
"""Beginning of the names of owned values in a worker's ``data``."""


@contextmanager
def thread_of_task(worker: Any, pool: Any) -> Iterator[None]:
    """Make a thread of the user's pool look like a runner thread while the body runs.

    ``pool`` is the pool that ``secede()`` and ``rejoin()`` find in the thread.
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
        # `run_in_thread` has set the last two.
        for name in ("execution_state", "key", "start_time"):
            if hasattr(thread_state, name):
                delattr(thread_state, name)
        worker.active_threads.pop(get_ident(), None)


class HiddenData(MutableMapping[Any, Any]):
    """A worker's ``data`` as its state machine sees it: without owned values.

    The state machine takes each key of ``data`` for a task of its own.
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
        for key in list(self.data):  # a copy, because runner threads put values meanwhile
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
        Takes the mapping with all values, and gives the mapping to show as `Worker.data`.

    Returns
    -------
    MutableMapping
        The mapping with all values.
    """
    data = worker.memory_manager.data
    if isinstance(worker.state.data, HiddenData):  # from an earlier setup of the plugin
        data = worker.state.data.data
    worker.state.data = HiddenData(data)
    worker.memory_manager.data = shown(data)
    return data


def watch_stimuli(worker: Any, owned: Any, after: Callable[[], None]) -> None:
    """Keep ``secede()`` of owned tasks from a worker's state machine, and watch all other stimuli.

    The state machine would look for the key of an owned task among its own tasks, and close the
    worker when it has a task of the same key in another state.

    Parameters
    ----------
    worker : distributed.Worker
    owned : callable
        Whether an owned task of a key runs here.
    after : callable
        Called after each stimulus: a slot may be free.
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
    """Have the calling task secede while the body runs, if it is an ordinary Dask task.

    The task may wait for a task that needs the very slot of the caller.
    """
    task = None
    # Only a thread of the worker's own pool that has not seceded before has a slot to give up.
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
    """Return whether a worker runs the ordinary Dask task of this key, with or without a slot."""
    task = worker.state.tasks.get(key)
    return task is not None and task.state in ("executing", "long-running")


def secede_coroutine(worker: Any, key: Any) -> None:
    """Have an ordinary Dask task secede that is a coroutine: ``secede()`` needs a thread."""
    task = worker.state.tasks.get(key)
    if task is not None and task.state == "executing":
        worker.handle_stimulus(
            SecedeEvent(key=key, compute_duration=0.0, stimulus_id=f"ownership-{time()}")
        )


def scheduler_gone(worker: Any) -> bool:
    """Return whether a closing worker closes because its stream to the scheduler is broken."""
    return bool(worker.batched_stream is not None and worker.batched_stream.closed())
