"""Functions without state: what counts as one, and that each copy stands for itself."""

from __future__ import annotations

import asyncio
import functools
import math
import operator
import sys
import types
from collections.abc import Callable
from typing import Any

import cloudpickle
import pytest

from dask_ownership.runtime.functions import PlainFunction, StatefulFunction, find, load
from dask_ownership.runtime.plain import Template, name_of, parts_of, unchanged


def script(source: str, **given: Any) -> types.SimpleNamespace:
    """What a script or a notebook has after it ran this source."""
    space: dict[str, Any] = {"__name__": "__main__", **given}
    exec(source, space)
    return types.SimpleNamespace(space=space, **{k: v for k, v in space.items() if k[0] != "_"})


PLAIN = {
    "nothing": "def f(x): return x + 1",
    "a constant": "K = 3\ndef f(x): return x + K",
    "a tuple": "K = (1, ('a', 2.0), frozenset({3}))\ndef f(x): return K",
    "a module": "import math\ndef f(x): return math.sqrt(x)",
    "a function of a module": "from math import sqrt\ndef f(x): return sqrt(x)",
    "a class of a module": "from collections import Counter\ndef f(x): return Counter(x)",
    "another plain one": "K = 1\ndef g(x): return x + K\ndef f(x): return g(x)",
    "itself": "def f(n): return n * f(n - 1) if n else 1",
    "each other": "def f(n): return g(n)\ndef g(n): return n and f(n - 1)",
    "a function inside": "K = 2\ndef f(x):\n    def g(): return K * x\n    return g()",
    "defaults": "def f(x, y=1, *, z='a', w=(1, None)): return x, y, z, w",
    "annotations": "import typing\ndef f(x: int, y: 'str' = 'a') -> typing.Any: return x",
    "a lambda": "f = lambda x: x * 2",
    "a coroutine function": "async def f(x): return x",
    "a name that is not there": "def f(x): return helper(x)",
    "what it writes": "n = 0\ndef f(x):\n    global n\n    n += x\n    return n",
}

NOT_PLAIN = {
    "a cell": "def make():\n    n = 0\n    def f(x): return n\n    return f\nf = make()",
    "a mutable default": "def f(x, seen=[]): return seen",
    "a mutable keyword default": "def f(x, *, seen={}): return seen",
    "an attribute": "def f(x): return x\nf.calls = 0",
    "a mutable global": "SEEN = []\ndef f(x): return SEEN",
    "a list in a tuple": "SEEN = (1, [2])\ndef f(x): return SEEN",
    "an object": "class A: pass\nA.x = 1\na = A()\ndef f(x): return a",
    "a class of the script": "class A: pass\ndef f(x): return A()",
    "another one that is not": "def g(x, seen=[]): return seen\ndef f(x): return g(x)",
    "a mutable global of another": "S = {}\ndef g(x): return S\ndef f(x): return g(x)",
    "one that is used inside": "S = {}\ndef f(x):\n    def g(): return S\n    return g()",
}


@pytest.mark.parametrize("source", PLAIN.values(), ids=PLAIN)
def test_without_state(source):
    function = script(source).f
    parts = parts_of(function)
    assert parts is not None
    assert unchanged(parts, function)
    assert isinstance(load(cloudpickle.dumps(function)), PlainFunction)


@pytest.mark.parametrize("source", NOT_PLAIN.values(), ids=NOT_PLAIN)
def test_with_state(source):
    function = script(source).f
    assert parts_of(function) is None
    assert isinstance(load(cloudpickle.dumps(function)), StatefulFunction)


def copies(function: Any) -> Callable[[], Any]:
    """Makes copies as a worker does, of what was pickled elsewhere."""
    there = cloudpickle.loads(cloudpickle.dumps(function))
    parts = parts_of(there)
    assert parts is not None
    return Template(there, parts, find).make


@pytest.mark.parametrize(
    ("source", "args", "value"),
    [
        ("K = 3\ndef f(x): return x + K", (1,), 4),
        ("import math\ndef f(x): return math.sqrt(x)", (9,), 3.0),
        ("from math import sqrt\ndef f(x): return sqrt(x)", (9,), 3.0),
        ("def f(n): return n * f(n - 1) if n else 1", (5,), 120),
        (
            "def f(n): return n == 0 or odd(n - 1)\ndef odd(n): return n != 0 and f(n - 1)",
            (7,),
            False,
        ),
        ("def f(x, y=1, *, z='a'): return x, y, z", (0,), (0, 1, "a")),
        ("f = lambda x: x * 2", (4,), 8),
    ],
)
def test_a_copy_does_the_same(source, args, value):
    make = copies(script(source).f)
    assert [make()(*args) for _ in range(3)] == [value] * 3


