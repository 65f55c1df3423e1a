"""Build the sdist and the wheel, and try them in clean environments.

Each supported Python that is found here gets one environment with the oldest dask and distributed
that ``pyproject.toml`` allows, and one with the newest; the wheel is installed with its
requirements alone, and a program runs in an empty folder. The wheel is built from the sdist. What
was built stays in ``dist/``, to be uploaded.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

from versions import TOP, oldest

PROGRAM = """
import dask
import dask_ownership
from dask_ownership import Client, get_client
from importlib.metadata import version
from importlib.resources import files

def inc(n):
    return n + 1

def fib(n):
    if n < 2:
        return n
    client = get_client()
    a, b = client.submit(fib, n - 1), client.submit(fib, n - 2)
    return a.result() + b.result()

if __name__ == "__main__":
    assert dask_ownership.__version__ == version("dask-ownership")
    for name in ("py.typed", "ownership.yaml"):
        assert files("dask_ownership").joinpath(name).is_file(), name
    options = dict(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with Client(**options) as client:
        assert client.gather(client.map(inc, range(100))) == list(range(1, 101))
        assert client.submit(fib, 7).result() == 13
        with dask.config.set(scheduler="ownership"):
            assert dask.delayed(sum)([dask.delayed(inc)(i) for i in range(10)]).compute() == 55
        assert client.central_calls == 0
    print("ran", dask_ownership.__version__, "with dask", dask.__version__)
"""
"""What runs in each environment: functions of the script itself, children, a graph."""

EXTRAS = "cli,dashboard"
"""The extras that users install; those of developers are installed by `make test`."""

UNWANTED = ("shared/", ".venv", ".git/", "__pycache__")


def supported() -> list[str]:
    """The Pythons that ``pyproject.toml`` names, as ``3.12``."""
    text = (TOP / "pyproject.toml").read_text()
    return re.findall(r'"Programming Language :: Python :: (3\.\d+)"', text)


def interpreter(version: str) -> str | None:
    """A Python of this version on the path, or among those of pyenv."""
    found = [shutil.which(f"python{version}"), sys.executable]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    found += map(str, sorted(pyenv.glob(f"{version}.*/bin/python")))
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    for python in filter(None, found):
        ran = subprocess.run([python, "-c", code], capture_output=True, text=True)
        if ran.returncode == 0 and ran.stdout.strip() == version:
            return python
    return None


class Environment:
    """A virtual environment in a folder that is removed afterwards."""

    def __init__(self, python: str, folder: Path) -> None:
        subprocess.run([python, "-m", "venv", str(folder)], check=True)
        self.scripts = folder / ("Scripts" if sys.platform == "win32" else "bin")
        self.folder = folder
        self.run("python", "-m", "pip", "install", *QUIET, "--upgrade", "pip")

    def run(self, program: str, *arguments: str) -> str:
        """Run a program of the environment in its folder, and return what the program printed."""
        # What a developer has set up for other projects must not help.
        variables = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "DASK"))}
        ran = subprocess.run(
            [str(self.scripts / program), *arguments], cwd=self.folder, env=variables,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        if ran.returncode:
            raise SystemExit(f"{program} {' '.join(arguments)}: {ran.returncode}\n{ran.stdout}")
        return ran.stdout

    def install(self, *what: str) -> None:
        self.run("python", "-m", "pip", "install", *QUIET, *what)
        self.run("python", "-m", "pip", "check")


QUIET = ("--quiet", "--disable-pip-version-check")


def build(dist: Path, work: Path) -> tuple[Path, Path]:
    """Build the sdist and, from it, the wheel; look at what is in them."""
    shutil.rmtree(dist, ignore_errors=True)
    tools = Environment(sys.executable, work / "build")
    tools.install("build", "twine")
    tools.run("python", "-m", "build", "--outdir", str(dist), str(TOP))
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    print(tools.run("python", "-m", "twine", "check", "--strict", str(wheel), str(sdist)), end="")
    inside = zipfile.ZipFile(wheel).namelist()
    elsewhere = [n for n in inside if not re.match(r"dask_ownership(/|-[^/]+\.dist-info/)", n)]
    with tarfile.open(sdist) as opened:
        sources = opened.getnames()
    unwanted = elsewhere + [n for n in inside + sources if any(u in n for u in UNWANTED)]
    if unwanted:
        raise SystemExit(f"must not be in a package: {unwanted[:10]}")
    for needed in ("LICENSE", "README.md", "tests/conftest.py", "pyproject.toml"):
        if not any(name.endswith(f"/{needed}") for name in sources):
            raise SystemExit(f"{sdist.name} lacks {needed}")
    print(f"built {sdist.name} ({len(sources)} names), {wheel.name} ({len(inside)} names)")
    return sdist, wheel


def attempt(python: str, folder: Path, package: str, dask: str) -> str:
    """Install a package with a version of Dask in a new environment, and run the program."""
    made = Environment(python, folder)
    pinned = [f"{name}=={dask}" for name in ("dask", "distributed")] if dask != "newest" else []
    made.install(package, *pinned)
    (folder / "program.py").write_text(PROGRAM)
    said = made.run("python", "program.py").strip().splitlines()[-1]
    made.run("dask", "ownership", "version")
    if package.endswith("]"):  # the commands that need the extras
        made.run("dask", "ownership", "simulate", "--workers", "4", "--threads", "1")
        made.run("python", "-c", "import dask_ownership.monitoring.pages.server")
    return said


def main() -> int:
    parser = argparse.ArgumentParser(prog="packages", description=__doc__)
    parser.add_argument("--python", action="append", help="3.12, for instance (default: all)")
    parser.add_argument("--dask", action="append", help="oldest, newest, or one (both)")
    parser.add_argument("--dist", type=Path, default=TOP / "dist", help="where the packages go")
    parser.add_argument("--build-only", action="store_true")
    options = parser.parse_args()
    absent = []
    with TemporaryDirectory(prefix="packages-") as place:
        work = Path(place)
        sdist, wheel = build(options.dist.resolve(), work)
        if options.build_only:
            return 0
        here = f"{sys.version_info[0]}.{sys.version_info[1]}"
        attempts = [
            (version, name, str(wheel))
            for version in options.python or supported()
            for name in options.dask or ["oldest", "newest"]
        ]
        attempts += [(here, "newest", str(sdist)), (here, "newest", f"{wheel}[{EXTRAS}]")]
        for number, (version, name, package) in enumerate(attempts):
            python = interpreter(version)
            if python is None:
                if version not in absent:
                    absent.append(version)
                continue
            dask = oldest() if name == "oldest" else name
            print(f"Python {version}, {name} Dask, {Path(package).name}:", end=" ", flush=True)
            folder = work / str(number)
            print(attempt(python, folder, package, dask), flush=True)
            shutil.rmtree(folder)
    if absent:
        print(f"not tried, as there is no such Python here: {', '.join(absent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
