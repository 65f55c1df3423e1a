"""Run the tests with the oldest and the newest supported dask and distributed.

Each version gets a virtual environment of its own, which is kept for the next time. The oldest is
what ``pyproject.toml`` asks for. A quick part of the tests is run; ``--all`` runs all of them, and
what is not understood here goes to pytest.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent

QUICK = [
    "tests/core",
    "tests/runtime",
    *(
        f"tests/test_{name}.py"
        for name in (
            "asynchronous", "client", "collections", "compatibility", "future", "gather", "get",
            "get_executor", "graph", "leaving", "map", "nested", "options", "recovery",
            "rescheduling", "scatter", "waiting", "worker_death",
        )
    ),
]  # fmt: skip


def oldest() -> str:
    """The version that ``pyproject.toml`` begins with, as the first release of that month."""
    found = re.search(r'"distributed>=([\d.]+)"', (TOP / "pyproject.toml").read_text())
    assert found is not None
    version = found[1]
    return version if version.count(".") == 2 else f"{version}.0"


def environment(folder: Path, wanted: str) -> Path:
    """The Python of an environment with a version of dask and distributed, or the newest."""
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    stamp = folder / "stamp"
    project = (TOP / "pyproject.toml").read_text()
    if stamp.exists() and stamp.read_text() == wanted + project and wanted != "newest":
        return python
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    names = ["dask", "distributed"]
    pinned = names if wanted == "newest" else [f"{name}=={wanted}" for name in names]
    subprocess.run([*pip, "--upgrade", "--editable", f"{TOP}[dev,compat]", *pinned], check=True)
    stamp.write_text(wanted + project)
    return python


def main() -> int:
    parser = argparse.ArgumentParser(prog="versions", description=__doc__)
    parser.add_argument("--version", action="append", help="oldest, newest, or one (both)")
    parser.add_argument("--all", action="store_true", help="all tests instead of the quick part")
    parser.add_argument("--venvs", type=Path, default=TOP / ".versions")
    options, more = parser.parse_known_args()
    bad = []
    for name in options.version or ["oldest", "newest"]:
        wanted = oldest() if name == "oldest" else name
        python = environment(options.venvs.resolve() / wanted, wanted)
        code = "import dask, distributed; print(dask.__version__, distributed.__version__)"
        print(f"== {name}:", end=" ", flush=True)
        subprocess.run([str(python), "-c", code], check=True)
        tests = ["tests"] if options.all else QUICK
        ran = subprocess.run([str(python), "-m", "pytest", "-q", *more, *tests], cwd=TOP)
        if ran.returncode:
            bad.append(name)
    print(f"versions: failed with {', '.join(bad)}" if bad else "versions: all passed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
