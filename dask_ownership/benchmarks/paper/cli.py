"""The command line of the experiments: ``python -m dask_ownership.benchmarks paper``."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask_ownership
from dask_ownership.benchmarks.engines import Unavailable
from dask_ownership.benchmarks.machine import describe
from dask_ownership.benchmarks.paper.experiments import MICRO, Experiment, Point, System
from dask_ownership.benchmarks.paper.leases import LEASES
from dask_ownership.benchmarks.paper.plots import draw
from dask_ownership.benchmarks.paper.prediction import PREDICTION
from dask_ownership.benchmarks.paper.programs import PROGRAMS
from dask_ownership.benchmarks.paper.tables import write_tables
from dask_ownership.benchmarks.paper.verdict import verdict

__all__ = ["main"]

EXPERIMENTS: dict[str, Experiment] = {e.name: e for e in (*MICRO, LEASES, *PROGRAMS, PREDICTION)}

SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        System("ownership", "ownership", calls=20_000),
        # The ablation of the paper: this project, with one word to a central process per call.
        System("synchronous", "ownership", told="asked", calls=2_000),
        System("asynchronous", "ownership", told="sent", calls=10_000),
        System("distributed", "distributed"),
        System("ray", "ray", calls=2_000),
    )
}

PERCENTILES = (50, 90, 99, 99.9)


def _parser(program: str) -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=f"{program} paper",
        description="Run the experiments of the paper on this machine.",
        epilog="Systems: ownership; synchronous, which is ownership with a question to the "
        "scheduler, and a wait for its answer, before each submit; asynchronous, with a message "
        "to the scheduler in place of the question; distributed; ray.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(EXPERIMENTS))
    parser.add_argument("--engines", metavar="A,B", help=f"only these, of {', '.join(SYSTEMS)}")
    parser.add_argument("--quick", action="store_true", help="a fifth of the work")
    parser.add_argument("--plot", metavar="FOLDER", help="write a picture of each experiment")
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="write what was measured; what the file has of other experiments and systems stays",
    )
    parser.add_argument(
        "--page", metavar="FILE", help="write the tables of what was measured into this page"
    )
    parser.add_argument(
        "--redraw", action="store_true", help="run nothing: draw and print what --json has"
    )
    return parser


def main(argv: list[str], program: str) -> int:
    """Run experiments, print their points, and write what was asked for."""
    parser = _parser(program)
    options = parser.parse_args(argv)
    chosen = options.engines.split(",") if options.engines else list(SYSTEMS)
    for kind, names, known in (
        ("experiment", options.names, EXPERIMENTS),
        ("engine", chosen, SYSTEMS),
    ):
        if unknown := sorted(set(names).difference(known)):
            parser.error(f"unknown {kind} {', '.join(unknown)}: choose from {', '.join(known)}")
    if options.redraw and not options.json:
        parser.error("--redraw needs --json")
    record: dict[str, Any] = {"experiments": {}}
    if options.json and Path(options.json).exists():
        record = json.loads(Path(options.json).read_text(encoding="utf-8"))
    names = options.names or list(EXPERIMENTS)
    part = 0.2 if options.quick else 1.0
    machine = _machine(shlex.join([*program.split(), "paper", *argv]))
    failed = False
    for name in () if options.redraw else names:
        for system in chosen:
            if system not in EXPERIMENTS[name].systems:
                continue
            try:
                for points in _run(EXPERIMENTS[name], SYSTEMS[system], part):
                    _keep(record, name, system, points, machine)
                    # What was measured is there also when the next point is interrupted.
                    if options.json:
                        Path(options.json).write_text(json.dumps(record), encoding="utf-8")
            except Unavailable as error:
                print(f"{name}, {system}: {error}", file=sys.stderr)
            except Exception as error:
                # One system that fails must not lose what was measured of the others.
                print(f"{name}, {system} failed: {error!r}", file=sys.stderr)
                failed = True
    for name in names:
        for point in record["experiments"].get(name, {"points": []})["points"]:
            print(name, _spell(point))
    found = record["experiments"]
    if options.page:
        page = Path(options.page)
        tables = {name: found[name]["points"] for name in names if name in found}
        page.write_text(write_tables(page.read_text("utf-8"), tables), encoding="utf-8")
    for line in verdict({name: found[name]["points"] for name in names if name in found}):
        print(line)
    if options.plot:
        try:
            print(*draw(record, options.plot), sep="\n")
        except ImportError as error:
            print(f"no pictures: {error}", file=sys.stderr)
    return 1 if failed else 0


def _run(experiment: Experiment, system: System, part: float) -> Iterator[list[Point]]:
    """Run an experiment on one system; yield the points so far, and say each as it is measured."""
    points = []
    started = time.monotonic()
    for point in experiment.run(system, part):
        points.append({"system": system.name, **point})
        seconds = time.monotonic() - started
        print(f"[{seconds:6.1f} s] {experiment.name} {_spell(points[-1])}", file=sys.stderr)
        yield points


def _keep(
    record: dict[str, Any], name: str, system: str, points: list[Point], machine: str
) -> None:
    """Put the points of a system into the record, in place of its earlier ones."""
    found = record["experiments"].setdefault(name, {"points": []})
    others = [point for point in found["points"] if point["system"] != system]
    found.update(points=others + points, machine=machine)


def _spell(point: Point) -> str:
    """Return a point in one line; of many values some percentiles."""
    texts = []
    for name, value in point.items():
        if name in ("all_ms", "whole_ms"):
            ordered = sorted(value)
            prefix = "" if name == "all_ms" else "whole "
            for percent in PERCENTILES:
                at = ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
                texts.append(f"{prefix}p{percent:g}={at:.4g} ms")
            texts.append(f"{prefix}max={ordered[-1]:.4g} ms")
        else:
            texts.append(f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}")
    return "  ".join(texts)


def _machine(command: str) -> str:
    """Return the machine, the versions and the command, in words."""
    import distributed

    found = describe()
    load: Callable[[float], str] = "{:.1f}".format
    return (
        f"{found['cpu']}, {found['cores']} cores, {found['memory_bytes'] / 2**30:.0f} GiB, "
        f"{found['system']}, {found['python']}; dask-ownership {dask_ownership.__version__}, "
        f"distributed {distributed.__version__}; load {load(found['load_before'][0])}; "
        f"{found['time']}; {command}"
    )
