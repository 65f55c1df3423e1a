"""Running a task in one of the worker's executors by name: ``dask.annotate(executor=...)``.

The runner thread that took the slot waits for it, so the task counts as any other. In a pool
of threads it runs as in the runner's own: it may submit, wait without a slot, secede. Another
kind of pool gets the pickled call.
"""

from __future__ import annotations

import contextvars
import pickle
from collections.abc import Callable
from concurrent.futures import Executor as Pool
from time import perf_counter
from typing import Any

from dask_ownership.core.executor.session import Entry
from dask_ownership.runtime.dask.worker import DefaultPool, thread_of_task
from dask_ownership.runtime.serialize import dumps
from dask_ownership.runtime.task import Outcome, here, keep_error, run_in_thread

DEFAULT = "default"


def custom_default(worker: Any) -> str | None:
    """The name of the default executor when the user gave the worker one, else None."""
    return DEFAULT if type(worker.executors[DEFAULT]) is not DefaultPool else None


def threads_of(worker: Any, name: str) -> int:
    """How many tasks the executor of this name runs at once, as far as that is known."""
    return int(getattr(worker.executors.get(name), "_max_workers", 1 << 30))


def run_in_pool(
    entry: Entry, name: str, base: contextvars.Context, rejoin: Any
) -> tuple[Outcome | None, bool]:
    """Run a task in the executor of this name; its outcome, and whether it ended parked.

    ``rejoin`` is what ``secede()`` and ``rejoin()`` find in the thread of the task.
    """
    worker = entry.session.runtime.worker
    started = perf_counter()
    try:
        pool = worker.executors.get(name)
        if pool is None:
            raise ValueError(
                f"Invalid executor {name!r}; expected one of: {sorted(worker.executors)}"
            )
        if name == DEFAULT and type(pool) is DefaultPool:
            return run_in_thread(entry, base), here.parked
        if "ThreadPoolExecutor" not in str(type(pool)):
            return run_in_thread(entry, base, _through(pool)), here.parked

        def run() -> tuple[Outcome | None, bool]:
            with thread_of_task(worker, rejoin):
                return base.copy().run(run_in_thread, entry, base), here.parked

        return pool.submit(run).result()
    except BaseException as error:  # of the pool itself: those of tasks are in their outcomes
        return keep_error(entry, error, started), False


def _through(pool: Pool) -> Callable[..., Any]:
    """What calls a function in a process of a pool."""

    def call(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return pickle.loads(pool.submit(call_pickled, dumps((function, args, kwargs))).result())

    return call


def call_pickled(call: bytes) -> bytes:
    """Run a pickled call in a process that knows no worker."""
    function, args, kwargs = pickle.loads(call)
    return dumps(function(*args, **kwargs))
