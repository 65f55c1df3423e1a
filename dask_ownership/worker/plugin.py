"""The worker's part: an executor, and an owner for what its tasks submit."""

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
from distributed.utils import sync

from dask_ownership.core.protocol.names import NEXT
from dask_ownership.futures.future import task_clients
from dask_ownership.interop.bridge import install
from dask_ownership.monitoring.owner_report import group_of
from dask_ownership.monitoring.task_stream import Notes
from dask_ownership.monitoring.worker_report import WorkerActivity
from dask_ownership.runtime.comm.scheduler_ops import (
    DIAL,
    MEMBERS,
    OWNER_GONE,
    PROMOTION_OVER,
    Member,
    incarnation_of,
)
from dask_ownership.runtime.comm.secret import join
from dask_ownership.runtime.dask.client import find_clients
from dask_ownership.runtime.dask.worker import scheduler_gone
from dask_ownership.runtime.executor.executor import Executor
from dask_ownership.runtime.executor.server import Server
from dask_ownership.runtime.task import coroutine_entry, current_entry

logger = logging.getLogger("dask_ownership.worker")


class OwnershipWorkerPlugin(WorkerPlugin):
    """Sets up the executor and the owner of one worker.

    Parameters
    ----------
    secret : str
        The cluster's, see `comm.secret`.
    client_for_worker : callable
        Makes the client that tasks get, see `WorkerSide`. Pickled by its name.
    """

    name = "dask-ownership"

    def __init__(self, secret: str, client_for_worker: Callable[..., Any]) -> None:
        self.secret = secret
        self.client_for_worker = client_for_worker

    async def setup(self, worker: Any) -> None:
        """Attach to a worker. Errors here are swallowed by Dask, so they are logged."""
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


def ignore_interrupts(worker: Any) -> None:
    """Have Ctrl-C spare the process of a worker that has a nanny.

    A terminal and a notebook's stop button send it to all processes of a local cluster, for
    the client among them; the nanny ends the worker when that is meant.
    """
    if worker.nanny is not None and threading.current_thread() is threading.main_thread():
        # A function and not SIG_IGN, which programs that tasks start would inherit.
        signal.signal(signal.SIGINT, lambda number, frame: None)


_set_up: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


def next_incarnation(worker: Any) -> str:
    """Of an owner at a worker: when the plugin is set up there again, it is another one."""
    number = _set_up[worker] = _set_up.get(worker, 0) + 1
    incarnation = incarnation_of(worker.id)
    return incarnation if number == 1 else f"{incarnation}{NEXT}{number}"


class TaskClient:
    """Stands for the worker's client in its tasks until one asks it for something.

    Making a client connects to the scheduler, and most tasks need none.
    """

    def __init__(self, side: WorkerSide) -> None:
        self._side = side

    @property
    def owner(self) -> Any:
        """The worker's owner, for futures that arrive: those need no client yet."""
        return self._side.owner

    def made_client(self) -> Any:
        """The client itself."""
        return self._side.owned_client()

    @property
    def client_of_threads(self) -> Any:
        """The client, when a task has asked for it and others may use it; or None."""
        client = self._side.connected_client
        return client if client is not None and client.status == "running" else None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._side.owned_client(), name)


def client_of_threads() -> Any:
    """The client for threads that tasks started, once a task here has asked for it; or None."""
    for stand_in in list(task_clients.values()):
        if (client := stand_in.client_of_threads) is not None:
            return client
    return None


