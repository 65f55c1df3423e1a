"""Change `dask_ownership/core` in one place at a time, and see whether anything notices.

``python ci/mutation.py [--seed 1] [--number 40] [--only K]`` makes that many mutations, always the
same for a seed: a comparison or a condition the other way, ``and`` for ``or``, a call or an
assignment left out, a count the other way. Each runs the core tests and then random programs in the
virtual cluster, for two minutes at most. It is *caught* when one of them fails or does not end. Of
40 at least 38 have to be.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

TOP = Path(__file__).parent.parent
CORE = Path("dask_ownership") / "core"

SECONDS = 120.0
"""How long one mutation is looked for."""

CAUGHT = 0.95
"""Share of the mutations that have to be caught."""

APART = {"failure_counts", "attempt_times", "byte_counter", "__init__"}
"""Modules that decide nothing: what they count is for people."""

OTHER = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE,
    ast.LtE: ast.Gt, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip

SAID = {"log", "mark", "note"}
"""Methods that only write something down."""


def places(tree: ast.Module) -> Iterator[ast.AST]:
    """Nodes that can be mutated, inside of functions."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and not function.name.startswith("__repr"):
            yield from filter(can_change, ast.walk(function))


def can_change(node: ast.AST) -> bool:
    """Whether a `Mutator` has something to do for a node."""
    if isinstance(node, ast.Compare):
        return type(node.ops[0]) in OTHER
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        called = node.value.func
        return not (isinstance(called, ast.Attribute) and called.attr in SAID)
    if isinstance(node, ast.Assign):
        return isinstance(node.targets[0], ast.Attribute)
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name | ast.Attribute)
    return isinstance(node, ast.BoolOp | ast.AugAssign)


class Mutator(ast.NodeTransformer):
    """Changes one node, found by its place."""

    def __init__(self, target: ast.AST) -> None:
        self.target = target

    def visit(self, node: ast.AST) -> ast.AST:
        if node is not self.target:
            return self.generic_visit(node)
        if isinstance(node, ast.Compare):
            node.ops[0] = OTHER[type(node.ops[0])]()
        elif isinstance(node, ast.BoolOp):
            node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        elif isinstance(node, ast.AugAssign):
            node.op = ast.Sub() if isinstance(node.op, ast.Add) else ast.Add()
        elif isinstance(node, ast.If):
            node.test = ast.UnaryOp(ast.Not(), node.test)
        else:
            return ast.copy_location(ast.Pass(), node)
        return node


class Mutation:
    """One change of one module."""

    def __init__(self, path: Path, index: int) -> None:
        source = (TOP / path).read_text(encoding="utf-8")
        tree = ast.parse(source)
        target = list(places(tree))[index]
        before = ast.unparse(target).splitlines()[0]
        self.path = path
        self.line = target.lineno  # type: ignore[attr-defined]
        changed = Mutator(target).visit(tree)
        self.source = ast.unparse(ast.fix_missing_locations(changed))
        left_out = isinstance(target, ast.Expr | ast.Assign)
        after = "left out" if left_out else ast.unparse(copy.copy(target)).splitlines()[0]
        self.what = f"{path.name}:{self.line}: {before}  ->  {after}"


def chosen(seed: int, number: int) -> list[Mutation]:
    """Mutations, evenly from all places."""
    found = []
    for path in sorted((TOP / CORE).rglob("*.py")):
        if path.stem not in APART:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found += [(path.relative_to(TOP), i) for i, _ in enumerate(places(tree))]
    return [Mutation(path, index) for path, index in Random(seed).sample(found, number)]


def looks() -> list[list[str]]:
    """What is run one after the other: what fails soonest comes first."""
    pytest = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    programs = [sys.executable, "tests/simulation/random_programs.py", "soak"]
    return [
        [*pytest, "tests/core"],
        [*programs, "--first", "1", "--hours", "0.012"],
        [*pytest, "tests/simulation"],
    ]


def caught(mutation: Mutation) -> str:
    """What noticed it, or ""."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("dask_ownership", "tests"):
            shutil.copytree(TOP / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(TOP / "pyproject.toml", folder)
        (folder / mutation.path).write_text(mutation.source, encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": name, "PYTHONDONTWRITEBYTECODE": "1"}
        until = time.monotonic() + SECONDS
        for command in looks():
            process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            last = command[-1] == "tests/simulation"  # which takes longer than there is time
            limit = max(until - time.monotonic(), 1.0)
            try:
                if process.wait(limit if last else min(limit, SECONDS / 2)):
                    return next(word for word in command if word.startswith("tests/"))
            except subprocess.TimeoutExpired:
                if not last:
                    return "it does not end"
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="mutation", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--number", type=int, default=40)
    parser.add_argument("--only", type=int, help="the number of one of them")
    options = parser.parse_args()
    mutations = chosen(options.seed, options.number)
    survived = 0
    for number, mutation in enumerate(mutations):
        if options.only not in (None, number):
            continue
        by = caught(mutation)
        survived += not by
        print(f"{number:3} {mutation.what}: {by or 'SURVIVED'}", flush=True)
    print(f"seed {options.seed}: {len(mutations) - survived} of {len(mutations)} caught")
    return int(survived > len(mutations) * (1 - CAUGHT))


if __name__ == "__main__":
    sys.exit(main())
