"""The scheduler's part: it tells owners who is in the cluster, and nothing per task."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Any
from uuid import uuid4

import dask
from dask.utils import parse_timedelta
from distributed.diagnostics.plugin import SchedulerPlugin
from tornado.ioloop import PeriodicCallback

from dask_ownership.cluster.worker_plugin import OwnershipWorkerPlugin
from dask_ownership.runtime.compat import (
    before_retirement,
    before_workers_restart,
    count_owned_work,
    keep_awake,
)
from dask_ownership.runtime.link import PROTOCOL
from dask_ownership.runtime.membership import BACKLOG, DIAL, JOIN, MEMBERS, OWNER_GONE, Member

logger = logging.getLogger("dask_ownership.scheduler")

NAME = "dask-ownership"

WATCH_INTERVAL = 500
"""Milliseconds between looks at what the workers' heartbeats say."""


class OwnershipSchedulerPlugin(SchedulerPlugin):
    """Lets owners join, and tells them and the workers of changes.

    Attributes
    ----------
    token : str
        Secret of this cluster; given to registered clients and workers, and asked
        for by executors.
    backlogs : dict
        Id of each client with tasks that wait for a worker to about how many.
    started : asyncio.Future
        Whether it was set up; done when that is known.
    owners : dict
        Incarnation of each owner that joined to ``("client", id)`` or
        ``("worker", address)``.
    """

    name = NAME
    idempotent = True

    def __init__(self) -> None:
        self.token = ""
        self.owners: dict[str, tuple[str, str]] = {}
        self.backlogs: dict[str, int] = {}
        self.scheduler: Any = None
        self.started: Any = None
        self._partings: set[asyncio.Task[None]] = set()
        self._awake = False
        self._watch: PeriodicCallback | None = None

    async def start(self, scheduler: Any) -> None:
        """Install everything, once, whoever comes first."""
        while (other := scheduler.extensions.get(NAME)) is not None:
            # Another client's may be in the middle of this. Whoever returns from here first is
            # taken for the plugin: not before that one is.
            if await other.started:
                return
        # Taken at once: another client's start may run before this one's awaits end.
        scheduler.extensions[NAME] = self
        self.started = asyncio.get_running_loop().create_future()
        self.token = uuid4().hex
        self.scheduler = scheduler
        plugin = OwnershipWorkerPlugin(self.token)
        try:
            await scheduler.register_worker_plugin(
                None, _dumps(plugin), name=plugin.name, idempotent=True
            )
        except BaseException:
            del scheduler.extensions[NAME]  # the next client may try again
            self.started.set_result(False)
            raise
        scheduler.handlers[JOIN] = self.join
        scheduler.handlers[DIAL] = self.dial
        before_retirement(scheduler, self.leave)
        before_workers_restart(scheduler, partial(self.leave, wait=False))
        count_owned_work(scheduler, lambda: sum(self.backlogs.values()))
        scheduler.stream_handlers[BACKLOG] = self.backlog
        if NAME not in scheduler.plugins:
            scheduler.add_plugin(self, name=NAME, idempotent=True)
        self._watch = PeriodicCallback(self._look, WATCH_INTERVAL)
        self._watch.start()
        self.started.set_result(True)

    def _look(self) -> None:
        """Keep a cluster whose workers have owned tasks from seeming idle."""
        busy = any(state.metrics.get("owned_tasks") for state in self.scheduler.workers.values())
        if busy != self._awake:
            self._awake = busy
            keep_awake(self.scheduler, busy)

    def join(
        self,
        owner: str = "",
        client: str | None = None,
        worker: str | None = None,
        protocol: int | None = None,
    ) -> dict[str, Any]:
        """Handler of `JOIN`: the token and who is there."""
        if protocol != PROTOCOL:
            reason = (
                f"the scheduler speaks version {PROTOCOL} of the ownership protocol and the owner "
                f"version {protocol}: install the same dask_ownership in both places"
            )
            return {"status": "refused", "reason": reason}
        if client is not None and client in self.scheduler.clients:
            self.owners[owner] = ("client", client)
        elif worker is not None and worker in self.scheduler.workers:
            self.owners[owner] = ("worker", worker)
        else:
            return {"status": "refused", "reason": "only registered clients and workers may join"}
        members = [_member(state) for state in self.scheduler.workers.values()]
        return {"status": "OK", "token": self.token, "members": members}

    def dial(self, owner: str = "", worker: str = "") -> bool:
        """Handler of `DIAL`: tell an owner to link to a worker; False when it is unknown."""
        kind, who = self.owners.get(owner, ("", ""))
        message = {"op": DIAL, "address": worker}
        if kind == "client" and who in self.scheduler.client_comms:
            self.scheduler.client_send(who, message)
        elif kind == "worker" and who in self.scheduler.stream_comms:
            self.scheduler.worker_send(who, message)
        return bool(kind)

    def backlog(self, client: str = "", tasks: int = 0, **kwargs: Any) -> None:
        """Stream handler of `BACKLOG`: so many tasks of a client wait for a worker."""
        if tasks:
            self.backlogs[client] = tasks
        else:
            self.backlogs.pop(client, None)

    async def leave(self, addresses: list[str], wait: bool = True) -> None:
        """Have workers that are about to go move what owners have there.

        With ``wait`` what runs there ends first.
        """
        others = bool(set(self.scheduler.workers) - set(addresses))
        timeout = parse_timedelta(dask.config.get("ownership.leave-timeout", "30s"))

        async def leave(address: str) -> None:
            try:
                await self.scheduler.rpc(address).ownership_leave(
                    timeout=timeout, move=others, wait=wait
                )
            except Exception as error:
                logger.info("%s goes without moving its values: %r", address, error)

        await asyncio.gather(*map(leave, addresses))

    def add_worker(self, scheduler: Any, worker: str) -> None:
        """A worker registered: owners may use it."""
        self._tell_owners([_member(scheduler.workers[worker])], [])

    def remove_worker(self, scheduler: Any, worker: str, **kwargs: Any) -> None:
        """A worker is gone: its tasks are tried elsewhere, and what it owned is dropped."""
        self._tell_owners([], [worker])
        # All workers, also those whose owners did not join: they may be fetching from it.
        message = {"op": MEMBERS, "added": [], "removed": [worker]}
        told = {who for kind, who in self.owners.values() if kind == "worker"}
        for address in list(self.scheduler.stream_comms):
            if address not in told and address != worker:
                self.scheduler.worker_send(address, message)
        for owner, who in list(self.owners.items()):
            if who == ("worker", worker):
                del self.owners[owner]
                self._tell_all(owner)

    def remove_client(self, scheduler: Any, client: str) -> None:
        """A client is gone, or only its old connection: wait, look again, then drop."""
        self.backlogs.pop(client, None)
        for owner, who in list(self.owners.items()):
            if who == ("client", client):
                task = asyncio.ensure_future(self._part(owner, client))
                self._partings.add(task)
                task.add_done_callback(self._partings.discard)

    async def _part(self, owner: str, client: str) -> None:
        await asyncio.sleep(parse_timedelta(dask.config.get("ownership.grace", "10s")))
        if client not in self.scheduler.clients and owner in self.owners:
            del self.owners[owner]
            self._tell_all(owner)

    async def before_close(self) -> None:
        if self._watch is not None:
            self._watch.stop()
        for task in list(self._partings):
            task.cancel()

    def _tell_owners(self, added: list[Member], removed: list[str]) -> None:
        message = {"op": MEMBERS, "added": added, "removed": removed}
        for kind, who in set(self.owners.values()):
            if kind == "client" and who in self.scheduler.client_comms:
                self.scheduler.client_send(who, message)
            elif kind == "worker" and who in self.scheduler.stream_comms:
                self.scheduler.worker_send(who, message)

    def _tell_all(self, owner: str) -> None:
        message = {"op": OWNER_GONE, "owner": owner}
        for address in list(self.scheduler.stream_comms):
            self.scheduler.worker_send(address, message)
        for kind, who in set(self.owners.values()):
            if kind == "client" and who in self.scheduler.client_comms:
                self.scheduler.client_send(who, message)


def _member(state: Any) -> Member:
    return Member(
        address=state.address,
        nthreads=state.nthreads,
        name=state.name if isinstance(state.name, str | int) else str(state.name),
        host=state.host,
        resources=dict(state.resources),
    )


def _dumps(plugin: Any) -> bytes:
    from distributed.protocol.pickle import dumps

    return bytes(dumps(plugin))
