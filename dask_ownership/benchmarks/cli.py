"""The command line of the benchmark."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict

from dask_ownership.benchmarks.cases import CASES, Case, case_named
from dask_ownership.benchmarks.engines import ENGINES
from dask_ownership.benchmarks.machine import describe
from dask_ownership.benchmarks.paper.cli import main as run_paper
from dask_ownership.benchmarks.parent import EngineRun, Options, run_cases
from dask_ownership.benchmarks.plot import draw
from dask_ownership.benchmarks.report import as_json, render
from dask_ownership.benchmarks.report import describe as one_line

__all__ = ["main"]


PROGRAM = "python -m dask_ownership.benchmarks"

ON_A_CLUSTER = ("ownership", "distributed")
"""Engines that can run on a given cluster."""


def _parser(program: str) -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Measure dask_ownership against other ways to run the same tasks.",
        epilog="Cases: "
        + ", ".join(case.name for case in CASES)
        + f". The experiments of the paper: {program} paper --help.",
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, few repeats")
    parser.add_argument(
        "--peers",
        default="distributed,tuned,ray,threads",
        metavar="A,B",
        help="what to compare with (default: %(default)s)",
    )
    parser.add_argument(
        "--engines",
        metavar="A,B",
        help=f"run only these engines, of {', '.join(ENGINES)} "
        "(default: ownership, the peers and the floor)",
    )
    parser.add_argument("--cases", metavar="A,B", help="run only these cases")
    parser.add_argument("--size", type=int, metavar="N", help="the size of every case that is run")
    parser.add_argument("--repeat", type=int, metavar="N", help="repeats (default: 5, quick: 3)")
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        help="start no further repeat of a case after S seconds (default: 30, quick: 5)",
    )
    parser.add_argument(
        "--address",
        default="",
        metavar="HOST:PORT",
        help="the scheduler of a cluster that is there, in place of one that is started here: for "
        f"the engines {' and '.join(ON_A_CLUSTER)}, and without the cases that kill workers or "
        "look into processes; TLS as in Dask's configuration",
    )
    parser.add_argument("--workers", type=int, default=2, metavar="N")
    parser.add_argument("--threads-per-worker", type=int, default=1, metavar="N")
    parser.add_argument(
        "--case-timeout",
        type=float,
        metavar="S",
        help="give a case up that says nothing for S seconds (default: 180, quick: 60)",
    )
    parser.add_argument(
        "--engine-timeout",
        type=float,
        default=1800,
        metavar="S",
        help="seconds for all cases of one engine (default: %(default)g)",
    )
    parser.add_argument("--plot", metavar="FILE", help="write a picture")
    parser.add_argument("--json", metavar="FILE", help="write everything that was measured")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    return parser


def _choose(options: argparse.Namespace) -> tuple[list[str], list[Case]]:
    """Return the chosen engines and cases; ValueError names unknown ones."""
    chosen = options.engines or f"ownership,{options.peers},floor"
    if options.address:
        chosen = options.engines or ",".join(ON_A_CLUSTER)
    wanted = {name.strip() for name in chosen.split(",") if name.strip()}
    unknown = sorted(wanted.difference(ENGINES))
    if unknown:
        raise ValueError(f"unknown engine {', '.join(unknown)}: choose from {', '.join(ENGINES)}")
    if options.address and (others := wanted.difference(ON_A_CLUSTER)):
        raise ValueError(f"--address is not for {', '.join(sorted(others))}")
    if min(options.workers, options.threads_per_worker) < 1:
        raise ValueError("a cluster needs at least one worker with one thread")
    if options.repeat is not None and options.repeat < 1:
        raise ValueError("--repeat must be at least 1")
    if options.size is not None and options.size < 1:
        raise ValueError("--size must be at least 1")
    engines = [name for name in ENGINES if name in wanted]
    if not options.cases:
        return engines, list(CASES)
    named = {case_named(name).name for name in options.cases.split(",") if name.strip()}
    return engines, [case for case in CASES if case.name in named]


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[str, str, str], None]]:
    """Show a progress line on standard error: by rich on a terminal, else plain lines."""
    started = time.monotonic()
    seen: set[tuple[str, str]] = set()
    if sys.stderr.isatty():
        with contextlib.suppress(ImportError):
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            with Progress(
                TextColumn("{task.description:<48}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            ) as bar:
                task = bar.add_task("", total=total)

                def draw(engine: str, case: str, what: str) -> None:
                    if case:
                        seen.add((engine, case))
                    text = f"{engine}: {case} {what}"
                    # The case that runs now is not complete.
                    bar.update(task, description=text, completed=max(len(seen) - 1, 0))

                yield draw
            return

    def write(engine: str, case: str, what: str) -> None:
        if not case or (engine, case) in seen:
            return
        seen.add((engine, case))
        seconds = time.monotonic() - started
        print(f"[{seconds:6.1f} s] {engine}: {case}", file=sys.stderr, flush=True)

    yield write


def main(argv: list[str] | None = None, program: str = PROGRAM) -> int:
    """Run the benchmark and print its tables.

    Parameters
    ----------
    argv
        The command line; the arguments of this process by default.
    program
        The command that the user called.
    """
    parser = _parser(program)
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["paper"]:
        return run_paper(arguments[1:], program)
    options = parser.parse_args(arguments)
    try:
        engines, cases = _choose(options)
    except ValueError as error:
        parser.error(str(error))
    settings = Options(
        quick=options.quick,
        repeat=options.repeat or (3 if options.quick else 5),
        seconds=options.seconds if options.seconds is not None else (5 if options.quick else 30),
        workers=options.workers,
        threads_per_worker=options.threads_per_worker,
        case_timeout=options.case_timeout or (60 if options.quick else 180),
        engine_timeout=options.engine_timeout,
        size=options.size,
        address=options.address,
    )
    machine = describe()
    command = shlex.join([*program.split(), *arguments])
    runs: dict[str, EngineRun] = {}
    interrupted = False
    try:
        with _progress(len(engines) * len(cases)) as progress:
            for engine in engines:
                runs[engine] = run_cases(engine, cases, settings, progress)
    except KeyboardInterrupt:
        interrupted = True
        print("interrupted: these engines had finished", file=sys.stderr)
    record = as_json(runs, cases, asdict(settings), machine, command)
    print(render(runs, cases, record, options.markdown))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)
    if options.plot:
        draw_plot(runs, cases, options.plot, one_line(record))
    if interrupted:
        # The status by which shells report Ctrl-C.
        return 130
    return 0 if any(run.results for run in runs.values()) else 1


def draw_plot(runs: dict[str, EngineRun], cases: list[Case], path: str, caption: str) -> None:
    """Draw the picture, or print why there is none."""
    try:
        draw(runs, cases, path, caption)
    except (ImportError, ValueError) as error:
        print(f"no picture: {error}", file=sys.stderr)
