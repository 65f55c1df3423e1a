"""The links of one owner to the executors of workers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import dask
from dask.utils import parse_timedelta

from dask_ownership.core.owner.ownership import OwnerCore
from dask_ownership.core.owner.rows.worker_view import WorkerView
from dask_ownership.core.protocol.messages import Message
from dask_ownership.runtime.comm.link import LocalLink, OwnerLink
from dask_ownership.runtime.comm.packing import not_sendable
from dask_ownership.runtime.comm.reach import Reach, RoutedPool
from dask_ownership.runtime.owner.home import Home

Lost = Callable[[WorkerView, str], None]
"""Is told that a worker takes no link, and why."""


class Connections:
    """Makes the links and ends them. On the loop's thread.

    Parameters
    ----------
    core : OwnerCore
    executor : Home or None
        The one in this process, to which no connection is needed.
    reach : Reach
    pool : RoutedPool
        What is asked of workers beside the links; also how they are connected to.
    limit : float
        Seconds for which a worker may be silent.
    token : callable
        Gives what proves at workers who this owner is.
    received : callable
        ``received(view, messages)`` for each batch of answers.
    call : callable
        ``call(function, *arguments)`` does something to the core, later.
    refused, unreachable : callable
        Called with the worker and the reason when there will be no link.
    """

    def __init__(
        self,
        core: OwnerCore,
        executor: Home | None,
        reach: Reach,
        pool: RoutedPool,
        limit: float,
        *,
        token: Callable[[], str],
        received: Callable[[WorkerView, Any], None],
        call: Callable[..., None],
        refused: Lost,
        unreachable: Lost,
    ) -> None:
        self.core = core
        self._executor = executor
        self._reach = reach
        self._pool = pool
        self._limit = limit
        self._token = token
        self._received = received
        self._call = call
        self._refused = refused
        self._unreachable = unreachable
        self._closing: set[asyncio.Future[None]] = set()

    def to(self, view: WorkerView) -> Any:
        """The link to a worker, made when it is new."""
        if view.link is None:
            executor = self._executor
            if executor is not None and view.address == executor.worker.address:
                loop = asyncio.get_running_loop()
                deliver = executor.local_link(
                    self.core.peers.process,
                    lambda batch: loop.call_soon(self._local_batch, view, batch),
                )
                view.link = LocalLink(deliver)
            else:
                view.link = self._owner_link(view)
        return view.link

    def _owner_link(self, view: WorkerView) -> OwnerLink:
        incarnation, address, name = self.core.peers.process
        return OwnerLink(
            view.address,
            {
                "owner": incarnation,
                "address": address,
                "name": name,
                "token": self._token(),
                "to": view.incarnation,
            },
            self._pool.connection_args,
            received=lambda messages: self._received(view, messages),
            refused=lambda reason: self._refused(view, reason),
            unreachable=lambda reason: self._unreachable(view, reason),
            reach=parse_timedelta(dask.config.get("distributed.comm.timeouts.connect")),
            silence=self._limit,
            traffic=view.traffic,
            unsendable=lambda message, error: self._unsendable(view, message, error),
            route=self._reach.route,
        )

    def _local_batch(self, view: WorkerView, batch: Any) -> None:
        if view.link is not None:
            messages = view.link.state.receive(batch)
            if messages:
                self._received(view, messages)

    def _unsendable(self, view: WorkerView, message: Message, error: Exception) -> None:
        """A message to a worker cannot be packed: the task that needs it fails."""
        pickled = not_sendable(message, f"the worker {view.address}", error)
        self._call(self.core.unsendable, view, message, pickled)

    def end(self, view: WorkerView) -> bool:
        """End the link to a worker that is gone; whether anything can have arrived there."""
        link, view.link = view.link, None
        self._pool.remove(view.address)
        self._reach.forget(view.address)
        if link is None:
            return False
        link.closed = True
        closing = asyncio.ensure_future(link.close(say_bye=False))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        return bool(link.reached)

    def now_direct(self, address: str) -> None:
        """A worker that was reached by a relay can be dialled: leave the relay."""
        self._pool.remove(address)
        view = self.core.placement.workers.get(address)
        if view is not None and isinstance(view.link, OwnerLink):
            view.link.dial_again()

    def dial(self, address: str) -> None:
        """A worker has a post for this process and no link. Stream handler."""
        view = self.core.placement.workers.get(address)
        if view is not None:
            self.to(view).start()

    async def close(self) -> None:
        """End all links, saying so there."""
        views = list(self.core.placement.workers.values())
        await asyncio.gather(
            *(view.link.close() for view in views if view.link is not None),
            return_exceptions=True,
        )
        for view in views:
            self.core.placement.remove_worker(view)
