"""Run upstream distributed's own tests on this project's Client; see README.md here."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ledger import Ledger
from report import Comparison, show, show_present
from running import TEST_SECONDS, TOP, Run, installed, make_stage, tag_of

FILES = [
    *(
        f"distributed/tests/test_{name}.py"
        for name in (
            "as_completed", "client_executor", "worker_client", "variable", "queues", "locks",
            "events", "semaphore", "publish", "priorities", "resources", "dask_collections",
            "tls_functional", "actor", "failed_workers",
        )
    ),
    "distributed/deploy/tests/test_local.py",
    "distributed/tests/test_client.py",
]  # fmt: skip

MODES = ("stock", "ours", "forbidden")

PRESENT_FILES = [
    f"distributed/tests/test_{name}.py"
    for name in ("scheduler", "worker", "steal", "active_memory_manager")
]
"""What the plugins could disturb; see ``--present``."""

HOW = """\
conformance: skipped, it needs a checkout of distributed {version}:
    git clone --depth 1 --branch {version} https://github.com/dask/distributed {path}
    make conformance ARGS="--checkout {path}"
"""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="conformance", description=__doc__)
    add = parser.add_argument
    add("files", nargs="*", help="files of tests or parts of their names (all of the goal)")
    add("--checkout", type=Path, help="a clone of distributed (DISTRIBUTED_CHECKOUT)")
    add("--any-version", action="store_true", help="though its tag is another version's")
    add("--present", action="store_true", help="with stock's client: do the plugins do harm?")
    add("--modes", default=",".join(MODES), help="which of stock,ours,forbidden to run")
    add("--classes", default="none,wdata", help="which tests, see classify.py; 'all'")
    add("--work", type=Path, default=TOP / ".conformance", help="for results and the stage")
    add("--fresh", action="store_true", help="run again what has results")
    add("--only-report", action="store_true", help="run nothing, compare what is there")
    add("--no-again", action="store_true", help="do not run new failures a second time")
    add("--runslow", action="store_true", help="the tests too that upstream marks as slow")
    add("-k", metavar="EXPRESSION", help="of pytest")
    add("--test-seconds", type=float, default=TEST_SECONDS)
    return parser.parse_args()


def main() -> int:
    import os

    options = arguments()
    _, version = installed()
    checkout = options.checkout or os.environ.get("DISTRIBUTED_CHECKOUT")
    if checkout is None:
        print(HOW.format(version=version, path="../distributed"))
        return 0
    checkout = Path(checkout).resolve()
    tag = tag_of(checkout)
    if tag != version and not options.any_version:
        print(
            f"conformance: {checkout} is at {tag}, and distributed {version} is installed: "
            f"git -C {checkout} checkout {version}, or --any-version"
        )
        return 2
    if options.present:
        return present(options, checkout)
    files = [f for f in FILES if not options.files or any(part in f for part in options.files)]
    files += [f for f in options.files if f.startswith("distributed/") and f not in files]
    work = options.work.resolve()
    stage = work / "stage"
    if not options.only_report:
        make_stage(checkout, stage)
    classes = [] if options.classes == "all" else options.classes.split(",")
    more = ["--runslow"] if options.runslow else []
    more += ["-k", options.k] if options.k else []
    runs = {
        mode: Run(mode, stage, work / "results", classes, more, options.test_seconds)
        for mode in MODES
    }
    ledger = Ledger.read(TOP / "ci" / "conformance-ledger.toml")
    comparisons = []
    for file in files:
        results = {}
        for mode in MODES:
            run = runs[mode]
            path = run.path(file)
            if options.only_report or mode not in options.modes.split(","):
                results[mode] = run.records(path)
                continue
            if options.fresh:
                path.unlink(missing_ok=True)
            print(f"{file}: {mode} ...", file=sys.stderr, flush=True)
            results[mode] = run.run(file)
            new = Comparison(file, stage, results, ledger).regressions(mode)
            if new and not options.no_again:
                results[mode] = run.again(file, new)
        comparisons.append(Comparison(file, stage, results, ledger, classes))
        show(comparisons[-1:])
    complete = not options.files and not options.k and options.classes == "none,wdata"
    return show(comparisons, total=True, complete=complete)


def present(options: argparse.Namespace, checkout: Path) -> int:
    """Tests of the scheduler and the workers, unpatched, without the plugins and with them."""
    work = options.work.resolve()
    make_stage(checkout, work / "stage")
    more = ["-k", options.k] if options.k else []
    files = [f for f in PRESENT_FILES if not options.files or any(p in f for p in options.files)]
    bad = 0
    for file in files:
        results = {}
        for mode in ("stock", "present"):
            run = Run(mode, work / "stage", work / "results", [], more, options.test_seconds)
            if options.only_report:
                results[mode] = run.records(run.path(file))
                continue
            if options.fresh:
                run.path(file).unlink(missing_ok=True)
            print(f"{file}: {mode} ...", file=sys.stderr, flush=True)
            results[mode] = run.run(file)
            failed = [t for t, r in results[mode].items() if r.outcome in ("failed", "hung")]
            if failed and not options.no_again:
                results[mode] = run.again(file, failed)
        bad += show_present(file, results["stock"], results["present"])
    print("plugins present: " + (f"{bad} tests end differently" if bad else "no difference"))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
