"""Private parts of schedulers of distributed: departures, senders, open pages and scaling."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import wraps
from typing import Any

from distributed.core import clean_exception

__all__ = [
    "Sender",
    "before_retirement",
    "before_workers_restart",
    "clean_exception",
    "count_owned_work",
    "keep_awake",
    "members_after_resources",
    "name_senders",
    "pages_open",
]

RETIREMENT = {"close_workers", "remove", "stimulus_id"}
"""Options of ``Scheduler.retire_workers`` that do not choose workers."""

TOLD = 0.02
"""Seconds after which a worker has read what the scheduler sent to it over its stream."""


def pages_open(scheduler: Any) -> bool:
    """Return whether a page of the dashboard is open in any browser."""
    application = getattr(scheduler, "http_application", None)
    return any(
        session.connection_count
        for app in getattr(application, "applications", ())
        for context in getattr(app, "_applications", {}).values()  # of Bokeh
        for session in context.sessions
    )


def keep_awake(scheduler: Any, yes: bool) -> None:
    """Hold the ``idle-timeout`` of a scheduler, or end that.

    The counter is the scheduler's own: above zero it takes a graph in, and is not idle.
    """
    scheduler._active_graph_updates += 1 if yes else -1


def before_retirement(scheduler: Any, leave: Callable[[list[str]], Awaitable[None]]) -> None:
    """Call ``leave(addresses)`` before a scheduler retires workers, for any reason."""
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
            # ``SpecCluster.scale`` gives names in place of addresses: the stock function finds no
            # worker by them, and moves no values.
            workers = leaving = [
                address
                for address, ws in scheduler.workers.items()
                if address in workers or ws.name in workers
            ]
        else:
            # The scheduler chooses workers itself. Choose here, or it could choose others later.
            closing = {k: v for k, v in kwargs.items() if k not in RETIREMENT}
            if closing.get("attribute", "address") == "address":
                workers = leaving = scheduler.workers_to_close(**closing)
                kwargs = options
            else:
                leaving = []
        if leaving:
            await leave(leaving)
        retired = await stock(workers=workers, names=names, **kwargs)
        if leaving:
            # The scheduler has told the workers to close. The caller may have the nannies end the
            # workers next: a worker that reads the scheduler's message after that logs an error.
            await asyncio.sleep(TOLD)
        return retired

    scheduler.retire_workers = retire_workers
    scheduler.handlers["retire_workers"] = retire_workers


def before_workers_restart(scheduler: Any, leave: Callable[[list[str]], Awaitable[None]]) -> None:
    """Call ``leave(addresses)`` before workers that a client names are restarted.

    A restart of the whole cluster has no such call, because it cancels all tasks.
    """
    stock = scheduler.restart_workers

    @wraps(stock)
    async def restart_workers(workers: list[str] | None = None, **kwargs: Any) -> Any:
        leaving = [address for address in workers or () if address in scheduler.workers]
        if leaving:
            await leave(leaving)
        return await stock(workers=workers, **kwargs)

    scheduler.handlers["restart_workers"] = restart_workers


def members_after_resources(scheduler: Any, tell: Callable[[str], None]) -> None:
    """Call ``tell(address)`` after ``set_resources`` has changed the resources of a worker."""
    stock = scheduler.handlers["set_resources"]

    def set_resources(worker: str, resources: dict[str, float] | None = None) -> Any:
        answer = stock(worker=worker, resources=resources)
        tell(worker)
        return answer

    scheduler.handlers["set_resources"] = set_resources


class Sender(str):
    """Id of the client from whose connection a message came.

    The type proves the id: the message itself can only have a plain str there.
    """

    __slots__ = ()


def name_senders(scheduler: Any, operations: Iterable[str]) -> None:
    """Have messages of these operations name their client, as ``sender=Sender(client)``.

    Dask passes the client of a stream on as the argument ``client``, which an item of the message
    itself replaces: so a client could speak in the name of another client.
    """
    ours = frozenset(operations)

    def watch(comm: Any, client: str) -> None:
        """Name the sender in messages that arrive over the connection of one client."""
        stock = comm.read

        @wraps(stock)
        async def read(*args: Any, **kwargs: Any) -> Any:
            messages = await stock(*args, **kwargs)
            for message in messages if isinstance(messages, tuple | list) else (messages,):
                if isinstance(message, dict) and message.get("op") in ours:
                    message["sender"] = Sender(client)
            return messages

        comm.read = read

    stock = scheduler.handle_stream

    @wraps(stock)
    async def handle_stream(comm: Any, extra: dict[str, Any] | None = None) -> None:
        if extra and "client" in extra:
            watch(comm, extra["client"])
        await stock(comm, extra)

    scheduler.handle_stream = handle_stream
    # Clients that connected before the plugin was installed.
    for client, batched in scheduler.client_comms.items():
        if batched.comm is not None:
            watch(batched.comm, client)


def count_owned_work(scheduler: Any, backlog: Callable[[], int]) -> None:
    """Have adaptive scaling see owned tasks: busy workers stay, and a backlog asks for more.

    ``backlog()`` is the number of tasks that wait at clients for a worker.
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
        # At most twice the busy workers at once, and at least one.
        wanted = min(busy + waiting, max(1, 2 * busy)) if waiting else busy
        return max(int(stock_target(*args, **kwargs)), wanted)

    for function in (workers_to_close, adaptive_target):
        setattr(scheduler, function.__name__, function)
        scheduler.handlers[function.__name__] = function