def test_a_copy_looks_the_same():
    function = script(
        "import typing\n"
        "def f(x: int, *, y: typing.Any = 1) -> str:\n"
        "    'What it does.'\n"
        "    return str(x)\n"
    ).f
    function.__qualname__ = "Outer.f"
    function.__module__ = "somewhere"
    made = copies(function)()
    for name in ("__name__", "__qualname__", "__module__", "__doc__", "__annotations__"):
        assert getattr(made, name) == getattr(function, name), name
    assert made.__kwdefaults__ == function.__kwdefaults__
    assert made(3) == "3"


def test_copies_share_nothing_that_a_task_can_change():
    make = copies(
        script(
            "n = 0\n"
            "def g(): return getattr(g, 'calls', 0)\n"
            "def f(*, k: int = 1):\n"
            "    global n\n"
            "    n += 1\n"
            "    g.calls = g() + 1\n"
            "    f.calls = getattr(f, 'calls', 0) + 1\n"
            "    f.__kwdefaults__['k'] = 5\n"
            "    f.__annotations__['k'] = str\n"
            "    globals()['extra'] = 1\n"
            "    return n, g.calls, f.calls, k, 'more' in globals()\n"
        ).f
    )
    one, other = make(), make()
    assert one() == other() == (1, 1, 1, 1, False)
    assert one() == (2, 2, 2, 5, False)
    assert make()() == (1, 1, 1, 1, False)


def test_a_copy_calls_its_own_copies():
    make = copies(script("def g(): return f\ndef f(): return g()").f)
    one = make()
    assert one() is one
    assert make()() is not one


def test_names_are_looked_up_for_each_copy(monkeypatch):
    module = types.ModuleType("rules_of_a_test")
    exec("def rule(): return 'old'", module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    space = script("def f(): return rule(), module.rule()", rule=module.rule, module=module)
    make = copies(space.f)
    assert make()() == ("old", "old")
    exec("def rule(): return 'patched'", module.__dict__)
    assert make()() == ("patched", "patched")
    again = types.ModuleType(module.__name__)
    exec("def rule(): return 'new'", again.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, again)
    assert make()() == ("new", "new")


CHANGES = {
    "a constant": "K = 2",
    "a constant that is equal": "K = 1.0",
    "a constant that becomes mutable": "K = [1]",
    "another function": "def g(x): return x - K",
    "what another one refers to": "M = 8",
    "a name that came late": "late = 1",
    "a name that is gone": "del K",
    "a default": "f.__defaults__ = (2,)",
    "a keyword default": "f.__kwdefaults__ = {'z': 3}",
    "an attribute": "f.calls = 1",
    "an attribute of another one": "g.calls = 1",
    "the code": "f.__code__ = (lambda x, y=1, *, z=2: x).__code__",
    "an annotation": "f.__annotations__['x'] = str",
    "the function of a module": "sqrt = min",
    "the name": "f.__name__ = 'other'",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_seen(change):
    there = script(
        "import math\nfrom math import sqrt\n"
        "K = 1\nM = 7\n"
        "def g(x): return x + K + M\n"
        "def f(x: int, y=1, *, z=2): return g(x), K, sqrt(y), math, late\n"
    )
    parts = parts_of(there.f)
    assert parts is not None
    assert unchanged(parts, there.f)
    exec(change, there.space)
    assert not unchanged(parts, there.f)


def test_a_function_of_a_module_that_was_patched_is_not_found_under_its_name(monkeypatch):
    there = script("from math import sqrt\ndef f(x): return sqrt(x)")
    parts = parts_of(there.f)
    assert parts is not None
    monkeypatch.setattr(math, "sqrt", min)
    assert not unchanged(parts, there.f)
    assert parts_of(there.f) is None  # pickled by its name it would be another function


def test_a_function_made_anew_from_the_same_code_is_the_same():
    there = script("def make():\n    return lambda x: x + 1\n")
    parts = parts_of(there.make())
    assert parts is not None
    assert unchanged(parts, there.make())


@pytest.mark.parametrize(
    "value", [len, operator.add, math.sqrt, dict, asyncio.sleep, functools.partial, Template.make]
)
def test_what_has_a_name(value):
    name = name_of(value)
    assert name is not None
    assert find(name) is value


def test_what_has_no_name():
    def inner() -> None: ...

    assert name_of(inner) is None
    assert name_of(lambda: 1) is None
    assert name_of(script("def f(): pass").f) is None
    assert name_of(script("class A: pass").A) is None


def test_what_the_user_wants_by_value_has_no_name():
    cloudpickle.register_pickle_by_value(math)
    try:
        assert name_of(math.sqrt) is None
    finally:
        cloudpickle.unregister_pickle_by_value(math)
    assert name_of(math.sqrt) is not None
