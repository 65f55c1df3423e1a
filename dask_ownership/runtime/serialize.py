"""Pickling of calls, results and errors.

Pickling happens in the thread that submits or runs the task, never on an event loop. Plain pickle
comes first, because it is the fastest; cloudpickle takes over for objects that pickle refuses, or
pickles by reference to a ``__main__`` which the other process lacks.
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
from dask_ownership.errors import NotSerializable, NotUnpickled, TaskExit, TaskTimeout
from dask_ownership.runtime.importing import loads

logger = logging.getLogger("dask_ownership.serialize")

ATOMS = frozenset({int, float, bool, type(None), str, bytes, complex})
"""Types whose instances have no futures inside and are pickled at once."""

SEQUENCES = (list, tuple, set, frozenset)
"""Types in which, besides dict, futures are dependencies of a call, as in Dask."""


def dumps(value: Any) -> bytes:
    """Pickle a value for another process.

    Raises
    ------
    Exception
        Any error that pickling the value raises.
    """
    # Plain pickle knows nothing of modules that the user registered for pickling by value.
    if not cloudpickle.list_registry_pickle_by_value():
        try:
            pickled = pickle.dumps(value, 5)
        except Exception:
            return bytes(cloudpickle.dumps(value, 5))
        if b"__main__" not in pickled:
            return pickled
    return bytes(cloudpickle.dumps(value, 5))


UNKNOWN_SIZE = 1_000_000
"""Bytes assumed for a value whose size cannot be computed, as in Dask."""


def sizeof(value: Any) -> int:
    """Return the bytes of a value as Dask estimates them, always as a whole number.

    The ``sizeof`` of a user's type may return anything.
    """
    try:
        return max(0, int(safe_sizeof(value)))
    except (TypeError, ValueError, OverflowError):
        return UNKNOWN_SIZE


@contextmanager
def finding(holder: Process | None = None) -> Iterator[list[Any]]:
    """Collect the futures pickled in the body, each once.

    With a ``holder`` the futures are pickled under the names of the objects that this process
    holds, see `references.detached`.
    """
    outer = pickling.found, pickling.holder
    found: list[Any] = []
    try:  # before the assignment: an interrupt may come between any two lines
        pickling.found, pickling.holder = found, holder
        yield found
    finally:
        pickling.found, pickling.holder = outer


@contextmanager
def arriving(client: Any) -> Iterator[list[Row]]:
    """Make futures unpickled in the body futures of a client, and collect their rows."""
    before = unpickling.client, unpickling.arrived
    arrived: list[Row] = []
    try:
        unpickling.client, unpickling.arrived = client, arrived
        yield arrived
    finally:
        unpickling.client, unpickling.arrived = before


def futures_in(value: Any) -> list[Any]:
    """Return the futures inside a value, without a pickle of the value.

    A value that cannot be pickled gives the futures met until the error.
    """
    with finding() as found:
        try:
            # Buffers that pickle protocol 5 takes out of band, such as those of arrays, go to the
            # callback and are not copied.
            cloudpickle.dumps(value, 5, buffer_callback=lambda buffer: False)
        except Exception:
            logger.debug("looking for futures in a %s", type(value).__name__, exc_info=True)
    return found


# ---- calls ----


class _Unpickling(threading.local):
    """Settings of the current thread for unpickling.

    Attributes
    ----------
    values : list
        The values of the dependencies that the slots of a payload stand for.
    client : Client or None
        The client that arriving futures are made for.
    arrived : list of Row or None
        A list to which the rows of arriving futures are appended, if any.
    """

    values: list[Any] | tuple[()] = ()
    client: Any = None
    arrived: list[Row] | None = None


class _Pickling(threading.local):
    """Settings of the current thread for pickling.

    Attributes
    ----------
    found : list or None
        A list to which the pickled futures are appended, if any.
    holder : Process or None
        The process that is about to hold the objects of the futures.
    names : bool
        Futures are pickled as their names, for a pickle that is never loaded.
    """

    found: list[Any] | None = None
    holder: Process | None = None
    names = False


unpickling = _Unpickling()
pickling = _Pickling()


def _slot_value(index: int) -> Any:
    """Return the value for a slot, when the payload is unpickled."""
    return unpickling.values[index]


class Slot:
    """A place in a payload for the value of one dependency, given by the number of the latter."""

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

    Futures at any depth of lists, tuples, sets and dicts become dependencies, as in Dask; futures
    inside other objects travel as futures.

    Parameters
    ----------
    args, kwargs
        The arguments.
    name : str
        The name of the function, for error messages.
    row_of : callable
        ``row_of(future, inside)`` returns the row of a future of this owner, and None for a future
        to leave where it is; ``inside`` is true for a future that travels inside an object.
    future_type : type or tuple of type
        Types of futures.

    Returns
    -------
    tuple
        The payload, the rows of its slots, and the rows of the futures travelling inside.

    Raises
    ------
    NotSerializable
        When an argument cannot be pickled.
    """
    # The fast way for calls with atoms only: no future to look for, and no object of `__main__`.
    if not kwargs:
        for value in args:
            if type(value) not in ATOMS:
                break
        else:
            return pickle.dumps((args, kwargs), 5), (), ()
    # A row has one slot, however often its future is among the arguments.
    slots: dict[Row, Slot] = {}
    given = args, kwargs

    def replace(value: Any) -> Any:
        """Return a value with slots in place of futures; the very value when there are none."""
        # Containers without futures are kept, so objects that arguments share stay shared.
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
        if isinstance(value, dict):
            items = {replace(k): replace(v) for k, v in value.items()}
            same = all(a is b for a, b in zip(items.values(), value.values(), strict=False))
            return (
                value
                if same and len(items) == len(value) and items.keys() == value.keys()
                else items
            )
        if isinstance(value, SEQUENCES):
            made = [replace(item) for item in value]
            if all(a is b for a, b in zip(made, value, strict=False)):
                return value
            if isinstance(value, tuple) and hasattr(value, "_fields"):
                return kind._make(
                    made
                )  # a named tuple may have a constructor with other parameters
            # As in Dask, values of a subclass arrive in the plain container.
            return next(plain for plain in SEQUENCES if isinstance(value, plain))(made)
        return value

    try:
        args = tuple([replace(value) for value in args])
        kwargs = {key: replace(value) for key, value in kwargs.items()}
    except RecursionError:
        # A container contains itself, or is very deep. The futures inside travel as futures.
        args, kwargs = given
        slots.clear()
    # As `finding`, without a generator for each call.
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
    """Pickle a value for hashing: equal values give equal pickles, whichever process owns futures.

    The pickle has the names of the futures inside, and is never loaded.
    """
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
"""Types of objects that may be replaced by an equal object, or that are pickled by name."""


