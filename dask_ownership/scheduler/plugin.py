"""The scheduler's part: it tells owners who is in the cluster, and nothing per task."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from time import time
from typing import Any
from uuid import uuid4

import dask
from dask.utils import parse_timedelta
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.protocol.pickle import dumps
from tornado.ioloop import PeriodicCallback

from dask_ownership.core.roster import CLIENT, LONGEST, WORKER, Roster
from dask_ownership.monitoring import pages
from dask_ownership.monitoring.feed import Feed
from dask_ownership.runtime.comm.link import PROTOCOL
from dask_ownership.runtime.comm.operations import Refusals, operation, refusal
from dask_ownership.runtime.comm.scheduler_ops import (
    BACKLOG,
    DIAL,
    JOIN,
    MEMBERS,
    OWNER_GONE,
    PROMOTED,
    PROMOTION_OVER,
    RELAY,
    REPORT,
    WHERE,
    WORD,
    Found,
    Member,
    incarnation_of,
)
from dask_ownership.runtime.comm.secret import SCHEDULER, proof, proves
from dask_ownership.runtime.dask.scheduler import (
    Sender,
    before_retirement,
    before_workers_restart,
    count_owned_work,
    keep_awake,
    members_after_resources,
    name_senders,
)
from dask_ownership.scheduler.detached import Holding
from dask_ownership.scheduler.relay import Relays
from dask_ownership.worker.plugin import OwnershipWorkerPlugin

logger = logging.getLogger("dask_ownership.scheduler")

NAME = "dask-ownership"

UNANSWERED = 5.0
"""Seconds beyond its time for which the answer of a worker that leaves is waited for."""

WATCH_INTERVAL = 500
"""Milliseconds between looks at what the workers' heartbeats say."""


