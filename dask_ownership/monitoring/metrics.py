"""Numbers about owned tasks at the scheduler's ``/metrics``, for Prometheus.

Reading the metrics makes the reader a viewer: the first answer has the reports that are there
already, later answers have newer reports.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

BETWEEN = 120.0
"""Seconds for which reports go on after a reading."""

PREFIX = "dask_ownership_"
"""Beginning of the names of all metrics."""

GAUGE, COUNTER = "gauge", "counter"
"""Kinds of metrics, as Prometheus names them: a gauge goes up and down, a counter only grows."""


class Metric(NamedTuple):
    """What Prometheus, and the page about monitoring, say of one metric.

    Attributes
    ----------
    name : str
        Without `PREFIX`, and of a counter without the ``_total`` that Prometheus adds.
    kind : str
    text : str
        The help text.
    label : str
        The one label of the metric; empty for a metric without labels.
    """

    name: str
    kind: str
    text: str
    label: str = ""

    @property
    def full_name(self) -> str:
        """The name in the answer of ``/metrics``."""
        return f"{PREFIX}{self.name}{'_total' if self.kind == COUNTER else ''}"


METRICS = (
    Metric("owners", GAUGE, "Clients, workers and the scheduler, as owners"),
    Metric("objects", GAUGE, "Owned objects", "state"),
    Metric("tasks_submitted", COUNTER, "Owned tasks submitted, of the owners that are there"),
    Metric("tasks_done", COUNTER, "Owned tasks done, of the owners that are there"),
    Metric("tasks_failed", COUNTER, "Owned tasks failed, of the owners that are there"),
    Metric(
        "reexecutions", COUNTER, "Tasks handed out again, of the owners that are there", "reason"
    ),
    Metric("inline_nbytes", GAUGE, "Bytes of values that are with their owners"),
    Metric("lineage_nbytes", GAUGE, "Bytes that owners keep to make values again"),
    Metric("borrowed", GAUGE, "Objects that owners borrow"),
    Metric(
        "owner_bytes_to_workers",
        COUNTER,
        "Bytes that owners that are there exchanged with workers: to workers",
    ),
    Metric(
        "owner_bytes_from_workers",
        COUNTER,
        "Bytes that owners that are there exchanged with workers: from workers",
    ),
    Metric(
        "losses", COUNTER, "Losses at the processes that are there, by deaths elsewhere", "kind"
    ),
    Metric("worker_tasks_running", GAUGE, "Owned tasks running at workers"),
    Metric("worker_tasks_queued", GAUGE, "Owned tasks queued at workers"),
    Metric("worker_tasks_parked", GAUGE, "Owned tasks parked at workers"),
    Metric("worker_stored_nbytes", GAUGE, "Bytes of owned values at workers"),
    Metric("worker_stored_spilled", GAUGE, "Bytes of owned values at workers on disk"),
    Metric(
        "transferred_bytes",
        COUNTER,
        "Bytes that workers got from each other, of the workers that are there",
    ),
    Metric("workers_gone", COUNTER, "Workers that left"),
    Metric("relayed_bytes", COUNTER, "Bytes passed on to workers"),
    Metric("relays", GAUGE, "Open relays to workers"),
)
"""All metrics, in the order of the answer. The table in ``docs/monitoring.md`` is made of them."""

_by_name = {metric.name: metric for metric in METRICS}


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
        yield family("losses", _summed(told["losses"].values()))
        yield from _of_workers(told["workers"])
        yield family("workers_gone", told["workers_gone"])
        yield family("relayed_bytes", told["relays"].get("nbytes", 0))
        yield family("relays", told["relays"].get("open", 0))


def family(name: str, values: Any) -> Any:
    """Return a metric of `METRICS` with its number, or with one number for each value of its label.

    Parameters
    ----------
    name : str
        As in `METRICS`.
    values : int, float or dict
        A dict from the values of the label to numbers for a metric that has a label.
    """
    # Imported here because prometheus_client is optional. A collector runs only where it is
    # installed.
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    metric = _by_name[name]
    kind = CounterMetricFamily if metric.kind == COUNTER else GaugeMetricFamily
    if not metric.label:
        return kind(PREFIX + name, metric.text, value=values)
    made = kind(PREFIX + name, metric.text, labels=[metric.label])
    for key, value in values.items():
        made.add_metric([key], value)
    return made


def _summed(counts: Iterable[dict[str, float]]) -> dict[str, float]:
    """Return the sums of dicts of numbers, key by key."""
    sums: dict[str, float] = {}
    for counted in counts:
        for key, number in counted.items():
            sums[key] = sums.get(key, 0) + number
    return sums


def _of_owners(owners: list[dict[str, Any]]) -> Iterator[Any]:
    """Yield the metrics of owners, as sums over all owners."""
    yield family("owners", len(owners))
    yield family("objects", _summed(owner["states"] for owner in owners))
    for name in ("submitted", "done", "failed"):
        yield family(f"tasks_{name}", sum(owner[name] for owner in owners))
    yield family("reexecutions", _summed(owner["again"] for owner in owners))
    for name in ("inline_nbytes", "lineage_nbytes", "borrowed"):
        yield family(name, sum(owner[name] for owner in owners))
    for direction, index in (("to", 0), ("from", 1)):
        total = sum(t[index] for owner in owners for t in owner["traffic"].values())
        yield family(f"owner_bytes_{direction}_workers", total)


def _of_workers(workers: list[dict[str, Any]]) -> Iterator[Any]:
    """Yield the metrics of workers, as sums over all workers."""
    for name in ("running", "queued", "parked"):
        yield family(f"worker_tasks_{name}", sum(worker[name] for worker in workers))
    for name in ("nbytes", "spilled"):
        yield family(f"worker_stored_{name}", sum(worker["stored"][name] for worker in workers))
    total = sum(sum(worker["received"].values()) for worker in workers)
    yield family("transferred_bytes", total)


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
