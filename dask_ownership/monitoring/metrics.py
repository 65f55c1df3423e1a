"""Numbers about owned tasks at the scheduler's ``/metrics``, for Prometheus.

Reading the metrics makes the reader a viewer: the first answer has the reports that are there
already, later answers have newer reports.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

BETWEEN = 120.0
"""Seconds for which reports go on after a reading."""


class Collector:
    """Gives Prometheus the numbers of the newest scheduler's feed in this process.

    Attributes
    ----------
    feeds : list of Feed
        Feeds of the schedulers in this process, the newest last.
    registered : bool
        Whether this collector is in the registry of Prometheus.
    """

    def __init__(self) -> None:
        self.feeds: list[Any] = []
        self.registered = False

    def describe(self) -> list[Any]:
        """Return nothing, so that registering this collector does not read the feed."""
        return []

    def collect(self) -> Iterator[Any]:
        """Yield all metrics; the reading counts as a viewer for `BETWEEN` seconds."""
        if not self.feeds:
            return
        # A process with several schedulers, one after the other, has one set of numbers: the
        # newest.
        feed = self.feeds[-1]
        feed.looked(BETWEEN)
        told = feed.now(history=False)
        yield from _of_owners(told["owners"])
        text = "What deaths of other processes cost those that are there"
        yield counter("losses", text, _summed(told["losses"].values()), "kind")
        yield from _of_workers(told["workers"])
        yield counter("workers_gone", "Workers that left", told["workers_gone"])
        yield counter(
            "relayed_bytes", "Bytes passed on to workers", told["relays"].get("nbytes", 0)
        )
        yield gauge("relays", "Open relays to workers", told["relays"].get("open", 0))


def gauge(name: str, text: str, values: Any, label: str = "") -> Any:
    """Return a metric that goes up and down, or one such metric for each value of a label."""
    # Imported here because prometheus_client is optional. A collector runs only where it is
    # installed.
    from prometheus_client.core import GaugeMetricFamily

    return _family(GaugeMetricFamily, name, text, values, label)


def counter(name: str, text: str, values: Any, label: str = "") -> Any:
    """Return a metric that only grows, or one such metric for each value of a label."""
    from prometheus_client.core import CounterMetricFamily

    return _family(CounterMetricFamily, name, text, values, label)


def _family(kind: Any, name: str, text: str, values: Any, label: str) -> Any:
    """Return one metric; ``values`` is a number, or a dict from the label's value to a number."""
    if not label:
        return kind(f"dask_ownership_{name}", text, value=values)
    family = kind(f"dask_ownership_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _summed(counts: Iterable[dict[str, float]]) -> dict[str, float]:
    """Return the sums of dicts of numbers, key by key."""
    sums: dict[str, float] = {}
    for counted in counts:
        for key, number in counted.items():
            sums[key] = sums.get(key, 0) + number
    return sums


def _of_owners(owners: list[dict[str, Any]]) -> Iterator[Any]:
    """Yield the metrics of owners, as sums over all owners."""
    yield gauge("owners", "Clients, workers and the scheduler, as owners", len(owners))
    states = _summed(owner["states"] for owner in owners)
    yield gauge("objects", "Owned objects", states, "state")
    for name in ("submitted", "done", "failed"):
        text = f"Owned tasks {name}, of the owners that are there"
        yield counter(f"tasks_{name}", text, sum(owner[name] for owner in owners))
    text = "Tasks handed out again, of the owners that are there"
    yield counter("reexecutions", text, _summed(owner["again"] for owner in owners), "reason")
    for name, text in (
        ("inline_nbytes", "Bytes of values that are with their owners"),
        ("lineage_nbytes", "Bytes that owners keep to make values again"),
        ("borrowed", "Objects of others that owners borrow"),
    ):
        yield gauge(name, text, sum(owner[name] for owner in owners))
    for direction, index in (("to", 0), ("from", 1)):
        text = f"Bytes that owners that are there exchanged with workers: {direction} workers"
        total = sum(t[index] for owner in owners for t in owner["traffic"].values())
        yield counter(f"owner_bytes_{direction}_workers", text, total)


def _of_workers(workers: list[dict[str, Any]]) -> Iterator[Any]:
    """Yield the metrics of workers, as sums over all workers."""
    for name in ("running", "queued", "parked"):
        text = f"Owned tasks {name} at workers"
        yield gauge(f"worker_tasks_{name}", text, sum(w[name] for w in workers))
    for name in ("nbytes", "spilled"):
        text = "Bytes of owned values at workers" + (" on disk" if name == "spilled" else "")
        total = sum(worker["stored"][name] for worker in workers)
        yield gauge(f"worker_stored_{name}", text, total)
    text = "Bytes that workers got from each other, of the workers that are there"
    total = sum(sum(worker["received"].values()) for worker in workers)
    yield counter("transferred_bytes", text, total)


collector = Collector()
"""The collector of this process: Prometheus has one registry per process."""


def offer(feed: Any) -> None:
    """Have ``/metrics`` give the numbers of a feed, if prometheus_client is installed."""
    try:
        from prometheus_client import REGISTRY
    except ImportError:
        return
    if not collector.registered:
        collector.registered = True
        REGISTRY.register(collector)
    collector.feeds.append(feed)


def withdraw(feed: Any) -> None:
    """Have ``/metrics`` give the numbers of a feed no more, because its scheduler closes."""
    if feed in collector.feeds:
        collector.feeds.remove(feed)
