"""Running a task in one of the worker's executors by name: ``dask.annotate(executor=...)``.

The runner thread that took the slot waits for the task, which so counts as any other task. In a
pool of threads the task runs as in the runner thread: the task may submit, wait without a slot,
secede. Another kind of pool gets the pickled call.
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
    """Return the name of the default executor when the user gave the worker one, else None."""
    return DEFAULT if type(worker.executors[DEFAULT]) is not DefaultPool else None


def threads_of(worker: Any, name: str) -> int:
    """Return how many tasks the executor of this name runs at once; without limit if unknown."""
    return int(getattr(worker.executors.get(name), "_max_workers", 1 << 30))


def run_in_pool(
    entry: Entry, name: str, base: contextvars.Context, rejoin: Any
) -> tuple[Outcome | None, bool]:
    """Run a task in the worker's executor of this name.

    Parameters
    ----------
    entry : Entry
    name : str
    base : contextvars.Context
        The context of the runner thread; the task gets a copy.
    rejoin : Pool
        The pool that ``secede()`` and ``rejoin()`` find in the thread of the task.

    Returns
    -------
    Outcome or None
        None for a coroutine task, which goes on on the loop.
    bool
        Whether the task ended parked.
    """
    worker = entry.session.runtime.worker
    started = perf_counter()
    try:
        pool = worker.executors.get(name)
        if pool is None:
            raise ValueError(
                f"Invalid executor {name!r}; expected one of: {sorted(worker.executors)}"
            )
        # Dask's own default pool is for tasks of the scheduler: owned tasks have runner threads.
        if name == DEFAULT and type(pool) is DefaultPool:
            return run_in_thread(entry, base), here.parked
        # By the name of the class, as in Dask's worker: other libraries have pools of threads, too.
        if "ThreadPoolExecutor" not in str(type(pool)):
            return run_in_thread(entry, base, _through(pool)), here.parked

        def run() -> tuple[Outcome | None, bool]:
            with thread_of_task(worker, rejoin):
                return base.copy().run(run_in_thread, entry, base), here.parked

        return pool.submit(run).result()
    except BaseException as error:  # of the pool itself: an outcome has the error of its task
        return keep_error(entry, error, started), False


def _through(pool: Pool) -> Callable[..., Any]:
    """Return a function that calls others in the processes of a pool, by their pickles."""

    def call(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return pickle.loads(pool.submit(call_pickled, dumps((function, args, kwargs))).result())

    return call


def call_pickled(call: bytes) -> bytes:
    """Run a pickled call in a process of a pool, which has no worker; the pickled result."""
    function, args, kwargs = pickle.loads(call)
    return dumps(function(*args, **kwargs))
