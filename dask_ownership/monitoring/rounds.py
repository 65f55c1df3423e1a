"""What all owners and workers did, brought together round by round.

In each round every owner and worker has reported once more, or what it reported last stays. Rates
and percentiles are those of the last rounds.
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
"""Rounds that are remembered: about five minutes."""

WINDOW = 10
"""Rounds over which rates and percentiles are taken: about five seconds."""

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


def pending(report: dict[str, Any]) -> int:
    """Tasks of an owner that were not handed to a worker."""
    return sum(report["states"][state] for state in PENDING)


class Rounds:
    """Rounds, and what went from whom to whom in them.

    Attributes
    ----------
    number : int
        How many there were.
    history : deque of dict
        One for each round, see `activity.Feed.activity`.
    """

    def __init__(self) -> None:
        self.number = 0
        self.history: deque[dict[str, Any]] = deque(maxlen=HISTORY)
        self._times: deque[tuple[list[int], list[int], list[int]]] = deque(maxlen=WINDOW)
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
            What owners, by incarnation, and workers, by address, reported last.
        names : dict
            Names of owners by incarnation.
        """
        self.number += 1
        now = time()
        last = [reported.last for reported in owners.values()]
        for reported in owners.values():
            reported.done.append((now, reported.last["done"]))
        kinds = ([one["latency"][name] for one in last] for name in ("waited", "ran", "took"))
        sums = [
            [sum(counts) for counts in zip(*kind, strict=True)] or [0] * BUCKETS for kind in kinds
        ]
        self._times.append((sums[0], sums[1], sums[2]))
        self._record_flow(now, owners, workers, names)
        self.history.append(
            {
                "time": now,
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

    def _record_flow(
        self,
        now: float,
        owners: Mapping[str, Reported],
        workers: Mapping[str, dict[str, Any]],
        names: Mapping[str, str],
    ) -> None:
        flows: dict[str, dict[str, Counts]] = {kind: {} for kind in self._flows}
        for owner, there in owners.items():
            who = names.get(owner, owner)
            last = there.last
            flows["tasks"][owner] = {(who, at): link["given"] for at, link in last["links"].items()}
            flows["sent"][owner] = {(who, at): sent for at, (sent, _) in last["traffic"].items()}
            flows["received"][owner] = {(at, who): got for at, (_, got) in last["traffic"].items()}
        for address, counted in workers.items():
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

    def flow(self) -> dict[str, list[list[Any]]]:
        """By kind ``[from, to, per second]``, over the last seconds."""
        return {kind: flow.rates() for kind, flow in self._flows.items()}

    def clear_flow(self) -> None:
        """Forget what went from whom to whom: the next round does not follow the last one."""
        for flow in self._flows.values():
            flow.clear()
