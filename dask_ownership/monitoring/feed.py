"""The activity of all owners and workers, gathered at the scheduler while the cluster is watched.

The cluster is watched while a page of the dashboard is open in a browser, and for a while after a
call of `ACTIVITY` or a reading of the metrics. Meanwhile each client sends a report when something
changed, at most twice a second (`dask_ownership.monitoring.owner_report`). The scheduler asks each
worker as often, less often when there are more than a hundred workers: one exchange carries the
numbers of the executor, the report of the worker's owner, and the tasks that ran there for the task
stream (`dask_ownership.monitoring.task_stream`). Without viewers nothing is sent.
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
from dask_ownership.monitoring.failed_tasks import FailedTasks
from dask_ownership.monitoring.owner_report import INTERVAL, Reporter
from dask_ownership.monitoring.rounds import Reported, Rounds, pending, rate
from dask_ownership.monitoring.task_stream import TaskStream
from dask_ownership.monitoring.worker_reports import WorkerReports
from dask_ownership.runtime.comm.scheduler_ops import ACTIVITY, REPORT, WATCH
from dask_ownership.runtime.dask.scheduler import Sender, pages_open

logger = logging.getLogger("dask_ownership.scheduler")

PER_WORKER = 0.005
"""Seconds between two rounds, for each worker of the cluster.

