"""Run the tests that dask ships with every named scheduler replaced; see `dask_plugin`.

Stock is the baseline: the same with a `distributed.Client` in place of the schedulers. What failed
there is written down (``--save-stock``), so that ``--modes ours`` needs no second run. What fails
here only has to be in the ledger, with its reason.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dask
from ledger import Ledger
from running import HERE, TEST_SECONDS, TOP, Result, Run

# Dataframes have most tests: in parts, the longest first, `--jobs` of them end at about one time.
PARTS = (
    "dataframe/tests",
    "dataframe/dask_expr",
    "array",
    "tests",
    "dataframe/tseries",
    "dataframe/io",
    "bag",
)
MODES = ("stock", "ours")
GOOD = ("passed", "xfailed", "skipped")

LEDGER = TOP / "ci" / "conformance-ledger-dask.toml"
STOCK = HERE / "dask_stock.txt"

SETTINGS = """\
[pytest]
xfail_strict = true
markers =
    array_expr
    gpu
    network
    normalize_token
    slow
"""

TENTH = {"CONFORMANCE_FUNCTIONS": "5", "CONFORMANCE_SHARE": "2"}


def make_stage(stage: Path) -> None:
    """A copy of the installed dask: its tests write beside themselves, and need settings."""
    package = Path(dask.__path__[0])
    wanted = f"{package} {dask.__version__} {SETTINGS}"
    stamp = stage / "stamp"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    shutil.rmtree(stage, ignore_errors=True)
    shutil.copytree(package, stage / "dask", ignore=shutil.ignore_patterns("__pycache__"))
    (stage / "pytest.ini").write_text(SETTINGS)
    stamp.write_text(wanted)


def failed_with_stock() -> set[str] | None:
    """Tests that are known to fail with stock; None when that is not known for this dask."""
    if not STOCK.exists():
        return None
    version, *tests = STOCK.read_text().splitlines()
    return set(tests) if version == dask.__version__ else None


class Comparison:
    """One part of dask's tests, with stock and with ours."""

    def __init__(self, part: str, ledger: Ledger, known: set[str] | None) -> None:
        self.part = part
        self.ledger = ledger
        self.known = known or set()
        self.results: dict[str, dict[str, Result]] = {mode: {} for mode in MODES}

    def bad(self, mode: str) -> set[str]:
        return {t for t, r in self.results[mode].items() if r.outcome not in GOOD}

    def fails_with_stock(self, test: str) -> bool:
        stock = self.results["stock"]
        return stock[test].outcome not in GOOD if test in stock else test in self.known

    def new(self) -> list[str]:
        """What fails with ours, not with stock, and is not in the ledger."""
        return [
            test
            for test in sorted(self.bad("ours"))
            if not self.fails_with_stock(test) and self.ledger.expects(test, "ours") is None
        ]

    def stale(self) -> list[str]:
        """What is in the ledger and passes."""
        ours = self.results["ours"].items()
        return [t for t, r in ours if r.outcome == "passed" and self.ledger.expects(t, "ours")]

    def show(self) -> int:
        """Print it; how many problems there are."""
        ours = self.results["ours"]
        owned = sum(result.owned for result in ours.values())
        for mode in MODES:
            results = self.results[mode].values()
            good = sum(result.outcome in ("passed", "xfailed") for result in results)
            seconds = sum(result.seconds for result in results)
            print(
                f"{self.part:16} {mode:6} {good:6} passed {len(self.bad(mode)):5} failed "
                f"{seconds:8.0f} s" + (f" {owned:8} owned tasks" if mode == "ours" else "")
            )
        problems = [f"FAILS (not with stock, not in the ledger) {t}: {ours[t].why}"
                    for t in self.new()]  # fmt: skip
        problems += [f"PASSES (though in the ledger) {t}" for t in self.stale()]
        if ours and not owned:
            problems.append(f"NOTHING OWNED {self.part}: its tests ran no owned task")
        print("\n".join(problems), end="\n" if problems else "", flush=True)
        return len(problems)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dask_tests", description=__doc__)
    add = parser.add_argument
    add("parts", nargs="*", help=f"of {', '.join(PARTS)} (all), or paths below dask/")
    add("--modes", default=",".join(MODES), help="which of stock,ours to run")
    add("--tenth", action="store_true", help="a tenth of the tests, always the same")
    add("--share", type=int, default=1, help="of how many tests one is run")
    add("--cluster", choices=("threads", "processes"), default="threads")
    add("--jobs", type=int, default=1, help="how many parts to run at once")
    add("--work", type=Path, default=TOP / ".conformance" / "dask")
    add("--fresh", action="store_true", help="run again what has results")
    add("--only-report", action="store_true", help="compare the results that are there")
    add("--save-stock", action="store_true", help="write down what fails with stock")
    add("--runslow", action="store_true", help="the tests too that dask marks as slow")
    add("-k", metavar="EXPRESSION", help="of pytest")
    add("--test-seconds", type=float, default=TEST_SECONDS)
    return parser.parse_args()


def main() -> int:
    options = arguments()
    work = options.work.resolve()
    stage = work / "stage"
    make_stage(stage)
    os.environ["CONFORMANCE_CLUSTER"] = options.cluster
    os.environ["CONFORMANCE_SHARE"] = str(options.share)
    if options.tenth:
        os.environ.update(TENTH)
    kind = "-tenth" if options.tenth else f"-{options.share}" if options.share > 1 else ""
    results = work / (options.cluster + kind)
    more = ["-p", "dask_plugin", "-m", "not network" + ("" if options.runslow else " and not slow")]
    more += ["-k", options.k] if options.k else []
    ledger = Ledger.read(LEDGER)
    known = failed_with_stock()
    modes = () if options.only_report else options.modes.split(",")
    if modes == ["ours"] and known is None:
        modes = list(MODES)  # nobody has written down what this dask does

    def run(part: str) -> Comparison:
        comparison = Comparison(f"dask/{part}", ledger, known)
        for mode in MODES:
            one = Run(mode, stage, results, [], more, options.test_seconds)
            path = one.path(comparison.part)
            if mode in modes:
                if options.fresh:
                    for old in (path, path.with_suffix(".second.jsonl")):
                        old.unlink(missing_ok=True)
                print(f"{comparison.part}: {mode} ...", file=sys.stderr, flush=True)
                comparison.results[mode] = one.run(comparison.part)
                if mode == "ours" and (new := comparison.new()):
                    comparison.results[mode] = one.again(comparison.part, new)
            elif options.only_report:
                comparison.results[mode] = one.records(path)
        return comparison

    with ThreadPoolExecutor(options.jobs) as pool:
        comparisons = list(pool.map(run, options.parts or PARTS))
    bad = sum(comparison.show() for comparison in comparisons)
    if options.save_stock:
        failed = (known or set()).union(*(comparison.bad("stock") for comparison in comparisons))
        STOCK.write_text("\n".join([dask.__version__, *sorted(failed), ""]))
    print("dask's tests: " + (f"{bad} problems" if bad else "as the ledger says"))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
