"""The bars: numbers that the project means to reach, against numbers measured in the same run."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from dask_ownership.benchmarks.cases import CASES, Metric
from dask_ownership.benchmarks.engines import COLLECTIONS, TASKS
from dask_ownership.benchmarks.parent import EngineRun

__all__ = ["BARS", "Bar", "Outcome", "judge", "median_of"]

Runs = dict[str, EngineRun]
OWN = "ownership"


@dataclass(frozen=True)
class Bar:
    """A number to reach.

    Attributes
    ----------
    case, metric
        The case and its metric; a metric with ``*`` means the worst of all metrics that match.
    against
        The engine to compare with, or "" for a plain limit.
    limit
        With ``at_most`` false: at least this many times as fast as the other engine. Otherwise: at
        most this many times the other engine's number, or at most this number.
    at_most
        The kind of the limit.
    """

    case: str
    metric: str
    against: str
    limit: float
    at_most: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a bar was met.

    Attributes
    ----------
    what, wanted, reached
        The bar, its limit and the measured number, as text.
    verdict
        "ok", "short" or "not measured".
    """

    what: str
    wanted: str
    reached: str
    verdict: str


_COLLECTIONS = ("array sum", "transpose add", "bag", "delayed merge", "delayed tree")

BARS: tuple[Bar, ...] = (
    Bar("submit loop", "rate", "distributed", 70),
    Bar("submit loop", "rate", "tuned", 35),
    Bar("submit loop", "rate", "floor", 0.35),
    Bar("round trip", "p50", "", 0.5, at_most=True),
    Bar("round trip", "p50", "distributed", 20),
    Bar("round trip", "p50", "floor", 1.7, at_most=True),
    Bar("round trip", "p99", "", 3, at_most=True),
    Bar("chain", "seconds", "distributed", 60),
    Bar("tree", "seconds", "distributed", 20),
    Bar("fib", "seconds", "distributed", 8),
    Bar("nested", "seconds", "distributed", 35),
    Bar("borrow", "*", "ray", 10),
    *(Bar(name, "seconds", "threads", 1.3, at_most=True) for name in _COLLECTIONS),
    Bar("memory", "bytes", "", 1000, at_most=True),
    Bar("memory", "longest", "", 20, at_most=True),
    Bar("deep reduction", "grown", "distributed", 1.0, at_most=True),
    Bar("recovery", "ratio*", "", 1.1, at_most=True),
    Bar("recovery large", "ratio*", "", 1.6, at_most=True),
    *(
        Bar(name, "with[1-9]*", peer, 1.0, at_most=True)
        for name in ("recovery", "recovery large")
        for peer in ("distributed", "ray")
    ),
    Bar("scheduler messages", "messages", "", 200, at_most=True),
    Bar("relay", "rate", "distributed", 20),
    Bar("relay", "p50", "", 1, at_most=True),
    Bar("relay", "grown", "", 64, at_most=True),
    Bar("relay", "lag", "", 50, at_most=True),
)


def median_of(runs: Runs, engine: str, case: str, metric: str) -> float | None:
    """Return the median that an engine reached, or None."""
    run = runs.get(engine)
    numbers: Any = run.results.get(case, {}).get(metric) if run else None
    return None if numbers is None else float(numbers["median"])


def _metrics(case: str, name: str) -> list[Metric]:
    """Return the metrics of a case with a name that may have ``*``."""
    found = [
        metric
        for known in CASES
        for metric in known.metrics
        if known.name == case and fnmatchcase(metric.name, name)
    ]
    if not found:
        raise KeyError(f"{case}: {name}")
    return found


def number(value: float) -> str:
    """Write a number with three significant digits, no exponent."""
    size = abs(value)
    if size >= 100 or value == 0:
        return f"{value:,.0f}".replace(",", " ")
    if size >= 10:
        return f"{value:.1f}"
    if size >= 1:
        return f"{value:.2f}"
    return f"{value:.3g}"


def judge(runs: Runs, cases: list[str] | None = None) -> list[Outcome]:
    """Compare the measured numbers with every bar.

    Parameters
    ----------
    runs
        The engines' results.
    cases
        Only the bars of these cases.
    """
    outcomes = []
    for bar in BARS:
        if cases is not None and bar.case not in cases:
            continue
        metrics = _metrics(bar.case, bar.metric)
        words = metrics[0].label if len(metrics) == 1 else "every point"
        label = f"{bar.case}, {words}" if words else bar.case
        relation = "≤" if bar.at_most else "≥"
        unit = f"x {bar.against}" if bar.against else f" {metrics[0].unit}"
        wanted = f"{relation} {number(bar.limit)}{unit}"
        values = [_value(runs, bar, metric) for metric in metrics]
        measured = [value for value in values if value is not None]
        # A bar over several metrics counts only if all are measured.
        if len(measured) < len(values):
            outcomes.append(Outcome(label, wanted, "", "not measured"))
            continue
        # The worst metric decides.
        value = max(measured) if bar.at_most else min(measured)
        met = value <= bar.limit if bar.at_most else value >= bar.limit
        reached = f"{number(value)}{'x' if bar.against else ' ' + metrics[0].unit}"
        if len(metrics) > 1:
            reached += f" ({metrics[values.index(value)].label})"
        outcomes.append(Outcome(label, wanted, reached, "ok" if met else "short"))
    return outcomes + [_every_case(runs, peer, cases) for peer in ("distributed", "tuned")]


def _value(runs: Runs, bar: Bar, metric: Metric) -> float | None:
    """Return the number to compare with the bar's limit, or None."""
    own = median_of(runs, OWN, bar.case, metric.name)
    other = median_of(runs, bar.against, bar.case, metric.name) if bar.against else 1.0
    if own is None or other is None:
        return None
    # A limit from above is a plain ratio; all other ratios say how many times as fast this project
    # is.
    return own / other if bar.at_most or metric.higher else other / own


def _every_case(runs: Runs, peer: str, cases: list[str] | None) -> Outcome:
    """Return whether every case is faster than in another engine."""
    ratios: dict[str, float] = {}
    missing = []
    for case in CASES:
        if (cases is not None and case.name not in cases) or case.needs not in (TASKS, COLLECTIONS):
            continue
        for metric in case.metrics:
            if metric.compared:
                own = median_of(runs, OWN, case.name, metric.name)
                other = median_of(runs, peer, case.name, metric.name)
                if own is None or other is None:
                    if case.name not in missing:
                        missing.append(case.name)
                else:
                    ratio = own / other if metric.higher else other / own
                    ratios[case.name] = min(ratio, ratios.get(case.name, ratio))
    what, wanted = "every case", f"> 1x {peer}"
    if not ratios:
        return Outcome(what, wanted, "", "not measured")
    least = min(ratios, key=ratios.__getitem__)
    slower = [f"{name} {number(ratio)}x" for name, ratio in ratios.items() if ratio <= 1]
    reached = f"{len(ratios) - len(slower)} of {len(ratios) + len(missing)}"
    if slower:
        return Outcome(what, wanted, f"{reached}; not {', '.join(slower)}", "short")
    reached += f"; least {number(ratios[least])}x ({least})"
    if missing:
        return Outcome(what, wanted, f"{reached}; no numbers: {', '.join(missing)}", "not measured")
    return Outcome(what, wanted, reached, "ok")
