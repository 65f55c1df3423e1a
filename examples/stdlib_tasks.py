"""The tasks of ``stdlib_index.py``: what runs on the workers.

They live in a module of their own, so that workers import them: functions of a script that runs as
``__main__`` are pickled whole with every task.

A package task submits a task per module, which submits a task per function. Each level merges what
the level below it found in a tree of small merge tasks, and hands one ``Index`` up.
"""

from __future__ import annotations

import ast
import re
import sys
import sysconfig
import threading
import tokenize
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import nlargest
from pathlib import Path
from typing import Any, NamedTuple

from distributed import Client, Future, worker_client

STDLIB = Path(sysconfig.get_path("stdlib"))
FAN_IN = 8  # parts that one merge task takes
KEEP = 10  # entries of each ranking

# The deeper a task, the sooner it runs: what is begun is finished before more of it begins.
MODULE, FUNCTION, MERGE = 1, 2, 3

# Old sources hold escapes such as "\d" that the parser warns of; that is their authors' business.
ORIGIN = "<stdlib_index>"
warnings.filterwarnings("ignore", module=re.escape(ORIGIN))

NEVER_LOADED = re.compile(r"__name__ == |\bTYPE_CHECKING\b")  # as the test of an if

# CPython 3.11 counts the depth of a parse in one place for all threads, so one thread at a time.
PARSING = threading.Lock()

BRANCHES = (
    ast.If,
    ast.IfExp,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.ExceptHandler,
    ast.BoolOp,
    ast.comprehension,
    ast.match_case,
)


class Function(NamedTuple):
    """One function and its size, in three measures."""

    name: str
    lines: int
    nodes: int
    branches: int


class Importer(NamedTuple):
    """A module and the number of standard modules that it imports while it loads."""

    name: str
    imports: int


@dataclass(frozen=True, slots=True)
class Index:
    """What is known of some part of the library; ``merge`` makes one of several."""

    tasks: int = 1
    modules: int = 0
    functions: int = 0
    lines: int = 0
    skipped: tuple[str, ...] = ()  # files that do not parse
    calls: Counter[str] = field(default_factory=Counter)  # name -> calls in the text
    imported: Counter[str] = field(default_factory=Counter)  # name -> modules that import it
    edges: dict[str, frozenset[str]] = field(default_factory=dict)  # between top-level names
    importers: tuple[Importer, ...] = ()
    longest: tuple[Function, ...] = ()
    largest: tuple[Function, ...] = ()
    branchiest: tuple[Function, ...] = ()


def merge(parts: Sequence[Index]) -> Index:
    """Add ``parts`` up and count the task that does it.

    The order of the parts changes nothing: rankings break ties by name.
    """
    calls: Counter[str] = Counter()
    imported: Counter[str] = Counter()
    edges: defaultdict[str, frozenset[str]] = defaultdict(frozenset)
    for part in parts:
        calls.update(part.calls)
        imported.update(part.imported)
        for source, targets in part.edges.items():
            edges[source] |= targets
    return Index(
        tasks=1 + sum(part.tasks for part in parts),
        modules=sum(part.modules for part in parts),
        functions=sum(part.functions for part in parts),
        lines=sum(part.lines for part in parts),
        skipped=tuple(sorted(name for part in parts for name in part.skipped)),
        calls=calls,
        imported=imported,
        edges=dict(edges),
        importers=top("imports", (row for part in parts for row in part.importers)),
        longest=top("lines", (row for part in parts for row in part.longest)),
        largest=top("nodes", (row for part in parts for row in part.largest)),
        branchiest=top("branches", (row for part in parts for row in part.branchiest)),
    )


def top(measure: str, rows: Iterable[Any]) -> tuple[Any, ...]:
    """The first ``KEEP`` rows by ``measure``."""
    return tuple(nlargest(KEEP, rows, key=lambda row: (getattr(row, measure), row.name)))


def merge_tree(client: Client, parts: list[Future]) -> Future:
    """Merge in tasks of ``FAN_IN`` parts, so that no process sees all of them at once."""
    while len(parts) > 1:
        parts = [
            client.submit(merge, parts[at : at + FAN_IN], pure=False, priority=MERGE)
            for at in range(0, len(parts), FAN_IN)
        ]
    return parts[0]


