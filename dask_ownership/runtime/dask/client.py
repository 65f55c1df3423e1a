"""Private parts of clients of distributed: the current client, waiting, and arguments of calls."""

from __future__ import annotations

import contextvars
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from inspect import isawaitable
from threading import current_thread
from typing import Any

from dask.tokenize import tokenize_lock
from distributed import (
    Client,
    Event,
    MultiLock,
    Queue,
    Semaphore,
    Variable,
    as_completed,
)
from distributed import client as client_module
from distributed.actor import ActorFuture
from distributed.client import Future, _current_client
from distributed.utils import _parse_timedelta as parse_timeout

from dask_ownership.runtime.dask.doubles import copies_of, import_once
from dask_ownership.runtime.dask.worker import current_worker

__all__ = [
    "block_in",
    "complete_by",
    "current_client",
    "find_clients",
    "keep",
    "parse_timeout",
    "promote_in_clients",
    "scheduler_id",
    "tokenizing",
]

current_client: contextvars.ContextVar[Any] = _current_client

NOT_OF_TASKS = ("Dask-", "Profile")
"""Beginnings of the names of Dask's own threads, which no task started."""

LOOPS = ("MainThread", "IO loop")
"""Beginnings of the names of threads with a worker's loop, which unpacks arriving messages."""

COORDINATION = (
    (Semaphore, "acquire"),  # `Lock.acquire` calls it, too
    (MultiLock, "acquire"),
    (Event, "wait"),
    (Queue, "get"),
    (Queue, "put"),
    (Variable, "get"),
)
"""Methods by which tasks wait for each other by way of the scheduler."""

WAIT_FOR_TASKS = {"_exception", "_gather", "_result", "_traceback", "_wait"}
"""Coroutine functions by which a client waits for tasks of the scheduler."""


class CurrentClient:
    """Stands for the context variable of the current client in distributed's module.

    An owned task has a `TaskClient` in the variable. `get` makes a client of it, for the few tasks
    that ask for their client.
    """

    set = staticmethod(_current_client.set)
    reset = staticmethod(_current_client.reset)
    name = _current_client.name

    def get(self, *default: Any) -> Any:
        """Return the current client, connected at the first call in a task."""
        found = _current_client.get(*default)
        made = getattr(found, "made_client", None)
        return found if made is None else made()


def find_clients(of_threads: Callable[[], Any]) -> None:
    """Have tasks, and threads started by tasks, find their client by distributed's functions.

    Parameters
    ----------
    of_threads : callable
        Gives the client for a thread that a task started, or None. Asked when the thread has no
        current client and the process has none, either.
    """
    stock = client_module._get_global_client
    if hasattr(stock, "__wrapped__"):  # several workers may run in one process
        return

    @wraps(stock)
    def _get_global_client() -> Any:
        found = stock()
        if found is not None or current_worker.get(None) is not None:
            return found
        thread = current_thread().name
        if thread.startswith(NOT_OF_TASKS):
            return None
        # The loop unpacks futures of ordinary tasks, which find the client of their task later.
        if thread.startswith(LOOPS) and sys._getframe(1).f_code is Future.__init__.__code__:
            return None
        return of_threads()

    client_module._current_client = CurrentClient()
    client_module._get_global_client = _get_global_client


def scheduler_address(client: Any) -> str:
    """Return the address of a client's scheduler, or words for people without a connection."""
    return str(getattr(client.scheduler, "address", "of this client"))


def scheduler_id(client: Any) -> Any:
    """Return the id of the scheduler of a client; None while the client is not connected."""
    return client._scheduler_identity.get("id")


def tokenizing() -> bool:
    """Return whether this thread pickles to make a token: no process ever loads such a pickle."""
    return bool(tokenize_lock._is_owned())


