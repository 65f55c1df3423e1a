"""The process of one engine: runs cases and reports its progress, one JSON object per line.

Started by the benchmark itself. Output of tasks or libraries to standard output goes to standard
error, so that the lines stay whole.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import threading
import time
import traceback
from typing import Any, TextIO

from dask_ownership.benchmarks.cases import Case, case_named
from dask_ownership.benchmarks.engines import PENDING, Engine, Unavailable, make_engine

__all__ = ["main", "measure", "size_for"]

Say = Any


def size_for(case: Case, engine: Engine, quick: bool) -> int:
    """Return the size of a case for an engine."""
    if case.needs == PENDING:
        return engine.pending[1 if quick else 0]
    return case.quick_size if quick else case.size


def supports(engine: Engine, case: Case) -> bool:
    """Return whether the engine can run the case."""
    return case.name in engine.own or case.needs in engine.speaks


def measure(
    engine: Engine, case: Case, size: int, repeat: int, seconds: float, say: Say
) -> dict[str, list[float]]:
    """Warm up, then repeat a case.

    Parameters
    ----------
    engine
        The engine, started.
    case, size
        The case to run.
    repeat
        The most repeats.
    seconds
        No further repeat starts when these are used up.
    say
        Called with an event as it happens.

    Returns
    -------
    dict
        The values of all repeats, by metric.
    """
    run = engine.own.get(case.name)
    if case.warm_up:
        for _ in range(2):
            warm_up = min(case.warm_up, size)
            _ = run(warm_up) if run else case.run(engine, warm_up)
    values: dict[str, list[float]] = {metric.name: [] for metric in case.metrics}
    end = time.perf_counter() + seconds
    for done in range(1, min(repeat, case.repeat) + 1):
        # What the last repeat left behind must not run during the next one.
        engine.settle()
        numbers = run(size) if run else case.run(engine, size)
        for name, number in numbers.items():
            if name in values:
                values[name].append(number)
        say(event="repeat", case=case.name, done=done, of=min(repeat, case.repeat))
        if time.perf_counter() > end:
            break
    return {name: numbers for name, numbers in values.items() if numbers}


def summary(values: list[float]) -> dict[str, Any]:
    """Return the median and the spread of repeated values."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "values": values,
    }


def short(error: BaseException) -> str:
    """Return an error in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    return f"{type(error).__name__}: {text}"[:300]


def run_engine(options: argparse.Namespace, say: Say) -> int:
    """Start an engine, run the cases that it can run, and close it.

    Returns
    -------
    int
        The exit status.
    """
    cases = [case_named(name) for name in options.cases.split(",")]
    engine = make_engine(
        options.engine, options.workers, options.threads_per_worker, options.address
    )
    cases = [case for case in cases if supports(engine, case)]
    if not cases:
        return 0
    try:
        engine.start()
    except BaseException as error:
        traceback.print_exc()
        reason = str(error) if isinstance(error, Unavailable) else short(error)
        say(event="unavailable", reason=reason)
        engine.close()
        return 1
    say(event="started", versions=engine.versions())
    try:
        for case in cases:
            size = options.size or size_for(case, engine, options.quick)
            say(event="start", case=case.name, size=size)
            try:
                values = measure(engine, case, size, options.repeat, options.seconds, say)
            except BaseException as error:
                traceback.print_exc()
                # Remains of a failed case could disturb the next case: the parent starts a new
                # process.
                say(event="failed", case=case.name, reason=short(error))
                return 1
            results = {name: summary(numbers) for name, numbers in values.items()}
            say(event="result", case=case.name, size=size, metrics=results)
    finally:
        engine.close()
    say(event="end")
    return 0


def _end_with_parent() -> None:
    """End at once when the benchmark that started this process is gone."""
    # Standard input is a pipe of the benchmark: it ends with the benchmark.
    sys.stdin.read()
    os._exit(1)


def _private_output() -> TextIO:
    """Keep standard output for events, and redirect all other output to standard error."""
    sys.stdout.flush()
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # Below Python, so that libraries in C are redirected as well.
    os.dup2(2, 1)
    return output


def main(argv: list[str] | None = None) -> int:
    """Run one engine."""
    parser = argparse.ArgumentParser(prog="python -m dask_ownership.benchmarks.engine_process")
    parser.add_argument("--engine", required=True)
    parser.add_argument("--cases", required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--size", type=int)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads-per-worker", type=int, default=1)
    parser.add_argument("--address", default="")
    options = parser.parse_args(argv)
    output = _private_output()
    threading.Thread(target=_end_with_parent, name="stdin", daemon=True).start()
    logging.getLogger("distributed").setLevel(logging.ERROR)

    def say(**event: Any) -> None:
        output.write(json.dumps(event) + "\n")
        output.flush()

    return run_engine(options, say)


if __name__ == "__main__":
    sys.exit(main())
