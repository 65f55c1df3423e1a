"""Everything of distributed that is private and that this project touches.

Other modules import these names from here, so that a new release of distributed
is looked at in one place.
"""

from __future__ import annotations

import contextvars
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from time import time
from typing import Any

from dask.context import thread_state
from dask.tokenize import tokenize_lock
from distributed import as_completed, rejoin, secede, threadpoolexecutor
from distributed.client import _current_client
from distributed.core import Status
from distributed.worker import _worker_cvar
from distributed.worker_state_machine import SecedeEvent, UnpauseEvent

__all__ = [
    "HiddenData",
    "Lending",
    "before_retirement",
    "before_workers_restart",
    "block_as_completed_in",
    "count_owned_work",
    "current_client",
    "current_worker",
    "ignore_secede_of",
    "keep_awake",
    "pool_state",
    "state_data",
    "thread_state",
    "tokenizing",
    "without_slot",
]

current_client: contextvars.ContextVar[Any] = _current_client
current_worker: contextvars.ContextVar[Any] = _worker_cvar
pool_state = threadpoolexecutor.thread_state
"""What ``secede()`` and ``rejoin()`` look at in a thread."""

PREFIX = "owned-"


def tokenizing() -> bool:
    """Whether this thread pickles only to make a token: that pickle is read by nobody."""
    return bool(tokenize_lock._is_owned())


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


def state_data(worker: Any) -> None:
    """Hide owned values from the worker's state machine."""
    if not isinstance(worker.state.data, HiddenData):
        worker.state.data = HiddenData(worker.state.data)


def ignore_secede_of(worker: Any, owned: Any) -> None:
    """Keep ``secede()`` inside owned tasks from the state machine.

    It would look for the key among its own tasks, and close the worker when it has
    the same key in another state. ``owned`` says whether a key is an owned task's
    that runs here.
    """
    stock = worker.handle_stimulus

    def handle_stimulus(*events: Any) -> None:
        kept = [e for e in events if not (isinstance(e, SecedeEvent) and owned(e.key))]
        if kept or not events:
            stock(*kept)

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


def keep_awake(scheduler: Any, yes: bool) -> None:
    """Hold a scheduler's ``idle-timeout``, as it does itself while it takes a graph in."""
    scheduler._active_graph_updates += 1 if yes else -1


def before_retirement(scheduler: Any, leave: Callable[[list[str]], Awaitable[None]]) -> None:
    """Call ``leave(addresses)`` before a scheduler retires workers, whoever asks for it."""
    stock = scheduler.retire_workers

    @wraps(stock)
    async def retire_workers(
        workers: list[str] | None = None, *, names: list[Any] | None = None, **kwargs: Any
    ) -> Any:
        options = {k: v for k, v in kwargs.items() if k in RETIREMENT}
        if names is not None:
            wanted = {str(name) for name in names}
            leaving = [a for a, ws in scheduler.workers.items() if str(ws.name) in wanted]
        elif workers is not None:
            # ``SpecCluster.scale`` names workers here; stock finds none of them and moves nothing.
            workers = leaving = [
                address
                for address, ws in scheduler.workers.items()
                if address in workers or ws.name in workers
            ]
        else:
            closing = {k: v for k, v in kwargs.items() if k not in RETIREMENT}
            if closing.get("attribute", "address") == "address":
                workers = leaving = scheduler.workers_to_close(**closing)
                kwargs = options
            else:
                leaving = []
        if leaving:
            await leave(leaving)
        return await stock(workers=workers, names=names, **kwargs)

    scheduler.retire_workers = retire_workers
    scheduler.handlers["retire_workers"] = retire_workers


def before_workers_restart(scheduler: Any, leave: Callable[[list[str]], Awaitable[None]]) -> None:
    """Call ``leave(addresses)`` before workers that a client names are restarted.

    Not when the whole cluster is: that cancels everything.
    """
    stock = scheduler.restart_workers

    @wraps(stock)
    async def restart_workers(workers: list[str] | None = None, **kwargs: Any) -> Any:
        leaving = [address for address in workers or () if address in scheduler.workers]
        if leaving:
            await leave(leaving)
        return await stock(workers=workers, **kwargs)

    scheduler.handlers["restart_workers"] = restart_workers


RETIREMENT = {"close_workers", "remove", "stimulus_id"}
"""Options of ``Scheduler.retire_workers`` that do not choose workers."""


