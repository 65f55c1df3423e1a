"""The scheduler plugin: it tells owners of the members of the cluster, and nothing per task."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from time import time
from typing import Any
from uuid import uuid4

from dask.utils import format_bytes
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.protocol.pickle import dumps
from tornado.ioloop import PeriodicCallback

from dask_ownership.config import unknown_options, value_of
from dask_ownership.core.roster import CLIENT, LONGEST, WORKER, Roster
from dask_ownership.monitoring import pages
from dask_ownership.monitoring.feed import Feed
from dask_ownership.runtime.comm.link import other_protocol
from dask_ownership.runtime.comm.operations import Refusals, operation, refusal
from dask_ownership.runtime.comm.scheduler_ops import (
    BACKLOG,
    CLOSES,
    DIAL,
    EXITED,
    JOIN,
    LEFT,
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
    Removed,
    incarnation_of,
)
from dask_ownership.runtime.comm.secret import SCHEDULER, proof, proves
from dask_ownership.runtime.dask.nanny import exit_of
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
from dask_ownership.worker.plugin import installer

logger = logging.getLogger("dask_ownership.scheduler")

NAME = "dask-ownership"

UNANSWERED = 5.0
"""Seconds beyond its time for leaving for which the scheduler waits for a worker's answer."""

WATCH_INTERVAL = 500
"""Milliseconds between looks at the metrics in the workers' heartbeats."""


UNEXPECTED = ("handle-worker-cleanup", "check-worker-ttl")
"""Beginnings of the stimuli by which the scheduler removes workers that did not say goodbye."""


def how_it_left(state: Any) -> str:
    """Return what became of a worker that did not say goodbye, from its state at the scheduler."""
    used, limit = state.metrics.get("memory"), state.memory_limit
    if not used:
        return f"{LEFT} (unexpectedly)"
    most = f" of {format_bytes(limit)}" if limit else ""
    return f"{LEFT} (unexpectedly; it used {format_bytes(used)}{most} of memory when last heard of)"


