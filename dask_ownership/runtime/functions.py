"""Functions of tasks: how owners send functions, and what workers call.

There are three kinds. *Named* functions can be imported: the name is sent once, and the worker
looks the name up for each task, so a task sees a module as last reloaded or patched. *Plain*
functions (`runtime.plain`) are pickled once for as long as they do not change, and each task gets
a new copy made from the code. *Stateful* functions are all the rest: they are pickled with the
arguments of each call, or once for many calls made at one moment (a `map`, a graph), and each
task unpickles a copy of its own.
"""

from __future__ import annotations

import pickle
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from hashlib import blake2b
from importlib import import_module
from inspect import iscoroutinefunction
from itertools import count
from types import CodeType, FunctionType
from typing import Any, Protocol

from dask.utils import funcname

from dask_ownership.core.owner.rows.row import Function
from dask_ownership.errors import NotSerializable
from dask_ownership.runtime.plain import (
    NAMED_TYPES,
    Name,
    Part,
    Template,
    is_by_value,
    name_of,
    parts_of,
    unchanged,
)
from dask_ownership.runtime.serialize import (
    ATOMS,
    CALL,
    Slot,
    call,
    dumps,
    finding,
    objects_of,
)

KEPT_BYTES = 1 << 24
"""Bytes of pickled functions that an owner keeps although no task needs them at the moment."""

KEPT_EACH = 1 << 20
"""Bytes of one pickle above which an owner keeps the function no longer than tasks need it."""

KEPT_NUMBER = 10_000
"""Number of functions that an owner keeps although no task needs them at the moment, and number of
named functions that an owner remembers by their names."""

LOOKED_AT = 1_000
"""Number of functions of which an owner remembers whether they are plain."""


