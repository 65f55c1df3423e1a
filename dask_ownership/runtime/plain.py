"""Plain functions: functions without state, of which a copy costs next to nothing.

A task calls a copy of its own, as the function was when the task was submitted. For most
functions of scripts and notebooks a copy is cheap: besides its arguments, such a *plain* function
reaches only code and constants, which cannot change, and objects that other processes find by
name: modules, functions and classes of modules, and other plain functions. So a plain function is
pickled once, for as long as none of these parts changes, and a worker makes a new function for
each task from the same code. Names are looked up anew for each task.

Not plain are closures, bound methods, functions with attributes, and functions with defaults or
globals that can be changed in place. These are pickled, and unpickled, for each task.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from types import (
    BuiltinFunctionType,
    CodeType,
    EllipsisType,
    FunctionType,
    GenericAlias,
    ModuleType,
    NoneType,
    UnionType,
)
from typing import Any, NamedTuple

import cloudpickle

NAMED_TYPES = (FunctionType, BuiltinFunctionType, type)
"""Types of the objects that can be pickled by name."""

CONSTANTS = frozenset({int, float, bool, NoneType, str, bytes, complex, range, EllipsisType})
"""Types whose instances cannot change."""

MISSING = object()
"""In place of the value of a name that is not set."""

GLOBAL_NAMES = frozenset({"LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_NAME"})
"""Instructions of byte code with the name of a global."""

# Kinds of globals: how a worker makes the global of a function for each task.
CONSTANT = 0  # the value itself
MODULE = 1  # the module that is imported under its name at the time of the task
NAMED = 2  # the object that is found under its name at the time of the task
PLAIN = 3  # a new copy of the plain function
ABSENT = 4  # not among the globals of the function: a builtin, or a name that is not set yet

MOST_PARTS = 100
"""Number of plain functions referring to each other above which none of them counts as plain."""


class Name(NamedTuple):
    """The place where other processes find an object: a module, and attribute names from there."""

    module: str
    path: tuple[str, ...]


def name_of(value: Any) -> Name | None:
    """Return the name under which other processes find this very object, or None."""
    module, qualified = value.__module__, value.__qualname__
    if module is None or module == "__main__" or "<" in qualified or is_by_value(module):
        return None
    name = Name(module, tuple(qualified.split(".")))
    return name if is_at(name, value) else None


def is_at(name: Name, value: Any) -> bool:
    """Return whether the name leads to this very object now."""
    found: Any = sys.modules.get(name.module)
    for attribute in name.path:
        found = getattr(found, attribute, None)
    return found is value


def is_by_value(module: str) -> bool:
    """Return whether the user has registered a module with cloudpickle for pickling by value."""
    registered = cloudpickle.list_registry_pickle_by_value()
    return bool(registered) and any(
        module == name or module.startswith(f"{name}.") for name in registered
    )


def is_constant(value: Any) -> bool:
    """Return whether neither an object nor any object inside can change."""
    kind = type(value)
    return kind in CONSTANTS or (kind in (tuple, frozenset) and all(map(is_constant, value)))


def _is_annotation(value: Any) -> bool:
    """Return whether an annotation is of a kind that is never changed in place."""
    kind = type(value)
    return (
        kind in (NoneType, str, GenericAlias, UnionType)
        or kind.__module__ == "typing"
        or (isinstance(value, type) and name_of(value) is not None)
    )


class Global(NamedTuple):
    """A global that a plain function refers to.

    Attributes
    ----------
    name : str
    kind : int
        `CONSTANT`, `MODULE`, `NAMED`, `PLAIN` or `ABSENT`.
    value : object
        The value of the global now. For a plain function the number of its `Part` instead, so the
        record does not keep the function alive.
    where : Name or None
        The place of a `NAMED` object.
    """

    name: str
    kind: int
    value: Any
    where: Name | None = None


class Part(NamedTuple):
    """The parts of one plain function, from which a worker makes copies of the function.

    Attributes
    ----------
    code, name, qualname, module, doc, defaults
        The attributes of the function with these names.
    keywords, annotations : tuple of pairs
        Defaults of keyword-only arguments, and annotations.
    globals : tuple of Global
        The globals that the function refers to.
    """

    code: CodeType
    name: str
    qualname: str
    module: str | None
    doc: str | None
    defaults: tuple[Any, ...] | None
    keywords: tuple[tuple[str, Any], ...]
    annotations: tuple[tuple[str, Any], ...]
    globals: tuple[Global, ...]


def parts_of(function: FunctionType) -> list[Part] | None:
    """Take a function apart, together with all plain functions that the function refers to.

    Returns
    -------
    list of Part or None
        One `Part` for each function, the given function first; None when any of the functions is
        not plain.
    """
    functions = [function]
    numbers = {id(function): 0}
    parts = []
    for one in functions:  # `_part_of` appends the functions that `one` refers to
        part = _part_of(one, functions, numbers)
        if part is None or len(functions) > MOST_PARTS:
            return None
        parts.append(part)
    return parts


def _part_of(
    function: FunctionType, functions: list[FunctionType], numbers: dict[int, int]
) -> Part | None:
    """Take one function apart; None when the function is not plain.

    Functions met for the first time are appended to ``functions``, and their numbers noted in
    ``numbers``.
    """
    if function.__closure__ is not None or function.__dict__:
        return None
    if getattr(function, "__type_params__", ()) or getattr(function, "__annotate__", None):
        return None  # type parameters and lazy annotations are computed by further functions
    if function.__defaults__ is not None and not is_constant(function.__defaults__):
        return None
    keywords = tuple((function.__kwdefaults__ or {}).items())
    if not is_constant(keywords):
        return None
    annotations = tuple(function.__annotations__.items())
    if not all(_is_annotation(value) for _, value in annotations):
        return None
    found = []
    for name in sorted(global_names(function.__code__)):
        value = function.__globals__.get(name, MISSING)
        if value is MISSING:
            found.append(Global(name, ABSENT, MISSING))
        elif is_constant(value):
            found.append(Global(name, CONSTANT, value))
        elif type(value) is ModuleType:
            if value.__name__ == "__main__" or not _is_module(value) or is_by_value(value.__name__):
                return None
            found.append(Global(name, MODULE, value))
        elif isinstance(value, NAMED_TYPES) and (where := name_of(value)) is not None:
            found.append(Global(name, NAMED, value, where))
        elif type(value) is FunctionType:
            number = numbers.setdefault(id(value), len(functions))
            if number == len(functions):
                functions.append(value)
            found.append(Global(name, PLAIN, number))
        else:
            return None
    return Part(
        function.__code__,
        function.__name__,
        function.__qualname__,
        function.__module__,
        function.__doc__,
        function.__defaults__,
        keywords,
        annotations,
        tuple(found),
    )


def _is_module(value: ModuleType) -> bool:
    """Return whether a module object is the module that is imported under its name now."""
    return sys.modules.get(value.__name__) is value


def global_names(code: CodeType) -> set[str]:
    """Return the names of all globals in a code object, also in functions defined inside."""
    names = {one.argval for one in dis.get_instructions(code) if one.opname in GLOBAL_NAMES}
    for constant in code.co_consts:
        if type(constant) is CodeType:
            names |= global_names(constant)
    return names


def unchanged(parts: list[Part], function: FunctionType) -> bool:
    """Return whether a function, and all it refers to, is as when `parts_of` took it apart."""
    functions: list[Any] = [None] * len(parts)
    functions[0] = function
    todo = [0]
    for number in todo:  # the list grows with each plain function met for the first time
        part = parts[number]
        one = functions[number]
        if (
            one.__code__ is not part.code
            or one.__defaults__ is not part.defaults
            or one.__name__ != part.name
            or one.__module__ != part.module
            or one.__dict__
            or one.__closure__ is not None
            or not _same_items(one.__kwdefaults__, part.keywords)
            or not _same_items(one.__annotations__, part.annotations)
        ):
            return False
        space = one.__globals__
        for name, kind, known, where in part.globals:
            value = space.get(name, MISSING)
            if kind == PLAIN:
                if type(value) is not FunctionType:
                    return False
                # Two globals with the same number were one function before, and still have to be.
                before = functions[known]
                if before is None:
                    functions[known] = value
                    todo.append(known)
                elif before is not value:
                    return False
            elif value is not known:
                return False
            elif kind == MODULE:
                if not _is_module(value):
                    return False
            elif kind == NAMED:
                assert where is not None
                if not is_at(where, value) or is_by_value(where.module):
                    return False
    return True


def _same_items(now: dict[str, Any] | None, before: tuple[tuple[str, Any], ...]) -> bool:
    """Return whether a dict has the very same values by the same names, in any order."""
    if not now:
        return not before
    return len(now) == len(before) and all(
        now.get(name, MISSING) is value for name, value in before
    )


class Template:
    """A template for copies of a plain function, at a worker.

    Parameters
    ----------
    function : function
        The function as unpickled.
    parts : list of Part
        The result of `parts_of` for the function.
    find : callable
        ``find(name)`` returns the object at a `Name`.
    """

    def __init__(
        self, function: FunctionType, parts: list[Part], find: Callable[[Name], Any]
    ) -> None:
        self._find = find
        self._parts = parts
        # Functions that shared a namespace of globals share one in each copy, too. The three lists
        # have the globals to be made anew for each copy, each with the number of its namespace.
        functions: list[Any] = [function, *[None] * (len(parts) - 1)]
        spaces: dict[int, int] = {}
        self._spaces: list[dict[str, Any]] = []
        self._space_of: list[int] = []
        self._modules: list[tuple[int, str, ModuleType]] = []
        self._named: list[tuple[int, str, Name]] = []
        self._inner: list[tuple[int, str, int]] = []
        for number, part in enumerate(parts):
            space = functions[number].__globals__
            at = spaces.setdefault(id(space), len(self._spaces))
            if at == len(self._spaces):
                self._spaces.append(space)
            self._space_of.append(at)
            for name, kind, value, where in part.globals:
                if kind == PLAIN:
                    functions[value] = space[name]
                    self._inner.append((at, name, value))
                elif kind == MODULE:
                    self._modules.append((at, name, value))
                elif where is not None:
                    self._named.append((at, name, where))
        # The fast way, when one call of `FunctionType` makes a complete copy.
        self._alone = (
            None
            if len(parts) > 1 or not self._is_bare(parts[0])
            else (parts[0].code, self._spaces[0], parts[0].name, parts[0].defaults)
        )

    def _is_bare(self, part: Part) -> bool:
        """Return whether one call of ``FunctionType`` makes a complete copy of a part."""
        made = FunctionType(part.code, dict(self._spaces[0]), part.name, part.defaults)
        return (
            made.__qualname__ == part.qualname
            and made.__module__ == part.module
            and made.__doc__ == part.doc
            and not (part.keywords or part.annotations)
        )

    def make(self) -> Callable[..., Any]:
        """Return a new copy of the function, with globals of its own."""
        spaces = [dict(space) for space in self._spaces]
        for at, name, module in self._modules:
            spaces[at][name] = sys.modules.get(module.__name__, module)
        for at, name, where in self._named:
            spaces[at][name] = self._find(where)
        if self._alone is not None:
            code, _, name, defaults = self._alone
            made = FunctionType(code, spaces[0], name, defaults)
            for _, inner, _ in self._inner:  # with one part, these are references to itself
                spaces[0][inner] = made
            return made
        functions = [
            self._function(part, spaces[at])
            for part, at in zip(self._parts, self._space_of, strict=True)
        ]
        for at, name, number in self._inner:
            spaces[at][name] = functions[number]
        return functions[0]

    @staticmethod
    def _function(part: Part, space: dict[str, Any]) -> FunctionType:
        """Return a new function made from a part and a namespace of globals."""
        made = FunctionType(part.code, space, part.name, part.defaults)
        made.__qualname__ = part.qualname
        made.__module__ = part.module  # type: ignore[assignment]
        made.__doc__ = part.doc
        if part.keywords:
            made.__kwdefaults__ = dict(part.keywords)
        if part.annotations:
            made.__annotations__ = dict(part.annotations)
        return made
