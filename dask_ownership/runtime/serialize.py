"""Pickling of calls, results and errors.

All of it happens in the thread that submits or runs the task, never on an event
loop. Plain pickle first, because it is the fastest; cloudpickle for what pickle
cannot do or would do by reference to a ``__main__`` that the other side lacks.
"""

from __future__ import annotations

import logging
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import BuiltinFunctionType, ModuleType, TracebackType
from typing import Any

import cloudpickle
from distributed.core import error_message
from distributed.sizeof import safe_sizeof

from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.protocol.messages import Process
from dask_ownership.errors import NotSerializable, TaskExit
from dask_ownership.runtime.importing import loads

logger = logging.getLogger("dask_ownership.serialize")

ATOMS = frozenset({int, float, bool, type(None), str, bytes, complex})
CONTAINERS = frozenset({list, tuple, set, frozenset, dict})


def dumps(value: Any) -> bytes:
    """Pickle a value for another process.

    Raises
    ------
    Exception
        Whatever the value's pickling raises.
    """
    if not cloudpickle.list_registry_pickle_by_value():
        try:
            pickled = pickle.dumps(value, 5)
        except Exception:
            return bytes(cloudpickle.dumps(value, 5))
        if b"__main__" not in pickled:
            return pickled
    return bytes(cloudpickle.dumps(value, 5))


UNKNOWN_SIZE = 1_000_000
"""Bytes of a value whose size cannot be told, as in Dask."""


def sizeof(value: Any) -> int:
    """Bytes of a value as Dask estimates them: a whole number, whatever a ``sizeof`` gives."""
    try:
        return max(0, int(safe_sizeof(value)))
    except (TypeError, ValueError, OverflowError):
        return UNKNOWN_SIZE


@contextmanager
def finding(holder: Process | None = None) -> Iterator[list[Any]]:
    """Collect the futures that are pickled in the body, each once.

    With a ``holder`` they are named as what that process holds.
    """
    outer = pickling.found, pickling.holder
    found: list[Any] = []
    try:  # an interrupt may come between any two lines
        pickling.found, pickling.holder = found, holder
        yield found
    finally:
        pickling.found, pickling.holder = outer


@contextmanager
def arriving(client: Any) -> Iterator[list[Row]]:
    """Have futures that are unpickled in the body be this client's; collects their rows."""
    before = unpickling.client, unpickling.arrived
    arrived: list[Row] = []
    try:
        unpickling.client, unpickling.arrived = client, arrived
        yield arrived
    finally:
        unpickling.client, unpickling.arrived = before


def futures_in(value: Any) -> list[Any]:
    """The futures inside a value that is not going to be pickled now.

    Buffers that pickle protocol 5 passes on out of band, such as those of arrays, are
    not copied.
    """
    with finding() as found:
        try:
            cloudpickle.dumps(value, 5, buffer_callback=lambda buffer: False)
        except Exception:
            logger.debug("looking for futures in a %s", type(value).__name__, exc_info=True)
    return found


# ---- calls ----


class _Unpickling(threading.local):
    """What this thread is unpickling.

    Attributes
    ----------
    values : list
        What the slots of a payload stand for.
    client : Client or None
        The client whose futures those become that arrive.
    arrived : list of Row or None
        Rows of futures that arrived, when somebody asks.
    """

    values: list[Any] | tuple[()] = ()
    client: Any = None
    arrived: list[Row] | None = None


class _Pickling(threading.local):
    """What this thread pickles.

    Attributes
    ----------
    found : list or None
        Futures that were met, when somebody asks.
    holder : Process or None
        Who is about to hold what they stand for.
    names : bool
        Futures are pickled as their names, for a pickle that nobody loads.
    """

    found: list[Any] | None = None
    holder: Process | None = None
    names = False


unpickling = _Unpickling()
pickling = _Pickling()


def _slot_value(index: int) -> Any:
    return unpickling.values[index]


