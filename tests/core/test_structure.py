"""How the modules of the package stand to each other: what may only get less.

Each list below says where a rule of the layout does not hold yet. Adding to one fails, and so
does leaving in what is mended: the lists only shrink, and with the last entry goes the list.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import distributed
import pytest
from test_imports import ROOT

from dask_ownership.core.owner.rows.options import NO_OPTIONS, Options
from dask_ownership.core.owner.rows.row import Borrowed, Row

LARGE: dict[str, int] = {"core.owner.rows.lifecycle": 7}
"""Modules of more than 600 lines, in hundreds, rounded up."""

LARGEST_ROW = 224
"""Bytes of a row without what it refers to; a borrowed one has 12 references more."""


def name_of(path: Path) -> str:
    """As ``rows.table``."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@cache
def modules() -> dict[str, Path]:
    return {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imported(name: str) -> frozenset[str]:
    """Modules of the package that one imports, wherever in it."""
    found = set()
    for node in ast.walk(tree_of(modules()[name])):
        if isinstance(node, ast.Import):
            full = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            if not all(map(module_of, full)):
                full.append(node.module or "")
        else:
            continue
        found.update(filter(None, map(module_of, full)))
    return frozenset(found - {name, "__init__"})


def module_of(full: str) -> str:
    """As `name_of`, for what is imported by this name; "" when that is no module of the package."""
    inner = full.removeprefix("dask_ownership.")
    if inner == full:
        return ""
    return next((name for name in (inner, f"{inner}.__init__") if name in modules()), "")


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
    """An import in a function, or for type checkers, hides that two modules know each other."""
    assert {name: count for name in modules() if (count := hidden(name))} == {}


def test_no_circle():
    assert circles() == []


sys.path.append(str(ROOT.parent / "ci"))
LISTS = importlib.import_module("modules")
"""``ci/modules.py``, which writes lists of modules into the page on the architecture."""

CORE_LAYERS = (
    ("queue", "protocol"),
    ("owner.rows", "executor", "roster"),
    ("owner.scheduling",),
    ("owner.recovery",),
    ("owner.references",),
    ("owner.results", "owner.membership", "owner.departures"),
    ("owner.ownership",),
)
"""Layers inside of ``core``, as `LAYERS` of ``ci/modules.py`` has them of the whole package."""


def is_in(name: str, part: str) -> bool:
    """Whether a module is this one, or in this folder."""
    return name == part or name.startswith(f"{part}.")


def level(name: str, layers: tuple[tuple[str, ...], ...]) -> int:
    """Which layer a module belongs to."""
    for number, parts in enumerate(layers):
        if any(is_in(name, part) for part in parts):
            return number
    raise AssertionError(f"{name} is in no layer")


@pytest.mark.parametrize(("inside", "layers"), [("", LISTS.LAYERS), ("core.", CORE_LAYERS)])
def test_modules_import_what_is_below_them_only(inside: str, layers: tuple[tuple[str, ...], ...]):
    upwards = [
        f"{name} imports {other}"
        for name in modules()
        for other in imported(name)
        if name.startswith(inside) and other.startswith(inside)
        if not any(one.endswith("__init__") for one in (name, other))
        if level(name.removeprefix(inside), layers) < level(other.removeprefix(inside), layers)
    ]
    assert upwards == []


def test_what_is_private_to_distributed_is_imported_in_one_place():
    found = {
        name
        for name, path in modules().items()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ImportFrom)
        and (node.module or "").partition(".")[0] in ("dask", "distributed")
        and any(alias.name.startswith("_") for alias in node.names)
    }
    assert found and all(name.startswith("runtime.dask.") for name in found), found


