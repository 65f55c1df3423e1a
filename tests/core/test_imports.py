"""The core decides and does nothing else: what it must not import."""

from __future__ import annotations

import ast
from pathlib import Path

import dask_ownership

ROOT = Path(dask_ownership.__file__).parent
FORBIDDEN = {
    "asyncio",
    "concurrent",
    "dask",
    "distributed",
    "multiprocessing",
    "random",
    "selectors",
    "socket",
    "threading",
    "time",
    "tornado",
}


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports by a relative name"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def file_of(module: str) -> Path | None:
    """The file of a module of this package; None for names and for other packages."""
    if module.split(".")[0] != "dask_ownership":
        return None
    place = ROOT.joinpath(*module.split(".")[1:])
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.exists():
            return path
    return None


def test_core_imports_nothing_that_does_something():
    todo = sorted((ROOT / "core").rglob("*.py"))
    assert len(todo) > 5
    seen: set[Path] = set()
    while todo:
        path = todo.pop()
        if path in seen or path == ROOT / "__init__.py":
            continue  # the package's own names are no part of core, which asks for submodules
        seen.add(path)
        for name in imports(path):
            assert name.split(".")[0] not in FORBIDDEN, f"{path} imports {name}"
            found = file_of(name)
            if found is not None:
                todo.append(found)
    assert all(ROOT / "core" in path.parents for path in seen), seen
