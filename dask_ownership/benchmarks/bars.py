"""The bars: what the project means to reach, against what was measured in the same run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dask_ownership.benchmarks.cases import CASES, Metric
from dask_ownership.benchmarks.engines import COLLECTIONS, TASKS
from dask_ownership.benchmarks.parent import EngineRun

__all__ = ["BARS", "Bar", "Outcome", "judge", "median_of"]

Runs = dict[str, EngineRun]
OWN = "ownership"


@dataclass(frozen=True)
class Bar:
    """Something to reach.

    Attributes
    ----------
    case, metric
        What is measured.
    against
        The engine to compare with, or "" for a plain limit.
    limit
        With ``at_most`` false: at least this many times as fast as the other engine. Otherwise:
        at most this many times the other engine's number, or at most this number.
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
        In words and numbers.
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
    *(Bar(name, "seconds", "threads", 1.3, at_most=True) for name in _COLLECTIONS),
    Bar("memory", "bytes", "", 1000, at_most=True),
    Bar("memory", "longest", "", 20, at_most=True),
    Bar("scheduler messages", "messages", "", 200, at_most=True),
)


def median_of(runs: Runs, engine: str, case: str, metric: str) -> float | None:
    """Return the median that an engine reached, or None."""
    run = runs.get(engine)
    numbers: Any = run.results.get(case, {}).get(metric) if run else None
    return None if numbers is None else float(numbers["median"])


def _metric(case: str, name: str) -> Metric:
    for known in CASES:
        if known.name == case:
            for metric in known.metrics:
                if metric.name == name:
                    return metric
    raise KeyError(f"{case}: {name}")


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
    """Compare what was measured with every bar.

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
        metric = _metric(bar.case, bar.metric)
        label = f"{bar.case}, {metric.label}" if metric.label else bar.case
        own = median_of(runs, OWN, bar.case, bar.metric)
        other = median_of(runs, bar.against, bar.case, bar.metric) if bar.against else 1.0
        relation = "≤" if bar.at_most else "≥"
        unit = f"x {bar.against}" if bar.against else f" {metric.unit}"
        wanted = f"{relation} {number(bar.limit)}{unit}"
        if own is None or other is None:
            outcomes.append(Outcome(label, wanted, "", "not measured"))
            continue
        value = own / other if bar.at_most or metric.higher else other / own
        met = value <= bar.limit if bar.at_most else value >= bar.limit
        reached = f"{number(value)}{'x' if bar.against else ' ' + metric.unit}"
        outcomes.append(Outcome(label, wanted, reached, "ok" if met else "short"))
    return outcomes + [_every_case(runs, peer, cases) for peer in ("distributed", "tuned")]


def _every_case(runs: Runs, peer: str, cases: list[str] | None) -> Outcome:
    """Say whether every case is faster than in another engine."""
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
                    missing.append(case.name)
                else:
                    ratios[case.name] = own / other if metric.higher else other / own
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