def count_owned_work(scheduler: Any, backlog: Callable[[], int]) -> None:
    """Have adaptive scaling see owned tasks: busy workers stay, and a backlog asks for more.

    ``backlog`` counts tasks that wait at clients for a worker.
    """
    stock_close = scheduler.workers_to_close
    stock_target = scheduler.adaptive_target

    @wraps(stock_close)
    def workers_to_close(*args: Any, **kwargs: Any) -> Any:
        attribute = kwargs.get("attribute", "address")
        busy = {
            getattr(ws, attribute)
            for ws in scheduler.workers.values()
            if ws.metrics.get("owned_tasks")
        }
        return [worker for worker in stock_close(*args, **kwargs) if worker not in busy]

    @wraps(stock_target)
    def adaptive_target(*args: Any, **kwargs: Any) -> int:
        owned = [ws.metrics.get("owned_tasks") or 0 for ws in scheduler.workers.values()]
        busy = sum(1 for tasks in owned if tasks)
        waiting = backlog()
        wanted = min(busy + waiting, max(1, 2 * busy)) if waiting else busy
        return max(int(stock_target(*args, **kwargs)), wanted)

    for function in (workers_to_close, adaptive_target):
        setattr(scheduler, function.__name__, function)
        scheduler.handlers[function.__name__] = function


def block_as_completed_in(
    without_slot: Callable[[], AbstractContextManager[None]],
    await_without_slot: Callable[[Awaitable[Any]], Awaitable[Any]],
) -> None:
    """Have the stock ``as_completed`` wait without a slot inside owned tasks."""
    stock = as_completed.__next__
    if hasattr(stock, "__wrapped__"):
        return

    @wraps(stock)
    def __next__(self: Any) -> Any:
        if not self.queue.empty():
            return stock(self)
        with without_slot():
            return stock(self)

    stock_async = as_completed.__anext__

    @wraps(stock_async)
    async def __anext__(self: Any) -> Any:
        if not self.queue.empty() or not self.futures:
            return await stock_async(self)
        return await await_without_slot(stock_async(self))

    as_completed.__next__ = __next__
    as_completed.__anext__ = __anext__


class Lending:
    """Slots that the worker's state machine lends to owned tasks.

    The state machine runs ``nthreads`` tasks at once. While an owned task holds a
    slot, that number is one lower, so that the worker never runs more than it has
    threads for, whoever sent the work. Loop thread only.

    Attributes
    ----------
    lent : int
        Slots that owned tasks may use now.
    """

    FAIR_TURN = 0.05
    """Seconds that either side may keep a slot while the other waits for one."""

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self.lent = 0
        self._taken_at = 0.0
        self._reserved = 0

    @property
    def nthreads(self) -> int:
        """All slots of the worker, lent and not."""
        return int(self.worker.state.nthreads) + self.lent + self._reserved

    @property
    def reserved(self) -> bool:
        """Whether a slot that is not free yet is kept for `borrow`."""
        return self._reserved > 0

    @property
    def stock_waits(self) -> bool:
        """Whether ordinary Dask tasks could start if they had a slot."""
        state = self.worker.state
        return bool(state.ready or state.constrained)

    @property
    def running(self) -> bool:
        """Whether the worker takes new tasks at all."""
        return bool(self.worker.status == Status.running)

    def borrow(self, wanted: int) -> int:
        """Take up to ``wanted`` more slots; how many were had now.

        What cannot be had now is reserved: it comes free when an ordinary task
        ends, and `borrow` gets it when it is called again.
        """
        state = self.worker.state
        free = state.nthreads + self._reserved - len(state.executing)
        got = max(0, min(wanted, free))
        state.nthreads += self._reserved - got
        self._reserved = 0
        self.lent += got
        if got:
            self._taken_at = time()
        elif wanted and state.nthreads > 0 and self.lent == 0:
            self._reserved = 1
            state.nthreads -= 1
        return got

    def give_back(self, count: int) -> None:
        """Return slots, and let the state machine use them if the worker runs."""
        count = min(count, self.lent) + self._reserved
        self.lent -= count - self._reserved
        self._reserved = 0
        if not count:
            return
        self.worker.state.nthreads += count
        if self.running and self.stock_waits:
            # Never sent to a paused worker, which it would set going again.
            self.worker.handle_stimulus(UnpauseEvent(stimulus_id=f"ownership-{time()}"))

    @property
    def overdue(self) -> bool:
        """Whether ordinary tasks have waited for a lent slot long enough."""
        return self.lent > 0 and self.stock_waits and time() - self._taken_at > self.FAIR_TURN
