"""The activity of all owners and workers, combined round by round.

In each round every owner and worker has reported once more, or its last report stays. Rates and
percentiles cover the last rounds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from time import time
from typing import Any

from dask_ownership.core.owner.rows.history import AGAIN
from dask_ownership.monitoring.census import BUCKETS, percentile
from dask_ownership.monitoring.rates import Counts, Flow

HISTORY = 600
"""Remembered rounds: about five minutes."""

WINDOW = 10
"""Rounds over which rates and percentiles are taken: about five seconds."""

PENDING = ("waiting", "ready")
"""States of tasks that are not handed to a worker yet."""


class Reported:
    """The newest reports of one owner.

    Attributes
    ----------
    last : dict
        The newest report.
    done : deque of tuple
        Time, and number of tasks done by then, in the last rounds.
    parent : str
        Name of the owner whose tasks submitted to this owner last.
    """

    def __init__(self) -> None:
        self.last: dict[str, Any] = {}
        self.done: deque[tuple[float, int]] = deque(maxlen=WINDOW)
        self.parent = ""


def rate(counted: Iterable[tuple[float, float]]) -> float:
    """Return the growth per second of a count, from pairs of time and count."""
    points = list(counted)
    if len(points) < 2 or points[-1][0] <= points[0][0]:
        return 0.0
    # A restarted process counts from zero again; the rate is zero then, not negative.
    return max(0.0, (points[-1][1] - points[0][1]) / (points[-1][0] - points[0][0]))


def pending(report: dict[str, Any]) -> int:
    """Return the number of an owner's tasks that are not handed to a worker yet."""
    return sum(report["states"][state] for state in PENDING)


class Rounds:
    """The last rounds, and the flows between owners and workers.

    Attributes
    ----------
    number : int
        How many rounds were recorded.
    history : deque of dict
        One item for each round, see `feed.Feed.activity`.
    """

    def __init__(self) -> None:
        self.number = 0
        self.history: deque[dict[str, Any]] = deque(maxlen=HISTORY)
        self._times: deque[tuple[list[int], list[int], list[int]]] = deque(maxlen=WINDOW)
        self._gap = False
        self._flows = {kind: Flow() for kind in ("tasks", "sent", "received", "bytes")}

    def record(
        self,
        owners: Mapping[str, Reported],
        workers: Mapping[str, dict[str, Any]],
        names: Mapping[str, str],
    ) -> None:
        """Remember a round.

        Parameters
        ----------
        owners, workers : dict
            Newest reports of owners, by incarnation, and of workers, by address.
        names : dict
            Names of owners by incarnation.
        """
        self.number += 1
        now = time()
        last = [reported.last for reported in owners.values()]
        for reported in owners.values():
            reported.done.append((now, reported.last["done"]))
        kinds = ([one["latency"][name] for one in last] for name in ("waited", "ran", "took"))
        # Histograms of all owners are added bucket by bucket; without owners all are empty.
        sums = [
            [sum(counts) for counts in zip(*kind, strict=True)] or [0] * BUCKETS for kind in kinds
        ]
        self._times.append((sums[0], sums[1], sums[2]))
        self._record_flow(now, owners, workers, names)
        self.history.append(
            {
                "time": now,
                "after_gap": self._gap,
                "rate": sum(rate(reported.done) for reported in owners.values()),
                "pending": sum(pending(one) for one in last),
                "pushed": sum(one["states"]["pushed"] for one in last),
                "queued": sum(counted["queued"] for counted in workers.values()),
                "running": sum(counted["running"] for counted in workers.values()),
                "threads": sum(counted["threads"] for counted in workers.values()),
                "again": {reason: sum(one["again"][reason] for one in last) for reason in AGAIN},
                "waited": self._percentiles(0),
                "ran": self._percentiles(1),
                "took": self._percentiles(2),
            }
        )
        self._gap = False

    def _record_flow(
        self,
        now: float,
        owners: Mapping[str, Reported],
        workers: Mapping[str, dict[str, Any]],
        names: Mapping[str, str],
    ) -> None:
        """Remember how much went from each owner and worker to each other one so far."""
        flows: dict[str, dict[str, Counts]] = {kind: {} for kind in self._flows}
        for owner, there in owners.items():
            who = names.get(owner, owner)
            last = there.last
            flows["tasks"][owner] = {(who, at): link["given"] for at, link in last["links"].items()}
            flows["sent"][owner] = {(who, at): sent for at, (sent, _) in last["traffic"].items()}
            flows["received"][owner] = {(at, who): got for at, (_, got) in last["traffic"].items()}
        for address, counted in workers.items():
            # Each transfer is counted once, where the value arrived.
            received = counted["received"].items()
            flows["bytes"][address] = {(peer, address): sums[0] for peer, sums in received}
        for kind, flow in self._flows.items():
            flow.record(now, flows[kind])

    def _percentiles(self, kind: int) -> list[float | None]:
        """Return percentiles in seconds of the durations measured in the last rounds."""
        first, last = self._times[0][kind], self._times[-1][kind]
        # Histograms count since the watching began. The difference between two rounds is the
        # part between them.
        new = [max(0, after - before) for before, after in zip(first, last, strict=True)]
        found = (percentile(new, part) for part in (0.5, 0.9, 0.99))
        return [None if one is None else one / 1e6 for one in found]

    def flow(self) -> dict[str, list[list[Any]]]:
        """Return ``[from, to, per second]`` of the last seconds, by kind."""
        return {kind: flow.rates() for kind, flow in self._flows.items()}

    def interrupt(self) -> None:
        """Note that the next round does not follow the last one directly; forget the flows."""
        self._gap = bool(self.history)
        for flow in self._flows.values():
            flow.clear()
