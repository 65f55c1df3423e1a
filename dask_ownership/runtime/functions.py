"""Functions of tasks: how owners send them, and what workers call.

There are three kinds. *Named* functions can be imported: their name is sent once, and looked up
for each task, so that a module that was reloaded or patched is seen. *Plain* functions
(`runtime.plain`) are pickled once for as long as they do not change, and each task gets a new
copy of the code. All others carry state: they are pickled with the arguments of each call, or
once for many calls that are made at one moment (a `map`, a graph), and each task unpickles its
own.
"""

from __future__ import annotations

import pickle
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from importlib import import_module
from inspect import iscoroutinefunction
from itertools import count
from types import CodeType, FunctionType
from typing import Any, Protocol

from dask.utils import funcname

from dask_ownership.core.table import Function
from dask_ownership.errors import NotSerializable
from dask_ownership.runtime.plain import (
    NAMED_TYPES,
    Name,
    Part,
    Template,
    is_at,
    is_by_value,
    name_of,
    parts_of,
    unchanged,
)
from dask_ownership.runtime.serialize import CALL, call, dumps, finding

KEPT_BYTES = 1 << 24
"""Pickled functions that an owner keeps although no task needs them at the moment."""

KEPT_EACH = 1 << 20
"""Larger ones are not kept."""

KEPT_NUMBER = 10_000

LOOKED_AT = 1_000
"""Of how many functions an owner remembers whether they are plain."""


class Functions:
    """The functions that one owner sends, each under a number.

    What nobody calls any more goes: its record with the last task that needs it, unless it
    is among the small ones that were used last.

    Parameters
    ----------
    forgotten : callable, optional
        ``forgotten(number)`` when a record is gone. Any thread, at any moment.
    """

    def __init__(self, forgotten: Callable[[int], None] | None = None) -> None:
        self._forgotten = forgotten
        self._named: dict[tuple[str, str], tuple[Any, Name, Function]] = {}
        self._plain: dict[int, tuple[CodeType, list[Part], Function | None]] = {}
        self._codes: dict[int, int] = {}
        self._by_pickle: dict[bytes, weakref.ref[Function]] = {}
        self._kept: OrderedDict[bytes, Function] = OrderedDict()
        self._kept_bytes = 0
        self._numbers = count(1)
        self._lock = threading.Lock()

    def get(self, function: Callable[..., Any], often: bool = False) -> Function:
        """The owner's record of a function, as it is now.

        When its ``pickled`` is `CALL`, the function is to be the first argument of the call,
        and travels with the others.

        Parameters
        ----------
        function : callable
        often : bool
            It is going to be called many times as it is now: should it carry state, it is
            pickled here, once.

        Raises
        ------
        NotSerializable
            When it cannot be pickled.
        """
        if isinstance(function, NAMED_TYPES):
            known = self._named.get((function.__module__, function.__qualname__))
            if (
                known is not None
                and known[0] is function
                and is_at(known[1], function)
                and not is_by_value(known[1].module)
            ):
                return known[2]
            if (name := name_of(function)) is not None:
                return self._get_named(function, name)
            if type(function) is FunctionType and (record := self._get_plain(function)):
                return record
        name_for_people = funcname(function)
        if often:
            pickled, found = dumps_function(function, name_for_people)
            if not found:
                record = self.by_value(pickled, name_for_people)
                record.token = blake2b(pickled, digest_size=32).digest()
                return record
        # Also one with futures inside: workers would keep those for as long as the function.
        return self.by_value(CALL, name_for_people, kind=name_for_people)

    def _get_named(self, function: Any, name: Name) -> Function:
        pickled, _ = dumps_function(function, function.__name__)
        record = self.by_value(pickled, function.__name__)
        called = (name.module, ".".join(name.path))
        record.token = blake2b(repr(called).encode(), digest_size=32).digest()
        record.named = True
        with self._lock:
            self._named[called] = (function, name, record)
            if len(self._named) > KEPT_NUMBER:
                del self._named[next(iter(self._named))]
        return record

    def _get_plain(self, function: FunctionType) -> Function | None:
        """The record of a function that carries no state; None for any other."""
        code = function.__code__
        known = self._plain.get(id(code))
        if known is not None:
            _, parts, record = known
            if record is None or unchanged(parts, function):
                return record
        made = parts_of(function)
        record = None
        if made is not None:
            pickled, _ = dumps_function(function, function.__name__)
            if len(pickled) > KEPT_EACH:
                return None
            record = self.by_value(pickled, function.__name__)
            record.token = blake2b(pickled, digest_size=32).digest()
        with self._lock:
            self._plain[id(code)] = (code, made or [], record)
            if record is not None:
                self._codes[record.id] = id(code)
            if len(self._plain) > LOOKED_AT:
                self._plain.pop(next(iter(self._plain)))
        return record

    def by_value(self, pickled: bytes, name: str, kind: str = "") -> Function:
        """The record of a pickled function; ``kind`` keeps durations of one apart."""
        digest = blake2b(pickled, digest_size=16, person=kind.encode()[:16]).digest()
        with self._lock:
            reference = self._by_pickle.get(digest)
            record = reference() if reference is not None else None
            if record is None:
                record = Function(next(self._numbers), pickled, name)
                self._by_pickle[digest] = self._watched(record, digest)
            if digest in self._kept:
                self._kept.move_to_end(digest)
            elif len(pickled) <= KEPT_EACH:
                self._kept[digest] = record
                self._kept_bytes += len(pickled)
                self._drop_oldest()
        return record

    def _watched(self, record: Function, digest: bytes) -> weakref.ref[Function]:
        number = record.id
        forgotten = self._forgotten
        by_pickle = self._by_pickle

        def gone(reference: weakref.ref[Function]) -> None:
            if by_pickle.get(digest) is reference:
                by_pickle.pop(digest, None)
            if forgotten is not None:
                forgotten(number)

        return weakref.ref(record, gone)

    def _drop_oldest(self) -> None:
        """Keep no more than is allowed. The lock is held."""
        while self._kept_bytes > KEPT_BYTES or len(self._kept) > KEPT_NUMBER:
            _, record = self._kept.popitem(last=False)
            self._kept_bytes -= len(record.pickled)
            self._plain.pop(self._codes.pop(record.id, 0), None)