FRIENDS = (
    ("futures", "Future", "_row _owner _cleared _error _refuse",
     "the operations on futures work on the rows of the futures"),
    ("interop", "Future", "_row _owner _cleared _error _refuse",
     "futures go from one plane to the other by their rows"),
    ("client", "Future", "_row _owner",
     "the methods of a client take futures, and work on the rows of the futures"),
    ("runtime.task", "Future", "_row _owner",
     "names the futures inside results, which the module knows only as what a pickle contains"),
    ("client.recreate", "Client", "_owned",
     "a part of the client in an object of its own, because Dask has one there"),
)  # fmt: skip
"""Who uses the private names of another module: module or folder, whose, names, and why.

``docs/architecture.md`` has the same under *Private names across modules*.
"""

OF_DASK = (distributed.Client, distributed.Future, distributed.as_completed)
"""Classes from which this package derives: their private names are not this package's."""

NAMESAKES = {
    ("client.recreate", "_state"),  # of a future, as Dask's own futures have it
    ("interop.bridge", "_state"),  # the same
    ("interop.tasks", "_future"),  # of an actor of Dask
    ("scheduler.detached", "_queue"),  # of a queue of asyncio
}
"""Uses of private names of other projects' objects, which classes of this package have as well."""


def of_self(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def own_names(tree: ast.Module) -> set[str]:
    """Private names that the classes of a module define: methods, attributes, slots, fields."""
    found = set()
    for cls in ast.walk(tree):
        for node in ast.walk(cls) if isinstance(cls, ast.ClassDef) else ():
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif (
                isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and of_self(node)
            ):
                found.add(node.attr)
        for node in cls.body if isinstance(cls, ast.ClassDef) else ():
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__slots__":
                found |= {c.value for c in ast.walk(node.value) if isinstance(c, ast.Constant)}
    return {name for name in found if name.startswith("_") and not name.startswith("__")}


def strange_names() -> dict[tuple[str, str], str]:
    """Uses ``x._name`` of names that only other modules of the package define.

    Returns
    -------
    dict
        Module and name to one such use. A name that the module defines as well is taken for the
        module's own. *Exceptions to the layout* of the page is about the names of Dask.
    """
    own = {name: own_names(tree_of(path)) for name, path in modules().items()}
    everybodys = set().union(*own.values()) - {*dir(NamedTuple("T", []))}
    ours = {name for name in everybodys if not any(hasattr(cls, name) for cls in OF_DASK)}
    strange = {name: ours - own[name] for name in own}
    return {
        (name, node.attr): ast.unparse(node)
        for name, path in modules().items()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute) and node.attr in strange[name]
        if not of_self(node)
    }


def test_private_names_are_used_by_friends_only():
    """Each friend uses each of its names, and the page about the architecture has all friends."""
    found = strange_names()
    assert found.keys() >= NAMESAKES
    friends = {(who, name) for who, _, names, _ in FRIENDS for name in names.split()}
    used = {
        use: {(who, name) for who, name in friends if name == use[1] and is_in(use[0], who)}
        for use in found.keys() - NAMESAKES
    }
    assert {found[use] for use, by in used.items() if not by} == set()
    assert friends - set().union(*used.values()) == set()
    page = LISTS.PAGE.read_text(encoding="utf-8")
    told = [
        f"{', '.join(f'`{name}`' for name in names.split())} | {why} |"
        for *_, names, why in FRIENDS
    ]
    assert [row for row in told if row not in page] == []


WRITERS = {"core.owner.rows.lifecycle", "core.owner.rows.row", "core.owner.rows.table"}
"""Modules that write a row's state, value and counts; counts are the table's."""

OF_ROWS = {"state", "value", "local_refs", "task_refs", "lineage_refs"}


def written(node: ast.AST) -> Iterator[ast.Attribute]:
    """Yield the attributes of other objects than ``self`` to which a statement assigns."""
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AugAssign | ast.AnnAssign):
        targets = [node.target]
    else:
        return
    for target in targets:
        for part in ast.walk(target):
            own = isinstance(getattr(part, "value", None), ast.Name) and part.value.id == "self"
            if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store) and not own:
                yield part


