"""docs/compatibility.md says what is so: its tables against the installed distributed."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import distributed
import pytest
from distributed import LocalCluster

import dask_ownership
from dask_ownership import Client

DOCUMENT = Path(__file__).parent.parent / "docs" / "compatibility.md"

HOW = {"owned", "inherited", "promoted", "different"}

CLASSES = {
    "`Client`": (distributed.Client, Client),
    "`Future`": (distributed.Future, dask_ownership.Future),
    "`as_completed`": (distributed.as_completed, dask_ownership.as_completed),
}

ONLY_HERE = {
    "ownership",
    "owner",
    "central_calls",
    "calls",
    "cancel_pending",
    "for_worker",
    "imports",
}
"""Public names of a client that Dask's has not; the document names them."""

GONE_SINCE = {"io_loop", "register_scheduler_plugin", "register_worker_plugin"}
"""Deprecated names of older versions, which the newest has not."""

IN_AN_INSTANCE = {"scheduler", "recreate_error_locally", "recreate_task_locally"}
"""Replaced in each client, not in its class."""


def tables() -> dict[str, list[tuple[str, str, str]]]:
    """The tables of names, by the title of their section."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    for section in DOCUMENT.read_text().split("\n## ")[1:]:
        title, *lines = section.splitlines()
        rows = [re.fullmatch(r"\| `(\w+)` \| (\w+) \| ?(.*?) ?\|", line) for line in lines]
        if "| name | how | what to know |" in lines:
            # The header and the line below it are no rows; everything else has to be one.
            assert sum(line.startswith("|") for line in lines) == 2 + sum(map(bool, rows)), title
            found[title] = [(m[1], m[2], m[3]) for m in rows if m]
    return found


TABLES = tables()


def public(what: Any) -> set[str]:
    return {name for name in dir(what) if not name.startswith("_")}


def replaced(stock: type, ours: type, name: str) -> bool:
    return inspect.getattr_static(ours, name, None) is not inspect.getattr_static(stock, name, None)


def through(note: str) -> str | None:
    match = re.search(r"through `(\w+)`", note)
    return match[1] if match else None


@pytest.mark.parametrize("title", TABLES)
def test_each_name_once_with_a_word_that_means_something(title: str) -> None:
    names = Counter(name for name, _, _ in TABLES[title])
    assert not [name for name, count in names.items() if count > 1]
    assert {how for _, how, _ in TABLES[title]} <= HOW
    assert not [n for n, how, note in TABLES[title] if how == "different" and not note]


@pytest.mark.parametrize("title", CLASSES)
def test_every_public_name_is_there(title: str, cluster: LocalCluster) -> None:
    stock, _ = CLASSES[title]
    there = public(stock)
    if stock is distributed.Client:
        with distributed.Client(cluster, set_as_default=False) as client:
            there |= public(client)
    assert {name for name, _, _ in TABLES[title]} == there - GONE_SINCE


def test_every_name_of_distributed_is_there() -> None:
    there = {n for n in distributed.__all__ if not isinstance(getattr(distributed, n), ModuleType)}
    assert {name for name, _, _ in TABLES["Functions and classes of `distributed`"]} == there


def test_what_is_only_here(client: Client, cluster: LocalCluster) -> None:
    with distributed.Client(cluster, set_as_default=False) as stock:
        assert public(client) - public(stock) == ONLY_HERE
    text = DOCUMENT.read_text()
    line = re.search(r"^Only here: .*$", text, re.MULTILINE)
    assert line and set(re.findall(r"`(\w+)`", line[0])) == ONLY_HERE


@pytest.mark.parametrize("title", CLASSES)
def test_owned_is_replaced_and_inherited_is_not(title: str) -> None:
    stock, ours = CLASSES[title]
    wrong = []
    for name, how, note in TABLES[title]:
        if name in IN_AN_INSTANCE:
            continue
        by = through(note)
        if how == "owned" and by is None:
            wrong += [name] * (not replaced(stock, ours, name))
        elif how == "owned":
            calls = re.search(rf"\b{by}\b", inspect.getsource(getattr(stock, name)))
            if name == "get_executor":  # the executor calls it
                calls = re.search(rf"\b{by}\b", inspect.getsource(distributed.cfexecutor))
            elif name == "restart":  # it comes back from the scheduler
                calls = re.search(rf"\b{by}\b", inspect.getsource(stock))
            wrong += [f"{name} through {by}"] * (not calls or not replaced(stock, ours, by))
        elif how == "inherited":
            wrong += [name] * replaced(stock, ours, name)
    assert not wrong


def different_parameters(theirs: Any, mine: Any) -> list[str]:
    """What calls of the one cannot be made of the other."""
    wanted = inspect.signature(theirs).parameters
    there = inspect.signature(mine).parameters
    kinds = {p.kind for p in there.values()}
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    order = [p.name for p in there.values() if p.kind in positional]
    problems = []
    for place, (name, parameter) in enumerate(wanted.items()):
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            problems += [f"**{name}"] * (parameter.kind not in kinds)
        elif name not in there:
            by_name = parameter.kind == inspect.Parameter.KEYWORD_ONLY
            problems += [name] * (not (by_name and inspect.Parameter.VAR_KEYWORD in kinds))
        elif there[name].default != parameter.default:
            problems.append(f"{name}={there[name].default!r}, not {parameter.default!r}")
        elif parameter.kind in positional and order[place : place + 1] != [name]:
            problems.append(f"{name} is at another place")
    return problems


@pytest.mark.parametrize("title", CLASSES)
def test_what_is_replaced_takes_what_dask_takes(title: str) -> None:
    stock, ours = CLASSES[title]
    wrong = {
        name: problems
        for name in public(stock)
        if replaced(stock, ours, name)
        and callable(getattr(stock, name))
        and (problems := different_parameters(getattr(stock, name), getattr(ours, name)))
    }
    assert not wrong


def test_functions_take_what_dask_takes() -> None:
    pairs = [
        (getattr(distributed, n), getattr(dask_ownership, n)) for n in ("wait", "as_completed")
    ]
    assert [different_parameters(*pair) for pair in pairs] == [[], []]


@pytest.mark.parametrize("title", CLASSES)
def test_coroutines_are_coroutines(title: str) -> None:
    stock, ours = CLASSES[title]
    for name in public(stock):
        theirs, mine = getattr(stock, name), getattr(ours, name)
        assert inspect.iscoroutinefunction(theirs) == inspect.iscoroutinefunction(mine), name


def test_tests_and_files_that_it_names_are_there() -> None:
    top = DOCUMENT.parent.parent
    names = re.findall(r"`((?:tests|ci|docs)/[\w/.]+)`", DOCUMENT.read_text())
    assert names
    assert not [name for name in names if not (top / name).exists()]
