"""The plots of the experiments, from the record that is written as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

__all__ = ["draw"]

COLOURS = {
    "ownership": "#0072b2",
    "synchronous": "#56b4e9",
    "asynchronous": "#cc79a7",
    "distributed": "#d55e00",
    "ray": "#009e73",
}

Points = list[dict[str, Any]]


def draw(record: dict[str, Any], folder: str) -> list[Path]:
    """Draw every experiment of a record into a folder, and return the files.

    Parameters
    ----------
    record
        The experiments by name, each with ``points``, and the ``machine`` in words.
    folder
        Made if need be.
    """
    import matplotlib

    # Draws without a display.
    matplotlib.use("Agg")
    from matplotlib import pyplot

    Path(folder).mkdir(parents=True, exist_ok=True)
    made = []
    for name, found in record["experiments"].items():
        if name not in DRAWN or not found["points"]:
            continue
        figure = DRAWN[name](pyplot, found["points"])
        figure.supxlabel("\n".join(textwrap.wrap(found["machine"], 130)), fontsize=6)
        path = Path(folder, f"{name}.png")
        figure.savefig(path, dpi=120)
        pyplot.close(figure)
        made.append(path)
    return made


def _select(points: Points, **wanted: Any) -> Points:
    """Return the points that have these values."""
    return [p for p in points if all(p.get(name) == value for name, value in wanted.items())]


def _values(points: Iterable[dict[str, Any]], name: str) -> list[Any]:
    """Return the different values of one name, in the order of the points."""
    return list(dict.fromkeys(point[name] for point in points))


def _line(axes: Any, points: Points, x: str, y: str, label: str, **style: Any) -> None:
    """Draw points as a line."""
    ordered = sorted(points, key=lambda point: point[x])
    style = {"marker": "o", "linestyle": "-", **style}
    axes.plot(
        [point[x] for point in ordered], [point[y] for point in ordered], label=label, **style
    )


def _finish(axes: Any, x: str, y: str, title: str = "", legend: bool = True) -> None:
    """Write the labels of one picture."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, fontsize="medium")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if legend and axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small", frameon=False)


def _legend_below(axes: Any, columns: int) -> None:
    """Write a legend below a picture, where it covers no line."""
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=columns, fontsize="small",
        frameon=False,
    )  # fmt: skip


def _share_legend(figure: Any, axes: Any) -> None:
    """Write one legend for pictures with the same lines, above all of them."""
    handles, labels = axes.get_legend_handles_labels()
    columns = min(3, len(labels))
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False)


def _scalability(pyplot: Any, points: Points) -> Any:
    figure, grid = pyplot.subplots(2, 2, figsize=(10, 7), layout="constrained", sharex=True)
    for row, nbytes in zip(grid, (0, 1 << 20), strict=True):
        for axes, spread in zip(row, (True, False), strict=True):
            for system in _values(points, "system"):
                for workers, dash in zip(
                    _values(points, "workers"), (":", "-", "--"), strict=False
                ):
                    chosen = _select(
                        points, system=system, workers=workers, nbytes=nbytes, spread=spread
                    )
                    label = f"{system}, {workers} worker{'s' * (workers > 1)}"
                    style = {"color": COLOURS.get(system), "linestyle": dash}
                    _line(axes, chosen, "owners", "rate", label, **style)
            axes.set_yscale("log")
            axes.set_xticks(_values(points, "owners"))
            size = "1 MiB values" if nbytes else "small values"
            where = "a process for each owner" if spread else "all owners in one process"
            _finish(axes, "owners", "tasks per second", f"{size}, {where}", legend=False)
    _share_legend(figure, axes)
    return figure