class Functions:
    """The functions of one owner, as sent to workers: each under a number.

    The record of a function (`Function`) goes with the last task that needs the function, but the
    most recently used small records are kept (`KEPT_BYTES`, `KEPT_EACH`, `KEPT_NUMBER`).

    Parameters
    ----------
    forgotten : callable, optional
        ``forgotten(number)`` is called when a record is gone, in any thread, at any moment.
    """

    def __init__(self, forgotten: Callable[[int], None] | None = None) -> None:
        self._forgotten = forgotten
        # Named functions by id, each with its module, its path and its record; and ids by name.
        self._named: dict[int, tuple[Any, str, tuple[str, ...], Function]] = {}
        self._ids: dict[Name, int] = {}
        # Codes of functions by id, each with its parts and, for a plain function, its record. And
        # the ids of codes by the numbers of records.
        self._plain: dict[int, tuple[CodeType, list[Part], Function | None]] = {}
        self._codes: dict[int, int] = {}
        # Records by a hash of the pickle: weakly all records in use, and the records that are kept,
        # the least recently used first.
        self._by_pickle: dict[bytes, weakref.ref[Function]] = {}
        self._kept: OrderedDict[bytes, Function] = OrderedDict()
        self._kept_bytes = 0
        self._numbers = count(1)
        self._lock = threading.Lock()

    def get(self, function: Callable[..., Any]) -> Function:
        """Return the owner's record of a function, as the function is now.

        When ``pickled`` of the record is `CALL`, the caller has to put the function before the
        arguments of the call: the function travels with the arguments.

        Raises
        ------
        NotSerializable
            When the function cannot be pickled.
        """
        known = self._named.get(id(function))
        if known is not None and known[0] is function:
            _, module, path, record = known
            found: Any = sys.modules.get(module)
            # The loop repeats `is_at` without a call, because each `submit` comes here. A reloaded
            # or patched module has another object at this name.
            for attribute in path:
                found = getattr(found, attribute, None)
            if found is function and not is_by_value(module):
                return record
        return self.stateless(function) or self._with_the_call(function)

    def _with_the_call(self, function: Callable[..., Any]) -> Function:
        """Return the record for a function that travels with the arguments of each call."""
        # `kind` separates the records by name: all of them have the same pickle, and a record also
        # has the measured duration of its function.
        name = funcname(function)
        return self.by_value(CALL, name, kind=name)

    def stateless(self, function: Callable[..., Any]) -> Function | None:
        """Return the record of a named or a plain function; None for a stateful function."""
        if isinstance(function, NAMED_TYPES):
            if (name := name_of(function)) is not None:
                return self._get_named(function, name)
            if type(function) is FunctionType:
                return self._get_plain(function)
        return None

    def stateful(self, function: Callable[..., Any]) -> Function:
        """Return the record of a stateful function, pickled as the function is now."""
        name = funcname(function)
        pickled, found = dumps_function(function, name)
        if found:
            # Workers keep functions for a long time, and would keep the futures inside as long.
            return self._with_the_call(function)
        record = self.by_value(pickled, name)
        # Pure calls with the same token and arguments have the same key.
        record.token = blake2b(pickled, digest_size=32).digest()
        return record

    def _get_named(self, function: Any, name: Name) -> Function:
        """Return the record of a named function, and remember the record for `get`."""
        called_by_people = funcname(function)
        pickled, _ = dumps_function(function, called_by_people)
        record = self.by_value(pickled, called_by_people)
        called = (name.module, ".".join(name.path))
        record.token = blake2b(repr(called).encode(), digest_size=32).digest()
        record.named = True
        with self._lock:
            # A name has one record at a time: a reloaded module replaces its functions, and the
            # functions from before are not kept alive.
            self._named.pop(self._ids.pop(name, 0), None)
            self._ids[name] = id(function)
            self._named[id(function)] = (function, *name, record)
            if len(self._ids) > KEPT_NUMBER:
                self._named.pop(self._ids.pop(next(iter(self._ids))), None)
        return record

    def _get_plain(self, function: FunctionType) -> Function | None:
        """Return the record of a plain function; None for any other function."""
        # Looked up by the code: functions made from one code are often the same plain function.
        code = function.__code__
        known = self._plain.get(id(code))
        if known is not None:
            _, parts, record = known
            if record is None or unchanged(parts, function):
                return record
        made = parts_of(function)
        record = None
        if made is not None:
            name = funcname(function)
            pickled, _ = dumps_function(function, name)
            if len(pickled) > KEPT_EACH:
                return None  # `_plain` keeps its records alive, so it takes small records only
            record = self.by_value(pickled, name)
            record.token = blake2b(pickled, digest_size=32).digest()
        with self._lock:
            self._plain[id(code)] = (code, made or [], record)
            if record is not None:
                self._codes[record.id] = id(code)
            if len(self._plain) > LOOKED_AT:
                self._plain.pop(next(iter(self._plain)))
        return record

    def by_value(self, pickled: bytes, name: str, kind: str = "") -> Function:
        """Return the record of a pickled function, a known record when the bytes are the same.

        A ``kind`` tells calls with the same pickle apart whose durations are measured apart.
        """
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
        """Return a weak reference to a record; the end of the record calls `forgotten`."""
        # Without `record` in the callback, which would keep the record alive.
        number = record.id
        forgotten = self._forgotten
        by_pickle = self._by_pickle

        def gone(reference: weakref.ref[Function]) -> None:
            # A newer record of the same pickle may have taken the place of this record.
            if by_pickle.get(digest) is reference:
                by_pickle.pop(digest, None)
            if forgotten is not None:
                forgotten(number)

        return weakref.ref(record, gone)

    def _drop_oldest(self) -> None:
        """Let go of the least recently used records above the limits. The lock is held."""
        while self._kept_bytes > KEPT_BYTES or len(self._kept) > KEPT_NUMBER:
            _, record = self._kept.popitem(last=False)
            self._kept_bytes -= len(record.pickled)
            self._plain.pop(self._codes.pop(record.id, 0), None)