Rounds are at least as far apart as calls of `Feed.look`.
"""

LOOKED = 10.0
"""Seconds for which the cluster stays watched after a single request."""

FIRST_REPORTS = 1.0
"""Seconds for which a request waits for the first reports of clients."""

EVENTS = 200
"""Unusual events that the feed remembers."""


class Watchers:
    """Knows whether the cluster is watched, and which clients were told so.

    Parameters
    ----------
    scheduler : distributed.Scheduler

    Attributes
    ----------
    on : bool
        Whether the cluster was watched when clients were told last.
    until : float
        Time at which the cluster is watched no more.
    told : dict
        Incarnation of each reporting owner to the id of its client.
    """

    def __init__(self, scheduler: Any) -> None:
        self.on = False
        self.until = 0.0
        self.told: dict[str, str] = {}
        self._scheduler = scheduler

    def tell(self, members: dict[str, tuple[str, str]]) -> bool:
        """Tell clients whether the cluster is watched, and return that.

        The clients are those among the owners in ``members``.
        """
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
        """Tell one client; return whether the client is connected."""
        there = client in self._scheduler.client_comms
        if there:
            self._scheduler.client_send(client, {"op": WATCH, "on": on})
        return there

    def client_away(self, client: str) -> list[str]:
        """Forget that the owners of a client were told, so that a reconnected client is told again.

        Returns
        -------
        list of str
            Incarnations of the client's owners.
        """
        owners = [owner for owner, told in self.told.items() if told == client]
        for owner in owners:
            del self.told[owner]
        return owners


class Feed:
    """Collects the reports of owners and workers at the scheduler, and combines them.

    There is a store for each kind of report: hence the many attributes.

    Parameters
    ----------
    scheduler : distributed.Scheduler
    owners : dict
        Incarnation of each owner to ``("client", id)`` or ``("worker", address)``. The scheduler
        plugin changes this dict; the feed only reads it.
    holder : Owner
        The owner in the scheduler's process, for objects in queues, variables and datasets.
    token : str
        Proves to workers that the scheduler is asking.
    relays : callable
        Returns what the scheduler relays, see `scheduler.relay`.
    detached : callable
        Returns what is held for the cluster, see `scheduler.detached`.

    Attributes
    ----------
    scheduler : distributed.Scheduler
    members : dict
        The parameter ``owners``.
    holder : Reporter
        Reports what the scheduler's own owner has.
    watchers : Watchers
        Whether the cluster is watched.
    task_stream : TaskStream
        Tasks that ran, for Dask's task stream.
    rounds : Rounds
        Combined numbers of the last minutes.
    events : deque of dict
        Unusual events of all owners, the latest `EVENTS`.
    gone : int
        How many workers left the cluster.
    stock_pages : StockPages
        Owned tasks on Dask's own pages.
    failed_tasks : FailedTasks
        Failed tasks that workers reported.
    owners : dict of str to Reported
        Newest report of each owner, by incarnation.
    workers : WorkerReports
        Newest reports of workers.
    """

    def __init__(
        self,
        scheduler: Any,
        owners: dict[str, tuple[str, str]],
        holder: Any,
        token: str,
        relays: Callable[[], dict[str, Any]] = dict,
        detached: Callable[[], list[dict[str, Any]]] = list,
    ) -> None:
        self.scheduler = scheduler
        self.members = owners
        self._relays = relays
        self._detached = detached
        self.holder = Reporter(holder)
        self.watchers = Watchers(scheduler)
        self.task_stream = TaskStream(scheduler, self.fetch)
        self.rounds = Rounds()
        self.events: deque[dict[str, Any]] = deque(maxlen=EVENTS)
        self.gone = 0
        self.stock_pages = StockPages(scheduler)
        self.owners: dict[str, Reported] = {}
        self.failed_tasks = FailedTasks()
        self.workers = WorkerReports(scheduler, token, self.stock_pages, self.failed_tasks)
        self._next = 0.0
        self._asked = False
        self._fetching = asyncio.Lock()
        self._task: asyncio.Future[None] | None = None
        metrics.offer(self)
        scheduler.handlers[ACTIVITY] = self.activity
        scheduler.stream_handlers[REPORT] = self.reported

    # ---- viewers ----

    def looked(self, seconds: float = LOOKED) -> None:
        """Keep the cluster watched for so many seconds from now."""
        self.watchers.until = max(self.watchers.until, time() + seconds)

    def look(self) -> None:
        """Begin a round if one is due. The scheduler plugin calls this periodically."""
        if pages_open(self.scheduler):
            self.looked()
        self._watch()
        # A round that takes longer than the interval is not overtaken by the next.
        if not self.idle and time() >= self._next and not self._fetching.locked():
            self._task = asyncio.ensure_future(self.fetch())

    @property
    def idle(self) -> bool:
        """Whether the cluster is not watched, and every client and worker knows that."""
        return not (self.watchers.on or self.task_stream.wanted or self._asked)

    def _watch(self) -> None:
        """Tell all owners whether the cluster is watched; drop old numbers when it is not."""
        on = self.watchers.tell(self.members)
        if on != self.holder.watching:
            self.holder.watch(on)
        if not on and (self.owners or self.workers.last):
            # No reports will keep these numbers up to date, so they are dropped.
            self.stock_pages.hide()
            self.owners.clear()
            self.workers.last.clear()
            self.rounds.interrupt()

    # ---- reports ----

    def reported(self, sender: Any = None, owner: str = "", report: Any = None, **kw: Any) -> None:
        """Handle the stream message `REPORT`: take in the report of a client's owner."""
        # Only the connection of the client that owns this incarnation may report for the owner.
        known = type(sender) is Sender and self.members.get(owner) == ("client", sender)
        if known and isinstance(report, dict):
            self._took(owner, report)

    def _took(self, owner: str, report: dict[str, Any]) -> None:
        """Keep the newest report of an owner, and its new events."""
        there = self.owners.setdefault(owner, Reported())
        there.last = report
        names = self._names()
        # The census counts the present rows of each submitter. When there are none, the submitters
        # since the watching began stand in. The name decides between equal numbers.
        submitters = report["parents"] or dict.fromkeys(report["submitters"], 0)
        if submitters:
            known = max(submitters, key=lambda one: (submitters[one], one))
            there.parent = names.get(known, known)
        who = names.get(owner, owner)
        for key, what, detail, when in report["events"]:
            self._event(when, what, who, key, detail)

    def _event(self, when: float, what: str, who: str, key: str, detail: str) -> None:
        """Remember one unusual event."""
        event = {"time": when, "event": what, "owner": who, "key": key, "detail": detail}
        self.events.append(event)

    def _names(self) -> dict[str, str]:
        """Return the names of owners by incarnation."""
        names = {owner: who for owner, (_, who) in self.members.items()}
        names[self.holder.owner.incarnation] = "scheduler"
        return names

    def owner_gone(self, owner: str) -> None:
        """Forget an owner that is gone for good."""
        self.owners.pop(owner, None)
        self.watchers.told.pop(owner, None)

    def worker_gone(self, address: str) -> None:
        """Forget a worker that left the cluster, in good order or not."""
        self.workers.gone(address)
        self.stock_pages.worker_gone(address)
        self.gone += 1
        self._event(time(), "worker-gone", address, "", "it left the cluster")

    def client_away(self, client: str) -> None:
        """Forget the reports of a client without connection; a reconnected client reports again."""
        for owner in self.watchers.client_away(client):
            self.owners.pop(owner, None)

    async def fetch(self) -> None:
        """Run one round: ask all workers, and combine their answers with the reports of clients."""
        async with self._fetching:
            note = self.task_stream.wanted
            watch = self.watchers.on
            # While this is True some worker may be noting or reporting. The first round without a
            # viewer tells workers to stop, so `idle` waits for that round.
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
                    continue  # a worker that is gone or frozen keeps its last report
                self.workers.take_in(address, answer)
                if answer["owner"] is not None and address in owners:
                    self._took(owners[address], answer["owner"])
            report = self.holder.report()
            if report is not None:
                self._took(self.holder.owner.incarnation, report)
            self._record()

    def _record(self) -> None:
        """Add the present reports to the rounds, after dropping those of owners that are gone."""
        for owner in list(self.owners):
            if owner not in self.members and owner != self.holder.owner.incarnation:
                del self.owners[owner]
        self.rounds.record(self.owners, self.workers.last, self._names())
        self.stock_pages.show(there.last for there in self.owners.values())

    # ---- answers ----

    async def activity(self, history: bool = True) -> dict[str, Any]:
        """Handle `ACTIVITY`: return what all owners and workers do, at most a second old.

        The first answer may take a second. The cluster stays watched for ten seconds, so that a
        caller that asks again within that time gets newer reports at once. The answer is made of
        plain values.

        Parameters
        ----------
        history : bool
            Whether to include the last minutes.

        Returns
        -------
        dict
            ``time``
                Seconds since the epoch, by the scheduler's clock, as all times here.
            ``owners`` : list of dict
                One for each client, for each worker whose tasks submitted tasks, and for the
                scheduler, which holds the objects in queues, variables and datasets:

                - ``id`` (incarnation), ``name`` (client id, worker address or ``"scheduler"``),
                  ``kind`` (``client``, ``worker``, ``scheduler``), ``parent`` (name of the owner
                  whose tasks submit to this owner, or ``""``), ``age`` (seconds since the last
                  report; an owner that does nothing sends none)
                - since the start of the owner: ``submitted``, ``done``, ``failed``, ``attempts``,
                  ``recovered``, ``evicted``, ``again`` (how often tasks were handed out again, by
                  reason) and ``losses`` (what deaths cost the owner, see
                  `core.owner.rows.failure_counts`)
                - ``rate``: tasks done per second, over the last five
                - now: ``pending`` (tasks not handed to a worker), ``running`` (tasks handed to a
                  worker), ``objects`` (rows), ``states`` (objects by state), ``groups`` (the same
                  by name of the task), ``borrowed``, ``borrowed_pending``, ``lent``,
                  ``inline_nbytes``, ``lineage_nbytes``, ``stored_nbytes`` (by worker)
                - ``group_nbytes``: by name of the task the bytes of inline and of stored values
                - ``links``: by worker ``pushed`` (tasks handed to the worker and not answered),
                  ``given`` (tasks handed to the worker since it joined), ``nthreads``,
                  ``accepting``; ``depth``: tasks handed out per slot
                - ``traffic``: by worker the bytes sent to the worker and received from it since it
                  joined, see `dask_ownership.core.protocol.byte_counter`
                - ``largest``, ``oldest``: lists of ``key``, ``state``, ``nbytes``, ``attempt``,
                  ``since`` (when the task was handed out last, within a second or a tenth of its
                  age; None for a literal), ``workers``, and the counts that keep the object:
                  ``local_refs``, ``task_refs``, ``borrowers``, ``lineage_refs``, ``pinned``
                - ``unfinished``: some of the tasks that have not ended, of each name and state the
                  first: ``key``, ``name`` (of the group), ``state``, ``attempt``, ``since`` (when
                  it was handed out, or None), ``worker``, ``stuck`` (whether it cannot go
                  on until a worker changes), and ``why`` it waits
                - ``latency``: ``waited``, ``ran``, ``took``: sampled tasks since the
                  watching began, by powers of two of microseconds, see
                  `dask_ownership.monitoring.census.Histogram`
                - ``streams``: of each stream that `Client.map` with ``buffer_size`` returned:
                  ``name`` of the function, ``open`` (whether more may be submitted),
                  ``submitted``, ``waiting`` (futures that the consumer has not taken) and
                  ``buffer_size``
                - ``recoveries``: when lost values were there again, and after how many seconds
                - ``complete``: False while a large table is still being counted; then the numbers
                  of states and groups are those of the last count
            ``workers`` : list of dict
                ``address``, ``name``, ``threads``, ``running``, ``queued``, ``parked``,
                ``lingering`` (cancelled tasks whose functions keep slots), ``accepting``; since the
                start of the worker ``done``, ``failed``, ``returned``; ``rate``; ``stored``:
                ``objects``, ``nbytes``, and the parts of these bytes that are ``shared`` (by
                several owners) and ``spilled``; ``received`` and ``sent``: bytes since the start by
                the other worker; ``losses`` as for an owner.
            ``flow`` : dict
                Lists of ``[from, to, per second]``, over the last five seconds: ``tasks`` from
                owners to workers, ``sent`` (bytes from owners to workers), ``received`` (bytes from
                workers to owners), ``bytes`` (from worker to worker).
            ``losses`` : dict of str to dict
                What deaths cost each present owner and worker, by its name.
            ``relays`` : dict
                How many relays are ``open`` and were ``opened``, and the ``nbytes`` that passed;
                ``connections``: ``[owner, worker, bytes]`` of each open relay.
            ``detached`` : list of dict
                Items of queues, variables and datasets with objects: ``kind``, ``name``,
                ``objects``, ``nbytes``, ``states`` (names), ``workers`` with the values.
            ``workers_gone`` : int
                How many workers left the cluster since the first client came, in good order or not.
            ``events`` : list of dict
                Unusual events of all owners since the watching began, the latest 200: ``time``,
                ``event``, ``owner``, ``key``, ``detail``.
            ``failures``, ``failure_groups`` : list of dict
                Attempts that raised an error, as far as workers remembered them when the watching
                began (the latest 20 of each) or reported them since. One by one the latest 200,
                oldest first: ``time``, ``name`` (of the group), ``exception`` (the type),
                ``message``, ``key``, ``owner``, ``worker``, ``attempt``, ``traceback``. And by
                ``name`` and ``exception``, the most frequent first: ``times``, with the rest as of
                the latest.
            ``history`` : list of dict
                For up to five minutes, two per second, while the cluster is watched: ``time``,
                ``after_gap`` (whether the cluster was not watched just before), ``rate`` (tasks per
                second), ``pending``, ``pushed``, ``queued`` (at workers), ``running``, ``threads``,
                ``again`` (by reason), and ``waited``, ``ran``, ``took``: the percentiles 50, 90 and
                99 in seconds of a sample of the last five, or None.
        """
        first = not self.watchers.on
        self.looked()
        self._watch()
        if first or time() >= self._next - INTERVAL / 2:
            await self.fetch()
        # Clients report by themselves after they were told. A client that does not answer must not
        # hold up the answer for long.
        deadline = time() + FIRST_REPORTS
        while self.watchers.told.keys() - self.owners.keys() and time() < deadline:
            await asyncio.sleep(0.01)
        return self.now(history)

    def now(self, history: bool = True) -> dict[str, Any]:
        """Return the same as `activity`, from the reports that are here."""
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
            "relays": self._relayed(),
            "detached": self._detached(),
            "events": list(self.events),
            "failures": list(self.failed_tasks.latest),
            "failure_groups": self.failed_tasks.groups(),
        }
        if history:
            told["history"] = list(self.rounds.history)
        return told

    def _relayed(self) -> dict[str, Any]:
        """Return what the scheduler relays, with the names of owners."""
        told = self._relays()
        names = self._names()
        open_now = told.get("connections", ())
        return {**told, "connections": [[names.get(o, o), *rest] for o, *rest in open_now]}

    def close(self) -> None:
        """Stop a round that runs, and take this feed out of the metrics."""
        if self._task is not None:
            self._task.cancel()
        self.holder.close()
        metrics.withdraw(self)


def _owner(owner: str, kind: str, who: str, there: Reported, now: float) -> dict[str, Any]:
    """Return one owner in the form that `Feed.activity` documents."""
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
