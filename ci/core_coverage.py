"""What of `dask_ownership/core` the core tests and the simulation run: lines and branches.

``python ci/core_coverage.py [TESTS ...]`` runs them under coverage and says which files lack most.
It fails below `LINES` or `BRANCHES`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TOP = Path(__file__).parent.parent

TESTS = ("tests/core", "tests/simulation")

LINES = 95.0
"""Percent of the lines that have to be run."""

BRANCHES = 90.0
"""Percent of the branches."""

WORST = 8
"""How many files are named."""


def percent(part: int, whole: int) -> float:
    return 100.0 * part / whole if whole else 100.0


def main(tests: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "COVERAGE_FILE": str(Path(folder) / "data")}
        coverage = [sys.executable, "-m", "coverage"]
        ran = subprocess.run(
            [*coverage, "run", "--branch", "--source", "dask_ownership/core",
             "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
            cwd=TOP, env=environment, check=False,
        )  # fmt: skip
        if ran.returncode:
            return ran.returncode
        report = Path(folder) / "report.json"
        subprocess.run(
            [*coverage, "json", "-q", "-o", str(report)], cwd=TOP, env=environment, check=True
        )
        found = json.loads(report.read_text())
    files = {
        name: (one["summary"]["missing_lines"], one["summary"]["missing_branches"])
        for name, one in found["files"].items()
    }
    for name, (lines, branches) in sorted(files.items(), key=lambda item: -sum(item[1]))[:WORST]:
        missing = found["files"][name]["missing_lines"]
        print(f"{name}: {lines} lines and {branches} branches not run; lines {missing}")
    totals = found["totals"]
    lines = percent(totals["covered_lines"], totals["num_statements"])
    branches = percent(totals["covered_branches"], totals["num_branches"])
    print(f"lines {lines:.1f} % (at least {LINES:g} %), branches {branches:.1f} % ({BRANCHES:g} %)")
    return int(lines < LINES or branches < BRANCHES)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(TESTS)))
