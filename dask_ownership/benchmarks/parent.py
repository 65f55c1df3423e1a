"""Starts an engine's process, reads its events, and ends all processes that it started."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask_ownership
from dask_ownership.benchmarks.cases import Case

__all__ = ["EngineRun", "Options", "run_cases"]

#: Set in the environment of every process that an engine starts, to find the process again.
MARK = "DASK_OWNERSHIP_BENCHMARK"


@dataclass(frozen=True)
class Options:
    """The options of the command line.

    Attributes
    ----------
    quick
        Use the small sizes.
    repeat
        The most repeats of a case.
    seconds
        No further repeat of a case starts after that time.
    workers, threads_per_worker
        The size of the cluster.
    case_timeout
        The seconds that one repeat of a case, or the start of an engine, may take.
    engine_timeout
        The seconds that all cases of one engine may take.
    size
        The size of every case, in place of its own.
    address
        The scheduler of a given cluster, in place of a cluster that the engine starts.
    """

    quick: bool = False
    repeat: int = 5
    seconds: float = 30.0
    workers: int = 2
    threads_per_worker: int = 1
    case_timeout: float = 180.0
    engine_timeout: float = 1800.0
    size: int | None = None
    address: str = ""


@dataclass
class EngineRun:
    """The results of one engine.

    Attributes
    ----------
    engine
        Name of the engine.
    versions
        Versions of the engine's packages.
    unavailable
        Why the engine could not run at all, or "".
    results
        By case: the size, and by metric the median, the spread and the values.
    failed
        By case: why there is no result.
    """

    engine: str
    versions: dict[str, str] = field(default_factory=dict)
    unavailable: str = ""
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


Progress = Callable[[str, str, str], None]


def run_cases(
    engine: str, cases: list[Case], options: Options, progress: Progress | None = None
) -> EngineRun:
    """Run cases in an engine; each failure costs only its case.

    Parameters
    ----------
    engine
        The engine's name.
    cases
        The cases to run; cases that the engine cannot run at all are passed over.
    options
        Sizes and limits.
    progress
        Called with the engine, the case and what happens.
    """
    run = EngineRun(engine)
    end = time.monotonic() + options.engine_timeout
    # Isolated cases come last, each in a process of its own.
    together = [case for case in cases if not case.isolated]
    groups = [together] if together else []
    groups += [[case] for case in cases if case.isolated]
    for group in groups:
        left = list(group)
        while left and not run.unavailable:
            if time.monotonic() > end:
                for case in left:
                    run.failed[case.name] = "not run: the engine's time was used up"
                break
            left = _run_process(run, left, options, end, progress or (lambda *_: None))
    return run


def _run_process(
    run: EngineRun, cases: list[Case], options: Options, end: float, progress: Progress
) -> list[Case]:
    """Run cases in one process until a case fails, and return the cases that are left to run."""
    by_name = {case.name: case for case in cases}
    left = dict(by_name)
    current = ""
    with _process(run.engine, cases, options) as (events, errors, state):
        progress(run.engine, "", "starts")
        while True:
            now = time.monotonic()
            try:
                event = events.get(timeout=max(0.1, min(options.case_timeout, end - now)))
            except queue.Empty:
                took_all = time.monotonic() > end
                reason = (
                    "the engine's time was used up"
                    if took_all
                    else f"no answer within {options.case_timeout:g} s"
                )
                return _give_up(run, left, current, reason)
            kind = event["event"]
            # From these events on the process closes by itself.
            if kind in ("closed", "unavailable", "failed", "end"):
                state["hangs"] = False
            if kind == "closed":
                if event["status"] == 0:
                    return []
                lines = [line for line in errors().splitlines() if line.strip()]
                last = lines[-1] if lines else "no message"
                reason = f"the process ended with status {event['status']}: {last}"[:300]
                return _give_up(run, left, current, reason)
            if kind == "started":
                run.versions = event["versions"]
            elif kind == "unavailable":
                run.unavailable = event["reason"]
                return []
            elif kind == "start":
                current = event["case"]
                progress(run.engine, current, "warms up")
            elif kind == "repeat":
                progress(run.engine, event["case"], f"{event['done']} of {event['of']}")
            elif kind == "result":
                del left[event["case"]]
                current = ""
                run.results[event["case"]] = {"size": event["size"], **event["metrics"]}
            elif kind == "failed":
                return _give_up(run, left, event["case"], event["reason"])
            elif kind == "end":
                return []


def _give_up(run: EngineRun, left: dict[str, Case], current: str, reason: str) -> list[Case]:
    """Note a failure at the running case, or at the engine if no case runs.

    Returns
    -------
    list of Case
        The cases after the failed one.
    """
    if not current:
        run.unavailable = reason
        return []
    run.failed[current] = reason
    names = list(left)
    return [left[name] for name in names[names.index(current) + 1 :]]


@contextlib.contextmanager
def _process(
    engine: str, cases: list[Case], options: Options
) -> Iterator[tuple[queue.Queue[dict[str, Any]], Callable[[], str], dict[str, bool]]]:
    """Start the process of an engine.

    Yields its events, a function that reads its errors, and a dictionary whose ``hangs`` is to be
    made false when the process is known to close by itself what it started.
    """
    mark = uuid.uuid4().hex
    # The process has to import this package also from a source tree that is not installed.
    root = str(Path(dask_ownership.__path__[0]).parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    environment = {
        **os.environ,
        MARK: mark,
        "PYTHONPATH": path,
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [sys.executable, "-m", "dask_ownership.benchmarks.engine_process"]
    command += ["--engine", engine, "--cases", ",".join(case.name for case in cases)]
    command += ["--repeat", str(options.repeat), "--seconds", str(options.seconds)]
    command += ["--workers", str(options.workers)]
    command += ["--threads-per-worker", str(options.threads_per_worker)]
    command += ["--address", options.address] if options.address else []
    command += ["--quick"] if options.quick else []
    command += ["--size", str(options.size)] if options.size else []
    events: queue.Queue[dict[str, Any]] = queue.Queue()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
            # Ctrl-C in the terminal goes to the benchmark only, which ends the processes of the
            # engine.
            start_new_session=True,
        )

        def listen() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                with contextlib.suppress(ValueError):
                    events.put(json.loads(line))
            events.put({"event": "closed", "status": process.wait()})

        def errors() -> str:
            log.seek(0)
            return log.read()[-20_000:].decode(errors="replace")

        listener = threading.Thread(target=listen, name="events", daemon=True)
        listener.start()
        state = {"hangs": True}
        try:
            yield events, errors, state
        finally:
            _end(process, mark, patience=0.0 if state["hangs"] else 30.0)
            assert process.stdin is not None and process.stdout is not None
            listener.join(10)
            process.stdin.close()
            process.stdout.close()


def _end(process: subprocess.Popen[str], mark: str, patience: float) -> None:
    """Let a process close what it started, then end the rest, also daemons with other parents.

    Parameters
    ----------
    process
        The process of the engine.
    mark
        Value of `MARK` in the environment of the process and of all its descendants.
    patience
        The seconds to wait for the process.
    """
    import psutil

    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    me = os.getpid()
    rest = []
    # Daemons may have left the session of the process; the mark in their environment stays.
    for other in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if other.pid != me and other.environ().get(MARK) == mark:
                rest.append(other)
    # After an orderly end, descendants get some time to end by themselves.
    if rest and patience:
        _, rest = psutil.wait_procs(rest, timeout=5)
    for other in rest:
        with contextlib.suppress(psutil.Error):
            other.kill()
    psutil.wait_procs(rest, timeout=10)