def test_one_module_writes_the_state_of_a_row_and_one_its_counts():
    """Executors have entries with a state and a value of their own; pages write to their plots."""
    found = {
        name
        for name, path in modules().items()
        if not name.startswith(("core.executor.", "runtime.executor.", "monitoring.pages."))
        for node in ast.walk(tree_of(path))
        for attribute in written(node)
        if attribute.attr in OF_ROWS
    }
    assert found == WRITERS


def unlocked(node: ast.AST, locked: bool = False) -> Iterator[ast.Attribute]:
    """Yield what is written to outside of a ``with ...lock``."""
    if isinstance(node, ast.With):
        locked = locked or any(ast.unparse(i.context_expr).endswith(".lock") for i in node.items)
    if not locked:
        yield from written(node)
    for child in ast.iter_child_nodes(node):
        yield from unlocked(child, locked)


def test_options_of_a_row_are_replaced_under_the_lock():
    """Any thread may note that a row is shared (`Row.shared_with`): no change gets lost."""
    found = {
        name
        for name, path in modules().items()
        if name.startswith("core.owner.")
        for attribute in unlocked(tree_of(path))
        if attribute.attr == "options" and ast.unparse(attribute) != "lineage.options"
    }
    # `shared_with` itself, and rows of which no thread knows yet.
    assert found == {"core.owner.rows.row", "core.owner.references.detached"}


def in_words(kind: str) -> re.Pattern[str]:
    return re.compile(rf"\b(many|more|number of)\b[\w ,]*\b{kind}\b")


def test_a_large_class_says_why():
    """More than 25 methods or 15 attributes need a reason in the docstring."""
    silent = []
    for name, path in modules().items():
        for cls in ast.walk(tree_of(path)):
            if not isinstance(cls, ast.ClassDef):
                continue
            methods = [f for f in cls.body if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef)]
            attributes = {
                node.attr
                for method in methods
                for node in ast.walk(method)
                if isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and isinstance(node.value, ast.Name)
                and node.value.id == "self"
            } | {
                node.target.id
                for node in cls.body
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
            }
            told = " ".join((ast.get_docstring(cls) or "").split())
            for kind, number, most in (
                ("methods", len(methods), 25),
                ("attributes", len(attributes), 15),
            ):
                if number > most and not in_words(kind).search(told):
                    silent.append(f"{name}.{cls.name} has {number} {kind}")
    assert silent == []


NO_VERBS = {"a", "all", "an", "handler", "how", "the", "what", "whether", "which", "why"}
"""Words with which no docstring of a function begins."""


def test_the_docstring_of_a_function_begins_with_what_the_function_does():
    """In the imperative, as most do. A word with an ``s`` at its end is a noun, or "Returns"."""
    found = [
        f"{name}:{node.lineno} {node.name}: {text.splitlines()[0]}"
        for name, path in modules().items()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and not any(ast.unparse(one).endswith("property") for one in node.decorator_list)
        and (text := ast.get_docstring(node))
        and ((word := text.split()[0].lower()) in NO_VERBS or re.search("[^s]s$", word))
    ]
    assert found == []


AS_IN_DASK = {"_graph_to_futures", "get", "persist", "scatter", "_scatter"}
"""Functions with the parameters of those of Dask that they stand for."""


def test_no_function_has_many_positional_parameters():
    many = [
        f"{name}.{node.name}"
        for name, path in modules().items()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name not in AS_IN_DASK
        and sum(a.arg not in ("self", "cls") for a in node.args.posonlyargs + node.args.args) > 6
    ]
    assert many == []


def test_who_uses_an_owner_sees_its_face():
    """Above the runtime, but for what monitors it, no module knows the parts of a core.

    The face is that of `Owner` and the flat names of `OwnerCore`, of which ``workers`` is a dict.
    """
    reached = re.compile(r"\bcore\.(?!protocol|owner|executor|roster|queue|workers)\w+\.\w")
    layers = ("futures.", "interop.", "worker.", "scheduler.", "client.")
    found = {
        f"{name}: {line.strip()}"
        for name, path in modules().items()
        if name.startswith(layers)
        for line in path.read_text().splitlines()
        if reached.search(line)
    }
    assert found == set()


