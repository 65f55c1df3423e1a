"""Unpickling in several threads at once, when that imports modules."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dask_ownership.runtime import importing


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package whose modules need each other: one thread at a time can import any of them."""
    folder = tmp_path / "circle_of_modules"
    folder.mkdir()
    (folder / "__init__.py").write_text("import circle_of_modules.one\n")
    (folder / "one.py").write_text(
        "import time\ntime.sleep(0.2)\nfrom circle_of_modules.other import Thing\n"
    )
    (folder / "other.py").write_text(
        "import time\ntime.sleep(0.05)\nimport circle_of_modules.one\nclass Thing: pass\n"
    )
    return tmp_path


THREADS = """
import pickle, sys, time
from concurrent.futures import ThreadPoolExecutor
from dask_ownership.runtime.importing import STACK_GLOBAL, loads
if sys.argv[1:] == ["stock"]:
    loads = pickle.loads
def load(i):
    time.sleep(0.1 * i)
    name = ("one", "other")[i]
    loads(f"ccircle_of_modules.{name}\\nThing\\n.".encode() + STACK_GLOBAL)
with ThreadPoolExecutor(2) as pool:
    list(pool.map(load, range(2)))
print("all")
"""


def run(package: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", THREADS, *args],
        env={"PYTHONPATH": f"{package}:{Path(importing.__file__).parents[2]}"},
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_threads_that_import_what_needs_each_other(package):
    """Plain `pickle.loads` fails here: Python's way out of the deadlock is half a module."""
    said = run(package)
    assert said.stdout == "all\n", said.stderr
    assert "partially initialized" in run(package, "stock").stderr


@pytest.fixture
def module(tmp_path, monkeypatch):
    """What imports a module, and whether that module was there each time."""
    (tmp_path / "imported_by_a_pickle.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    calls = []

    def load() -> int:
        calls.append("imported_by_a_pickle" in sys.modules)
        try:
            import imported_by_a_pickle
        except BaseException as error:
            raise RuntimeError("this says nothing of the reason") from error
        return imported_by_a_pickle.value

    yield load, calls
    sys.modules.pop("imported_by_a_pickle", None)


def test_it_is_called_once_though_it_imports(module):
    load, calls = module
    assert importing.unpickle(load) == 1
    assert importing.unpickle(load) == 1
    assert calls == [False, True]


def test_it_is_called_again_when_another_thread_imports(module):
    """Whatever it made of being stopped."""
    load, calls = module
    imports, over = threading.Event(), threading.Event()

    def other() -> None:
        imports.set()
        over.wait(10)

    with ThreadPoolExecutor(2) as pool:
        pool.submit(importing.one_at_a_time, other)
        imports.wait(10)
        waits = pool.submit(importing.unpickle, load)
        while not calls:
            time.sleep(0.001)
        over.set()
        assert waits.result(10) == 1
    assert calls == [False, False]


def test_a_loop_imports_nothing(module):
    load, _ = module
    with pytest.raises(importing.ImportNeeded):
        importing.without_imports(load)
    assert "imported_by_a_pickle" not in sys.modules
    assert importing.unpickle(load) == importing.without_imports(load) == 1


def test_what_looks_for_a_module_is_not_told_that_there_is_none(tmp_path, monkeypatch):
    (tmp_path / "optional_module.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))

    def load() -> bool:
        try:
            import optional_module  # noqa: F401
        except ImportError:
            return False
        return True

    assert importing.unpickle(load)
    del sys.modules["optional_module"]


def test_a_module_that_is_not_there():
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        importing.loads(b"cno_such_module\nThing\n." + importing.STACK_GLOBAL)


def test_one_within_another():
    inner = pickle.dumps(len, 5)

    def load() -> bool:
        before = importing.here.attempt
        importing.loads(inner)
        return before is not None and importing.here.attempt is before

    assert importing.unpickle(load)
    assert importing.here.attempt is None


def test_one_that_waits_for_another_goes_on_in_the_end(monkeypatch):
    monkeypatch.setattr(importing, "LONGEST", 0.1)
    imports = threading.Event()
    over = threading.Event()

    def load() -> None:
        imports.set()
        over.wait(10)

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(importing.one_at_a_time, load)
        imports.wait(10)
        assert importing.one_at_a_time(lambda: 1) == 1
        over.set()
        other.result(10)
