"""What is private to a client of distributed: which is current, what it waits for and takes."""

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
    "cross_in_clients",
    "current_client",
    "find_clients",
    "keep",
    "parse_timeout",
    "scheduler_id",
    "tokenizing",
]

current_client: contextvars.ContextVar[Any] = _current_client

NOT_OF_TASKS = ("Dask-", "Profile")
"""How the names of threads begin that no task started: Dask's own."""

LOOPS = ("MainThread", "IO loop")
"""How those begin in which a worker's loop runs, which unpacks what comes."""

COORDINATION = (
    (Semaphore, "acquire"),  # and of `Lock`, which calls it
    (MultiLock, "acquire"),
    (Event, "wait"),
    (Queue, "get"),
    (Queue, "put"),
    (Variable, "get"),
)
"""What waits for others by way of the scheduler."""

WAIT_FOR_TASKS = {"_exception", "_gather", "_result", "_traceback", "_wait"}
"""Coroutine functions by which a client waits for what the scheduler runs."""


class CurrentClient:
    """Stands for the context variable of the current client in distributed's module.

    What a task has there is made a client when somebody asks for it: most tasks need none.
    """

    set = staticmethod(_current_client.set)
    reset = staticmethod(_current_client.reset)
    name = _current_client.name

    def get(self, *default: Any) -> Any:
        found = _current_client.get(*default)
        made = getattr(found, "made_client", None)
        return found if made is None else made()


def find_clients(of_threads: Callable[[], Any]) -> None:
    """Have tasks find their client, and threads which they started, too.

    Parameters
    ----------
    of_threads : callable
        Gives the client for a thread that a task started, when the process has no other; or None.
    """
    stock = client_module._get_global_client
    if hasattr(stock, "__wrapped__"):
        return

    @wraps(stock)
    def _get_global_client() -> Any:
        found = stock()
        if found is not None or current_worker.get(None) is not None:
            return found
        thread = current_thread().name
        if thread.startswith(NOT_OF_TASKS):
            return None
        # A future of an ordinary task that is unpacked there is that task's client's.
        if thread.startswith(LOOPS) and sys._getframe(1).f_code is Future.__init__.__code__:
            return None
        return of_threads()

    client_module._current_client = CurrentClient()
    client_module._get_global_client = _get_global_client


def scheduler_id(client: Any) -> Any:
    """What tells the scheduler of a client from any other; None while it is not connected."""
    return client._scheduler_identity.get("id")


def tokenizing() -> bool:
    """Whether this thread pickles only to make a token: that pickle is read by nobody."""
    return bool(tokenize_lock._is_owned())


def block_in(
    without_slot: Callable[[], AbstractContextManager[None]],
    await_without_slot: Callable[[Any], Any],
    without_slot_if_long: Callable[[], AbstractContextManager[None]],
    await_without_slot_if_long: Callable[[Any], Any],
) -> None:
    """Have what blocks in Dask wait without a slot inside owned tasks.

    ``as_completed`` and results of actors at once, as futures; what coordinates tasks when it
    lasts, and as well what a client that a task connects itself waits for. What only asks the
    scheduler something keeps the slot.
    """
    if hasattr(as_completed.__next__, "__wrapped__"):
        return
    import_once()
    stock_sync = Client.sync

    @wraps(stock_sync)
    def sync(self: Any, func: Any, *args: Any, **kwargs: Any) -> Any:
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
    """Have ``distributed.as_completed`` leave futures to another who waits faster for them.

    ``takes(waits, futures)`` may take over an `as_completed` that has no futures yet.
    """
    stock = as_completed.update
    if hasattr(stock, "__wrapped__"):
        return

    @wraps(stock)
    def update(self: Any, futures: Any) -> None:
        futures = list(futures)
        fresh = type(self) is as_completed and not self.futures and self.queue.empty()
        if not (fresh and takes(self, futures)):
            stock(self, futures)

    as_completed.update = update


def _let_wait(cls: Any, name: str, without_slot: Any, await_without_slot: Any) -> None:
    """Have a method of a class wait without a slot, whether it blocks or is awaited."""
    stock = getattr(cls, name)

    @wraps(stock)
    def waits(self: Any, *args: Any, **kwargs: Any) -> Any:
        with without_slot():
            answer = stock(self, *args, **kwargs)
        return await_without_slot(answer) if isawaitable(answer) else answer

    setattr(cls, name, waits)


def cross_in_clients(
    arguments: Callable[[Any, Any, Any], Any],
    graph: Callable[[Any, Any, Any], Any],
) -> None:
    """Have all clients of this process take owned futures where they take their own.

    They see a future by its key only, which means nothing to the scheduler, so what a user
    gives is looked at before they see it: by ``arguments(client, args, kwargs)`` in ``submit``
    and ``map``, and by ``graph(client, expr, keys)`` in all else. Both return what to use in
    place of it, and what must live as long as the futures that come of it.
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
    """Futures of the scheduler, each with the futures that it was made of."""
    if inputs:
        made = futures.values() if isinstance(futures, dict) else futures
        for future in made if isinstance(futures, dict | list) else (futures,):
            future._crossed = inputs
    return futures
