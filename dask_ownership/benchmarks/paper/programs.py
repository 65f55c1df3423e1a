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

VIDEOS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Numbers of videos at the same time, up to the first that comes too late."""

FPS = 10
"""Frames a second of each video: five tasks for each frame."""

IN_TIME = 150.0
"""Milliseconds for which 99 of 100 frames of a sustained load may be late."""

RATES = (20, 40, 80, 160, 320, 640)
"""Requests a second, up to the first load at which answers take longer and longer."""


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
    """Measure how late frames are: with more and more videos, and with deaths.

    Processes die at half of the highest load that the system sustains.
    """
    seconds = max(8.0, 12 * part)

    def run(n: int, failure: str, *more: str) -> Point:
        found = run_example(
            "video_stabilization.py", "--input", "rendered", "--engine", system.engine,
            "--seconds", f"{seconds:g}", "--fps", f"{FPS}", "--videos", str(n), *more,
        )  # fmt: skip
        late = [round(ms, 2) for of_one in found["late_ms"].values() for ms in of_one]
        point = {"failure": failure, "videos": n, "seconds": seconds, "fps": FPS, "all_ms": late}
        return {**point, "sustained": percentile(late, 99) <= IN_TIME}

    top = 1
    for n in VIDEOS:
        point = run(n, "none")
        yield point
        if not point["sustained"]:
            break
        top = n
    n = max(1, top // 2)
    at = ("--at", f"{seconds / 2:g}")
    yield run(n, "worker", "--fail", "worker", *at)
    yield run(n, "owner", "--fail", "owner", *at)
    if system.engine == "ownership":
        yield run(n, "owner, checkpoints", "--fail", "owner", *at, "--checkpoint", "30")


def percentile(values: list[float], percent: float) -> float:
    """Return the value that so many percent of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def serving(system: System, part: float) -> Iterator[Point]:
    """Measure how long answers take, with futures and with values through the router.

    The time from question to answer is given beside the time from the moment at which the batch
    of the question can be full. A rate is sustained when answers take no longer and longer.
    """
    seconds = max(8.0, 20 * part)
    for by_value in (False, True) if system.engine == "ownership" else (True,):
        for rate in RATES:
            more = ("--by-value",) if by_value else ()
            found = run_example(
                "model_serving.py", "--engine", system.engine, "--seconds", f"{seconds:g}",
                "--rate", str(rate), *more,
            )  # fmt: skip
            beyond = found["beyond_ms"]
            quarter = len(beyond) // 4
            first, last = (percentile(part_, 50) for part_ in (beyond[:quarter], beyond[-quarter:]))
            sustained = last <= 2 * first + 50
            yield {
                "passed": "value" if by_value else "reference",
                "rate": rate,
                "seconds": seconds,
                "router_bytes": found["bytes_through_router"],
                "sustained": sustained,
                "all_ms": [round(ms, 2) for ms in beyond],
                "whole_ms": [round(ms, 2) for ms in found["ms"]],
            }
            if not sustained:
                break


PROGRAMS = (
    Experiment("video", video, ("ownership", "distributed")),
    Experiment("serving", serving, ("ownership", "distributed")),
)
"""The experiments of this module."""