HAND_WRITTEN = {
    "core.owner.rows.row.Function",  # weakly referred to; `weakref_slot` came with Python 3.11
}
"""Records that are no dataclasses."""


def classes() -> Iterator[tuple[str, str, ast.ClassDef]]:
    """Yield each class of the package: the name of its module, its own full name, and its code."""
    for name, path in modules().items():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                yield name, f"{name}.{node.name}", node


def test_records_are_dataclasses():
    """A record is a class with slots, no base, and no methods but those that dataclasses have."""
    found = set()
    for _, full, cls in classes():
        methods = {f.name for f in cls.body if isinstance(f, ast.FunctionDef)}
        slots = any(
            isinstance(target, ast.Name) and target.id == "__slots__"
            for node in cls.body
            if isinstance(node, ast.Assign)
            for target in node.targets
        )
        if slots and not cls.bases and methods <= {"__init__", "__repr__"}:
            found.add(full)
    assert found == HAND_WRITTEN


def test_each_field_of_a_record_of_the_core_has_a_comment():
    silent = []
    for name, full, cls in classes():
        decorators = {ast.unparse(one).partition("(")[0] for one in cls.decorator_list}
        record = "dataclass" in decorators or "NamedTuple" in map(ast.unparse, cls.bases)
        if not record or not name.startswith("core."):
            continue
        lines = modules()[name].read_text(encoding="utf-8").splitlines()
        silent += [
            f"{full}.{ast.unparse(node.target)}"
            for node in cls.body
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) != "KW_ONLY"
            if not lines[node.lineno - 2].lstrip().startswith("#:")
        ]
    assert silent == []


def test_options_cannot_be_written_to():
    """Because rows share them."""
    for name in Options._fields:
        with pytest.raises(AttributeError):
            setattr(NO_OPTIONS, name, None)


READ_BY_NAME = {
    "message", "messages", "said", "sent", "outcome", "process", "sender", "receiver", "origin",
    "_origin", "heir", "level", "owner_ref", "ref", "adopted", "begun", "batch", "batches",
    "gave_back", "value_name",
}  # fmt: skip
"""What messages, outcomes and the names of processes and objects are called."""


def indexed(name: str) -> list[str]:
    """Items of messages and names that a module takes by a number, as text."""
    found = []
    for node in ast.walk(tree_of(modules()[name])):
        if not isinstance(node, ast.Subscript):
            continue
        of = getattr(node.value, "attr", getattr(node.value, "id", ""))
        numbers = [part for part in ast.walk(node.slice) if isinstance(part, ast.Constant)]
        if of in READ_BY_NAME and any(isinstance(part.value, int) for part in numbers):
            found.append(ast.unparse(node))
    return found


def test_items_of_messages_and_names_are_read_by_name():
    """A number tells a reader nothing, and is wrong once an item comes in between."""
    apart = ("core.protocol.", "benchmarks.", "monitoring.failed_tasks")  # whose message is a text
    readers = (name for name in modules() if not name.startswith(apart))
    assert {name: found for name in readers if (found := indexed(name))} == {}


def test_no_module_is_too_large():
    sizes = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    assert {name: -(-size // 100) for name, size in sizes.items() if size > 600} == LARGE


def test_a_row_is_small():
    row = Row("key", None, None, (), 0)
    borrowed = Borrowed(("owner", "", "owner", "key", None, 0))
    assert sys.getsizeof(row) <= LARGEST_ROW
    assert sys.getsizeof(borrowed) <= LARGEST_ROW + 12 * 8


@pytest.mark.parametrize("name", ["modules", "messages"])
def test_what_a_page_has_from_the_code_is_up_to_date(name: str):
    made = importlib.import_module(name)
    page = made.PAGE.read_text(encoding="utf-8")
    assert made.written(page) == page, f"run python ci/{name}.py"


def test_no_two_files_of_tests_have_one_name():
    """Because ``pytest`` without arguments could not collect both."""
    names = [path.name for path in (ROOT.parent / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