class OwnershipSchedulerPlugin(SchedulerPlugin):
    """Lets owners join, and tells owners and workers who joins, leaves and dies.

    Dask calls a plugin by methods with given names, and owners call the handlers: hence the many
    methods. Most attributes are the parts that are made in `start`; there are as many attributes.

    Parameters
    ----------
    client_for_worker : callable
        Makes the client for the tasks of a worker, see `WorkerSide`. Pickled by its name.

    Attributes
    ----------
    secret : str
        The secret of the cluster, see `comm.secret`.
    scheduler : distributed.Scheduler or None
        None until `start`.
    backlogs : dict
        Id of a client to about how many of its tasks wait for a worker; clients with none are
        left out.
    started : asyncio.Future
        Whether `start` succeeded; done when that is known.
    holding : Holding
        The holder, and the holds of items in queues, variables and datasets.
    roster : Roster
        The workers and the owners that take part.
    relays : Relays or None
        Connections that the scheduler passes on to workers which owners cannot dial.
    feed : Feed or None
        The activity of all owners and workers, collected while a page or a client looks.
    """

    name = NAME
    idempotent = True

    def __init__(self, client_for_worker: Callable[..., Any]) -> None:
        self._client_for_worker = client_for_worker
        self.secret = ""
        self.roster = Roster()
        self.backlogs: dict[str, int] = {}
        self._states: dict[str, Any] = {}  # of a worker that left the scheduler has no state
        self._words: dict[str, str] = {}
        self._closing: set[str] = set()  # ids of clients that said so
        self.holding: Any = None
        self.scheduler: Any = None
        self.started: Any = None
        self._refusals = Refusals()
        self._awake = False
        self._watch: PeriodicCallback | None = None
        self._asking: set[asyncio.Task[None]] = set()
        self.feed: Feed | None = None
        self.relays: Relays | None = None

    async def start(self, scheduler: Any) -> None:
        """Install the plugin at the scheduler and its workers, once, for the first client."""
        while (other := scheduler.extensions.get(NAME)) is not None:
            # The plugin of another client may be in the middle of `start`. Dask registers the
            # plugin whose `start` returns first: so return only after the installed plugin has.
            if await other.started:
                return
        # Claimed before the first await, during which another client's `start` may run.
        scheduler.extensions[NAME] = self
        self.started = asyncio.get_running_loop().create_future()
        self.secret = uuid4().hex
        self.scheduler = scheduler
        plugin = installer(self.secret, self._client_for_worker)
        try:
            await scheduler.register_worker_plugin(
                None, bytes(dumps(plugin)), name=plugin.name, idempotent=True
            )
        except BaseException:
            del scheduler.extensions[NAME]  # the next client may try again
            self.started.set_result(False)
            raise
        # Workers that registered before the plugin was there; later ones come by `add_worker`.
        for address, state in scheduler.workers.items():
            self.roster.workers[address] = incarnation_of(state.server_id)
            self._states[address] = state
        self.holding = Holding(
            scheduler, self.secret, self._operation, self.roster.owners, self._who_is_there
        )
        self.roster.holder = self.holding.owner.incarnation
        await self.holding.start()
        # No check in front: an owner gets its token by `join`, which checks another proof.
        scheduler.handlers[JOIN] = operation(self.join, self._other_protocol, self._refusals)
        scheduler.handlers[DIAL] = self._operation(self.dial, "dialler")
        scheduler.handlers[WHERE] = self._operation(self.where, "asker")
        self.relays = Relays(
            scheduler.connection_args,
            self.roster.workers,
            self._stranger,
            self.roster.gone,
            self._refusals,
        )
        scheduler.handlers[RELAY] = self.relays.relay
        name_senders(scheduler, (WORD, CLOSES, BACKLOG, REPORT))
        scheduler.stream_handlers[WORD] = self.word
        scheduler.stream_handlers[CLOSES] = self.closes
        token = proof(self.secret, SCHEDULER)  # shown to workers, whose handlers check it
        self.feed = Feed(
            scheduler,
            self.roster.owners,
            self.holding.owner,
            token,
            self.relays.told,
            self.holding.told,
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
        for text in unknown_options():
            logger.warning("%s", text)
        logger.info(
            "dask_ownership is installed here, and at %d workers: owners may join",
            len(scheduler.workers),
        )

    def _look(self) -> None:
        """Keep a cluster with owned tasks awake, look at the feed, drop clients away too long."""
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
            self._tell_all({"op": OWNER_GONE, "owner": owner})

    def _read_grace(self) -> None:
        """Take ``ownership.grace`` from the configuration, which may change while this runs."""
        self.roster.grace = value_of("ownership.grace")

    # ---- who may take part ----

    def _other_protocol(self, message: dict[str, Any]) -> str | None:
        """Return why a caller of `JOIN` is refused for its version, or None.

        Asked before the arguments are looked at: another version may have other arguments.
        """
        return other_protocol("the scheduler", message.get("protocol"))

    def _operation(self, handler: Callable[..., Any], caller: str) -> Callable[..., Any]:
        """Wrap a handler for owners of this cluster; the argument ``caller`` names the caller."""

        def check(message: dict[str, Any]) -> str | None:
            return self._stranger(message.get(caller), message.get("token"))

        return operation(handler, check, self._refusals)

    def _stranger(self, owner: Any, token: Any) -> str | None:
        """Return why a caller is no owner of this cluster, or None; arguments are of any type."""
        if proves(self.secret, owner, token):
            return None
        return "the scheduler does not know this owner's token: has it joined?"

    def word(self, sender: Any = None, word: Any = None, **kwargs: Any) -> None:
        """Handle the stream message `WORD`: remember the word of a client until the client is gone.

        Only the first word counts, so that no later message can replace it.
        """
        if type(sender) is Sender and type(word) is str and len(word) <= LONGEST:
            self._words.setdefault(str(sender), word)

    def closes(self, sender: Any = None, **kwargs: Any) -> None:
        """Handle the stream message `CLOSES`: note that a client closes, for `remove_client`."""
        if type(sender) is Sender:
            self._closing.add(str(sender))

    def _proven(self, owner: str, kind: str, who: str, secret: str) -> bool:
        """Return whether an owner that wants to join is in the process that its request names."""
        if kind == WORKER:
            return proves(self.secret, owner, secret)
        word = self._words.get(who, "")
        # Compared in constant time, so that no caller can guess a word character by character.
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
        """Handle `JOIN`: let an owner in.

        Parameters
        ----------
        owner : str
            The incarnation of the owner.
        client, worker : str or None
            The id of the client, or the address of the worker, with this owner.
        protocol : int
            Version of the messages of the owner.
        secret : str
            The word of the client (see `WORD`), or the token of the worker's owner.
        known : sequence of str
            Owners of clients with which this owner exchanges references. When the scheduler was
            started anew they may not have joined yet: the roster expects them.

        Returns
        -------
        dict
            The members, the clients, the holder and the token of the owner; or a refusal. With
            the status ``prove`` the client may try again: its word may be on its way.
        """
        kind, who = (CLIENT, client) if client else (WORKER, worker or "")
        there = self.scheduler.clients if kind == CLIENT else self.scheduler.workers
        if who not in there:
            return {"status": "unknown", "reason": "only registered clients and workers may join"}
        if not self._proven(owner, kind, who, secret):
            return {"status": "prove", "reason": f"only the {kind} itself may join as it"}
        if owner in self.roster.gone:
            # The workers have dropped all tasks and values of this owner: it cannot come back.
            return {"status": "gone"}
        self._read_grace()
        refused = self.roster.join(owner, kind, who, known, time())
        if refused is not None:
            return refusal(refused)
        return {**self._who_is_there(), "token": proof(self.secret, owner)}

    def _who_is_there(self) -> dict[str, Any]:
        """Return the members, the owners of clients, and the holder."""
        return {
            "status": "OK",
            "members": [self._member(state) for state in self.scheduler.workers.values()],
            "clients": self.roster.clients,
            "holder": self.holding.owner.core.process,
        }

    # ---- what owners ask ----

    def dial(self, owner: str, dialler: str) -> bool:
        """Handle `DIAL`: tell an owner to link to the worker ``dialler``.

        Returns
        -------
        bool
            False when the owner is gone, and so will never link.
        """
        worker = self.roster.address_of(dialler)
        # The holder is in this process, and all other owners hear it over their stream.
        if owner == self.roster.holder:
            self.holding.owner.connections.dial(worker)
            return True
        return self._tell(owner, {"op": DIAL, "address": worker}) or self.roster.expects(
            owner, time()
        )

    def where(self, keys: Sequence[Any], asker: str) -> list[Found]:
        """Handle `WHERE`: tell which workers have the values of central keys, or why none has."""
        return [self._where(self.scheduler.tasks.get(key)) for key in keys]

    @staticmethod
    def _where(state: Any) -> Found:
        """Return the answer for one key, from the state of its task at the scheduler or None."""
        if state is None:
            return {"state": "unknown", "who_has": []}
        found: Found = {
            "state": state.state,
            "who_has": [worker.address for worker in state.who_has or ()],
        }
        # A task that failed because of an input has its error at that input.
        if state.state == "erred":
            blamed = state.exception_blame or state
            found["exception"], found["traceback"] = blamed.exception, blamed.traceback
        return found

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """Tell an owner when the scheduler forgets the name of a promoted object.

        The scheduler calls this for each transition of each central task, of which few match.
        """
        if finish == "forgotten" and type(key) is str and key.startswith(PROMOTED):
            owner = key[len(PROMOTED) :].partition("-")[0]
            self._tell(owner, {"op": PROMOTION_OVER, "names": [key]})

    def backlog(self, sender: Any = None, tasks: Any = 0, **kwargs: Any) -> None:
        """Handle the stream message `BACKLOG`: note how many tasks of a client wait for workers."""
        if type(sender) is Sender and type(tasks) is int:
            self.backlogs.pop(str(sender), None)
            if tasks > 0:
                self.backlogs[str(sender)] = tasks

    async def leave(self, addresses: list[str], wait: bool = True) -> None:
        """Have workers get ready to leave: owners move their values, and hand over their objects.

        Parameters
        ----------
        addresses : list of str
            The leaving workers.
        wait : bool
            Whether running tasks end first. Nothing is waited for when all workers leave.
        """
        # When all workers leave, none is there to take values.
        others = bool(set(self.scheduler.workers) - set(addresses))
        wait = wait and others
        timeout = value_of("ownership.leave-timeout")

        async def leave(address: str) -> None:
            try:
                leaving = self.scheduler.rpc(address).ownership_leave(
                    timeout=timeout, move=others, wait=wait, token=proof(self.secret, SCHEDULER)
                )
                # The worker keeps the time itself, unless it is frozen.
                await asyncio.wait_for(leaving, timeout + UNANSWERED)
            except Exception as error:
                logger.info("%s goes without moving its values: %r", address, error)

        await asyncio.gather(*map(leave, addresses))

    def add_worker(self, scheduler: Any, worker: str) -> None:
        """Tell owners of a worker that registered, or that has other resources than before."""
        state = self._states[worker] = scheduler.workers[worker]
        self.roster.workers[worker] = incarnation_of(state.server_id)
        self._tell_members([self._member(state)], [])

    def remove_worker(self, scheduler: Any, worker: str, **kwargs: Any) -> None:
        """Tell owners of a worker that is gone: they try its tasks elsewhere.

        Workers hear it, too, and drop the tasks and values of the owner at that worker.
        """
        incarnation, owners = self.roster.worker_left(worker)
        state = self._states.pop(worker, None)
        unexpected = str(kwargs.get("stimulus_id", "")).startswith(UNEXPECTED)
        how = how_it_left(state) if unexpected and state is not None else LEFT
        self._tell_members([], [(worker, incarnation, how)])
        if unexpected and state is not None and state.nanny:
            asking = asyncio.ensure_future(self._ask_nanny(state, incarnation))
            self._asking.add(asking)
            asking.add_done_callback(self._asking.discard)
        if self.feed is not None:
            self.feed.worker_gone(worker)
        if self.relays is not None:
            self.relays.worker_gone(worker)
        self._owners_gone(owners)

    async def _ask_nanny(self, state: Any, incarnation: str) -> None:
        """Tell owners what ended the process of a worker, if the worker's nanny knows."""
        how = await exit_of(self.scheduler, state.nanny, state.pid)
        if how is not None:
            self.holding.owner.members.exited(incarnation, how)
            self._tell_all({"op": EXITED, "incarnation": incarnation, "how": how})

    def remove_client(self, scheduler: Any, client: str) -> None:
        """Take in that the connection of a client ended, from which its grace begins.

        The client may connect again meanwhile, unless the client said that it closes. `_look` drops
        its owner when the grace is over.
        """
        self.backlogs.pop(client, None)
        if self.feed is not None:
            self.feed.client_away(client)
        self._read_grace()
        closed = client in self._closing
        self._closing.discard(client)
        if not self.roster.client_away(client, time(), closed):
            self._words.pop(client, None)

    def restart(self, scheduler: Any) -> None:
        """End all held objects, because a restart of all workers has dropped their values."""
        self.holding.restart()

    async def before_close(self) -> None:
        """Stop looking, and close the holder, before the scheduler closes."""
        if self._watch is not None:
            self._watch.stop()
        for asking in self._asking:
            asking.cancel()
        if self.feed is not None:
            self.feed.close()
        if self.relays is not None:
            self.relays.close()
        await self.holding.close()

    def _tell(self, owner: str, message: dict[str, Any]) -> bool:
        """Send a message to the process of an owner; False when the owner has not joined."""
        kind, who = self.roster.owners.get(owner, ("", ""))
        if kind == CLIENT and who in self.scheduler.client_comms:
            self.scheduler.client_send(who, message)
        elif kind == WORKER and who in self.scheduler.stream_comms:
            self.scheduler.worker_send(who, message)
        return bool(kind)

    def _tell_members(self, added: list[Member], removed: list[Removed]) -> None:
        """Tell the holder, all workers and all clients of members that came and went."""
        self.holding.owner.members.changed(added, removed)
        self._tell_all({"op": MEMBERS, "added": added, "removed": removed})

    def _tell_all(self, message: dict[str, Any]) -> None:
        """Send a message to all workers, and to all clients with an owner that joined."""
        for address in list(self.scheduler.stream_comms):
            self.scheduler.worker_send(address, message)
        self._tell_clients(message)

    def _tell_clients(self, message: dict[str, Any]) -> None:
        """Send a message to all clients with an owner that joined."""
        for kind, who in set(self.roster.owners.values()):
            if kind == CLIENT and who in self.scheduler.client_comms:
                self.scheduler.client_send(who, message)

    def _owners_gone(self, owners: Iterable[str]) -> None:
        """Have the holder and the feed drop owners that are gone."""
        for owner in owners:
            self.holding.gone(owner)
            if self.feed is not None:
                self.feed.owner_gone(owner)
            if self.relays is not None:
                self.relays.owner_gone(owner)

    def _member(self, state: Any) -> Member:
        """Return a worker as owners hear of it, from its state at the scheduler."""
        return Member(
            address=state.address,
            incarnation=self.roster.workers[state.address],
            nthreads=state.nthreads,
            name=state.name if isinstance(state.name, str | int) else str(state.name),
            host=state.host,
            resources=dict(state.resources),
        )
