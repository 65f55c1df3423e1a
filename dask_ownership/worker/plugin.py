"""The worker plugin: an executor, and an owner for the tasks submitted by its tasks."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import signal
import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from distributed.diagnostics.plugin import WorkerPlugin
from distributed.protocol.pickle import dumps
from distributed.utils import sync

from dask_ownership.config import unknown_options
from dask_ownership.core.protocol.names import NEXT
from dask_ownership.futures.future import task_clients
from dask_ownership.interop.bridge import install
from dask_ownership.monitoring.owner_report import group_of
from dask_ownership.monitoring.task_stream import Notes
from dask_ownership.monitoring.worker_report import WorkerReporter
from dask_ownership.runtime.comm.scheduler_ops import (
    DIAL,
    EXITED,
    MEMBERS,
    OWNER_GONE,
    PROMOTION_OVER,
    REPORT,
    Member,
    Removed,
    incarnation_of,
)
from dask_ownership.runtime.comm.secret import join
from dask_ownership.runtime.dask.client import find_clients
from dask_ownership.runtime.dask.worker import scheduler_gone
from dask_ownership.runtime.executor.executor import Executor
from dask_ownership.runtime.executor.server import OPERATIONS, Server
from dask_ownership.runtime.task import coroutine_entry, current_entry

logger = logging.getLogger("dask_ownership.worker")

FIRST_ASKED = 0.1
"""Seconds after which a scheduler that did not answer is asked for a link again; twice as long each
time until `LAST_ASKED`."""

LAST_ASKED = 5.0

STREAMED = (MEMBERS, EXITED, OWNER_GONE, DIAL, PROMOTION_OVER)
"""Stream operations that the scheduler plugin sends to all workers."""


class OwnershipWorkerPlugin(WorkerPlugin):
    """Sets up the executor and the owner of one worker.

    Parameters
    ----------
    secret : str
        The secret of the cluster, see `comm.secret`.
    client_for_worker : callable
        Makes the client of tasks, see `WorkerSide`. Pickled by its name.
    """

    name = "dask-ownership"

    def __init__(self, secret: str, client_for_worker: Callable[..., Any]) -> None:
        self.secret = secret
        self.client_for_worker = client_for_worker

    async def setup(self, worker: Any) -> None:
        """Attach to a worker, and log errors of that."""
        try:
            await WorkerSide(worker, self.secret, self.client_for_worker).start()
            logger.info("dask_ownership is installed at %s", worker.address)
        except Exception:
            logger.exception("dask_ownership could not be set up on %s", worker.address)
            raise

    async def teardown(self, worker: Any) -> None:
        """Detach when the worker closes."""
        side = worker.extensions.pop("dask-ownership", None)
        if side is not None:
            await side.close()


def installer(secret: str, client_for_worker: Callable[..., Any]) -> WorkerPlugin:
    """Return the plugin to send to workers, which sets `OwnershipWorkerPlugin` up there.

    A worker that cannot import this package, or has a wrong configuration, takes the installer all
    the same: the worker runs the scheduler's tasks as before, and refuses owners with the reason.
    Otherwise the worker would not start, or end with the first message of the scheduler plugin.
    """
    pickled = bytes(dumps(OwnershipWorkerPlugin(secret, client_for_worker)))
    refused, unanswered, streamed = OPERATIONS, REPORT, STREAMED

    # A class within a function is pickled by value, and so needs nothing of this package.
    class Installer(WorkerPlugin):
        name = OwnershipWorkerPlugin.name
        plugin: Any = None

        async def setup(self, worker: Any) -> None:
            import logging
            import pickle

            try:
                plugin = pickle.loads(pickled)
                await plugin.setup(worker)
                self.plugin = plugin
            except Exception as error:
                what = f"dask_ownership could not be set up there: {error!r}"
                if isinstance(error, ImportError):
                    what = (
                        f"it cannot import dask_ownership ({error}): install the package there, "
                        "and start the worker again"
                    )
                reason = f"the worker {worker.address} takes no owned tasks: {what}"
                logging.getLogger("distributed.worker").warning(reason)
                refusal = {"status": "refused", "reason": reason}
                for operation in refused:
                    worker.handlers[operation] = lambda **message: refusal
                worker.handlers[unanswered] = lambda **message: None  # there is nothing to report
                for operation in streamed:
                    worker.stream_handlers[operation] = lambda **message: None

        async def teardown(self, worker: Any) -> None:
            if self.plugin is not None:
                await self.plugin.teardown(worker)

    return Installer()


def ignore_interrupts(worker: Any) -> None:
    """Have Ctrl-C spare the process of a worker that has a nanny.

    A terminal and the stop button of a notebook send the signal to all processes of a local
    cluster, though only the client is meant. The nanny ends the worker when the user wants that.
    """
    if worker.nanny is not None and threading.current_thread() is threading.main_thread():
        # A function and not SIG_IGN, which programs that tasks start would inherit.
        signal.signal(signal.SIGINT, lambda number, frame: None)


_set_up: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


def next_incarnation(worker: Any) -> str:
    """Make the incarnation of an owner at a worker: another one for each setup of the plugin.

    Owners elsewhere may still know the earlier owner of this worker, whose objects are gone.
    """
    number = _set_up[worker] = _set_up.get(worker, 0) + 1
    incarnation = incarnation_of(worker.id)
    return incarnation if number == 1 else f"{incarnation}{NEXT}{number}"


class TaskClient:
    """Stands for the worker's client in its tasks, until a task uses the client.

    Making a client connects to the scheduler, and most tasks need no client.
    """

    def __init__(self, side: WorkerSide) -> None:
        self._side = side

    @property
    def owner(self) -> Any:
        """The worker's owner: arriving futures need the owner, and no client yet."""
        return self._side.owner

    def made_client(self) -> Any:
        """Return the client itself, made and connected at the first call."""
        return self._side.owned_client()

    @property
    def client_of_threads(self) -> Any:
        """The client for threads that tasks started; None before a task has asked for it."""
        client = self._side.connected_client
        return client if client is not None and client.status == "running" else None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._side.owned_client(), name)


