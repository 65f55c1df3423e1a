"""How the modules of the package stand to each other: what may only get less.

Each list below says where a rule of the layout does not hold yet. Adding to one fails, and so
does leaving in what is mended: the lists only shrink, and with the last entry goes the list.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from test_imports import ROOT, imports

from dask_ownership.core.table import Borrowed, Row

HIDDEN = {
    "benchmarks.__init__": 1,
    "benchmarks.cli": 1,
    "benchmarks.collection_cases": 2,
    "benchmarks.engines": 2,
    "benchmarks.functions": 1,
}
"""Modules that import others of the package inside of functions or for type checkers only, and
how often: such an import hides that two modules know each other."""

CIRCLES: tuple[str, ...] = ()
"""Modules that import each other in a circle."""

STATE_WRITERS: dict[str, int] = {}
"""Modules that write the state of a row, and at how many places."""

LARGE: dict[str, int] = {}
"""Modules of more than 600 lines, in hundreds, rounded up."""

LARGEST_ROW = 216
"""Bytes of a row without what it refers to; a borrowed one has 11 references more."""


def name_of(path: Path) -> str:
    """As ``core.table``."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@cache
def modules() -> dict[str, Path]:
    return {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(name: str) -> Iterator[str]:
    """Modules of the package that one imports, wherever in it."""
    for full in imports(modules()[name]):
        inner = full.removeprefix("dask_ownership.")
        for candidate in (inner, f"{inner}.__init__"):
            if inner != full and candidate in modules() and candidate != name:
                yield candidate


def hidden(name: str) -> int:
    """How many imports of the package stand in functions or under ``TYPE_CHECKING``."""
    count = 0
    todo: list[tuple[ast.AST, bool]] = [(tree_of(modules()[name]), False)]
    while todo:
        node, inside = todo.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            named = getattr(node, "module", None) or node.names[0].name
            count += inside and named.startswith("dask_ownership")
        test = getattr(node, "test", None)
        inside = (
            inside
            or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            or (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING")
        )
        todo.extend((child, inside) for child in ast.iter_child_nodes(node))
    return count


def circles() -> list[set[str]]:
    """Sets of modules each of which imports each other one, perhaps through others."""
    reached: dict[str, set[str]] = {}
    for name in modules():
        seen: set[str] = set()
        todo = [name]
        while todo:
            for other in imported(todo.pop()):
                if other not in seen:
                    seen.add(other)
                    todo.append(other)
        reached[name] = seen
    found: list[set[str]] = []
    for name, seen in reached.items():
        circle = {other for other in seen if name in reached[other]}
        if circle and circle not in found:
            found.append(circle)
    return found


def test_no_import_is_hidden():
    assert {name: count for name in modules() if (count := hidden(name))} == HIDDEN


def test_no_circle():
    assert sorted(name for circle in circles() for name in circle) == sorted(CIRCLES)


def test_one_module_writes_the_state_of_a_row():
    found: Counter[str] = Counter()
    for name, path in modules().items():
        if name.startswith("testing."):
            continue
        text = path.read_text(encoding="utf-8")
        found[name] += len(re.findall(r"\b(?:row|one|needed|made)\.state = ", text))
    assert {name: count for name, count in found.items() if count} == STATE_WRITERS


def test_no_module_is_too_large():
    sizes = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    assert {name: -(-size // 100) for name, size in sizes.items() if size > 600} == LARGE


def test_a_row_is_small():
    row = Row("key", None, None, (), 0)
    borrowed = Borrowed(("owner", "", "owner", "key", None, 0))
    assert sys.getsizeof(row) <= LARGEST_ROW
    assert sys.getsizeof(borrowed) <= LARGEST_ROW + 11 * 8
