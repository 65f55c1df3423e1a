"""What is private to a scheduler of distributed: who leaves, who asks, who looks, how it scales."""

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
"""Seconds after which a worker has heard what the scheduler said to it over its stream."""


def pages_open(scheduler: Any) -> bool:
    """Whether a page of the dashboard is open in any browser."""
    application = getattr(scheduler, "http_application", None)
    return any(
        session.connection_count
        for app in getattr(application, "applications", ())
        for context in getattr(app, "_applications", {}).values()  # of Bokeh
        for session in context.sessions
    )


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
        retired = await stock(workers=workers, names=names, **kwargs)
        if leaving:
            # The scheduler has told them so. Who asked may have their nannies end them now, and
            # a worker that hears the scheduler after its nanny logs an error.
            await asyncio.sleep(TOLD)
        return retired

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


def members_after_resources(scheduler: Any, tell: Callable[[str], None]) -> None:
    """Call ``tell(address)`` when a worker has other resources than before."""
    stock = scheduler.handlers["set_resources"]

    def set_resources(worker: str, resources: dict[str, float] | None = None) -> Any:
        answer = stock(worker=worker, resources=resources)
        tell(worker)
        return answer

    scheduler.handlers["set_resources"] = set_resources


class Sender(str):
    """Id of the client over whose connection something came, as the scheduler knows it."""

    __slots__ = ()


def name_senders(scheduler: Any, operations: Iterable[str]) -> None:
    """Have messages of these operations say whose they are, as ``sender=Sender(client)``.

    Dask passes the client on as an argument, which one in the message itself replaces.
    """
    ours = frozenset(operations)

    def watch(comm: Any, client: str) -> None:
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
    for client, batched in scheduler.client_comms.items():
        if batched.comm is not None:
            watch(batched.comm, client)


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