def dumps_function(function: Callable[..., Any], name: str) -> tuple[bytes, list[Any]]:
    """Pickle a function; also the futures inside.

    Raises
    ------
    NotSerializable
    """
    try:
        with finding() as found:
            return dumps(function), found
    except Exception as error:
        raise NotSerializable(
            f"could not pickle the function {name!r} to serialize it for a worker: {error!r}"
        ) from error


# ---- at a worker ----


class Loaded(Protocol):
    """A function that arrived at a worker."""

    name: str
    """For people."""

    def get(self) -> tuple[Callable[..., Any], bool]:
        """What one task calls, and whether it is a coroutine function."""


class NamedFunction:
    """One that is found under its name, each time it is called."""

    __slots__ = ("_known", "_module", "_name", "_path", "name")

    def __init__(self, function: Callable[..., Any], name: Name) -> None:
        self.name = name.path[-1]
        self._name = name
        self._module = name.module
        self._path = name.path
        self._known = (sys.modules[name.module], function, iscoroutinefunction(function))

    def get(self) -> tuple[Callable[..., Any], bool]:
        there, function, is_coroutine = self._known
        module = sys.modules.get(self._module)
        if module is there:
            found: Any = module
            for attribute in self._path:
                found = getattr(found, attribute)
        else:
            found = find(self._name)
        if found is not function:
            is_coroutine = iscoroutinefunction(found)
            self._known = (sys.modules[self._module], found, is_coroutine)
        return found, is_coroutine


class PlainFunction:
    """One of which each task gets a copy that is made of its code."""

    __slots__ = ("_is_coroutine", "_make", "name")

    def __init__(self, function: FunctionType, parts: list[Part]) -> None:
        self.name = function.__name__
        self._is_coroutine = iscoroutinefunction(function)
        self._make = Template(function, parts, find).make

    def get(self) -> tuple[Callable[..., Any], bool]:
        return self._make(), self._is_coroutine


class StatefulFunction:
    """One that each task unpickles."""

    __slots__ = ("_pickled", "name")

    def __init__(self, pickled: bytes, name: str) -> None:
        self.name = name
        self._pickled = pickled

    def get(self) -> tuple[Callable[..., Any], bool]:
        function = pickle.loads(self._pickled)
        return function, iscoroutinefunction(function)


class CalledFunction:
    """One that travels with the arguments of each call, as the first of them."""

    name = ""

    def get(self) -> tuple[Callable[..., Any], bool]:
        return call, False


def load(pickled: bytes) -> Loaded:
    """A function that arrived; call it within `importing.unpickle`.

    Raises
    ------
    Exception
        Whatever its unpickling raises.
    """
    if pickled == CALL:
        return CalledFunction()
    function = pickle.loads(pickled)
    if isinstance(function, NAMED_TYPES) and (name := name_of(function)) is not None:
        return NamedFunction(function, name)
    if type(function) is FunctionType and (parts := parts_of(function)) is not None:
        return PlainFunction(function, parts)
    return StatefulFunction(pickled, funcname(function))


def find(name: Name) -> Any:
    """What is at a name now; its module is imported when it is not there.

    Raises
    ------
    ImportError, AttributeError
    """
    found: Any = sys.modules.get(name.module)
    if found is None:
        found = import_module(name.module)
    for attribute in name.path:
        found = getattr(found, attribute)
    return found