class Slot:
    """Stands in a payload for the value of a dependency."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index

    def __reduce__(self) -> tuple[Any, ...]:
        return _slot_value, (self.index,)


def dumps_call(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    name: str,
    row_of: Callable[..., Row | None],
    future_type: type | tuple[type, ...],
) -> tuple[bytes, tuple[Row, ...], tuple[Row, ...]]:
    """Pickle the arguments of a call.

    Futures at any depth of lists, tuples, sets and dicts become dependencies, as
    in Dask; those deeper inside other objects travel as futures.

    Parameters
    ----------
    row_of : callable
        Gives the row of a future that this owner owns, None for another's. Its second
        argument is true for those that travel.
    future_type : type
        What counts as a future.

    Returns
    -------
    tuple
        The payload, the rows that its slots stand for, and the rows whose futures
        travel inside it.

    Raises
    ------
    NotSerializable
        When an argument cannot be pickled.
    """
    if not kwargs:
        for value in args:
            if type(value) not in ATOMS:
                break
        else:
            return pickle.dumps((args, kwargs), 5), (), ()
    slots: dict[Row, Slot] = {}
    given = args, kwargs

    def replace(value: Any) -> Any:
        kind = type(value)
        if kind in ATOMS:
            return value
        if isinstance(value, future_type):
            row = row_of(value)
            if row is None:
                return value
            slot = slots.get(row)
            if slot is None:
                slot = slots[row] = Slot(len(slots))
            return slot
        if kind is dict:
            items = {replace(k): replace(v) for k, v in value.items()}
            same = all(a is b for a, b in zip(items.values(), value.values(), strict=False))
            return (
                value
                if same and len(items) == len(value) and items.keys() == value.keys()
                else items
            )
        if kind in CONTAINERS:
            made = [replace(item) for item in value]
            if all(a is b for a, b in zip(made, value, strict=False)):
                return value
            return kind(made)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            made = [replace(item) for item in value]
            if all(a is b for a, b in zip(made, value, strict=False)):
                return value
            return kind._make(made)  # whatever its own constructor takes
        return value

    try:
        args = tuple([replace(value) for value in args])
        kwargs = {key: replace(value) for key, value in kwargs.items()}
    except RecursionError:
        # Something contains itself, or is very deep. Futures in it travel as futures.
        args, kwargs = given
        slots.clear()
    outer = pickling.found
    found: list[Any] = []
    try:
        pickling.found = found
        payload = dumps((args, kwargs))
    except Exception as error:
        raise NotSerializable(
            f"could not pickle the arguments of {name!r} to serialize them for a worker: {error!r}"
        ) from error
    finally:
        pickling.found = outer
    contains: tuple[Row, ...] = ()
    if found:
        contains = tuple(dict.fromkeys([row for f in found if (row := row_of(f, True))]))
    return payload, tuple(slots), contains


def dumps_names(value: Any) -> bytes:
    """A pickle that is the same whoever owns the futures inside; nobody loads it."""
    try:
        pickling.names = True
        return dumps(value)
    finally:
        pickling.names = False


class _Nowhere:
    """A file that keeps nothing."""

    def write(self, data: bytes) -> None:
        pass


FIXED = (str, bytes, tuple, frozenset, type, BuiltinFunctionType, ModuleType)
"""Types of which an object is as good as an equal one, and those that are pickled by name."""


def _is_fixed(value: Any) -> bool:
    if isinstance(value, FIXED) or type(value).__name__.endswith("DType"):  # of NumPy
        return True
    try:
        return getattr(sys.modules.get(value.__module__), value.__qualname__, None) is value
    except Exception:
        return False


def objects_of(value: Any) -> dict[int, Any]:
    """The objects that are pickled with a value and may change, by their ids.

    They are kept, so that the ids stay theirs. Nothing when the value cannot be pickled.
    """
    pickler = cloudpickle.Pickler(_Nowhere(), 5, buffer_callback=lambda buffer: None)
    try:
        pickling.names = True
        pickler.dump(value)
    except Exception:
        return {}  # whoever pickles it says why
    finally:
        pickling.names = False
    return {
        number: kept for number, (_, kept) in pickler.memo.copy().items() if not _is_fixed(kept)
    }


def loads_call(payload: bytes, values: list[Any] | tuple[()]) -> tuple[Any, dict[str, Any]]:
    """Unpickle a call, with the values in place of its slots."""
    if not values:
        return pickle.loads(payload)
    unpickling.values = values
    try:
        return pickle.loads(payload)
    finally:
        unpickling.values = ()


def loads_value(key: Any, pickled: bytes) -> Any:
    """The value of an inline row.

    Raises
    ------
    NotSerializable
        When it cannot be unpickled here.
    """
    try:
        return loads(pickled)
    except Exception as error:
        raise NotSerializable(
            f"the value of {key!r} arrived and could not be unpickled here: {error!r}; "
            "is what it imports installed?"
        ) from error


def run_node(node: Any, values: dict[Any, Any]) -> Any:
    """What a worker calls for a task of a graph: the node on its inputs."""
    return node(values)


def identity(value: Any) -> Any:
    """What a worker calls for an alias."""
    return value


def literal(value: Any) -> Any:
    """What a worker calls for a block of data that a graph has in it."""
    return value


def nothing(value: Any) -> None:
    """What a worker calls to have a value and make nothing of it."""


def call(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """What a worker calls for a function with futures inside."""
    return function(*args, **kwargs)


CALL = pickle.dumps(call, 5)


# ---- errors ----


RUNTIME = os.path.join("dask_ownership", "runtime")
"""In the names of files whose frames say nothing about a task."""


def dumps_error(error: BaseException, key: Any, where: str) -> bytes:
    """Pickle an exception with its traceback, so that it can be rebuilt for certain.

    Must be called while the exception is being handled. What cannot be rebuilt
    travels as a `NotSerializable` with its text.
    """
    if not isinstance(error, Exception):
        error = TaskExit(
            f"the task {key!r} at {where} raised {error!r}; it failed, and the worker goes on"
        )
    try:
        message = error_message(error)
        traceback = message["traceback"]
        pickled = bytes(message["exception"].data)
        text = f"the task {key!r} at {where} raised {message['exception_text']}"
        if type(pickle.loads(pickled)) is not type(error):
            pickled = _dumps_bare(error) or pickle.dumps(
                NotSerializable(f"{text}, which cannot be pickled")
            )
        parts = (pickled, None if traceback is None else bytes(traceback.data), text)
    except BaseException as problem:
        text = (
            f"the task {key!r} at {where} raised {type(error).__name__}, which itself could not "
            f"be shown: {type(problem).__name__}"
        )
        parts = (pickle.dumps(NotSerializable(text)), None, text)
    return pickle.dumps(parts, 5)


def _dumps_bare(error: BaseException) -> bytes | None:
    """Pickle an exception without its traceback, which is too deep after a recursion."""
    error.__traceback__ = error.__context__ = error.__cause__ = None
    try:
        pickled = dumps(error)
        return pickled if type(pickle.loads(pickled)) is type(error) else None
    except Exception:
        return None


def loads_error(pickled: bytes) -> BaseException:
    """The exception with its traceback, if that could travel.

    A traceback that arrives refers to the frames in which it was unpickled, so none of
    them may refer to the exception when it is returned: that would be a cycle.
    """
    exception, traceback, text = pickle.loads(pickled)
    try:
        error = loads(exception)
    except Exception as problem:
        error = NotSerializable(f"{text}, which cannot be unpickled here: {problem!r}")
    try:
        frames = None if traceback is None else loads(traceback)
    except Exception:
        frames = None
    try:
        if not isinstance(frames, TracebackType):
            return error
        # The first frames are this project's own, up to the task's function.
        while frames.tb_next and RUNTIME in frames.tb_frame.f_code.co_filename:
            frames = frames.tb_next
        return error.with_traceback(frames)
    finally:
        del error, frames
