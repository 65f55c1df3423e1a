"""Draws how many times as fast as a reference each engine was."""

from __future__ import annotations

import textwrap
from typing import Any

from dask_ownership.benchmarks.bars import median_of, number
from dask_ownership.benchmarks.cases import Case, Metric
from dask_ownership.benchmarks.parent import EngineRun

__all__ = ["draw"]

COLOURS = {
    "ownership": "#0072b2",
    "distributed": "#d55e00",
    "tuned": "#e69f00",
    "ray": "#009e73",
    "threads": "#999999",
    "floor": "#56b4e9",
}


def _compared(case: Case) -> Metric | None:
    """Return the metric by which engines are compared in a case, or None."""
    for metric in case.metrics:
        if metric.compared:
            return metric
    return None


def draw(runs: dict[str, EngineRun], cases: list[Case], path: str, caption: str) -> None:
    """Draw horizontal bars on a logarithmic scale, each with its number.

    A bar's length is how many times as fast as stock distributed the engine was. Without stock
    distributed, the first engine with a number for the case takes its place.

    Parameters
    ----------
    runs
        The engines' results.
    cases
        The cases, from top to bottom.
    path
        The file to write.
    caption
        The text below.
    """
    import matplotlib

    # Draws without a display.
    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = _measured(runs, cases)
    reference = "distributed" if "distributed" in runs else next(iter(runs))
    n_bars = sum(len(found) for _, _, found in groups)
    height = 1.6 + 0.2 * n_bars + 0.22 * len(groups)
    figure, axes = pyplot.subplots(figsize=(10, height), layout="constrained")
    y = 0.0
    ticks, labels = [], []
    # Engines with an entry in the legend.
    named: set[str] = set()
    for case, metric, found in groups:
        ticks.append(y + (len(found) - 1) / 2)
        size = next(r.results[case.name]["size"] for r in runs.values() if case.name in r.results)
        labels.append(case.full_title(size))
        base = found.get(reference, next(iter(found.values())))
        for name, value in found.items():
            ratio = value / base if metric.higher else base / value
            text = f"{number(value)} {metric.unit}"
            _draw_bar(axes, y, ratio, text, COLOURS.get(name), None if name in named else name)
            named.add(name)
            y += 1
        y += 1.1
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(ticks, labels, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12, y=0.01)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(f"times as fast as {reference}; the numbers are medians")
    figure.legend(loc="outside upper center", ncols=len(named), frameon=False)
    figure.supxlabel("\n".join(textwrap.wrap(caption, 150)), fontsize=6)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _measured(
    runs: dict[str, EngineRun], cases: list[Case]
) -> list[tuple[Case, Metric, dict[str, float]]]:
    """Return the cases that can be drawn, each with its metric and the medians by engine.

    Raises
    ------
    ValueError
        When there are none.
    """
    groups = []
    for case in cases:
        metric = _compared(case)
        if metric is None:
            continue
        found = {
            name: value
            for name in runs
            if (value := median_of(runs, name, case.name, metric.name)) is not None and value > 0
        }
        if found:
            groups.append((case, metric, found))
    if not groups:
        raise ValueError("nothing was measured that could be drawn")
    return groups


def _draw_bar(
    axes: Any, y: float, ratio: float, text: str, colour: str | None, label: str | None
) -> None:
    """Draw one bar from 1 to a ratio, with a point at its end and its number."""
    axes.barh(y, ratio - 1, left=1, height=0.85, color=colour, label=label)
    axes.plot(ratio, y, "o", markersize=4, color=colour)
    axes.annotate(
        text,
        (max(ratio, 1.0), y),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        fontsize=7,
    )
