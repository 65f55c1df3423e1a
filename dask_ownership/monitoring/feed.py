"""What all owners and workers do, gathered at the scheduler while somebody looks.

Somebody looks when a page of the dashboard is open in a browser, and for a while after
`ACTIVITY` was asked or the metrics were read. From then on each client sends a report when
something changed, at most twice a second (`dask_ownership.monitoring.owner_report`), and the
scheduler asks each worker as often, less often when there are more than a hundred: one
exchange for what its executor did, what its owner has, and what ran there for the task stream
(`dask_ownership.monitoring.task_stream`). When nobody looks nothing is sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from time import time
from typing import Any

from dask_ownership.monitoring import metrics
from dask_ownership.monitoring.dask_pages import StockPages
from dask_ownership.monitoring.owner_report import INTERVAL, Reporter
from dask_ownership.monitoring.rounds import Reported, Rounds, pending, rate
from dask_ownership.monitoring.task_stream import TaskStream
from dask_ownership.monitoring.worker_reports import WorkerReports
from dask_ownership.runtime.comm.scheduler_ops import ACTIVITY, REPORT, WATCH
from dask_ownership.runtime.dask.scheduler import Sender, pages_open

logger = logging.getLogger("dask_ownership.scheduler")

PER_WORKER = 0.005
"""Seconds between two rounds for each worker of the cluster, as far as that is more than the
time between two calls of `Feed.look`."""

LOOKED = 10.0
"""Seconds for which somebody looks who asked once."""

FIRST_REPORTS = 1.0
"""Seconds for which the first reports of clients are waited for."""

EVENTS = 200
"""Unusual events that are remembered."""


class Watchers:
    """Whether somebody looks, and which clients were told so.

    Parameters
    ----------
    scheduler : distributed.Scheduler

    Attributes
    ----------
    on : bool
        Somebody looked when clients were told last.
    until : float
        When nobody does any more.
    told : dict
        Incarnation of each owner that was told to report to the id of its client.
    """

    def __init__(self, scheduler: Any) -> None:
        self.on = False
        self.until = 0.0
        self.told: dict[str, str] = {}
        self._scheduler = scheduler

    def tell(self, members: dict[str, tuple[str, str]]) -> bool:
        """Tell clients, of these owners, whether somebody looks; gives that."""
        self.on = time() < self.until
        if not self.on:
            for client in self.told.values():
                self._tell(client, False)
            self.told.clear()
            return False
        for owner, (kind, client) in members.items():
            if kind == "client" and owner not in self.told and self._tell(client, True):
                self.told[owner] = client
        return True

    def _tell(self, client: str, on: bool) -> bool:
        there = client in self._scheduler.client_comms
        if there:
            self._scheduler.client_send(client, {"op": WATCH, "on": on})
        return there

    def client_away(self, client: str) -> list[str]:
        """Its owners, which are told again should it come back."""
        owners = [owner for owner, told in self.told.items() if told == client]
        for owner in owners:
            del self.told[owner]
        return owners


class Feed:
    """Brings reports to the scheduler, and says what they say together.

    Parameters
    ----------
    scheduler : distributed.Scheduler
    owners : dict
        Incarnation of each owner to ``("client", id)`` or ``("worker", address)``; somebody
        else's.
    holder : Owner
        The one in this process.
    token : str
        Proves to workers that it is the scheduler that asks.

    Attributes
    ----------
    watchers : Watchers
        Those who look.
    rounds : Rounds
        What was brought together.
    """

    def __init__(
        self,
        scheduler: Any,
        owners: dict[str, tuple[str, str]],
        holder: Any,
        token: str,
        relays: Callable[[], dict[str, int]] = dict,
    ) -> None:
        self.scheduler = scheduler
        self.members = owners
        self._relays = relays
        self.holder = Reporter(holder)
        self.watchers = Watchers(scheduler)
        self.task_stream = TaskStream(scheduler, self.fetch)
        self.rounds = Rounds()
        self.events: deque[dict[str, Any]] = deque(maxlen=EVENTS)
        self.gone = 0
        self.stock_pages = StockPages(scheduler)
        self.owners: dict[str, Reported] = {}
        self.workers = WorkerReports(scheduler, token, self.stock_pages)
        self._next = 0.0
        self._asked = False
        self._fetching = asyncio.Lock()
        self._task: asyncio.Future[None] | None = None
        metrics.offer(self)
        scheduler.handlers[ACTIVITY] = self.activity
        scheduler.stream_handlers[REPORT] = self.reported

    # ---- who looks ----

    def looked(self, seconds: float = LOOKED) -> None:
        """Somebody looks, and may look again within so many seconds."""
        self.watchers.until = max(self.watchers.until, time() + seconds)

    def look(self) -> None:
        """Bring reports together when it is time to. Called again and again."""
        if pages_open(self.scheduler):
            self.looked()
        self._watch()
        if not self.idle and time() >= self._next and not self._fetching.locked():
            self._task = asyncio.ensure_future(self.fetch())

    @property
    def idle(self) -> bool:
        """Whether nobody looks, and all were told so."""
        return not (self.watchers.on or self.task_stream.wanted or self._asked)

    def _watch(self) -> None:
        """Tell all owners whether somebody looks."""
        on = self.watchers.tell(self.members)
        if on != self.holder.watching:
            self.holder.watch(on)
        if not on and (self.owners or self.workers.last):
            # Numbers that nobody keeps up to date are not left.
            self.stock_pages.hide()
            self.owners.clear()
            self.workers.last.clear()
            self.rounds.clear_flow()

    # ---- what is reported ----

    def reported(self, sender: Any = None, owner: str = "", report: Any = None, **kw: Any) -> None:
        """Stream handler of `REPORT`, of a client."""
        known = type(sender) is Sender and self.members.get(owner) == ("client", sender)
        if known and isinstance(report, dict):
            self._took(owner, report)

    def _took(self, owner: str, report: dict[str, Any]) -> None:
        there = self.owners.setdefault(owner, Reported())
        there.last = report
        names = self._names()
        submitters = report["parents"] or dict.fromkeys(report["submitters"], 0)
        if submitters:
            known = max(submitters, key=lambda one: (submitters[one], one))
            there.parent = names.get(known, known)
        who = names.get(owner, owner)
        for key, what, detail, when in report["events"]:
            self._event(when, what, who, key, detail)

    def _event(self, when: float, what: str, who: str, key: str, detail: str) -> None:
        event = {"time": when, "event": what, "owner": who, "key": key, "detail": detail}
        self.events.append(event)

    def _names(self) -> dict[str, str]:
        names = {owner: who for owner, (_, who) in self.members.items()}
        names[self.holder.owner.incarnation] = "scheduler"
        return names

    def owner_gone(self, owner: str) -> None:
        """An owner is gone for good."""
        self.owners.pop(owner, None)
        self.watchers.told.pop(owner, None)

    def worker_gone(self, address: str) -> None:
        """A worker left the cluster, in good order or not."""
        self.workers.gone(address)
        self.stock_pages.worker_gone(address)
        self.gone += 1
        self._event(time(), "worker-gone", address, "", "it left the cluster")

    def client_away(self, client: str) -> None:
        """A client's connection is gone: should it come back it is told anew, and reports."""
        for owner in self.watchers.client_away(client):
            self.owners.pop(owner, None)

    async def fetch(self) -> None:
        """One round: ask all workers, and bring together what is known."""
        async with self._fetching:
            note = self.task_stream.wanted
            watch = self.watchers.on
            self._asked = note or watch
            workers = list(self.scheduler.workers)
            self._next = time() + PER_WORKER * len(workers)
            gap = self.task_stream.gap(len(workers))
            answers = await asyncio.gather(
                *(self.workers.ask(worker, watch, note, gap) for worker in workers)
            )
            self.task_stream.took(workers, answers)
            if not watch:
                return
            owners = {who: owner for owner, (kind, who) in self.members.items() if kind == "worker"}
            for address, answer in zip(workers, answers, strict=True):
                if answer is None or address not in self.scheduler.workers:
                    continue  # it is gone or frozen: what it said last stays
                self.workers.take_in(address, answer)
                if answer["owner"] is not None and address in owners:
                    self._took(owners[address], answer["owner"])
            report = self.holder.report()
            if report is not None:
                self._took(self.holder.owner.incarnation, report)
            self._record()

    def _record(self) -> None:
        """Remember this round, of the owners that are still there."""
        for owner in list(self.owners):
            if owner not in self.members and owner != self.holder.owner.incarnation:
                del self.owners[owner]
        self.rounds.record(self.owners, self.workers.last, self._names())
        self.stock_pages.show(there.last for there in self.owners.values())

    # ---- what is told ----

    async def activity(self, history: bool = True) -> dict[str, Any]:
        """Handler of `ACTIVITY`: what all owners and workers do; at most a second old.

        Who asks again within ten seconds is told of changes since; the first answer may take a
        second. It is made of plain values.

        Parameters
        ----------
        history : bool
            Whether to tell of the last minutes as well.

        Returns
        -------
        dict
            ``time``
                Seconds since the epoch, by the scheduler's clock, as all times here.
            ``owners`` : list of dict
                One for each client, for each worker whose tasks submitted some, and for the
                scheduler, which holds what lies in queues, variables and datasets:

                - ``id`` (its incarnation), ``name`` (client id, worker address or
                  ``"scheduler"``), ``kind`` (``client``, ``worker``, ``scheduler``), ``parent``
                  (name of the owner whose tasks submit to this one, or ``""``), ``age``
                  (seconds since its last report; one that does nothing sends none)
                - since its start: ``submitted``, ``done``, ``failed``, ``attempts``, ``recovered``,
                  ``evicted``, ``again``: how often tasks were handed out again, by reason, and
                  ``losses``: what deaths cost it, see `failure_counts`
                - ``rate``: tasks done per second, over the last five
                - now: ``pending`` (not handed to a worker), ``running`` (handed to one),
                  ``objects`` (rows), ``states`` (objects by state), ``groups`` (the same by name
                  of the task), ``borrowed``, ``borrowed_pending``, ``lent``,
                  ``inline_nbytes``, ``lineage_nbytes``, ``stored_nbytes`` (by worker)
                - ``links``: by worker ``pushed`` (handed to it and not answered), ``given`` (since
                  it joined), ``nthreads``, ``accepting``; ``depth``: tasks handed out per slot
                - ``traffic``: by worker the bytes that were sent to it and received from it since
                  it joined, see `dask_ownership.core.protocol.byte_counter`
                - ``largest``, ``oldest``: lists of ``key``, ``state``, ``nbytes``, ``attempt``,
                  ``since`` (when it was handed out last, within a second or a tenth of its age;
                  None for a literal), ``workers``, and what keeps it: ``handles``, ``uses``,
                  ``borrowers``, ``descendants``, ``pinned``
                - ``latency``: ``waited``, ``ran``, ``took``: sampled tasks since somebody looks, by
                  powers of two of microseconds, see `dask_ownership.monitoring.census.Histogram`
                - ``recoveries``: when values were there again, and after how many seconds
                - ``complete``: False while a large table is still being counted; then what is
                  about states and groups is of the last count
            ``workers`` : list of dict
                ``address``, ``name``, ``threads``, ``running``, ``queued``, ``parked``,
                ``accepting``; since its start ``done``, ``failed``, ``returned``; ``rate``;
                ``stored``: ``objects``, ``nbytes``, of those bytes ``shared`` (by several owners)
                and ``spilled``; ``received`` and ``sent``: bytes since the start by the other
                worker; ``losses`` as those of an owner.
            ``flow`` : dict
                Lists of ``[from, to, per second]``, over the last five seconds: ``tasks`` from
                owners to workers, ``sent`` (bytes from owners to workers), ``received`` (bytes
                from workers to owners), ``bytes`` (from worker to worker).
            ``losses`` : dict of str to dict
                What deaths cost each process that is there, by its name: owners and workers.
            ``relays`` : dict
                How many are ``open``, were ``opened``, and ``nbytes`` that passed, see
                `scheduler.relay`.
            ``workers_gone`` : int
                How many left the cluster since the first client came, in good order or not.
            ``events`` : list of dict
                Unusual events of all owners since somebody looks, the latest 200: ``time``,
                ``event``, ``owner``, ``key``, ``detail``.
            ``history`` : list of dict
                For up to five minutes, two per second, while somebody looks: ``time``, ``rate``
                (tasks per second), ``pending``, ``pushed``, ``queued`` (at workers), ``running``,
                ``threads``, ``again`` (by reason), and ``waited``, ``ran``, ``took``: the
                percentiles 50, 90 and 99 in seconds of a sample of the last five, or None.
        """
        first = not self.watchers.on
        self.looked()
        self._watch()
        if first or time() >= self._next - INTERVAL / 2:
            await self.fetch()
        deadline = time() + FIRST_REPORTS
        while self.watchers.told.keys() - self.owners.keys() and time() < deadline:
            await asyncio.sleep(0.01)
        return self.now(history)

    def now(self, history: bool = True) -> dict[str, Any]:
        """As `activity`, of what is known."""
        now = time()
        kinds = {**self.members, self.holder.owner.incarnation: ("scheduler", "scheduler")}
        owners = [(owner, there) for owner, there in self.owners.items() if owner in kinds]
        workers = self.workers.told()
        told: dict[str, Any] = {
            "time": now,
            "owners": [_owner(owner, *kinds[owner], there, now) for owner, there in owners],
            "workers": workers,
            "flow": self.rounds.flow(),
            "losses": {
                **{kinds[one][1]: there.last["losses"] for one, there in owners},
                **{worker["address"]: worker["losses"] for worker in workers},
            },
            "workers_gone": self.gone,
            "relays": self._relays(),
            "events": list(self.events),
        }
        if history:
            told["history"] = list(self.rounds.history)
        return told

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self.holder.close()
        metrics.withdraw(self)


def _owner(owner: str, kind: str, who: str, there: Reported, now: float) -> dict[str, Any]:
    """One owner as `Feed.activity` tells it."""
    last = there.last
    told = {k: v for k, v in last.items() if k not in ("time", "events", "submitters", "parents")}
    links = last["links"].values()
    slots = sum(link["nthreads"] for link in links if link["accepting"])
    return {
        **told,
        "id": owner,
        "name": who,
        "kind": kind,
        "parent": there.parent if there.parent != who else "",
        "age": max(0.0, now - last["time"]),
        "rate": rate(there.done),
        "pending": pending(last),
        "running": last["states"]["pushed"],
        "depth": sum(link["pushed"] for link in links) / slots if slots else 0.0,
    }