def client_of_threads() -> Any:
    """Return the client for threads that tasks started, of any worker in this process; or None."""
    for stand_in in list(task_clients.values()):
        if (client := stand_in.client_of_threads) is not None:
            return client
    return None


class WorkerSide:
    """The parts of this package at one worker, as ``worker.extensions["dask-ownership"]``.

    Parameters
    ----------
    worker : distributed.Worker
    secret : str
        The secret of the cluster, see `comm.secret`.
    client_for_worker : callable
        Takes this object and a timeout or None, and gives a client on its owner.

    Attributes
    ----------
    worker : distributed.Worker
    executor : dask_ownership.runtime.executor.executor.Executor
    owner : dask_ownership.runtime.owner.owner.Owner
    server : dask_ownership.runtime.executor.server.Server
    notes : dask_ownership.monitoring.task_stream.Notes
        The notes of ended tasks, for the task stream.
    reporter : dask_ownership.monitoring.worker_report.WorkerReporter
        Answers the scheduler's questions of looks.
    connected_client : dask_ownership.Client or None
        The client of tasks, once it is connected.
    """

    def __init__(
        self, worker: Any, secret: str, client_for_worker: Callable[[WorkerSide, Any], Any]
    ) -> None:
        self.worker = worker
        self._client_for_worker = client_for_worker
        self.executor = Executor(
            worker,
            secret,
            next_incarnation(worker),
            TaskClient(self),
            self._ask_who_is_there,
            self._ask_to_dial,
        )
        self.owner = self.executor.owner
        self.server = Server(self.executor, secret)
        self.notes = Notes(self.executor.watch, group_of)
        self.reporter = WorkerReporter(worker, self.server, self.notes)
        self._asked: set[str] = set()
        self._asking: set[asyncio.Task[None]] = set()
        self._client: Any = None
        self.connected_client: Any = None
        self._stock_client: Any = None
        self._joining: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the parts, and register handlers, metrics and the client of tasks."""
        # Ordinary tasks of this worker may have owned futures as arguments of their own calls.
        install()
        find_clients(client_of_threads)
        worker = self.worker
        ignore_interrupts(worker)
        await self.executor.start()
        self.server.start()
        await self.owner.start()
        self.reporter.start()
        worker.extensions["dask-ownership"] = self
        task_clients[self.owner.incarnation] = self.executor.task_client
        worker.stream_handlers[MEMBERS] = self.members_changed
        worker.stream_handlers[EXITED] = self.owner.members.exited
        worker.stream_handlers[OWNER_GONE] = self.owner_gone
        worker.stream_handlers[DIAL] = self.owner.connections.dial
        worker.stream_handlers[PROMOTION_OVER] = self.owner.promotion_over
        # With each heartbeat: the scheduler plugin keeps a busy cluster awake by them.
        worker.metrics["owned_tasks"] = lambda worker: self.executor.core.unfinished
        worker.metrics["owned_running"] = lambda worker: self.executor.core.running
        worker.metrics["owned_nbytes"] = lambda worker: self.executor.store.nbytes
        self._stock_client = worker._get_client
        worker._get_client = self.get_client
        for text in unknown_options():
            logger.warning("%s", text)

    def members_changed(self, added: list[Member], removed: list[Removed]) -> None:
        """Handle the stream message `MEMBERS`: take in workers that came and went."""
        self.executor.fetcher.members_changed(
            [member["address"] for member in added], [address for address, *_ in removed]
        )
        for _, incarnation, _ in removed:
            self.executor.drop_owners_at(incarnation)
        self.owner.members.changed(added, removed)

    def owner_gone(self, owner: str) -> None:
        """Handle the stream message `OWNER_GONE`: drop an owner that is gone for good."""
        self.executor.drop_owner(owner)

    def _ask_to_dial(self, owners: list[str]) -> None:
        """Have the scheduler ask owners to link to this worker, where posts wait for them."""
        for owner in owners:
            # One question for each owner at a time: this is called with each flush.
            if owner not in self._asked:
                self._asked.add(owner)
                task = asyncio.ensure_future(self._dialled(owner))
                self._asking.add(task)
                task.add_done_callback(self._asking.discard)

    async def _dialled(self, owner: str) -> None:
        """Ask the scheduler for a link from one owner, or drop an owner that is gone."""
        me = self.owner
        pause = FIRST_ASKED
        try:
            while True:
                try:
                    known = await getattr(self.worker.scheduler, DIAL)(
                        owner=owner, dialler=me.incarnation, token=me.token
                    )
                    break
                except OSError:  # the posts wait for as long as the scheduler does not answer
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, LAST_ASKED)
        finally:
            self._asked.discard(owner)
        if known is False:
            self.executor.undeliverable(owner)

    async def join(self) -> None:
        """Have this worker's owner learn the members, once, when its first task submits.

        Tasks that submit at the same time wait for the same answer.

        Raises
        ------
        OSError
            When the scheduler did not answer. The next call asks again.
        """
        if self.owner.members.joined:
            return
        if self._joining is None or self._joining.done():
            self._joining = asyncio.ensure_future(self.owner.members.join())
        await asyncio.shield(self._joining)  # a cancelled caller must not cancel other callers

    async def _ask_who_is_there(self) -> Any:
        """Join as the owner of this worker; the scheduler's answer."""
        owner = self.owner
        return await join(
            self.worker.scheduler,
            owner=owner.incarnation,
            worker=self.worker.address,
            secret=owner.token,
            known=sorted(owner.core.members_in_doubt().clients),
        )

    def get_client(self, timeout: Any = None) -> Any:
        """Get the client of the calling task, for ``get_client()``.

        An owned task gets a client on the worker's owner. An ordinary Dask task gets the stock
        client, as without this plugin.
        """
        if current_entry() is None:
            return self._stock_client() if timeout is None else self._stock_client(timeout=timeout)
        return self.owned_client(timeout)

    def owned_client(self, timeout: Any = None) -> Any:
        """Get the client on this worker's owner; a thread waits until the client is connected.

        The client is made on the loop, so that all threads asking at once get the same client. On
        the loop the client may not be connected yet: a coroutine awaits the client for that.
        """
        client = self._client
        if client is not None and client is self.connected_client and client.status != "closed":
            return client
        try:
            on_loop = asyncio.get_running_loop() is self.worker.loop.asyncio_loop
        except RuntimeError:
            on_loop = False
        if on_loop:
            return self._client_on_loop(timeout)
        return sync(self.worker.loop, self._connect_client, timeout)

    def _client_on_loop(self, timeout: Any) -> Any:
        """Get the client, made when there is none or it was closed. Loop thread."""
        if self._client is None or self._client.status == "closed":
            # Callbacks of the client outlive the task that asked first. In the context of the task
            # they would count as parts of the task.
            context = contextvars.copy_context()
            context.run(coroutine_entry.set, None)
            self._client = context.run(self._client_for_worker, self, timeout)
        return self._client

    async def _connect_client(self, timeout: Any) -> Any:
        """Get the client, connected."""
        client = self._client_on_loop(timeout)
        await asyncio.shield(client)  # other threads may wait for the same connection
        self.connected_client = client
        return client

    async def close(self) -> None:
        """End the client, the owner and the executor of this worker."""
        task_clients.pop(self.owner.incarnation, None)
        self.reporter.close()
        self.notes.close()
        if self._joining is not None:
            self._joining.cancel()
        for task in list(self._asking):
            task.cancel()
        # With a reason the owner's futures raise `SchedulerGone` from now on, else `ClosedOwner`.
        lost = ""
        if scheduler_gone(self.worker):
            lost = (
                f"the scheduler {self.worker.scheduler.address} of worker {self.worker.address} is "
                "gone: its connection broke, and so the worker closes"
            )
        await self.owner.close(lost)
        self.server.close()
        await self.executor.close()
        client, self._client = self._client, None
        self.connected_client = None
        if client is not None and client.status != "closed":
            await client._close(fast=True)
