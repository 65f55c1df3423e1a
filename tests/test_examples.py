"""The programs in ``examples/``, run as a user runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from live import without_last_heartbeats

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (["config_line.py"], "sum of squares: 332833500"),
        (["nested.py"], "fib(14) = 377"),
        (["travelling.py"], "all 100 values are there"),
        (["stdlib_index.py", "--limit", "5", "--compare"], "Both engines found the same"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_example(program: list[str], expected: str) -> None:
    # Another program of this machine may have the dashboard's port: Dask warns of that, and leaves
    # the socket of its first try to the garbage collector.
    taken = ("-W", "ignore:Port 8787:UserWarning", "-W", "ignore:unclosed <socket:ResourceWarning")
    command = [sys.executable, "-W", "error", *taken, str(EXAMPLES / program[0]), *program[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout
    others = without_last_heartbeats(done.stderr)
    assert "Traceback" not in others, others