class WorkerSide:
    """What the plugin leaves on a worker, as ``worker.extensions["dask-ownership"]``.

    Parameters
    ----------
    worker : distributed.Worker
    secret : str
        The cluster's, see `comm.secret`.
    client_for_worker : callable
        Takes this object and a timeout or None, and gives a client on its owner.

    Attributes
    ----------
    executor : dask_ownership.runtime.executor.executor.Executor
    owner : dask_ownership.runtime.owner.owner.Owner
    server : dask_ownership.runtime.executor.server.Server
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
        self.activity = WorkerActivity(worker, self.server, self.notes)
        self._asked: set[str] = set()
        self._asking: set[asyncio.Task[None]] = set()
        self._client: Any = None
        self.connected_client: Any = None
        self._stock_client: Any = None
        self._joining: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Register handlers, metrics and the client that tasks get."""
        install()
        find_clients(client_of_threads)
        worker = self.worker
        ignore_interrupts(worker)
        await self.executor.start()
        self.server.start()
        await self.owner.start()
        self.activity.start()
        worker.extensions["dask-ownership"] = self
        task_clients[self.owner.incarnation] = self.executor.task_client
        worker.stream_handlers[MEMBERS] = self.members_changed
        worker.stream_handlers[OWNER_GONE] = self.owner_gone
        worker.stream_handlers[DIAL] = self.owner.connections.dial
        worker.stream_handlers[PROMOTION_OVER] = self.owner.promotion_over
        worker.metrics["owned_tasks"] = lambda worker: self.executor.core.unfinished
        worker.metrics["owned_running"] = lambda worker: self.executor.core.running
        worker.metrics["owned_nbytes"] = lambda worker: self.executor.store.nbytes
        self._stock_client = worker._get_client
        worker._get_client = self.get_client

    def members_changed(self, added: list[Member], removed: list[tuple[str, str]]) -> None:
        """Stream handler: the scheduler tells of workers."""
        self.executor.fetcher.members_changed(
            [member["address"] for member in added], [address for address, _ in removed]
        )
        for _, incarnation in removed:
            self.executor.drop_owners_at(incarnation)
        self.owner.members.changed(added, removed)

    def owner_gone(self, owner: str) -> None:
        """Stream handler: an owner is gone for good."""
        self.executor.drop_owner(owner)

    def _ask_to_dial(self, owners: list[str]) -> None:
        """Have the scheduler tell clients that this worker has something for them."""
        for owner in owners:
            if owner not in self._asked:
                self._asked.add(owner)
                task = asyncio.ensure_future(self._dialled(owner))
                self._asking.add(task)
                task.add_done_callback(self._asking.discard)

    async def _dialled(self, owner: str) -> None:
        me = self.owner
        try:
            known = await getattr(self.worker.scheduler, DIAL)(
                owner=owner, dialler=me.incarnation, token=me.token
            )
        except OSError:
            return  # it is asked again when the executor looks what it could not deliver
        finally:
            self._asked.discard(owner)
        if known is False:
            self.executor.undeliverable(owner)

    async def join(self) -> None:
        """Have this worker's owner learn the members, once, when its first task submits.

        Raises
        ------
        OSError
            When the scheduler did not answer; the next one who joins asks again.
        """
        if self.owner.members.joined:
            return
        if self._joining is None or self._joining.done():
            self._joining = asyncio.ensure_future(self.owner.members.join())
        await asyncio.shield(self._joining)

    async def _ask_who_is_there(self) -> Any:
        owner = self.owner
        return await join(
            self.worker.scheduler,
            owner=owner.incarnation,
            worker=self.worker.address,
            secret=owner.token,
            known=sorted(owner.core.members_in_doubt().clients),
        )

    def get_client(self, timeout: Any = None) -> Any:
        """What ``get_client()`` gives inside a task.

        Inside an owned task a client on the worker's owner; inside an ordinary Dask
        task the stock client, as without this plugin.
        """
        if current_entry() is None:
            return self._stock_client() if timeout is None else self._stock_client(timeout=timeout)
        return self.owned_client(timeout)

    def owned_client(self, timeout: Any = None) -> Any:
        """The client on this worker's owner, which is connected when a thread asks.

        It is made on the loop, so that threads that ask at once get the same one.
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
        if self._client is None or self._client.status == "closed":
            # What the client starts lives on: not in the context of the task that asked first.
            context = contextvars.copy_context()
            context.run(coroutine_entry.set, None)
            self._client = context.run(self._client_for_worker, self, timeout)
        return self._client

    async def _connect_client(self, timeout: Any) -> Any:
        client = self._client_on_loop(timeout)
        await asyncio.shield(client)
        self.connected_client = client
        return client

    async def close(self) -> None:
        """Undo `start`."""
        task_clients.pop(self.owner.incarnation, None)
        self.activity.close()
        self.notes.close()
        if self._joining is not None:
            self._joining.cancel()
        for task in list(self._asking):
            task.cancel()
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