def _is_fixed(value: Any) -> bool:
    """Return whether sharing an object between a function and its arguments makes no difference."""
    if isinstance(value, FIXED) or type(value).__name__.endswith("DType"):  # the latter of NumPy
        return True
    try:
        return getattr(sys.modules.get(value.__module__), value.__qualname__, None) is value
    except Exception:
        return False


def objects_of(value: Any) -> dict[int, Any]:
    """Return the changeable objects that are pickled with a value, by their ids.

    The dict keeps the objects alive, so no other object gets one of the ids. The dict is empty for
    a value that cannot be pickled.
    """
    # The memo of a pickler has each object that may be referred to a second time.
    pickler = cloudpickle.Pickler(_Nowhere(), 5, buffer_callback=lambda buffer: None)
    try:
        pickling.names = True
        pickler.dump(value)
    except Exception:
        return {}  # pickling the value for a worker raises the same error, and reports it
    finally:
        pickling.names = False
    return {
        number: kept for number, (_, kept) in pickler.memo.copy().items() if not _is_fixed(kept)
    }


def loads_call(payload: bytes, values: list[Any] | tuple[()]) -> tuple[Any, dict[str, Any]]:
    """Unpickle the arguments of a call, with the values of dependencies in place of the slots."""
    if not values:
        return pickle.loads(payload)
    # Slots unpickle themselves as values from this list (`_slot_value`).
    unpickling.values = values
    try:
        return pickle.loads(payload)
    finally:
        unpickling.values = ()


