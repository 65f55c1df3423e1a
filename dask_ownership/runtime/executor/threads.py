"""Runner threads and coroutines of a worker: where its owned tasks run, one slot each."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import threading
from collections.abc import Callable, Iterable
from time import time
from typing import Any

from dask_ownership.core.executor.executor import ExecutorCore
from dask_ownership.core.executor.session import Entry
from dask_ownership.runtime.dask.client import current_client
from dask_ownership.runtime.dask.worker import current_worker, pool_state, thread_state
from dask_ownership.runtime.executor.endings import Endings
from dask_ownership.runtime.executor.flushing import Flushing
from dask_ownership.runtime.executor.named_executors import custom_default, run_in_pool
from dask_ownership.runtime.executor.watch import Watch
from dask_ownership.runtime.parking import Parking, Pool
from dask_ownership.runtime.task import here, run_in_thread, run_on_loop

SPARE_THREADS = 8
"""Idle runner threads that are kept beyond the worker's number of threads."""

LookFor = Callable[[Entry, Iterable[Any]], None]
"""Names watched children of a task to its owner, as far as the children exist."""


class Threads:
    """The runner threads of one worker.

    Parameters
    ----------
    worker : distributed.Worker
    core : dask_ownership.core.executor.executor.ExecutorCore
    lock : threading.Lock
        Covers the core.
    task_client : object
        The object that tasks find as their client.
    endings : Endings
        Takes the outcomes of tasks.
    flushing : Flushing
        Has the loop send answers.
    look_for : LookFor
    watch : Watch
        Its observer is told of ended tasks.

    Attributes
    ----------
    parking : Parking
        The tasks that wait without a slot. The thread of a parked task runs no other task.
    """

    _numbers = itertools.count(1)

    def __init__(
        self,
        worker: Any,
        core: ExecutorCore,
        lock: threading.Lock,
        *,
        task_client: Any,
        endings: Endings,
        flushing: Flushing,
        look_for: LookFor,
        watch: Watch,
    ) -> None:
        self.parking = Parking(worker, core, lock, self.wake, flushing.soon)
        self._worker = worker
        self._core = core
        self._lock = lock
        self._task_client = task_client
        self._endings = endings
        self._flushing = flushing
        self._look_for = look_for
        self._watch = watch
        self._pool = Pool(self.parking)
        self._sleepers: list[threading.Lock] = []
        self._waking = 0
        self._threads: set[threading.Thread] = set()
        self._closed = False

    def __len__(self) -> int:
        """Return the number of runner threads, asleep or not."""
        return len(self._threads)

    def wake(self) -> None:
        """Wake or start a thread for each task that a free slot can take. The lock is held."""
        queue = self._core.queue
        free = queue.slots - queue.busy
        # Parked tasks first: they have begun and hold memory, and other tasks may wait for them.
        while free > 0 and (parked := queue.resume_next()) is not None:
            parked.release()
            free -= 1
        # A thread on its way takes a task as well, though not yet a slot.
        for _ in range(min(free, queue.startable) - self._waking):
            self._waking += 1
            if self._sleepers:
                self._sleepers.pop().release()
            else:
                thread = threading.Thread(
                    target=self._run,
                    name=f"Dask-Ownership-Threads-{next(self._numbers)}",
                    daemon=True,
                )
                self._threads.add(thread)
                thread.start()

    def _run(self) -> None:
        """Run one task after another in a runner thread, which sleeps when there is no task.

        The loop takes a task with the lock held, so that a task and its slot are taken at once.
        """
        current_worker.set(self._worker)
        current_client.set(self._task_client)
        thread_state.execution_state = self._worker.execution_state
        pool_state.executor = self._pool
        pool_state.proceed = True
        base = contextvars.copy_context()
        # Names for what the loop needs for each task.
        queue = self._core.queue
        lock = self._lock
        timeouts = self._endings.timeouts
        ended = self._endings.ended
        sleeper = threading.Lock()  # held by this thread while it is awake; `wake` releases it
        sleeper.acquire()
        active = self._worker.active_threads
        ident = threading.get_ident()
        default = custom_default(self._worker)
        lock.acquire()
        self._waking -= 1
        try:
            while True:
                work = queue.next_work()
                if work is None:
                    if self._closed or len(self._sleepers) >= queue.nthreads + SPARE_THREADS:
                        return
                    self._sleepers.append(sleeper)
                    lock.release()
                    with self._worker.active_threads_lock:
                        active.pop(ident, None)
                    # Slots that no task needs go back to the worker's state machine.
                    self._flushing.soon()
                    sleeper.acquire()
                    lock.acquire()
                    self._waking -= 1
                    continue
                lock.release()
                if type(work) is Entry:
                    if work.options is not None and "timeout" in work.options:
                        timeouts.start(work, work.options["timeout"])
                    name = (
                        default if work.options is None else work.options.get("executor", default)
                    )
                    if name is None:
                        outcome = run_in_thread(work, base)
                        parked = here.parked
                    else:
                        thread_state.start_time = time()
                        outcome, parked = run_in_pool(work, name, base, self._pool)
                    observer = self._watch.observer  # read once: the loop may set it to None
                    if observer is not None and outcome is not None:
                        observer.note(work, outcome, thread_state.start_time)
                    if work.watched:
                        self._look_for(work, tuple(work.watched))
                    lock.acquire()
                    # A coroutine task has no outcome yet: its slot has gone to the loop with it.
                    if outcome is not None:
                        ended(work, outcome, parked)
                    outcome = None  # a thread that sleeps keeps no result
                else:  # the token of a parked task, whose own thread goes on with the slot
                    work.release()
                    lock.acquire()
        finally:
            with self._worker.active_threads_lock:
                active.pop(ident, None)
            self._threads.discard(threading.current_thread())
            lock.release()

    def close(self) -> None:
        """End the idle threads. A thread that runs a task ends with its task."""
        with self._lock:
            self._closed = True
            sleepers, self._sleepers = self._sleepers, []
        for sleeper in sleepers:
            sleeper.release()


