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
"""Told of a worker that no dial reaches, and of the reason."""

Refused = Callable[[WorkerView, str, bool], None]
"""Told of a worker that refuses the link, of the reason, and whether one of the two is ending."""


class Connections:
    """The links of one owner, each made at the first message and ended with its worker.

    All methods run in the loop's thread.

    Parameters
    ----------
    core : OwnerCore
    executor : Home or None
        The executor in this process, which needs no connection.
    reach : Reach
        Gives each link its route to the worker: direct, or by a relay.
    pool : RoutedPool
        The owner's pool for requests beside the links. Links are opened with the same arguments for
        connections.
    limit : float
        Seconds for which a worker may be silent.
    token : callable
        Returns the token of this owner.
    received : callable
        ``received(view, messages)`` is called for each batch of answers.
    call : callable
        ``call(function, *arguments)`` calls a function of the core later.
    refused, unreachable : callable
        Called with the worker and the reason, when a worker refuses its link or no dial reaches it.
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
        refused: Refused,
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
        """Return the link to a worker; make the link at the first call."""
        if view.link is None:
            executor = self._executor
            if executor is not None and view.address == executor.worker.address:
                loop = asyncio.get_running_loop()
                # By `call_soon`, because the executor delivers in the middle of its own work, and
                # already before `view.link` is set.
                deliver = executor.local_link(
                    self.core.peers.process,
                    lambda batch: loop.call_soon(self._local_batch, view, batch),
                )
                view.link = LocalLink(deliver)
            else:
                view.link = self._owner_link(view)
        return view.link

    def _owner_link(self, view: WorkerView) -> OwnerLink:
        """Make a link to a worker in another process."""
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
            refused=lambda error: self._refused(view, str(error), error.ending),
            unreachable=lambda reason: self._unreachable(view, reason),
            reach=parse_timedelta(dask.config.get("distributed.comm.timeouts.connect")),
            silence=self._limit,
            byte_counter=view.byte_counter,
            unsendable=lambda message, error: self._unsendable(view, message, error),
            route=self._reach.route,
        )

    def _local_batch(self, view: WorkerView, batch: Any) -> None:
        """Take in a batch of the executor in this process."""
        if view.link is not None:
            messages = view.link.state.receive(batch)
            if messages:
                self._received(view, messages)

    def _unsendable(self, view: WorkerView, message: Message, error: Exception) -> None:
        """Let the task fail that needs a message which cannot be packed."""
        pickled = not_sendable(message, f"the worker {view.address}", error)
        self._call(self.core.unsendable, view, message, pickled)

    def end(self, view: WorkerView) -> bool:
        """End the link to a worker that is gone.

        Returns
        -------
        bool
            Whether any message may have arrived at the worker. If not, its tasks never began there.
        """
        link, view.link = view.link, None
        self._pool.remove(view.address)  # requests to the worker end
        if link is None:
            return False
        link.closed = True  # at once: `close` below runs in a task of its own
        closing = asyncio.ensure_future(link.close(say_bye=False))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        return bool(link.reached)

    def now_direct(self, address: str) -> None:
        """Leave the relay to a worker that can be dialled now."""
        view = self.core.placement.workers.get(address)
        if view is not None and isinstance(view.link, OwnerLink):
            view.link.leave_relay(self._reach.is_relay)

    def dial(self, address: str) -> None:
        """Dial a worker that has a post for this process and no link. Stream handler."""
        view = self.core.placement.workers.get(address)
        if view is not None:
            self.to(view).start()

    async def close(self) -> None:
        """End all links, and tell the workers that this owner closes."""
        views = list(self.core.placement.workers.values())
        await asyncio.gather(
            *(view.link.close() for view in views if view.link is not None),
            return_exceptions=True,
        )
        # A later step of the closed owner finds no workers, and makes no links.
        for view in views:
            self.core.placement.remove_worker(view)
