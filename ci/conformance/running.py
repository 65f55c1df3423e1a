"""Upstream's tests on the installed distributed: where they stand, and running one file of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TOP = HERE.parent.parent

TEST_SECONDS = 90
"""How long a test may take; upstream's own limit for one with a cluster is 30 s, twice."""

END = "end"
"""Stands for a test when all of them ran."""

STUCK_SECONDS = 60
"""How much longer the process may say nothing before it is killed."""


def installed() -> tuple[Path, str]:
    """Where the installed distributed is, and its version."""
    code = "import distributed as d; print(d.__path__[0]); print(d.__version__)"
    where, version = subprocess.run(
        [sys.executable, "-P", "-c", code] if sys.version_info >= (3, 11)
        else [sys.executable, "-c", code],
        cwd="/", capture_output=True, text=True, check=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    ).stdout.split()  # fmt: skip
    return Path(where), version


def tag_of(checkout: Path) -> str:
    """The tag of a checkout, or its commit when it has none."""
    described = subprocess.run(
        ["git", "-C", str(checkout), "describe", "--tags", "--exact-match"],
        capture_output=True, text=True,
    )  # fmt: skip
    if described.returncode == 0:
        return described.stdout.strip()
    commit = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True
    )
    return f"commit {commit.stdout.strip()[:12]}" if commit.returncode == 0 else "no git clone"


def make_stage(checkout: Path, stage: Path) -> None:
    """Lay the installed package and upstream's tests out as upstream does.

    The wheel has no tests, and the tests import each other and find their files inside
    the package.
    """
    package, version = installed()
    stamp = stage / "stamp"
    wanted = f"{package} {version} {checkout} {tag_of(checkout)}"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    shutil.rmtree(stage, ignore_errors=True)
    shutil.copytree(package, stage / "distributed", ignore=shutil.ignore_patterns("__pycache__"))
    for tests in sorted((checkout / "distributed").rglob("tests")):
        if tests.is_dir():
            shutil.copytree(tests, stage / tests.relative_to(checkout), dirs_exist_ok=True)
    for name in ("conftest.py", "pyproject.toml"):
        shutil.copy(checkout / name, stage / name)
    stamp.write_text(wanted)


@dataclass
class Result:
    """How one test ended."""

    test: str
    outcome: str
    """``passed``, ``failed``, ``skipped``, ``xfailed`` or ``hung``."""
    why: str = ""
    seconds: float = 0.0
    owned: int = 0
    central: int = 0
    runs: int = 1


@dataclass
class Run:
    """One way to run tests, and where its results are.

    Parameters
    ----------
    mode : {"stock", "ours", "forbidden"}
    stage : Path
    results : Path
        The folder of its results, one file of JSON lines per file of tests.
    classes : list of str
        Which tests, see `classify`.
    arguments : list of str
        More for pytest.
    root : Path or None
        Where the files are, when that is not the stage.
    """

    mode: str
    stage: Path
    results: Path
    classes: list[str]
    arguments: list[str] = field(default_factory=list)
    test_seconds: float = TEST_SECONDS
    root: Path | None = None

    def target(self, test: str) -> str:
        """What pytest is to run: below ``root``, or below the stage."""
        return test if self.root is None else str(self.root / test)

    def path(self, file: str) -> Path:
        return self.results / self.mode / (file.removesuffix(".py").replace("/", ".") + ".jsonl")

    def records(self, path: Path) -> dict[str, Result]:
        """What is known of each test; a test that only started hung."""
        found: dict[str, Result] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                record: dict[str, Any] = json.loads(line)
                if record["outcome"] == "started":
                    record["outcome"] = "hung"
                found[record["test"]] = Result(**record)
        found.pop(END, None)
        return found

    def run(self, file: str) -> dict[str, Result]:
        """Run what has no result yet."""
        path = self.path(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._until_done(path, [self.target(file)], path.with_suffix(".log"))
        return self.records(path)

    def again(self, file: str, tests: list[str]) -> dict[str, Result]:
        """Run some tests a second time, and keep the better of both."""
        path = self.path(file)
        second = path.with_suffix(".second.jsonl")
        second.unlink(missing_ok=True)
        self._until_done(second, [*map(self.target, tests)], path.with_suffix(".second.log"))
        results = self.records(path)
        better = {t: r for t, r in self.records(second).items() if t in tests}
        for test, result in better.items():
            if result.outcome == "passed":
                result.runs = 2
                results[test] = result
        return results

    def _until_done(self, path: Path, what: list[str], log: Path) -> None:
        """Run pytest until it says that it is done; again after each crash and hang."""
        while True:
            known = len(self.records(path))
            code = self._pytest(path, what, log)
            if code in (0, 1, 5) and self._ended(path):
                return
            if len(self.records(path)) == known:
                raise SystemExit(f"pytest did not run {what} ({code}): see {log}")
            with path.open("a") as file:
                for test, result in self.records(path).items():
                    if result.outcome == "hung" and not result.why:
                        why = "it hung" if code is None else f"the process ended with {code}"
                        file.write(json.dumps({"test": test, "outcome": "hung", "why": why}) + "\n")

    def _ended(self, path: Path) -> bool:
        lines = path.read_text().splitlines() if path.exists() else []
        return bool(lines) and json.loads(lines[-1])["test"] == END

    def _pytest(self, path: Path, what: list[str], log: Path) -> int | None:
        """The exit status; None when it was stuck and killed."""
        environment = {
            **os.environ,
            "CONFORMANCE_MODE": self.mode,
            "CONFORMANCE_RESULTS": str(path),
            "CONFORMANCE_CLASSES": ",".join(self.classes),
            "CONFORMANCE_SECONDS": str(self.test_seconds),
            "PYTHONPATH": os.pathsep.join([str(self.stage), str(HERE), str(TOP)]),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        command = [
            sys.executable, "-m", "pytest", "-p", "conformance_plugin", "-p", "no:cacheprovider",
            "-p", "no:hypothesispytest", "-o", "timeout=0", "--color=no", "-q",
            "--tb=native",  # the others parse sources, in the middle of which Python 3.11 may fail
            *self.arguments, *what,
        ]  # fmt: skip
        with log.open("a") as output:
            process = subprocess.Popen(
                command, cwd=self.stage, env=environment, stdout=output, stderr=output,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            try:
                return self._watch(process, path)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()

    def _watch(self, process: subprocess.Popen[bytes], path: Path) -> int | None:
        limit = self.test_seconds + STUCK_SECONDS
        size, since = -1, time.monotonic()
        while True:
            try:
                return process.wait(1)
            except subprocess.TimeoutExpired:
                pass
            now = path.stat().st_size if path.exists() else 0
            if now != size:
                size, since = now, time.monotonic()
            elif time.monotonic() - since > limit:
                return None
