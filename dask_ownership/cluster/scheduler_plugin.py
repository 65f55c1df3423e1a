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

from dask_ownership import dashboard
from dask_ownership.cluster.activity import Feed
from dask_ownership.cluster.holding import Holding
from dask_ownership.cluster.worker_plugin import OwnershipWorkerPlugin
from dask_ownership.runtime.compat import (
    before_retirement,
    before_workers_restart,
    count_owned_work,
    keep_awake,
    members_after_resources,
)
from dask_ownership.runtime.link import PROTOCOL
from dask_ownership.runtime.membership import (
    BACKLOG,
    DIAL,
    JOIN,
    MEMBERS,
    OWNER_GONE,
    PROMOTED,
    PROMOTION_OVER,
    WHERE,
    Found,
    Member,
)

logger = logging.getLogger("dask_ownership.scheduler")

NAME = "dask-ownership"

UNANSWERED = 5.0
"""Seconds beyond its time for which the answer of a worker that leaves is waited for."""

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
    holding : Holding
        What lies in queues, variables and datasets.
    owners : dict
        Incarnation of each owner that joined to ``("client", id)`` or
        ``("worker", address)``.
    feed : Feed
        What all owners and workers do, while somebody looks.
    """

    name = NAME
    idempotent = True

    def __init__(self) -> None:
        self.token = ""
        self.owners: dict[str, tuple[str, str]] = {}
        self.backlogs: dict[str, int] = {}
        self.holding: Any = None
        self.scheduler: Any = None
        self.started: Any = None
        self._absences: dict[str, int] = {}
        self._partings: set[asyncio.Task[None]] = set()
        self._awake = False
        self._watch: PeriodicCallback | None = None
        self.feed: Feed | None = None

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
        self.holding = Holding(scheduler, self.token)
        await self.holding.start([_member(state) for state in scheduler.workers.values()])
        scheduler.handlers[JOIN] = self.join
        scheduler.handlers[DIAL] = self.dial
        self.feed = Feed(scheduler, self.owners, self.holding.owner)
        dashboard.install(scheduler)
        scheduler.handlers[WHERE] = self.where
        before_retirement(scheduler, self.leave)
        before_workers_restart(scheduler, partial(self.leave, wait=False))
        members_after_resources(scheduler, lambda worker: self.add_worker(scheduler, worker))
        count_owned_work(scheduler, lambda: sum(self.backlogs.values()))
        scheduler.stream_handlers[BACKLOG] = self.backlog
        if NAME not in scheduler.plugins:
            scheduler.add_plugin(self, name=NAME, idempotent=True)
        self._watch = PeriodicCallback(self._look, WATCH_INTERVAL)
        self._watch.start()
        self.started.set_result(True)
        logger.info(
            "dask_ownership is installed here, and at %d workers: owners may join",
            len(scheduler.workers),
        )

    def _look(self) -> None:
        """Keep a cluster whose workers have owned tasks from seeming idle."""
        busy = any(state.metrics.get("owned_tasks") for state in self.scheduler.workers.values())
        if busy != self._awake:
            self._awake = busy
            keep_awake(self.scheduler, busy)
        if self.feed is not None:
            self.feed.look()

    def join(
        self,
        owner: str = "",
        client: str | None = None,
        worker: str | None = None,
        protocol: int | None = None,
        token: str = "",
    ) -> dict[str, Any]:
        """Handler of `JOIN`: the token and who is there.

        A client that had joined and connects again gives the ``token`` that it got.
        """
        if protocol != PROTOCOL:
            reason = (
                f"the scheduler speaks version {PROTOCOL} of the ownership protocol and the owner "
                f"version {protocol}: install the same dask_ownership in both places"
            )
            logger.warning("the owner %.100r is refused: %s", client or worker or owner, reason)
            return {"status": "refused", "reason": reason}
        if token == self.token and owner not in self.owners:
            return {"status": "gone"}  # the workers were told so: nothing of it is left there
        if client is not None and client in self.scheduler.clients:
            self.owners[owner] = ("client", client)
        elif worker is not None and worker in self.scheduler.workers:
            self.owners[owner] = ("worker", worker)
        else:
            return {"status": "unknown", "reason": "only registered clients and workers may join"}
        members = [_member(state) for state in self.scheduler.workers.values()]
        clients = [owner for owner, (kind, _) in self.owners.items() if kind == "client"]
        holder = self.holding.owner.core.references.process
        return {
            "status": "OK",
            "token": self.token,
            "members": members,
            "clients": [*clients, holder[0]],
            "holder": holder,
        }

    def dial(self, owner: str = "", worker: str = "") -> bool:
        """Handler of `DIAL`: tell an owner to link to a worker; False when it is unknown."""
        if owner == self.holding.owner.incarnation:
            self.holding.owner.dial(worker)
            return True
        return self._tell(owner, {"op": DIAL, "address": worker})

    def where(self, keys: Any = ()) -> list[Found]:
        """Handler of `WHERE`: which workers have the values of keys, or why none has."""
        return [self._where(self.scheduler.tasks.get(key)) for key in keys]

    @staticmethod
    def _where(state: Any) -> Found:
        if state is None:
            return {"state": "unknown", "who_has": []}
        found: Found = {
            "state": state.state,
            "who_has": [holder.address for holder in state.who_has or ()],
        }
        if state.state == "erred":
            blamed = state.exception_blame or state
            found["exception"], found["traceback"] = blamed.exception, blamed.traceback
        return found

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """A name of an owned object that nothing needs here any more: its owner may free it."""
        if finish == "forgotten" and type(key) is str and key.startswith(PROMOTED):
            owner = key[len(PROMOTED) :].partition("-")[0]
            self._tell(owner, {"op": PROMOTION_OVER, "names": [key]})

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
                leaving = self.scheduler.rpc(address).ownership_leave(
                    timeout=timeout, move=others, wait=wait
                )
                await asyncio.wait_for(leaving, timeout + UNANSWERED)  # it may be frozen
            except Exception as error:
                logger.info("%s goes without moving its values: %r", address, error)

        await asyncio.gather(*map(leave, addresses))

    def add_worker(self, scheduler: Any, worker: str) -> None:
        """A worker registered, or has other resources: owners may use it."""
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
        if self.feed is not None:
            self.feed.worker_gone(worker)
        for owner, who in list(self.owners.items()):
            if who == ("worker", worker):
                del self.owners[owner]
                self._tell_all(owner)

    def remove_client(self, scheduler: Any, client: str) -> None:
        """A client is gone, or only its old connection: wait, look again, then drop."""
        self.backlogs.pop(client, None)
        if self.feed is not None:
            self.feed.client_away(client)
        for owner, who in list(self.owners.items()):
            if who == ("client", client):
                absence = self._absences[owner] = self._absences.get(owner, 0) + 1
                task = asyncio.ensure_future(self._part(owner, client, absence))
                self._partings.add(task)
                task.add_done_callback(self._partings.discard)

    async def _part(self, owner: str, client: str, absence: int) -> None:
        await asyncio.sleep(parse_timedelta(dask.config.get("ownership.grace", "10s")))
        if self._absences.get(owner) != absence:
            return  # it came back, and went again later
        if client not in self.scheduler.clients and owner in self.owners:
            del self.owners[owner], self._absences[owner]
            logger.info("the client %s is gone, and what it owned with it", client)
            self._tell_all(owner)

    def restart(self, scheduler: Any) -> None:
        """All workers are restarted: nothing is left of what was held."""
        self.holding.restart()

    async def before_close(self) -> None:
        if self._watch is not None:
            self._watch.stop()
        if self.feed is not None:
            self.feed.close()
        for task in list(self._partings):
            task.cancel()
        await self.holding.close()

    def _tell(self, owner: str, message: dict[str, Any]) -> bool:
        """Send something to the process of an owner; False when it is unknown."""
        kind, who = self.owners.get(owner, ("", ""))
        if kind == "client" and who in self.scheduler.client_comms:
            self.scheduler.client_send(who, message)
        elif kind == "worker" and who in self.scheduler.stream_comms:
            self.scheduler.worker_send(who, message)
        return bool(kind)

    def _tell_owners(self, added: list[Member], removed: list[str]) -> None:
        self.holding.owner.members_changed(added, removed)
        message = {"op": MEMBERS, "added": added, "removed": removed}
        for kind, who in set(self.owners.values()):
            if kind == "client" and who in self.scheduler.client_comms:
                self.scheduler.client_send(who, message)
            elif kind == "worker" and who in self.scheduler.stream_comms:
                self.scheduler.worker_send(who, message)

    def _tell_all(self, owner: str) -> None:
        self.holding.gone(owner)
        if self.feed is not None:
            self.feed.owner_gone(owner)
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