def index_package(paths: Sequence[str]) -> Index:
    """Index the modules of one package: a task for each."""
    with worker_client() as client:
        modules = client.map(index_module, paths, pure=False, priority=MODULE)
        return merge((client.gather(merge_tree(client, modules)),))


def index_module(path: str) -> Index:
    """Index one file, named by its path below the library: a task for each of its functions.

    The worker reads its own copy, so the library need not lie in the same place everywhere.
    """
    try:
        with tokenize.open(STDLIB / path) as file:
            source = file.read()
        tree = parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return Index(skipped=(path,))  # such files are there to test parsers with

    name = module_name(path)
    functions, rest = split(tree)
    imports = frozenset(imported_by(tree)) - {name.partition(".")[0]}
    index = Index(
        modules=1,
        lines=source.count("\n"),
        calls=Counter(called_by(rest)),
        imported=Counter(imports),
        edges={name.partition(".")[0]: imports},
        importers=(Importer(name, len(imports)),),
    )
    if not functions:
        return index

    lines = source.split("\n")
    names = [f"{name}.{qualname}" for qualname, _ in functions]
    texts = ["\n".join(lines[node.lineno - 1 : node.end_lineno]) for _, node in functions]
    with worker_client() as client:
        parts = client.map(index_function, names, texts, pure=False, priority=FUNCTION)
        return merge((index, client.gather(merge_tree(client, parts))))


def index_function(name: str, text: str) -> Index:
    """Index the text of one function."""
    if text[0].isspace():  # a method: an indented block needs something above it
        text = f"if True:\n{text}"
    body = parse(text).body[0]
    if isinstance(body, ast.If):
        text = text.partition("\n")[2]
        body = body.body[0]
    nodes = list(ast.walk(body))
    function = Function(
        name,
        lines=text.count("\n") + 1,
        nodes=len(nodes),
        branches=sum(isinstance(node, BRANCHES) for node in nodes),
    )
    return Index(
        functions=1,
        calls=Counter(called_by(nodes)),
        longest=(function,),
        largest=(function,),
        branchiest=(function,),
    )


def parse(text: str) -> ast.Module:
    with PARSING:
        return ast.parse(text, ORIGIN)


def split(tree: ast.Module) -> tuple[list[tuple[str, ast.stmt]], list[ast.AST]]:
    """The functions of a module with their qualified names, and every node outside of them.

    A function inside a function is part of the outer one; a method is a function of its own.
    """
    functions: list[tuple[str, ast.stmt]] = []
    rest: list[ast.AST] = []
    todo: list[tuple[str, ast.AST]] = [("", tree)]
    while todo:
        prefix, node = todo.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            functions.append((prefix + node.name, node))
            todo.extend((prefix, decorator) for decorator in node.decorator_list)
            continue
        rest.append(node)
        if isinstance(node, ast.ClassDef):
            prefix = f"{prefix}{node.name}."
        todo.extend((prefix, child) for child in ast.iter_child_nodes(node))
    return functions, rest


def called_by(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """The name at each call: ``f`` for ``f()``, ``.m`` for ``x.y.m()``."""
    for node in nodes:
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                yield node.func.id
            elif isinstance(node.func, ast.Attribute):
                yield f".{node.func.attr}"


def imported_by(tree: ast.Module) -> Iterator[str]:
    """The standard top-level names that a module imports while it loads.

    Not what its functions import, nor what it imports as a program or for a type checker.
    Relative imports stay inside.
    """
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        elif isinstance(node, ast.If) and NEVER_LOADED.search(ast.unparse(node.test)):
            todo.extend(node.orelse)
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.expr)):
            todo.extend(ast.iter_child_nodes(node))
        for name in names:
            if (first := name.partition(".")[0]) in sys.stdlib_module_names:
                yield first


def module_name(path: str) -> str:
    """``json/decoder.py`` -> ``json.decoder``, ``json/__init__.py`` -> ``json``."""
    parts = Path(path).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
