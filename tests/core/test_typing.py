"""mypy knows the types of futures and values, and sees no error in programs that have none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dask_ownership import Future

TOP = Path(__file__).parent.parent.parent
CASES = "tests/typing_cases.py"


def errors(*arguments: str) -> str:
    """What mypy finds in the cases."""
    command = [sys.executable, "-m", "mypy", "--strict", "--warn-unused-ignores", *arguments, CASES]
    ran = subprocess.run(command, cwd=TOP, capture_output=True, text=True)
    return ran.stdout + ran.stderr if ran.returncode else ""


def test_types_of_programs() -> None:
    """With the project's settings, which leave Dask's own types out."""
    assert not errors()


@pytest.mark.slow
def test_types_of_programs_with_those_of_dask(tmp_path: Path) -> None:
    """As for a user, who has no settings: with what Dask says of its own classes."""
    plain = tmp_path / "mypy.ini"
    plain.write_text("[mypy]\nfollow_imports = silent\n")
    assert not errors("--config-file", str(plain))


def test_the_type_of_the_value_costs_nothing() -> None:
    """It is for checkers: no slot, no attribute, and the class stays what it was."""
    assert Future[int].__origin__ is Future  # type: ignore[attr-defined]
    assert "__new__" not in vars(Future)
    assert "__dict__" not in vars(Future)
