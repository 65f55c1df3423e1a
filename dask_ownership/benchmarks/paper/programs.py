"""The experiments that run an application: video and serving, as programs of ``examples/``.

The programs check their own results; a run whose check fails is an error here.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask_ownership
from dask_ownership.benchmarks.engines import Unavailable
from dask_ownership.benchmarks.paper.experiments import Experiment, Point, System

__all__ = ["PROGRAMS"]

VIDEOS = (1, 2, 4)
"""Numbers of videos at the same time."""

FAILING = 2
"""Videos in the runs in which a process dies."""


def run_example(name: str, *arguments: str) -> dict[str, Any]:
    """Run a program of ``examples/`` and return what it measured."""
    path = Path(dask_ownership.__path__[0]).parent / "examples" / name
    if not path.exists():
        raise Unavailable(f"{path} is not there: the examples come with a clone of the sources")
    with tempfile.TemporaryDirectory(prefix="dask-benchmark-") as folder:
        measured = Path(folder, "measured.json")
        command = [sys.executable, str(path), *arguments, "--json", str(measured)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if done.returncode:
            last = (done.stdout + done.stderr).strip().splitlines()[-1:]
            raise RuntimeError(f"{name} failed: {' '.join(last)}")
        found: dict[str, Any] = json.loads(measured.read_text())
        return found


def video(system: System, part: float) -> Iterator[Point]:
    """Measure how late frames are: with more and more videos, and with deaths."""
    seconds = max(8.0, 20 * part)
    common = ("--input", "rendered", "--engine", system.engine, "--seconds", f"{seconds:g}")
    runs: list[tuple[str, int, tuple[str, ...]]] = [("none", n, ()) for n in VIDEOS]
    at = ("--at", f"{seconds / 2:g}")
    runs.append(("worker", FAILING, ("--fail", "worker", *at)))
    runs.append(("owner", FAILING, ("--fail", "owner", *at)))
    if system.engine == "ownership":
        runs.append(("owner, checkpoints", FAILING, (*runs[-1][2], "--checkpoint", "30")))
    for failure, n, more in runs:
        found = run_example("video_stabilization.py", *common, "--videos", str(n), *more)
        late = [round(ms, 2) for of_one in found["late_ms"].values() for ms in of_one]
        yield {"failure": failure, "videos": n, "seconds": seconds, "all_ms": late}


def serving(system: System, part: float) -> Iterator[Point]:
    """Measure how long answers take, with futures and with values through the router."""
    seconds = max(5.0, 20 * part)
    for by_value in (False, True):
        for rate in (80, 160) if by_value else (80, 160, 320):
            more = ("--by-value",) if by_value else ()
            found = run_example(
                "model_serving.py", "--engine", system.engine, "--seconds", f"{seconds:g}",
                "--rate", str(rate), *more,
            )  # fmt: skip
            yield {
                "passed": "value" if by_value else "reference",
                "rate": rate,
                "seconds": seconds,
                "router_bytes": found["bytes_through_router"],
                "all_ms": [round(ms, 2) for ms in found["ms"]],
            }


PROGRAMS = (
    Experiment("video", video, ("ownership", "distributed")),
    Experiment("serving", serving, ("ownership", "distributed")),
)
"""The experiments of this module."""