class Coroutines:
    """The coroutine tasks of one worker, which run on its loop.

    Parameters
    ----------
    worker : distributed.Worker
    lock : threading.Lock
        Covers the core of the executor.
    task_client : object
        The object that tasks find as their client.
    endings : Endings
        Takes the outcomes of tasks.
    wake : callable
        Sets threads to work for free slots; called with the lock held.
    look_for : LookFor
    watch : Watch
        Its observer is told of ended tasks.
    """

    def __init__(
        self,
        worker: Any,
        lock: threading.Lock,
        *,
        task_client: Any,
        endings: Endings,
        wake: Callable[[], None],
        look_for: LookFor,
        watch: Watch,
    ) -> None:
        self._worker = worker
        self._loop: asyncio.AbstractEventLoop = worker.loop.asyncio_loop
        self._lock = lock
        self._task_client = task_client
        self._endings = endings
        self._wake = wake
        self._look_for = look_for
        self._watch = watch
        self._tasks: dict[Entry, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        """Return the number of coroutine tasks that have begun and not ended."""
        return len(self._tasks)

    def run(self, *call: Any) -> None:
        """Start a coroutine task on the loop, which keeps the slot of its thread. Any thread.

        ``call`` has the arguments of `run_on_loop`.
        """
        self._loop.call_soon_threadsafe(self._start, call)

    def _start(self, call: tuple[Any, ...]) -> None:
        self._tasks[call[0]] = asyncio.ensure_future(self._run(*call))

    def cancel(self, entry: Entry) -> None:
        """Have a task get `asyncio.CancelledError`, if it is a coroutine task. Loop thread.

        A task in a thread goes on: Python cannot stop a thread.
        """
        task = self._tasks.get(entry)
        if task is not None:
            # Behind the first step of the coroutine: cancelled before it, the coroutine would
            # never run, and so never give its slot back.
            self._loop.call_soon(task.cancel)

    async def _run(self, entry: Entry, *call: Any) -> None:
        """Run one coroutine task, take its outcome in and free its slot."""
        current_worker.set(self._worker)
        current_client.set(self._task_client)
        self._endings.counts["coroutines"] += 1
        began = time()
        outcome = await run_on_loop(entry, *call)
        if self._watch.observer is not None:
            self._watch.observer.note(entry, outcome, began)
        if entry.watched:
            self._look_for(entry, tuple(entry.watched))
        del self._tasks[entry]
        with self._lock:
            # Awaits that the task started and left behind: with such a count of waits they never
            # are the last one, which would take a slot.
            parked = entry.parks > 0
            entry.parks = -1 << 30
            self._endings.ended(entry, outcome, parked)
            self._wake()

    def close(self) -> None:
        """Cancel all coroutine tasks."""
        for entry in self._tasks:
            self.cancel(entry)
