"""Numbers about owned tasks at the scheduler's ``/metrics``, for Prometheus.

Reading them counts as looking: the first answer has what is known by then, later ones what was
reported since.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

BETWEEN = 120.0
"""Seconds between two readings within which reports go on."""


class Collector:
    """Gives Prometheus what the feed of this process's newest scheduler says.

    Attributes
    ----------
    feeds : list of Feed
        Of the schedulers that run in this process, the newest last.
    registered : bool
    """

    def __init__(self) -> None:
        self.feeds: list[Any] = []
        self.registered = False

    def describe(self) -> list[Any]:
        """Nothing is known before it is asked for."""
        return []

    def collect(self) -> Iterator[Any]:
        """All metrics."""
        if not self.feeds:
            return
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        def one(kind: Any, name: str, text: str, value: float) -> Any:
            return kind(f"dask_ownership_{name}", text, value=value)

        def several(kind: Any, name: str, text: str, label: str, values: dict[str, float]) -> Any:
            family = kind(f"dask_ownership_{name}", text, labels=[label])
            for key, value in values.items():
                family.add_metric([key], value)
            return family

        feed = self.feeds[-1]
        feed.looked(BETWEEN)
        told = feed.now(history=False)
        owners, workers = told["owners"], told["workers"]

        def summed(name: str) -> dict[str, float]:
            sums: dict[str, float] = {}
            for owner in owners:
                for key, number in owner[name].items():
                    sums[key] = sums.get(key, 0) + number
            return sums

        gauge, counter = GaugeMetricFamily, CounterMetricFamily
        yield one(gauge, "owners", "Clients, workers and the scheduler, as owners", len(owners))
        yield several(gauge, "objects", "Owned objects", "state", summed("states"))
        for name in ("submitted", "done", "failed"):
            total = sum(owner[name] for owner in owners)
            text = f"Owned tasks {name}, of the owners that are there"
            yield one(counter, f"tasks_{name}", text, total)
        text = "Tasks handed out again, of the owners that are there"
        yield several(counter, "reexecutions", text, "reason", summed("again"))
        losses: dict[str, float] = {}
        for counted in told["losses"].values():
            for kind, number in counted.items():
                losses[kind] = losses.get(kind, 0) + number
        text = "What deaths of other processes cost those that are there"
        yield several(counter, "losses", text, "kind", losses)
        for name, text in (
            ("inline_nbytes", "Bytes of values that are with their owners"),
            ("lineage_nbytes", "Bytes that owners keep to make values again"),
            ("borrowed", "Objects of others that owners borrow"),
        ):
            yield one(gauge, name, text, sum(owner[name] for owner in owners))
        for name in ("running", "queued", "parked"):
            text = f"Owned tasks {name} at workers"
            yield one(gauge, f"worker_tasks_{name}", text, sum(w[name] for w in workers))
        for name in ("nbytes", "spilled"):
            text = "Bytes of owned values at workers" + (" on disk" if name == "spilled" else "")
            total = sum(worker["stored"][name] for worker in workers)
            yield one(gauge, f"worker_stored_{name}", text, total)
        for direction, index in (("to", 0), ("from", 1)):
            text = f"Bytes that owners that are there exchanged with workers: {direction} workers"
            total = sum(t[index] for owner in owners for t in owner["traffic"].values())
            yield one(counter, f"owner_bytes_{direction}_workers", text, total)
        text = "Bytes that workers got from each other, of the workers that are there"
        total = sum(sum(worker["received"].values()) for worker in workers)
        yield one(counter, "transferred_bytes", text, total)
        yield one(counter, "workers_gone", "Workers that left", told["workers_gone"])


collector = Collector()
"""The registry of Prometheus is one for each process."""


def offer(feed: Any) -> None:
    """Have ``/metrics`` tell of this feed, where prometheus_client is installed."""
    try:
        from prometheus_client import REGISTRY
    except ImportError:
        return
    if not collector.registered:
        collector.registered = True
        REGISTRY.register(collector)
    collector.feeds.append(feed)


def withdraw(feed: Any) -> None:
    """The feed ends."""
    if feed in collector.feeds:
        collector.feeds.remove(feed)