def loads_value(key: Any, pickled: bytes) -> Any:
    """Unpickle the value of an inline row.

    Raises
    ------
    NotSerializable
        When the value cannot be unpickled in this process.
    """
    try:
        return loads(pickled)
    except Exception as error:
        raise NotSerializable(
            f"the value of {key!r} arrived and could not be unpickled here: {error!r}; "
            "is what it imports installed?"
        ) from error


def run_node(node: Any, values: dict[Any, Any]) -> Any:
    """Run a task of a graph that contains other tasks: call the graph node on its inputs."""
    return node(values)


def identity(value: Any) -> Any:
    """Run an alias: return the value of another row."""
    return value


def literal(value: Any) -> Any:
    """Run a task for a block of data inside a graph: return the block."""
    return value


def nothing(value: Any) -> None:
    """Run a task that only brings a value to a worker: drop the value."""


def call(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Run a task whose function travels with the arguments: call the function."""
    return function(*args, **kwargs)


CALL = pickle.dumps(call, 5)
"""The pickle sent as function of a task whose function travels with the arguments."""


# ---- errors ----


RUNTIME = os.path.join("dask_ownership", "runtime")
"""Part of the names of this project's files, whose frames say nothing about a task."""


def dumps_error(error: BaseException, key: Any, where: str) -> bytes:
    """Pickle an exception with its traceback, making sure that the exception can be unpickled.

    Call `dumps_error` while the exception is being handled. An exception that cannot be rebuilt
    travels as a `NotSerializable` with the text of the exception.
    """
    # `SystemExit` and the like end the task only, and reach the user as an error of the task.
    if not isinstance(error, Exception):
        error = TaskExit(
            f"the task {key!r} at {where} raised {error!r}; it failed, and the worker goes on"
        )
    try:
        message = error_message(error)
        traceback = message["traceback"]
        pickled = bytes(message["exception"].data)
        text = f"the task {key!r} at {where} raised {message['exception_text']}"
        # Dask puts another exception in place of an exception that it cannot pickle.
        if type(pickle.loads(pickled)) is not type(error):
            pickled = _dumps_bare(error) or pickle.dumps(
                NotSerializable(f"{text}, which cannot be pickled")
            )
        parts = (pickled, None if traceback is None else bytes(traceback.data), text)
    except BaseException as problem:
        # Even the `repr` or the pickling of an exception may fail, in any way.
        text = (
            f"the task {key!r} at {where} raised {type(error).__name__}, which itself could not "
            f"be shown: {type(problem).__name__}"
        )
        parts = (pickle.dumps(NotSerializable(text)), None, text)
    return pickle.dumps(parts, 5)


def _dumps_bare(error: BaseException) -> bytes | None:
    """Pickle an exception without its traceback, which may be too deep after a recursion.

    Return None when the pickle does not load as the same type.
    """
    error.__traceback__ = error.__context__ = error.__cause__ = None
    try:
        pickled = dumps(error)
        return pickled if type(pickle.loads(pickled)) is type(error) else None
    except Exception:
        return None


OF_THEIR_OWN = (TaskExit, TaskTimeout, NotUnpickled)
"""Errors whose text names the task and the worker."""


def note_on(error: BaseException, note: str) -> None:
    """Add a note to an exception, from Python 3.11 on, unless it has the note or may not have one.

    A note is an attribute: an exception with an equality of its own may compare all attributes.
    """
    if isinstance(error, OF_THEIR_OWN) or type(error).__eq__ is not object.__eq__:
        return
    try:
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)  # type: ignore[attr-defined, unused-ignore]
    except Exception:
        pass  # Python 3.10 has no notes, and a class may refuse attributes


def loads_error(pickled: bytes) -> BaseException:
    """Unpickle an exception, with its traceback when the traceback could travel."""
    # An unpickled traceback refers to the frames in which the unpickling ran. None of these frames
    # may still refer to the exception at the return: this would be a reference cycle.
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
        note_on(error, f"raised by {text.partition(' raised ')[0]}")
        if not isinstance(frames, TracebackType):
            return error
        # The first frames, down to the task's function, are of this project.
        while frames.tb_next and RUNTIME in frames.tb_frame.f_code.co_filename:
            frames = frames.tb_next
        return error.with_traceback(frames)
    finally:
        del error, frames
