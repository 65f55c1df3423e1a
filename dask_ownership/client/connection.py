"""A client's connection to its cluster: how it starts its owner, joins, reconnects and closes."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from inspect import isawaitable
from typing import Any

import distributed
from distributed import LocalCluster
from distributed.comm import CommClosedError
from distributed.core import PooledRPCCall
from distributed.utils import sync

from dask_ownership import config
from dask_ownership.client.futures_view import FuturesView, RefcountView
from dask_ownership.client.reconnect import connected
from dask_ownership.client.recreate import RecreateTasks
from dask_ownership.client.scheduler_proxy import SchedulerProxy
from dask_ownership.errors import ClosedOwner, PluginMissing, SchedulerGone
from dask_ownership.futures.future import Future, owned_clients
from dask_ownership.futures.submit import Calls
from dask_ownership.futures.wait import telling_why
from dask_ownership.interop.bridge import Imports, install
from dask_ownership.monitoring.owner_report import Reporter
from dask_ownership.runtime.comm.scheduler_ops import (
    BACKLOG,
    CLOSES,
    DIAL,
    EXITED,
    MEMBERS,
    OWNER_GONE,
    PROMOTION_OVER,
    REPORT,
    WATCH,
)
from dask_ownership.runtime.comm.secret import Joining
from dask_ownership.runtime.comm.wrong_address import connect_to, web_page
from dask_ownership.runtime.dask.client import scheduler_address
from dask_ownership.runtime.owner.members import NotJoined
from dask_ownership.runtime.owner.owner import Owner
from dask_ownership.runtime.parking import await_without_slot, await_without_slot_if_long
from dask_ownership.scheduler.plugin import NAME, OwnershipSchedulerPlugin

WAITS_FOR_TASKS = {
    "_exception", "_gather", "_rebalance", "_replicate", "_result", "_traceback", "_wait",
}  # fmt: skip
"""Coroutine functions, of Dask and here, that wait for other tasks."""

MAY_WAIT = {"_scatter", "_wait_for_workers", "scatter"}
"""Coroutine functions that wait only while there are no workers."""

CLOSING = 30.0
"""Seconds for which a failed start waits for the client to close."""


class ClusterConnection(distributed.Client):
    """The part of a `dask_ownership.Client` that connects its owner to the cluster until it closes.

    Attributes
    ----------
    owner : Owner
        The owner of this client's tasks; in a worker, the owner of the worker.
    calls : Calls
        Makes the rows of calls.
    imports : Imports
        Takes in futures of other clients.
    scheduler : SchedulerProxy
        The operations of the scheduler.
    central_calls : int
        How many operations went to the central scheduler because they are not owned.
    """

    owner: Owner
    scheduler: Any

    def __init__(self, *args: Any, _worker_side: Any = None, **kwargs: Any) -> None:
        # Checked before anything starts. A worker has its configuration from elsewhere.
        if _worker_side is None:
            config.check()
            if web := web_page(kwargs.get("address", args[0] if args else None)):
                raise ValueError(web)
        self._worker_side = _worker_side
        self._joined_comm: Any = None
        self.central_calls = 0
        self._counted_open = False
        self._reporter: Reporter | None = None
        self._lost = ""
        self._embedding: asyncio.Future[None] | None = None
        super().__init__(*args, **kwargs)
        RecreateTasks(self)

    @classmethod
    def for_worker(cls, side: Any, timeout: Any = None) -> ClusterConnection:
        """Return the client for tasks of a worker; must be called on the worker's loop.

        ``side`` has the worker and the worker's owner, which the client shares.
        """
        worker = side.worker
        return cls(
            worker.scheduler.address,
            loop=worker.loop,
            security=worker.security,
            set_as_default=False,
            asynchronous=True,
            direct_to_workers=True,
            name="worker",
            _worker_side=side,
            **({} if timeout is None else {"timeout": timeout}),
        )

    def start(self, **kwargs: Any) -> None:
        """Start the loop if the loop is this client's own, and connect."""
        if self.status == "newly-created":
            if self._worker_side is not None:
                self.owner = self._worker_side.owner
            else:
                self._joining = Joining(self._send_to_scheduler)
                self.owner = Owner(
                    self.connection_args,
                    self.id,
                    self._ask_who_is_there,
                    scheduler=lambda: self.scheduler.address,
                    tell_backlog=self._tell_backlog,
                )
                self._stream_handlers[MEMBERS] = self.owner.members.changed
                self._stream_handlers[EXITED] = self.owner.members.exited
                self._stream_handlers[OWNER_GONE] = self.owner.members.process_gone
                self._stream_handlers[DIAL] = self.owner.connections.dial
                self._stream_handlers[PROMOTION_OVER] = self.owner.promotion_over
                self._reporter = Reporter(self.owner, self._report)
                self._stream_handlers[WATCH] = self._reporter.watch
            self.calls = Calls(self)
            self.imports = Imports(self)
            self.futures, self.refcount = FuturesView(self), RefcountView(self)
            install()
            owned_clients[self.owner.incarnation] = self
            # Clients of workers count, too: tasks may shuffle as well.
            config.client_opened()
            self._counted_open = True
        try:
            super().start(**kwargs)
        # Ctrl-C too: no half-made client stays, least of all as the default client.
        except BaseException:
            if self.status != "closed":
                with suppress(TimeoutError):
                    sync(self.loop, self._close, fast=True, callback_timeout=CLOSING)
            self._loop_runner.stop()
            raise

    async def _start(self, *args: Any, **kwargs: Any) -> Any:
        """Start the owner and, if no cluster is named, a cluster in this process; then connect."""
        try:
            if self._worker_side is None:
                await self.owner.start()
            if self.cluster is None and self._start_arg is None and self.scheduler_file is None:
                # Dask would start the cluster as well, but an interrupt could leave half a cluster,
                # which cannot be closed. The shield lets the start finish.
                self._embedding = asyncio.ensure_future(self._embed())
                await asyncio.shield(self._embedding)
            return await super()._start(*args, **kwargs)
        except BaseException:
            if self.asynchronous and self.status != "closed":
                await self._close(fast=True)
            raise

    async def _embed(self) -> None:
        """Start the cluster of a client without an address or a cluster."""
        self.cluster = await LocalCluster(
            loop=self.loop, asynchronous=self._asynchronous, **self._startup_kwargs
        )

    async def _ensure_connected(self, timeout: Any = None) -> None:
        """Connect to the scheduler, for the first time or again, and join."""
        if isinstance(self.scheduler, PooledRPCCall):
            self.scheduler = SchedulerProxy(self.scheduler, self)
        # Without a task that reads reports this is the first connection.
        if self._handle_report_task is None or self.scheduler is None:
            connecting = super()._ensure_connected(timeout)
            await connect_to(connecting, self._start_arg)
        else:
            self.owner.members.connected(False)
            await self._connect_again(timeout)
        if self.status != "running" or self._joined_comm is self.scheduler_comm:
            return
        # Each connection joins once. Dask may call this method again while the join is under way.
        self._joined_comm = self.scheduler_comm
        try:
            if self._worker_side is not None:
                await self._worker_side.join()
            else:
                await self._join()
            self.owner.members.connected(self._joined_comm is not None)
        except PluginMissing:
            await self._close()
            raise

    async def _connect_again(self, timeout: Any) -> None:
        """Connect again after the connection broke, and close when connections are refused.

        A scheduler that does not answer may be behind a partition: then the client waits as in
        Dask.
        """
        limit = config.value_of("ownership.scheduler-timeout")
        connecting = super()._ensure_connected(timeout)
        if await connected(connecting, scheduler_address(self), self.connection_args, limit):
            return
        self._lose(f"its connection broke, and nothing listens there any more (for {limit:g} s)")
        await self._close()

    def _lose(self, why: str) -> None:
        """Keep the reason for which this client closes by itself."""
        self._lost = f"the scheduler {scheduler_address(self)} of {self.id} is gone: {why}"

    def _outlives(self) -> str:
        """Return what can still be read when the scheduler is gone, and how, for people."""
        values, errors = self.owner.core.readable()
        if not values and not errors:
            return "No value is here that could still be read: make a new client, and submit again"
        parts = [
            f"{count:,d} {what}{'' if count == 1 else 's'}"
            for count, what in ((values, "value"), (errors, "error"))
            if count
        ]
        can = "is here, and can" if values + errors == 1 else "are here, and can"
        return (
            f"{' and '.join(parts)} {can} still be read, with future.result() or for all "
            "futures at once with client.gather(futures, errors='skip'); for all else make a new "
            "client, and submit it again"
        )

    async def _join(self) -> None:
        """Install the plugins if the cluster has none, and learn who is in the cluster."""
        problem: Any = None
        try:
            await self._register_scheduler_plugin(
                self._scheduler_plugin(), name=NAME, idempotent=True
            )
        except Exception as error:
            # Clients may be forbidden to install plugins on a cluster that has the plugin already:
            # joining decides.
            problem = error
        answer: Any = None
        try:
            await self.owner.members.join()
            return
        except NotJoined as error:
            answer = error.answer
        except Exception as error:
            problem = problem or error
        if isinstance(answer, dict) and answer.get("status") == "gone":
            self._lose(
                "it had no connection to this client for more than ownership.grace, and had its "
                "workers drop what this client owned"
            )
            await self._close()
            return
        if (isinstance(answer, dict) and answer.get("status") == "unknown") or (
            answer is None and isinstance(problem, OSError)
        ):
            # The connection broke again, or the scheduler noted the end of the last connection
            # after the present one began. Dask registers this client anew when the client sees its
            # connection closed.
            self._joined_comm = None
            self.scheduler_comm.abort()
            return
        reason = answer.get("reason") if isinstance(answer, dict) else repr(problem)
        if isinstance(answer, dict) and answer.get("status") == "refused":
            raise PluginMissing(
                f"the scheduler {scheduler_address(self)} refuses this client: {reason}"
            )
        raise PluginMissing(
            f"the scheduler {scheduler_address(self)} does not take owners, and this client may "
            f"not install the plugin there ({reason}). Start the scheduler with "
            "`--preload dask_ownership.preload`, with dask_ownership installed on the "
            "scheduler and the workers"
        )

    def _scheduler_plugin(self) -> OwnershipSchedulerPlugin:
        """Return the plugin to install; `Client` overrides this, as the plugin names its class."""
        raise NotImplementedError

    async def _ask_who_is_there(self) -> Any:
        """Ask the scheduler for the token and the members, on behalf of the owner."""
        owner = self.owner
        return await self._joining(
            self.scheduler,
            owner=owner.incarnation,
            client=self.id,
            known=sorted(owner.core.members_in_doubt().clients),
        )

    def _tell_backlog(self, tasks: int) -> None:
        """Tell the scheduler how many tasks wait, for adaptive scaling.

        Sent a few times while many tasks wait, and not per task.
        """
        if self.status == "running":
            self._send_to_scheduler({"op": BACKLOG, "tasks": tasks})

    def _report(self, report: dict[str, Any]) -> bool:
        """Send a report of the owner to the scheduler; return whether there is a connection."""
        if self.status != "running":
            return False
        self._send_to_scheduler({"op": REPORT, "owner": self.owner.incarnation, "report": report})
        return True

    def sync(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        """Run a coroutine function on the loop and wait for it.

        Inside a task, a wait for other tasks gives the slot up. A question that the scheduler
        answers at once keeps the slot: the task may hold a lock, and all tasks that could take the
        slot may wait for that lock.
        """
        executor = self.owner.executor if hasattr(self, "owner") else None
        name = getattr(func, "__name__", "")
        if name == "_wait":
            func = telling_why(func)
        if executor is None or name not in WAITS_FOR_TASKS | MAY_WAIT:
            return super().sync(func, *args, **kwargs)
        at_once = name in WAITS_FOR_TASKS
        parking = executor.parking
        with parking.without_slot() if at_once else parking.without_slot_if_long():
            answer = super().sync(func, *args, **kwargs)
        if not isawaitable(answer):
            return answer
        return await_without_slot(answer) if at_once else await_without_slot_if_long(answer)

    async def _close(self, fast: bool = False) -> None:
        """Close the owner, then the client."""
        if self.status == "closed":
            return
        # The owner of a worker belongs to the worker and outlives this client.
        if self._worker_side is None and hasattr(self, "owner"):
            if not self._lost and self._gives_up():
                self._lose(f"it did not answer again within {self._timeout:g} s")
            if self._reporter is not None:
                self._reporter.close()
            await self.owner.close(f"{self._lost}. {self._outlives()}" if self._lost else "")
            # For workers without a link of this owner: there are values that it only scattered.
            # At the end of a program the scheduler has often closed before.
            if self.status in ("running", "closing") and self.scheduler_comm is not None:
                with suppress(CommClosedError):
                    self.scheduler_comm.send({"op": CLOSES})
        if self._counted_open:
            self._counted_open = False
            config.client_closed()
        if self._embedding is not None:
            await asyncio.gather(self._embedding, return_exceptions=True)
        await super()._close(fast=fast)

    def _gives_up(self) -> bool:
        """Return whether Dask closes this client because the client could not connect again."""
        return (
            self.status == "connecting"
            and self._handle_report_task is not None
            and asyncio.current_task() is self._handle_report_task
        )

    def _handle_restart(self) -> None:
        """Cancel all rows when the cluster restarts, as Dask cancels its futures."""
        super()._handle_restart()
        self.owner.cancel(self.owner.core.rows(), "the cluster restarted")

    def _check_open(self) -> None:
        """Raise when this client is closed."""
        if self.status in ("closed", "closing"):
            if self.owner.lost:
                raise SchedulerGone(self.id, self.owner.lost)
            raise ClosedOwner(f"{self.id} is closed; make a new Client to go on")

    def _owned(self, future: Any) -> bool:
        """Return whether a future belongs to this client's owner."""
        return isinstance(future, Future) and future._owner is self.owner

    def _split(self, futures: Any) -> tuple[list[Any], list[Any]]:
        """Split futures into those of this client's owner and the remaining ones."""
        found = distributed.futures_of(futures)
        mine = [f for f in found if self._owned(f)]
        return mine, [f for f in found if not self._owned(f)]
