"""What all owners and workers do, gathered at the scheduler while somebody looks.

Somebody looks when a page of the dashboard is open in a browser, and for a while after
`ACTIVITY` was asked or the metrics were read. From then on each client sends a report when
something changed, at most twice a second (`dask_ownership.runtime.reporting`), and the
scheduler asks each worker as often, less often when there are more than a hundred: one
exchange for what its executor did, what its owner has, and what ran there for the task stream
(`dask_ownership.cluster.task_stream`). When nobody looks nothing is sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Iterable
from time import time
from typing import Any

from dask_ownership.cluster import metrics
from dask_ownership.cluster.flow import Counts, Flow
from dask_ownership.cluster.stock_pages import StockPages
from dask_ownership.cluster.task_stream import TaskStream
from dask_ownership.core.activity import BUCKETS, percentile
from dask_ownership.core.history import AGAIN
from dask_ownership.runtime.compat import Sender, pages_open
from dask_ownership.runtime.membership import ACTIVITY, REPORT, WATCH
from dask_ownership.runtime.reporting import INTERVAL, Reporter

logger = logging.getLogger("dask_ownership.scheduler")

ASKED = 3.0
"""Seconds for which a worker may take to answer."""

PER_WORKER = 0.005
"""Seconds between two rounds for each worker of the cluster, as far as that is more than the
time between two calls of `Feed.look`."""

LOOKED = 10.0
"""Seconds for which somebody looks who asked once."""

FIRST_REPORTS = 1.0
"""Seconds for which the first reports of clients are waited for."""

HISTORY = 600
"""Rounds that are remembered: about five minutes."""

WINDOW = 10
"""Rounds over which rates and percentiles are taken: about five seconds."""

EVENTS = 200
"""Unusual events that are remembered."""

PENDING = ("waiting", "ready")
"""States of tasks that were not handed to a worker."""


class Reported:
    """The newest that is known of one owner.

    Attributes
    ----------
    last : dict
        Its newest report.
    done : deque of tuple
        When how many of its tasks were done, in the last rounds.
    parent : str
        Name of the owner whose tasks submitted to this one last.
    """

    def __init__(self) -> None:
        self.last: dict[str, Any] = {}
        self.done: deque[tuple[float, int]] = deque(maxlen=WINDOW)
        self.parent = ""


def rate(counted: Iterable[tuple[float, float]]) -> float:
    """Per second, of what was counted when."""
    points = list(counted)
    if len(points) < 2 or points[-1][0] <= points[0][0]:
        return 0.0
    return max(0.0, (points[-1][1] - points[0][1]) / (points[-1][0] - points[0][0]))


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

    Attributes
    ----------
    watching : bool
        Somebody looks.
    rounds : int
        How often reports were brought together.
    history : deque of dict
        One for each round, see `activity`.
    """

    def __init__(self, scheduler: Any, owners: dict[str, tuple[str, str]], holder: Any) -> None:
        self.scheduler = scheduler
        self.token = ""
        self.members = owners
        self.holder = Reporter(holder)
        self.task_stream = TaskStream(scheduler, self.fetch)
        self.watching = False
        self.rounds = 0
        self.history: deque[dict[str, Any]] = deque(maxlen=HISTORY)
        self.events: deque[dict[str, Any]] = deque(maxlen=EVENTS)
        self.gone = 0
        self.stock_pages = StockPages(scheduler)
        self.owners: dict[str, Reported] = {}
        self.workers: dict[str, dict[str, Any]] = {}
        self._ran: dict[str, deque[tuple[float, int]]] = {}
        self._told: dict[str, str] = {}
        self._failed: dict[str, int] = {}
        self._until = 0.0
        self._next = 0.0
        self._asked = False
        self._times: deque[tuple[list[int], list[int], list[int]]] = deque(maxlen=WINDOW)
        self._flows = {kind: Flow() for kind in ("tasks", "sent", "received", "bytes")}
        self._fetching = asyncio.Lock()
        self._task: asyncio.Future[None] | None = None
        metrics.offer(self)
        scheduler.handlers[ACTIVITY] = self.activity
        scheduler.stream_handlers[REPORT] = self.reported

    # ---- who looks ----

    def looked(self, seconds: float = LOOKED) -> None:
        """Somebody looks, and may look again within so many seconds."""
        self._until = max(self._until, time() + seconds)

    def look(self) -> None:
        """Bring reports together when it is time to. Called again and again."""
        if pages_open(self.scheduler):
            self.looked()
        self._watch()
        busy = self.watching or self.task_stream.wanted or self._asked
        if busy and time() >= self._next and not self._fetching.locked():
            self._task = asyncio.ensure_future(self.fetch())

    def _watch(self) -> None:
        """Tell clients whether somebody looks."""
        self.watching = time() < self._until
        if self.watching != self.holder.watching:
            self.holder.watch(self.watching)
        if not self.watching:
            for client in self._told.values():
                self._tell(client, False)
            if self.owners or self.workers:
                # Numbers that nobody keeps up to date are not left.
                self.stock_pages.hide()
                self.owners.clear()
                self.workers.clear()
                for flow in self._flows.values():
                    flow.clear()
            self._told.clear()
            return
        for owner, (kind, client) in self.members.items():
            if kind == "client" and owner not in self._told and self._tell(client, True):
                self._told[owner] = client

    def _tell(self, client: str, on: bool) -> bool:
        there = client in self.scheduler.client_comms
        if there:
            self.scheduler.client_send(client, {"op": WATCH, "on": on})
        return there

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
        self._told.pop(owner, None)

    def worker_gone(self, address: str) -> None:
        """A worker left the cluster, in good order or not."""
        self.workers.pop(address, None)
        self._ran.pop(address, None)
        self._failed.pop(address, None)
        self.stock_pages.worker_gone(address)
        self.gone += 1
        self._event(time(), "worker-gone", address, "", "it left the cluster")

    def client_away(self, client: str) -> None:
        """A client's connection is gone: should it come back it is told anew, and reports."""
        for owner, told in list(self._told.items()):
            if told == client:
                del self._told[owner]
                self.owners.pop(owner, None)

    async def fetch(self) -> None:
        """One round: ask all workers, and bring together what is known."""
        async with self._fetching:
            note = self.task_stream.wanted
            watch = self.watching
            self._asked = note or watch
            workers = list(self.scheduler.workers)
            self._next = time() + PER_WORKER * len(workers)
            answers = await asyncio.gather(*(self._ask(w, watch, note) for w in workers))
            self.task_stream.took(workers, answers)
            if not watch:
                return
            owners = {who: owner for owner, (kind, who) in self.members.items() if kind == "worker"}
            for address, answer in zip(workers, answers, strict=True):
                if answer is None or address not in self.scheduler.workers:
                    continue  # it is gone or frozen: what it said last stays
                self.workers[address] = answer["executor"]
                self.stock_pages.ran(address, answer["tallies"])
                if answer["failures"]:
                    self.stock_pages.failed(address, answer["failures"])
                    self._failed[address] = answer["failures"][-1][0]
                done = self._ran.setdefault(address, deque(maxlen=WINDOW))
                done.append((time(), answer["executor"]["done"]))
                if answer["owner"] is not None and address in owners:
                    self._took(owners[address], answer["owner"])
            report = self.holder.report()
            if report is not None:
                self._took(self.holder.owner.incarnation, report)
            self._record()

    async def _ask(self, worker: str, watch: bool, note: bool) -> Any:
        """What one worker says; None when it does not answer."""
        try:
            asked = getattr(self.scheduler.rpc(worker), REPORT)(
                watch=watch,
                note=note,
                again=watch and worker not in self.workers,
                gap=self.task_stream.gap(len(self.scheduler.workers)),
                failed=self._failed.get(worker, 0),
                token=self.token,
            )
            return await asyncio.wait_for(asked, ASKED)
        except Exception as error:
            logger.debug("what %s does is not known: %r", worker, error)
            return None

    def _record(self) -> None:
        """Remember this round."""
        self.rounds += 1
        now = time()
        owners = self.owners
        for owner in list(owners):
            if owner not in self.members and owner != self.holder.owner.incarnation:
                del owners[owner]
        reports = [(owner, there, there.last) for owner, there in owners.items()]
        for _, there, last in reports:
            there.done.append((now, last["done"]))
        sums = [
            [sum(counts) for counts in zip(*kind, strict=True)] or [0] * BUCKETS
            for kind in (
                [last["latency"][name] for _, _, last in reports]
                for name in ("waited", "ran", "took")
            )
        ]
        self._times.append((sums[0], sums[1], sums[2]))
        self._record_flow(now)
        self.history.append(
            {
                "time": now,
                "rate": sum(rate(there.done) for _, there, _ in reports),
                "pending": sum(pending(last) for _, _, last in reports),
                "pushed": sum(last["states"]["pushed"] for _, _, last in reports),
                "queued": sum(counted["queued"] for counted in self.workers.values()),
                "running": sum(counted["running"] for counted in self.workers.values()),
                "threads": sum(counted["threads"] for counted in self.workers.values()),
                "again": {
                    reason: sum(last["again"][reason] for _, _, last in reports) for reason in AGAIN
                },
                "waited": self._percentiles(0),
                "ran": self._percentiles(1),
                "took": self._percentiles(2),
            }
        )
        self.stock_pages.show(last for _, _, last in reports)

    def _record_flow(self, now: float) -> None:
        """Remember what went from whom to whom until this round."""
        names = self._names()
        flows: dict[str, dict[str, Counts]] = {kind: {} for kind in self._flows}
        for owner, there in self.owners.items():
            who = names.get(owner, owner)
            last = there.last
            flows["tasks"][owner] = {(who, at): link["given"] for at, link in last["links"].items()}
            flows["sent"][owner] = {(who, at): sent for at, (sent, _) in last["traffic"].items()}
            flows["received"][owner] = {(at, who): got for at, (_, got) in last["traffic"].items()}
        for address, counted in self.workers.items():
            received = counted["received"].items()
            flows["bytes"][address] = {(peer, address): sums[0] for peer, sums in received}
        for kind, flow in self._flows.items():
            flow.record(now, flows[kind])

    def _percentiles(self, kind: int) -> list[float | None]:
        """Of what was measured in the last rounds, in seconds."""
        first, last = self._times[0][kind], self._times[-1][kind]
        new = [max(0, after - before) for before, after in zip(first, last, strict=True)]
        found = (percentile(new, part) for part in (0.5, 0.9, 0.99))
        return [None if one is None else one / 1e6 for one in found]

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
                  ``losses``: what deaths cost it, see `dask_ownership.core.losses`
                - ``rate``: tasks done per second, over the last five
                - now: ``pending`` (not handed to a worker), ``running`` (handed to one),
                  ``objects`` (rows), ``states`` (objects by state), ``groups`` (the same by name
                  of the task), ``borrowed``, ``borrowed_pending``, ``lent``,
                  ``inline_nbytes``, ``lineage_nbytes``, ``stored_nbytes`` (by worker)
                - ``links``: by worker ``pushed`` (handed to it and not answered), ``given`` (since
                  it joined), ``nthreads``, ``accepting``; ``depth``: tasks handed out per slot
                - ``traffic``: by worker the bytes that were sent to it and received from it since
                  it joined, see `dask_ownership.core.traffic`
                - ``largest``, ``oldest``: lists of ``key``, ``state``, ``nbytes``, ``attempt``,
                  ``since`` (when it was handed out last, within a second or a tenth of its age;
                  None for a literal), ``workers``, and what keeps it: ``handles``, ``uses``,
                  ``borrowers``, ``descendants``, ``pinned``
                - ``latency``: ``waited``, ``ran``, ``took``: sampled tasks since somebody looks, by
                  powers of two of microseconds, see `dask_ownership.core.activity.Histogram`
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
        first = not self.watching
        self.looked()
        self._watch()
        if first or time() >= self._next - INTERVAL / 2:
            await self.fetch()
        deadline = time() + FIRST_REPORTS
        while self._told.keys() - self.owners.keys() and time() < deadline:
            await asyncio.sleep(0.01)
        return self.now(history)

    def now(self, history: bool = True) -> dict[str, Any]:
        """As `activity`, of what is known."""
        now = time()
        kinds = {**self.members, self.holder.owner.incarnation: ("scheduler", "scheduler")}
        sent: dict[str, Counter[str]] = {}
        for address, counted in self.workers.items():
            for peer, (nbytes, _, _) in counted["received"].items():
                sent.setdefault(peer, Counter())[address] += nbytes
        owners = [(owner, there) for owner, there in self.owners.items() if owner in kinds]
        workers = [
            {
                **counted,
                "address": address,
                "name": str(self.scheduler.workers[address].name),
                "rate": rate(self._ran.get(address, ())),
                "received": {peer: sums[0] for peer, sums in counted["received"].items()},
                "sent": dict(sent.get(address, {})),
            }
            for address, counted in self.workers.items()
            if address in self.scheduler.workers
        ]
        told: dict[str, Any] = {
            "time": now,
            "owners": [_owner(owner, *kinds[owner], there, now) for owner, there in owners],
            "workers": workers,
            "flow": {kind: flow.rates() for kind, flow in self._flows.items()},
            "losses": {
                **{kinds[one][1]: there.last["losses"] for one, there in owners},
                **{worker["address"]: worker["losses"] for worker in workers},
            },
            "workers_gone": self.gone,
            "events": list(self.events),
        }
        if history:
            told["history"] = list(self.history)
        return told

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self.holder.close()
        metrics.withdraw(self)


def pending(report: dict[str, Any]) -> int:
    """Tasks of an owner that were not handed to a worker."""
    return sum(report["states"][state] for state in PENDING)


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