def block_in(
    without_slot: Callable[[], AbstractContextManager[None]],
    await_without_slot: Callable[[Any], Any],
    without_slot_if_long: Callable[[], AbstractContextManager[None]],
    await_without_slot_if_long: Callable[[Any], Any],
) -> None:
    """Have owned tasks wait without a slot in blocking calls of Dask.

    A task gives its slot up at once in ``as_completed`` and for results of actors, as for futures.
    In `COORDINATION`, and in `WAIT_FOR_TASKS` of a client that the task has connected itself, a
    task gives its slot up only when the wait lasts: it may be over at once, while another task has
    the slot. In a call that asks the scheduler a short question a task keeps its slot.

    Parameters
    ----------
    without_slot, without_slot_if_long : callable
        Give a context in which the calling task has no slot, at once or after a while.
    await_without_slot, await_without_slot_if_long : callable
        The same for awaitables, in coroutine tasks.
    """
    if hasattr(as_completed.__next__, "__wrapped__"):
        return
    import_once()  # a double that is imported later would have the stock methods
    stock_sync = Client.sync

    @wraps(stock_sync)
    def sync(self: Any, func: Any, *args: Any, **kwargs: Any) -> Any:
        # All other functions ask the scheduler a short question.
        if getattr(func, "__name__", "") not in WAIT_FOR_TASKS:
            return stock_sync(self, func, *args, **kwargs)
        with without_slot_if_long():
            answer = stock_sync(self, func, *args, **kwargs)
        return await_without_slot_if_long(answer) if isawaitable(answer) else answer

    Client.sync = sync
    for cls, name in COORDINATION:
        for copy in copies_of(cls):
            _let_wait(copy, name, without_slot_if_long, await_without_slot_if_long)
    stock = as_completed.__next__

    @wraps(stock)
    def __next__(self: Any) -> Any:
        # A future that has ended is there at once: no reason to give a slot up.
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

    stock_await = ActorFuture.__await__

    @wraps(stock_await)
    def __await__(self: Any) -> Any:
        return await_without_slot(self._result()).__await__()

    stock_result = ActorFuture.result

    @wraps(stock_result)
    def result(self: Any, timeout: Any = None) -> Any:
        if self.done():
            return stock_result(self, timeout)
        with without_slot():
            return stock_result(self, timeout)

    as_completed.__next__ = __next__
    as_completed.__anext__ = __anext__
    ActorFuture.result = result
    ActorFuture.__await__ = __await__


def complete_by(takes: Callable[[Any, list[Any]], bool]) -> None:
    """Have ``distributed.as_completed`` offer its first futures to this project's `as_completed`.

    ``takes(waits, futures)`` returns True when it takes over ``waits``, an instance that has no
    futures yet, with these futures: it waits for owned futures without asking the scheduler.
    """
    stock = as_completed.update
    if hasattr(stock, "__wrapped__"):
        return

    @wraps(stock)
    def update(self: Any, futures: Any) -> None:
        futures = list(futures)
        # One class waits for all futures of an instance: so only an empty instance changes class.
        fresh = type(self) is as_completed and not self.futures and self.queue.empty()
        if not (fresh and takes(self, futures)):
            stock(self, futures)

    as_completed.update = update


def _let_wait(cls: Any, name: str, without_slot: Any, await_without_slot: Any) -> None:
    """Have a method of a class wait without a slot, both when it blocks and when it is awaited."""
    stock = getattr(cls, name)

    @wraps(stock)
    def waits(self: Any, *args: Any, **kwargs: Any) -> Any:
        with without_slot():
            answer = stock(self, *args, **kwargs)
        return await_without_slot(answer) if isawaitable(answer) else answer

    setattr(cls, name, waits)


def promote_in_clients(
    arguments: Callable[[Any, Any, Any], Any],
    graph: Callable[[Any, Any, Any], Any],
) -> None:
    """Have all stock clients of this process take owned futures where they take their own.

    The scheduler does not know the key of an owned future. So arguments and graphs are translated
    before the client sees them.

    Parameters
    ----------
    arguments : callable
        ``arguments(client, args, kwargs)`` gives the arguments for ``submit`` and ``map``, and the
        inputs: futures that have to live as long as the futures of the call.
    graph : callable
        ``graph(client, expr, keys)`` gives the graph for all other calls, and the inputs.
    """
    stock_submit, stock_map, stock_graph = Client.submit, Client.map, Client._graph_to_futures
    if hasattr(stock_submit, "__wrapped__"):
        return

    @wraps(stock_submit)
    def submit(self: Any, func: Any, *args: Any, **kwargs: Any) -> Any:
        args, kwargs, inputs = arguments(self, args, kwargs)
        return keep(inputs, stock_submit(self, func, *args, **kwargs))

    @wraps(stock_map)
    def map(self: Any, func: Any, *iterables: Any, **kwargs: Any) -> Any:
        iterables, kwargs, inputs = arguments(self, iterables, kwargs)
        return keep(inputs, stock_map(self, func, *iterables, **kwargs))

    @wraps(stock_graph)
    def _graph_to_futures(self: Any, expr: Any, keys: Any, *args: Any, **kwargs: Any) -> Any:
        expr, inputs = graph(self, expr, keys)
        return keep(inputs, stock_graph(self, expr, keys, *args, **kwargs))

    Client.submit, Client.map, Client._graph_to_futures = submit, map, _graph_to_futures


def keep(inputs: Any, futures: Any) -> Any:
    """Have futures of the scheduler keep their inputs alive; the same futures."""
    if inputs:
        # A graph gives a dict or a list, ``map`` a list, ``submit`` one future.
        made = futures.values() if isinstance(futures, dict) else futures
        for future in made if isinstance(futures, dict | list) else (futures,):
            future._crossed = inputs
    return futures