class OwnershipSchedulerPlugin(SchedulerPlugin):
    """Lets owners join, and tells them and the workers of changes.

    Parameters
    ----------
    client_for_worker : callable
        Makes the client that tasks of a worker get, see `worker_plugin.WorkerSide`. Pickled by
        its name.

    Attributes
    ----------
    secret : str
        Of this cluster, see `comm.secret`.
    backlogs : dict
        Id of each client with tasks that wait for a worker to about how many.
    started : asyncio.Future
        Whether it was set up; done when that is known.
    holding : Holding
        What lies in queues, variables and datasets.
    roster : Roster
        Who takes part.
    relays : Relays
        What is passed on to workers that cannot be dialled.
    feed : Feed
        What all owners and workers do, while somebody looks.
    """

    name = NAME
    idempotent = True

    def __init__(self, client_for_worker: Callable[..., Any]) -> None:
        self._client_for_worker = client_for_worker
        self.secret = ""
        self.roster = Roster()
        self.backlogs: dict[str, int] = {}
        self._words: dict[str, str] = {}
        self.holding: Any = None
        self.scheduler: Any = None
        self.started: Any = None
        self._refusals = Refusals()
        self._awake = False
        self._watch: PeriodicCallback | None = None
        self.feed: Feed | None = None
        self.relays: Relays | None = None

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
        self.secret = uuid4().hex
        self.scheduler = scheduler
        plugin = OwnershipWorkerPlugin(self.secret, self._client_for_worker)
        try:
            await scheduler.register_worker_plugin(
                None, bytes(dumps(plugin)), name=plugin.name, idempotent=True
            )
        except BaseException:
            del scheduler.extensions[NAME]  # the next client may try again
            self.started.set_result(False)
            raise
        for address, state in scheduler.workers.items():
            self.roster.workers[address] = incarnation_of(state.server_id)
        self.holding = Holding(
            scheduler, self.secret, self._operation, self.roster.owners, self._who_is_there
        )
        self.roster.holder = self.holding.owner.incarnation
        await self.holding.start()
        # Its caller proves who it is, which is checked there.
        scheduler.handlers[JOIN] = operation(self.join, lambda message: None, self._refusals)
        scheduler.handlers[DIAL] = self._operation(self.dial, "dialler")
        scheduler.handlers[WHERE] = self._operation(self.where, "asker")
        self.relays = Relays(
            scheduler.connection_args, self.roster.workers, self._stranger, self._refusals
        )
        scheduler.handlers[RELAY] = self.relays.relay
        name_senders(scheduler, (WORD, BACKLOG, REPORT))
        scheduler.stream_handlers[WORD] = self.word
        token = proof(self.secret, SCHEDULER)
        self.feed = Feed(
            scheduler, self.roster.owners, self.holding.owner, token, self.relays.counts
        )
        pages.install(scheduler)
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
        for owner, client in self.roster.look(time(), self.scheduler.clients):
            logger.info("the client %s is gone, and what it owned with it", client or owner)
            self._words.pop(client, None)
            self._owners_gone([owner])
            message = {"op": OWNER_GONE, "owner": owner}
            for address in list(self.scheduler.stream_comms):
                self.scheduler.worker_send(address, message)
            self._tell_clients(message)

    def _read_grace(self) -> None:
        self.roster.grace = parse_timedelta(dask.config.get("ownership.grace", "10s"))

    # ---- who may take part ----

    def _operation(self, handler: Callable[..., Any], caller: str) -> Callable[..., Any]:
        """A handler for owners, who say who they are as ``caller``."""

        def check(message: dict[str, Any]) -> str | None:
            return self._stranger(message.get(caller), message.get("token"))

        return operation(handler, check, self._refusals)

    def _stranger(self, owner: Any, token: Any) -> str | None:
        """Why a caller is none of this cluster, or None. What it says may be of any type."""
        if proves(self.secret, owner, token):
            return None
        return "the scheduler does not know this owner's token: has it joined?"

    def word(self, sender: Any = None, word: Any = None, **kwargs: Any) -> None:
        """Stream handler of `WORD`. The first of a client stays, while the client is there."""
        if type(sender) is Sender and type(word) is str and len(word) <= LONGEST:
            self._words.setdefault(str(sender), word)

    def _proven(self, owner: str, kind: str, who: str, secret: str) -> bool:
        """Whether somebody who wants to join is the client or worker that they say."""
        if kind == WORKER:
            return proves(self.secret, owner, secret)
        word = self._words.get(who, "")
        return bool(word) and hmac.compare_digest(word.encode(), secret.encode("utf-8", "replace"))

    def join(
        self,
        owner: str = "",
        client: str | None = None,
        worker: str | None = None,
        protocol: Any = None,
        secret: str = "",
        known: Sequence[Any] = (),
    ) -> dict[str, Any]:
        """Handler of `JOIN`: the owner's token and who is there.

        ``secret`` is what `WORD` said, or the token of a worker's owner. ``known`` are owners of
        clients that this one corresponds with: they may not have come to this scheduler yet, if
        it is a new one.
        """
        kind, who = (CLIENT, client) if client else (WORKER, worker or "")
        if protocol != PROTOCOL:
            reason = (
                f"the scheduler speaks version {PROTOCOL} of the ownership protocol and the owner "
                f"version {protocol!r:.20}: install the same dask_ownership in both places"
            )
            self._refusals.say(f"the owner {who or owner!r:.100}", reason)
            return refusal(reason)
        there = self.scheduler.clients if kind == CLIENT else self.scheduler.workers
        if who not in there:
            return {"status": "unknown", "reason": "only registered clients and workers may join"}
        if not self._proven(owner, kind, who, secret):
            return {"status": "prove", "reason": f"only the {kind} itself may join as it"}
        if owner in self.roster.gone:
            return {"status": "gone"}  # the workers were told so: nothing of it is left there
        self._read_grace()
        refused = self.roster.join(owner, kind, who, known, time())
        if refused is not None:
            return refusal(refused)
        return {**self._who_is_there(), "token": proof(self.secret, owner)}

    def _who_is_there(self) -> dict[str, Any]:
        return {
            "status": "OK",
            "members": [self._member(state) for state in self.scheduler.workers.values()],
            "clients": self.roster.clients,
            "holder": self.holding.owner.core.process,
        }

    # ---- what owners ask ----

    def dial(self, owner: str, dialler: str) -> bool:
        """Handler of `DIAL`: tell an owner to link to a worker; False when it is gone."""
        worker = self.roster.address_of(dialler)
        if owner == self.roster.holder:
            self.holding.owner.connections.dial(worker)
            return True
        return self._tell(owner, {"op": DIAL, "address": worker}) or self.roster.expects(
            owner, time()
        )

    def where(self, keys: Sequence[Any], asker: str) -> list[Found]:
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

    def backlog(self, sender: Any = None, tasks: Any = 0, **kwargs: Any) -> None:
        """Stream handler of `BACKLOG`: so many tasks of a client wait for a worker."""
        if type(sender) is Sender and type(tasks) is int:
            self.backlogs.pop(str(sender), None)
            if tasks > 0:
                self.backlogs[str(sender)] = tasks

    async def leave(self, addresses: list[str], wait: bool = True) -> None:
        """Have workers that are about to go move what owners have there.

        With ``wait`` what runs there ends first, unless the whole cluster goes.
        """
        others = bool(set(self.scheduler.workers) - set(addresses))
        wait = wait and others
        timeout = parse_timedelta(dask.config.get("ownership.leave-timeout", "30s"))

        async def leave(address: str) -> None:
            try:
                leaving = self.scheduler.rpc(address).ownership_leave(
                    timeout=timeout, move=others, wait=wait, token=proof(self.secret, SCHEDULER)
                )
                await asyncio.wait_for(leaving, timeout + UNANSWERED)  # it may be frozen
            except Exception as error:
                logger.info("%s goes without moving its values: %r", address, error)

        await asyncio.gather(*map(leave, addresses))

    def add_worker(self, scheduler: Any, worker: str) -> None:
        """A worker registered, or has other resources: owners may use it."""
        state = scheduler.workers[worker]
        self.roster.workers[worker] = incarnation_of(state.server_id)
        self._tell_members([self._member(state)], [])

    def remove_worker(self, scheduler: Any, worker: str, **kwargs: Any) -> None:
        """A worker is gone: its tasks are tried elsewhere, and what it owned is dropped."""
        incarnation, owners = self.roster.worker_left(worker)
        self._tell_members([], [(worker, incarnation)])
        if self.feed is not None:
            self.feed.worker_gone(worker)
        if self.relays is not None:
            self.relays.worker_gone(worker)
        self._owners_gone(owners)

    def remove_client(self, scheduler: Any, client: str) -> None:
        """A client is gone, or only its old connection: wait, look again, then drop."""
        self.backlogs.pop(client, None)
        if self.feed is not None:
            self.feed.client_away(client)
        self._read_grace()
        if not self.roster.client_away(client, time()):
            self._words.pop(client, None)

    def restart(self, scheduler: Any) -> None:
        """All workers are restarted: nothing is left of what was held."""
        self.holding.restart()

    async def before_close(self) -> None:
        if self._watch is not None:
            self._watch.stop()
        if self.feed is not None:
            self.feed.close()
        if self.relays is not None:
            self.relays.close()
        await self.holding.close()

    def _tell(self, owner: str, message: dict[str, Any]) -> bool:
        """Send something to the process of an owner; False when it is unknown."""
        kind, who = self.roster.owners.get(owner, ("", ""))
        if kind == CLIENT and who in self.scheduler.client_comms:
            self.scheduler.client_send(who, message)
        elif kind == WORKER and who in self.scheduler.stream_comms:
            self.scheduler.worker_send(who, message)
        return bool(kind)

    def _tell_members(self, added: list[Member], removed: list[tuple[str, str]]) -> None:
        self.holding.owner.members.changed(added, removed)
        message = {"op": MEMBERS, "added": added, "removed": removed}
        for address in list(self.scheduler.stream_comms):
            self.scheduler.worker_send(address, message)
        self._tell_clients(message)

    def _tell_clients(self, message: dict[str, Any]) -> None:
        for kind, who in set(self.roster.owners.values()):
            if kind == CLIENT and who in self.scheduler.client_comms:
                self.scheduler.client_send(who, message)

    def _owners_gone(self, owners: Iterable[str]) -> None:
        for owner in owners:
            self.holding.gone(owner)
            if self.feed is not None:
                self.feed.owner_gone(owner)
            if self.relays is not None:
                self.relays.owner_gone(owner)

    def _member(self, state: Any) -> Member:
        return Member(
            address=state.address,
            incarnation=self.roster.workers[state.address],
            nthreads=state.nthreads,
            name=state.name if isinstance(state.name, str | int) else str(state.name),
            host=state.host,
            resources=dict(state.resources),
        )
