"""What was measured, against what is wanted: a line for each bar."""

from __future__ import annotations

from typing import Any

from dask_ownership.benchmarks.paper.programs import percentile

__all__ = ["verdict"]

Points = list[dict[str, Any]]

FASTER = 5.0
"""How many times as many videos as with stock Dask are wanted, and how much less late frames."""

MOST_LATE = 250.0
"""Milliseconds that any frame may be late at the highest load, without a death."""

RECOVERED = 1_200.0
"""Milliseconds that frames may be late when a worker dies, or an owner with checkpoints."""

PAPER = 8_760.0
"""The same in the paper, when an owner dies without checkpoints."""

ANSWERED = 3.0
"""How much earlier answers are wanted than with stock Dask, at its highest sustained rate."""

PREDICTED = 0.2
"""By which part of the measured rate a predicted one may differ."""


def verdict(found: dict[str, Points]) -> list[str]:
    """Return a line for each bar of the experiments whose points are given, by name."""
    return [
        *_video(found.get("video", [])),
        *_serving(found.get("serving", [])),
        *_prediction(found.get("prediction", [])),
    ]


def _line(bar: str, measured: float, unit: str, wanted: float, at_most: bool = True) -> str:
    """Return a bar in words, with the measured and the wanted number."""
    reached = measured <= wanted if at_most else measured >= wanted
    sign = "at most" if at_most else "at least"
    return (
        f"{'reached' if reached else 'MISSED'}: {bar}: {measured:,.4g}{unit}, "
        f"wanted {sign} {wanted:,.4g}{unit}"
    )


def _highest(points: Points, name: str) -> dict[str, Any] | None:
    """Return the sustained point with the highest load."""
    return max(
        (point for point in points if point.get("sustained")),
        key=lambda point: float(point[name]),
        default=None,
    )


def _video(points: Points) -> list[str]:
    quiet = [point for point in points if point["failure"] == "none"]
    ours = [point for point in quiet if point["system"] == "ownership"]
    theirs = [point for point in quiet if point["system"] == "distributed"]
    top, stock = _highest(ours, "videos"), _highest(theirs, "videos")
    lines = []
    if top is not None and theirs:
        # When stock Dask does not sustain the least load, it counts as half of that.
        least = min(point["videos"] for point in theirs) / 2
        times = top["videos"] / (stock["videos"] if stock else least)
        lines.append(_line("videos sustained, times stock Dask's", times, "x", FASTER, False))
    if stock is not None:
        same = next((p for p in ours if p["videos"] == stock["videos"]), None)
        if same is not None:
            times = percentile(stock["all_ms"], 99) / percentile(same["all_ms"], 99)
            bar = f"p99 of {stock['videos']} videos, stock Dask's highest load, stock over ours"
            lines.append(_line(bar, times, "x", FASTER, False))
    if top is not None:
        bar = f"most late of {top['videos']} videos, our highest load"
        lines.append(_line(bar, max(top["all_ms"]), " ms", MOST_LATE))
    for failure, percent, wanted in (
        ("worker", 99.9, RECOVERED),
        ("owner, checkpoints", 100.0, RECOVERED),
        ("owner", 100.0, PAPER),
    ):
        for point in points:
            if point["system"] == "ownership" and point["failure"] == failure:
                late = percentile(point["all_ms"], percent)
                bar = f"p{percent:g} of {point['videos']} videos, a death ({failure})"
                lines.append(_line(bar, late, " ms", wanted))
    return lines


def _serving(points: Points) -> list[str]:
    stock = _highest([p for p in points if p["system"] == "distributed"], "rate")
    ours = [p for p in points if p["system"] == "ownership"]
    lines = []
    for same in ours if stock is not None else ():
        if same["passed"] == "reference" and stock is not None and same["rate"] == stock["rate"]:
            times = percentile(stock["all_ms"], 99) / percentile(same["all_ms"], 99)
            bar = f"p99 of answers at {stock['rate']}/s, stock Dask's highest rate, stock over ours"
            lines.append(_line(bar, times, "x", ANSWERED, False))
    value = _highest([p for p in ours if p["passed"] == "value"], "rate")
    reference = _highest([p for p in ours if p["passed"] == "reference"], "rate")
    if value is not None and reference is not None:
        times = reference["rate"] / value["rate"]
        lines.append(_line("highest rate by reference over by value", times, "x", 1.0, False))
    return lines


def _prediction(points: Points) -> list[str]:
    return [
        _line(
            f"prediction for {point['workers']} workers, tasks of {1000 * point['length']:g} ms",
            abs(point["error"]),
            "",
            PREDICTED,
        )
        for point in points
        if "error" in point
    ]