class ManyCalls:
    """A function with many calls at one moment: in a `map`, or in a graph.

    A stateful function is pickled once for all its calls. The exception are calls in which the
    function shares an object with an argument: there the function is pickled with the arguments,
    so the task finds the object shared as well.

    Parameters
    ----------
    functions : Functions
    function : callable
    futures : tuple of type
        Types of arguments that stand for a value made elsewhere.

    Attributes
    ----------
    record : Function
        The record for calls in which nothing is shared.
    """

    def __init__(
        self, functions: Functions, function: Callable[..., Any], futures: tuple[type, ...] = ()
    ) -> None:
        self._functions = functions
        self._futures = (*futures, Slot)
        self._function = function
        stateless = functions.stateless(function)
        self.record = stateless or functions.stateful(function)
        self._carries = stateless is None and self.record.pickled is not CALL
        self._state: dict[int, Any] | None = None

    def record_for(self, args: Iterable[Any], kwargs: dict[str, Any]) -> Function:
        """Return the record for a call with these arguments."""
        if not self._carries:
            return self.record
        # Atoms and futures share no object with a function: a call with no other arguments needs no
        # search for shared objects.
        for value in (*args, *kwargs.values()):
            if type(value) not in ATOMS and not isinstance(value, self._futures):
                break
        else:
            return self.record
        if self._state is None:
            self._state = objects_of(self._function)
        if self._state and not self._state.keys().isdisjoint(objects_of((args, kwargs))):
            return self._functions.get(self._function)
        return self.record


def dumps_function(function: Callable[..., Any], name: str) -> tuple[bytes, list[Any]]:
    """Pickle a function; return the pickle and the futures inside.

    Raises
    ------
    NotSerializable
        When the function cannot be pickled.
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
    """A function that arrived at a worker.

    Attributes
    ----------
    name : str
        The name of the function in log messages.
    """

    name: str

    def get(self) -> tuple[Callable[..., Any], bool]:
        """Return the function for one task to call, and whether it is a coroutine function."""


class NamedFunction:
    """A named function, looked up under its name for each task."""

    __slots__ = ("_known", "_module", "_name", "_path", "name")

    def __init__(self, function: Callable[..., Any], name: Name) -> None:
        self.name = name.path[-1]
        self._name = name
        self._module = name.module
        self._path = name.path
        self._known = (sys.modules[name.module], function, iscoroutinefunction(function))

    def get(self) -> tuple[Callable[..., Any], bool]:
        # While the name leads to the same function, the answer is that of the last call.
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
    """A plain function: each task gets a copy made from the code."""

    __slots__ = ("_is_coroutine", "_make", "name")

    def __init__(self, function: FunctionType, parts: list[Part]) -> None:
        self.name = function.__name__
        self._is_coroutine = iscoroutinefunction(function)
        self._make = Template(function, parts, find).make

    def get(self) -> tuple[Callable[..., Any], bool]:
        return self._make(), self._is_coroutine


class StatefulFunction:
    """A stateful function: each task unpickles a copy of its own."""

    __slots__ = ("_pickled", "name")

    def __init__(self, pickled: bytes, name: str) -> None:
        self.name = name
        self._pickled = pickled

    def get(self) -> tuple[Callable[..., Any], bool]:
        function = pickle.loads(self._pickled)
        return function, iscoroutinefunction(function)


class CalledFunction:
    """A function that travels with each call, before the arguments (`CALL`)."""

    name = ""

    def get(self) -> tuple[Callable[..., Any], bool]:
        return call, False


def load(pickled: bytes) -> Loaded:
    """Load the pickle of a function that an owner sent. Call `load` within `importing.unpickle`.

    Raises
    ------
    Exception
        Any error that unpickling the function raises.
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
    """Return the object at a name as of now, importing its module when needed.

    Raises
    ------
    ImportError, AttributeError
        When the module cannot be imported, or lacks the name.
    """
    found: Any = sys.modules.get(name.module)
    if found is None:
        found = import_module(name.module)
    for attribute in name.path:
        found = getattr(found, attribute)
    return found