def _latency(pyplot: Any, points: Points) -> Any:
    figure, row = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    systems = _values(points, "system")
    for axes, mode in zip(row, ("one at a time", "all at once"), strict=True):
        groups = _values(points, "passed"), _values(points, "place")
        kinds = [(passed, place) for passed in groups[0] for place in groups[1]]
        kinds = [kind for kind in kinds if _select(points, passed=kind[0], place=kind[1])]
        for shift, system in enumerate(systems):
            for x, (passed, place) in enumerate(kinds):
                chosen = _select(points, system=system, passed=passed, place=place, mode=mode)
                for point in chosen:
                    at = x + 0.27 * (shift - (len(systems) - 1) / 2)
                    bar = axes.bar(
                        at, point["ms"], 0.25, color=COLOURS.get(system),
                        label=system if not x else None,
                    )  # fmt: skip
                    axes.bar_label(bar, fmt="%.3g", fontsize=7)
        axes.set_yscale("log")
        texts = [f"by {passed}" + f", {place}" * (passed == "reference") for passed, place in kinds]
        axes.set_xticks(range(len(kinds)), texts)
        _finish(axes, "1 MiB argument", "mean time of a call (ms)", mode, legend=False)
    _share_legend(figure, axes)
    return figure


def _borrow(pyplot: Any, points: Points) -> Any:
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for system in _values(points, "system"):
        chosen = _select(points, system=system)
        _line(axes, chosen, "borrowers", "rate", system, color=COLOURS.get(system))
    axes.set_yscale("log")
    axes.set_xscale("symlog", base=2, linthresh=1)
    axes.set_xticks(_values(points, "borrowers"), _values(points, "borrowers"))
    _finish(axes, "tasks that borrow the value and submit (0: the client)", "tasks per second")
    return figure


def _recovery(pyplot: Any, points: Points) -> Any:
    figure, row = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    for axes, size in zip(row, _values(points, "size"), strict=False):
        for system in _values(points, "system"):
            chosen = _select(points, system=system, size=size)
            colour = COLOURS.get(system)
            _line(axes, chosen, "task_ms", "with_s", f"{system}, a death", color=colour)
            _line(
                axes, chosen, "task_ms", "without_s", f"{system}, none", color=colour,
                linestyle=":",
            )  # fmt: skip
        axes.set_xscale("log")
        x = "length of each task of the chain (ms)"
        _finish(axes, x, "time of the chain (s)", f"{size} values", legend=False)
    axes.set_ylim(bottom=0)  # of both pictures, now that all lines are there
    _share_legend(figure, axes)
    return figure


def _later(axes: Any, values: list[float], label: str, **style: Any) -> None:
    """Draw which part of the values is greater than each value."""
    ordered = sorted(max(value, 0.1) for value in values)
    n = len(ordered)
    axes.step(ordered, [(n - i) / n * 100 for i in range(n)], label=label, where="pre", **style)


def _leases(pyplot: Any, points: Points) -> Any:
    figure, row = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained", sharey=True)
    shades = {0: COLOURS["ownership"], 1: "#fdae61", 5: "#d55e00", 10: "#7f2704"}
    for axes, event in zip(row, ("death", "pause"), strict=True):
        for point in _select(points, event=event):
            lease = point["lease_s"]
            label = f"lease of {lease} s" if lease else "no lease"
            label += f", {point['again']} run again"
            _later(axes, point["all_ms"], label, color=shades.get(lease))
        axes.set_xscale("log")
        axes.set_yscale("log")
        title = "a worker dies" if event == "death" else "a worker pauses for 3 s"
        _finish(axes, "from submit to end (ms)", "tasks that take longer (%)", title)
    return figure


def _video(pyplot: Any, points: Points) -> Any:
    figure, row = pyplot.subplots(1, 2, figsize=(11, 5.5), layout="constrained", sharey=True)
    failing = [point for point in points if point["failure"] != "none"]
    loads = {(point["system"], point["videos"]) for point in failing}
    dashes = {"none": "-", "worker": "--", "owner": ":", "owner, checkpoints": "-."}
    for point in points:
        system, failure, n = point["system"], point["failure"], point["videos"]
        colour = COLOURS.get(system)
        if failure == "none":
            strong = 0.25 + 0.75 * n / max(_values(points, "videos"))
            label = f"{system}, {n} video{'s' * (n > 1)}"
            _later(row[0], point["all_ms"], label, color=colour, alpha=strong)
        if failure != "none" or (system, n) in loads:
            label = f"{system}, {n}, {'no death' if failure == 'none' else failure}"
            _later(row[1], point["all_ms"], label, color=colour, linestyle=dashes[failure])
    for axes, title in zip(row, ("nobody dies", "videos, and which process dies"), strict=True):
        axes.set_xscale("log")
        axes.set_yscale("log")
        _finish(axes, "late at the sink (ms)", "frames that are later (%)", title, legend=False)
        _legend_below(axes, 2)
    return figure


