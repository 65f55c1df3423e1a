"""Run other projects' tests of their use of Dask with this project's client; see README.md here.

joblib and xarray ship their tests; those of the others come from a checkout of the version that is
installed (``--checkout lightgbm=PATH``). What passes with the stock client has to pass, or to be in
``ci/conformance-ledger-downstream.toml`` with its reason; a suite in which nothing was owned is a
failure.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dask_tests import MODES, Comparison
from ledger import Ledger
from running import TOP, Run

LEDGER = TOP / "ci" / "conformance-ledger-downstream.toml"

TEST_SECONDS = 180.0
"""How long a test may take: some train models on two cores."""


@dataclass(frozen=True)
class Suite:
    """The tests of one project.

    Attributes
    ----------
    package : str
        The distribution whose version counts.
    files : tuple of str
        Below the folder of the installed packages, or below the checkout.
    installed : bool
        Whether the tests come with the package.
    arguments : tuple of str
        More for pytest.
    """

    package: str
    files: tuple[str, ...]
    installed: bool = False
    arguments: tuple[str, ...] = ()

    def version(self) -> str:
        try:
            return version(self.package)
        except PackageNotFoundError:
            return ""

    def root(self, checkout: Path | None) -> Path | None:
        """Where its tests are; None when they are not here."""
        if not self.installed:
            return checkout
        found = importlib.util.find_spec(self.package)
        assert found is not None and found.origin is not None
        return Path(found.origin).parent.parent


SUITES = {
    "joblib": Suite(
        "joblib",
        ("joblib/test/test_dask.py",),
        installed=True,
        arguments=("-p", "distributed.utils_test"),  # which has its fixtures
    ),
    "xarray": Suite("xarray", ("xarray/tests/test_distributed.py",), installed=True),
    "lightgbm": Suite("lightgbm", ("tests/python_package_test/test_dask.py",)),
    "xgboost": Suite("xgboost", ("tests/test_distributed/test_with_dask/test_with_dask.py",)),
    "prefect-dask": Suite(
        "prefect-dask",
        ("tests/test_task_runners.py", "tests/test_client.py"),
        arguments=("-o", "asyncio_mode=auto"),
    ),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="downstream", description=__doc__)
    add = parser.add_argument
    add("suites", nargs="*", help=f"of {', '.join(SUITES)} (all)")
    add("--checkout", action="append", default=[], metavar="SUITE=PATH")
    add("--modes", default=",".join(MODES), help="which of stock,ours to run")
    add("--work", type=Path, default=TOP / ".conformance" / "downstream")
    add("--fresh", action="store_true", help="run again what has results")
    add("--only-report", action="store_true", help="compare the results that are there")
    add("-k", metavar="EXPRESSION", help="of pytest")
    add("--test-seconds", type=float, default=TEST_SECONDS)
    return parser.parse_args()


def main() -> int:
    options = arguments()
    checkouts = dict(one.split("=", 1) for one in options.checkout)
    ledger = Ledger.read(LEDGER)
    modes = () if options.only_report else options.modes.split(",")
    bad = 0
    for name in options.suites or SUITES:
        suite = SUITES[name]
        checkout = Path(checkouts[name]).resolve() if name in checkouts else None
        root = suite.root(checkout) if suite.version() else None
        if root is None:
            have = suite.version() or "which is not installed"
            print(f"{name}: skipped, it needs a checkout of {have}: --checkout {name}=PATH")
            continue
        for file in suite.files:
            comparison = Comparison(f"{name}/{file}", ledger, None)
            for mode in MODES:
                more = ["--rootdir", str(root), "-c", "/dev/null", *suite.arguments]
                more += ["-k", options.k] if options.k else []
                stage = root if not suite.installed else options.work
                stage.mkdir(parents=True, exist_ok=True)
                results = options.work.resolve() / "results" / name
                run = Run(mode, stage, results, [], more, options.test_seconds, root)
                path = run.path(file)
                if mode in modes:
                    if options.fresh:
                        for old in (path, path.with_suffix(".second.jsonl")):
                            old.unlink(missing_ok=True)
                    print(f"{name}: {file}: {mode} ...", file=sys.stderr, flush=True)
                    comparison.results[mode] = run.run(file)
                    if mode == "ours" and (new := comparison.new()):
                        comparison.results[mode] = run.again(file, new)
                else:
                    comparison.results[mode] = run.records(path)
            bad += comparison.show()
    print("other projects' tests: " + (f"{bad} problems" if bad else "as the ledger says"))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
