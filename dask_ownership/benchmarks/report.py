"""Tables of the results: plain text for the terminal, Markdown for a README."""

from __future__ import annotations

import platform
from typing import Any

from dask_ownership.benchmarks.bars import Outcome, judge, number
from dask_ownership.benchmarks.cases import Case
from dask_ownership.benchmarks.parent import EngineRun

__all__ = ["as_json", "render"]

Runs = dict[str, EngineRun]
Row = tuple[str, ...]


def _cell(run: EngineRun, case: Case, metric: str) -> str:
    """Return the median and, if there is one, the spread."""
    if case.name in run.failed:
        return "failed"
    numbers: Any = run.results.get(case.name, {}).get(metric)
    if numbers is None:
        return "-"
    text = number(numbers["median"])
    if len(numbers["values"]) > 1:
        text += f" ({number(numbers['min'])}-{number(numbers['max'])})"
    return text


def _title(case: Case, runs: Runs) -> str:
    """Return the title of a case with the size that was run."""
    for run in runs.values():
        if case.name in run.results:
            return case.full_title(run.results[case.name]["size"])
    return case.full_title(case.size)


def case_rows(runs: Runs, cases: list[Case]) -> list[Row]:
    """Return a header, and a row for every metric of every case."""
    shown = [run for run in runs.values() if not run.unavailable]
    rows: list[Row] = [("case", "unit", *(run.engine for run in shown))]
    for case in cases:
        title = _title(case, runs)
        for metric in case.metrics:
            label = f"{title}, {metric.label}" if metric.label else title
            cells = [_cell(run, case, metric.name) for run in shown]
            if any(cell != "-" for cell in cells):
                rows.append((label, metric.unit, *cells))
    return rows


def bar_rows(outcomes: list[Outcome]) -> list[Row]:
    """Return a header, and a row for every bar."""
    rows: list[Row] = [("bar", "wanted", "reached", "")]
    return rows + [(o.what, o.wanted, o.reached, o.verdict) for o in outcomes]


def notes(runs: Runs) -> list[str]:
    """Return remarks besides the numbers: engines that could not run, and cases that failed."""
    lines = []
    for run in runs.values():
        if run.unavailable:
            lines.append(f"{run.engine}: not measured: {run.unavailable}")
        lines += [f"{run.engine}: {case}: {reason}" for case, reason in run.failed.items()]
    return lines


def _plain(rows: list[Row]) -> str:
    """Return a table as plain text."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row: Row) -> str:
        cells = [
            # The first two columns are names, all others numbers.
            cell.rjust(width) if i > 1 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    ruler = "  ".join("─" * width for width in widths)
    return "\n".join([line(rows[0]), ruler, *(line(row) for row in rows[1:])])


def _markdown(rows: list[Row]) -> str:
    """Return a table as Markdown."""

    def line(row: Row) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"

    ruler = "|" + "|".join("---" if i < 2 else "--:" for i in range(len(rows[0]))) + "|"
    return "\n".join([line(rows[0]), ruler, *(line(row) for row in rows[1:])])


def describe(record: dict[str, Any]) -> str:
    """Return one line on where and how the numbers were taken."""
    machine = record["machine"]
    versions: dict[str, str] = {}
    for engine in record["engines"].values():
        versions.update(engine["versions"])
    packages = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    options = record["options"]
    cluster = (
        f"{options['workers']} worker processes with {options['threads_per_worker']} thread each"
    )
    if options.get("address"):
        cluster = f"the cluster at {options['address']}"
    return (
        f"{machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB, {machine['system']}, {machine['python']}; "
        f"{packages}; {cluster}; medians of up to {options['repeat']} repeats (least-greatest); "
        f"`{record['command']}`"
    )


def as_json(
    runs: Runs, cases: list[Case], options: dict[str, Any], machine: dict[str, Any], command: str
) -> dict[str, Any]:
    """Return all facts about a run of the benchmark, for ``json.dump``."""
    names = [case.name for case in cases]
    return {
        "format": 1,
        "command": command,
        "host_python": platform.python_version(),
        "machine": machine,
        "options": options,
        "cases": {
            case.name: {
                "title": _title(case, runs),
                "metrics": {m.name: {"unit": m.unit, "higher": m.higher} for m in case.metrics},
            }
            for case in cases
        },
        "engines": {
            name: {
                "versions": run.versions,
                "unavailable": run.unavailable,
                "results": run.results,
                "failed": run.failed,
            }
            for name, run in runs.items()
        },
        "bars": [vars(outcome) for outcome in judge(runs, names)],
    }


def render(runs: Runs, cases: list[Case], record: dict[str, Any], markdown: bool) -> str:
    """Return the tables as text.

    Parameters
    ----------
    runs
        The engines' results.
    cases
        The chosen cases.
    record
        The result of :func:`as_json` for them.
    markdown
        Whether to write GitHub's Markdown.
    """
    table = _markdown if markdown else _plain
    parts = [describe(record), table(case_rows(runs, cases))]
    said = notes(runs)
    if said:
        parts.append("\n".join(f"- {line}" for line in said))
    if record["options"]["quick"] or record["options"].get("size"):
        parts.append("These are not the normal sizes, for which the bars are meant.")
    parts.append(table(bar_rows(judge(runs, [case.name for case in cases]))))
    return "\n\n".join(parts)