def _serving(pyplot: Any, points: Points) -> Any:
    figure, axes = pyplot.subplots(figsize=(9, 6), layout="constrained")
    for point in points:
        strong = 0.3 + 0.7 * point["rate"] / max(_values(points, "rate"))
        _later(
            axes, point["all_ms"],
            f"{point['system']}, by {point['passed']}, {point['rate']} requests/s",
            color=COLOURS.get(point["system"]), alpha=strong,
            linestyle="-" if point["passed"] == "reference" else ":",
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    x = "from full batch to answer (ms)"
    _finish(axes, x, "answers that take longer (%)", legend=False)
    _legend_below(axes, 3)
    return figure


def _prediction(pyplot: Any, points: Points) -> Any:
    figure, (axes, right) = pyplot.subplots(
        1, 2, figsize=(12, 6.5), layout="constrained", width_ratios=(2, 1)
    )
    shades = ("#9ecae1", "#6baed6", "#2171b5", "#08306b")
    ours = _select(points, system="ownership", length=0.0)
    owned = [point for point in ours if point["kind"] in ("predicted", "bound")]
    for colour, owners in zip(shades, sorted(set(_values(owned, "owners"))), strict=True):
        few = _select(owned, owners=owners)
        label = f"ownership, {owners} owner{'s' * (owners > 1)}"
        _line(axes, _select(few, kind="predicted"), "workers", "rate", label, color=colour)
        bound = _select(few, kind="bound")
        _line(
            axes, bound, "workers", "rate", "", color=colour, linestyle=":", marker="",
        )  # fmt: skip
    nested = _select(ours, kind="nested")
    label = "ownership, a nested owner at each worker"
    _line(axes, nested, "workers", "rate", label, color="#31a354", linestyle="--")
    colour = COLOURS["asynchronous"]
    words = _select(points, system="asynchronous", length=0.0, owners=1)
    label = "and a message to the scheduler for each, 1 owner"
    _line(axes, _select(words, kind="predicted"), "workers", "rate", label, color=colour)
    stock = _select(points, system="distributed", length=0.0)
    colour = COLOURS["distributed"]
    _line(
        axes, _select(stock, kind="bound"), "workers", "rate", "stock Dask, bound by its scheduler",
        color=colour, linestyle=":", marker="",
    )  # fmt: skip
    found = (("ownership", ours), ("asynchronous", words), ("distributed", stock))
    for system, chosen in found:
        measured = _select(chosen, kind="measured")
        axes.plot(
            _values(measured, "workers"), [point["rate"] for point in measured], "x",
            color=COLOURS[system], label=f"{system}, measured here",
        )  # fmt: skip
    axes.axhline(1e6, color="black", linewidth=0.8)
    axes.text(1, 1.1e6, "one million tasks per second", fontsize=8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    title = "dots: simulated; dotted lines: bounds"
    _finish(axes, "workers", "no-op tasks per second", title, legend=False)
    _legend_below(axes, 2)
    deaths = _select(points, kind="recovery")
    colour = COLOURS["ownership"]
    _line(right, deaths, "workers", "with_s", "a worker dies after 80 %", color=colour)
    _line(right, deaths, "workers", "without_s", "nobody dies", color=colour, linestyle=":")
    right.set_xscale("log")
    right.set_ylim(bottom=0)
    _finish(right, "workers", "time of the program (s)", "100 tasks of 10 ms for each worker")
    return figure


DRAWN: dict[str, Callable[[Any, Points], Any]] = {
    "scalability": _scalability,
    "latency": _latency,
    "borrow": _borrow,
    "recovery": _recovery,
    "leases": _leases,
    "video": _video,
    "serving": _serving,
    "prediction": _prediction,
}
