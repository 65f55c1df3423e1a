"""Running one task: in a thread of this worker, or as a coroutine on its loop.

Everything that costs time per task is here: unpickling the call, running it,
pickling what came out. The bookkeeping is `dask_ownership.core.executor.executor`'s.
"""

from __future__ import annotations

import asyncio
import contextvars
import pickle
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from inspect import iscoroutinefunction
from threading import get_ident
from time import perf_counter, time
from typing import Any

import dask
from dask.utils import typename
from distributed import Reschedule

from dask_ownership.core.executor import session as ex
from dask_ownership.core.executor.session import Entry
from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol.messages import Origin
from dask_ownership.errors import NotSerializable, NotUnpickled
from dask_ownership.runtime import importing
from dask_ownership.runtime.dask.worker import thread_state
from dask_ownership.runtime.error_log import error_log
from dask_ownership.runtime.functions import NamedFunction, load
from dask_ownership.runtime.serialize import (
    ATOMS,
    call,
    dumps,
    dumps_error,
    finding,
    futures_in,
    loads_call,
    sizeof,
    unpickling,
)

SEEN = 0.005
"""Seconds from which reading from disk, writing there and unpickling are told of, as in Dask."""


class _Here(threading.local):
    """The owned task that this thread runs."""

    entry: Entry | None = None
    parked = False


here = _Here()

coroutine_entry: contextvars.ContextVar[Entry | None] = contextvars.ContextVar(
    "dask_ownership_task", default=None
)
"""The owned coroutine task that runs in this context."""


def current_entry() -> Entry | None:
    """The owned task that the caller is in, or None.

    Threads that a task starts by itself are in no task.
    """
    return here.entry or coroutine_entry.get()


def cancelled() -> bool:
    """Whether nobody wants the outcome of the owned task that the caller is in any more.

    Its future was cancelled or dropped, the task that submitted it was cancelled, its owner
    is gone, its ``timeout=`` is up, or it was handed out anew. What it returns or raises from
    then on is dropped. A coroutine task gets `asyncio.CancelledError` instead where it
    awaits; a function in a thread cannot be stopped and may ask here, as often as it likes:
    a call takes well under a microsecond.

    Returns
    -------
    bool
        False where there is no owned task: in a client, in an ordinary Dask task, and in
        threads that a task started itself.

    Examples
    --------
    >>> def search(start):  # doctest: +SKIP
    ...     for n in count(start):
    ...         if is_prime(n) or cancelled():
    ...             return n
    """
    entry = current_entry()
    return entry is not None and entry.cancelled


class Delegated:
    """What `delegate` gives to return."""

    __slots__ = ("future",)

    def __init__(self, future: Any) -> None:
        self.future = future

    def __reduce__(self) -> Any:
        raise NotSerializable("delegate(future) must be returned by a task itself, not inside")


class MissingInput(Exception):
    """A stored dependency is not here any more; its key and attempt are in ``args``."""


class UnknownFunction(Exception):
    """The function was forgotten here and must be sent again."""


def load_function(entry: Entry) -> tuple[Callable[..., Any], bool]:
    """What a task calls, and whether it is a coroutine function.

    Raises
    ------
    UnknownFunction
    NotUnpickled
        When it cannot be unpickled here.
    """
    functions = entry.session.functions
    function = functions.get(entry.function)
    if function is None:
        raise UnknownFunction
    try:
        if type(function) is bytes:
            function = functions[entry.function] = load(function)
        found: tuple[Callable[..., Any], bool] = function.get()
        return found
    except Exception as error:
        raise NotUnpickled(
            f"the worker {entry.session.runtime.worker.address} could not unpickle the "
            f"function of {entry.key!r} (deserialization failed): {error!r}; is what it "
            "imports installed there?"
        ) from error


def load_inputs(entry: Entry) -> list[Any]:
    """Values of a task's dependencies, in the order of its slots."""
    values = []
    store = entry.session.runtime.store
    for dependency in entry.dependencies:
        if type(dependency) is bytes:
            values.append(pickle.loads(dependency))
            continue
        state = dependency.state
        if state == ex.HELD:
            values.append(dependency.value)
        elif state == ex.COPIED:
            values.append(pickle.loads(dependency.value))
        else:
            began = time()
            try:
                values.append(store.get(dependency))
            except KeyError:
                raise MissingInput(dependency.key, dependency.attempt) from None
            step(entry, "disk-read", began)
    return values


def step(entry: Entry, action: str, began: float) -> None:
    """Tell who looks what a task did from then until now besides computing, if it took long."""
    observer = entry.session.runtime.watch.observer  # once: the loop takes it away at any time
    if observer is not None and time() - began > SEEN:
        observer.step(entry, action, began)


def load_arguments(entry: Entry) -> tuple[Any, dict[str, Any]]:
    """What a task is called with.

    Raises
    ------
    NotUnpickled
        When something of it cannot be unpickled here.
    """
    try:
        return loads_call(entry.payload, load_inputs(entry) if entry.dependencies else ())
    except MissingInput:
        raise
    except Exception as error:
        raise NotUnpickled(
            f"the worker {entry.session.runtime.worker.address} could not unpickle the arguments "
            f"of {entry.key!r} (deserialization failed): {error!r}; is what they import installed "
            "there?"
        ) from error


def load_call(entry: Entry) -> tuple[Callable[..., Any], Any, dict[str, Any], bool]:
    """The function of a task, its arguments, and whether it is a coroutine function."""
    function, is_coroutine = load_function(entry)
    args, kwargs = load_arguments(entry)
    if function is call:  # it came with its arguments
        function, *args = args
        is_coroutine = iscoroutinefunction(function)
    return function, args, kwargs, is_coroutine


def imports_nothing(entry: Entry) -> bool:
    """Whether loading the call of a task unpickles no name, as far as that is quickly told."""
    return (
        not entry.dependencies
        and importing.STACK_GLOBAL not in entry.payload
        and type(entry.session.functions.get(entry.function)) is NamedFunction
    )


class Outcome:
    """What became of a task: a message for its owner and how to keep the value."""

    __slots__ = ("contains", "gave_back", "message", "state", "value")

    def __init__(
        self,
        message: Any,
        state: int,
        value: Any = None,
        gave_back: Any = None,
        contains: Any = None,
    ) -> None:
        self.message = message
        self.state = state
        self.value = value
        self.gave_back = gave_back
        self.contains = contains


def keep_result(entry: Entry, result: Any, started: float) -> Outcome:
    """Decide whether a result travels or stays, and do it."""
    message: m.Message
    if type(result) is Delegated:
        future = result.future
        microseconds = (perf_counter() - started - entry.parked_for) * 1e6
        message = (m.DELEGATED, entry.key, entry.attempt, None, microseconds, origins([future]))
        return Outcome(message, ex.GONE, contains=[future])
    found: list[Any] = []
    limit = inline_limit_of(entry)
    if (limit or result is None) and type(result) in ATOMS and type(result) not in (str, bytes):
        pickled: bytes | None = pickle.dumps(result, 5)
    elif not limit or sizeof(result) > limit:
        pickled = None
    else:
        try:
            with finding() as found:
                pickled = dumps(result)
        except Exception:
            pickled = None  # it stays here, for tasks here; fetching it says why it cannot travel
        else:
            if len(pickled) > limit:
                pickled = None
    if pickled is not None:
        microseconds = (perf_counter() - started - entry.parked_for) * 1e6
        message = (m.DONE, entry.key, entry.attempt, pickled, microseconds)
        if found:
            return Outcome((*message, origins(found)), ex.HELD, result, contains=found)
        return Outcome(message, ex.HELD, result)
    if not found and may_contain_futures(entry):
        found = futures_in(result)
    entry.contains = found or None
    began = time()
    nbytes = entry.session.runtime.store.put(entry, result)
    step(entry, "disk-write", began)
    microseconds = (perf_counter() - started - entry.parked_for) * 1e6
    try:
        kind = dumps(type(result))
    except Exception:
        kind = dumps(typename(type(result)))
    message = (m.STORED, entry.key, entry.attempt, nbytes, kind, microseconds)
    return Outcome(message, ex.KEPT, contains=found or None)


def inline_limit_of(entry: Entry) -> int:
    """Bytes of a pickled result that may travel: less while its owner has too many."""
    limit: int = entry.session.runtime.inline_limit
    options = entry.options
    return limit if options is None else min(limit, int(options.get("inline", limit)))


def origins(futures: list[Any]) -> list[Origin]:
    """How others know these futures, which are about to be known to them."""
    for future in futures:
        future._owner.export(future._row)
    return [future._owner.core.table.origin_of(future._row) for future in futures]


def may_contain_futures(entry: Entry) -> bool:
    """Whether a task met futures: they came to it, or it made some."""
    return (
        entry.arrived is not None
        or entry.occurrences is not None
        or any(type(d) is Entry and d.contains for d in entry.dependencies)
    )


def keep_error(entry: Entry, error: BaseException, started: float) -> Outcome:
    """What a task's exception becomes. Call it while the exception is handled."""
    if isinstance(error, UnknownFunction):
        return Outcome(None, ex.GONE, gave_back=(m.UNKNOWN_FUNCTION, ()))
    if isinstance(error, Reschedule):
        return Outcome(None, ex.GONE, gave_back=(m.RESCHEDULED, ()))
    if isinstance(error, MissingInput):
        return Outcome(None, ex.GONE, gave_back=(m.MISSING, ((*error.args, ()),)))
    error_log.failed(entry, error)
    microseconds = (perf_counter() - started - entry.parked_for) * 1e6
    address = entry.session.runtime.worker.address
    with finding() as found:
        pickled = dumps_error(error, entry.key, f"worker {address}")
    message = (m.FAILED, entry.key, entry.attempt, pickled, microseconds)
    if found:
        return Outcome((*message, origins(found)), ex.GONE, contains=found)
    return Outcome(message, ex.GONE)


def span_of(entry: Entry) -> AbstractContextManager[None]:
    """Has what a task submits belong to its span."""
    if entry.options is None or "span" not in entry.options:
        return nullcontext()
    annotated: AbstractContextManager[None] = dask.annotate(
        span=pickle.loads(entry.options["span"])
    )
    return annotated


def call_in_span(entry: Entry, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Call a function in the span of its task."""
    with span_of(entry):
        return function(*args, **kwargs)


def run_in_thread(
    entry: Entry, base: contextvars.Context, through: Callable[..., Any] | None = None
) -> Outcome | None:
    """Run a task here, or have ``through`` call its function with args and kwargs.

    None when it is a coroutine, which goes on on the loop.
    """
    runtime = entry.session.runtime
    started = perf_counter()
    thread_state.key = entry.key
    thread_state.start_time = time()
    active = runtime.worker.active_threads
    ident = get_ident()
    if ident in active:
        active[ident] = entry.key
    else:
        with runtime.worker.active_threads_lock:  # others may be reading who is there
            active[ident] = entry.key
    here.entry = entry
    here.parked = False
    try:
        arrived: list[Row] = []
        unpickling.arrived = arrived
        try:
            if imports_nothing(entry):
                function, args, kwargs, is_coroutine = load_call(entry)
            else:
                function, args, kwargs, is_coroutine = importing.unpickle(load_call, entry)
        finally:
            unpickling.arrived = None
            if arrived:
                entry.arrived = arrived
        step(entry, "deserialize", thread_state.start_time)
        if is_coroutine:
            runtime.coroutines.run(entry, function, args, kwargs, started)
            return None
        # A context of its own, so that what a task sets is not seen by the next.
        context = base.copy()
        if through is not None:
            result = through(function, args, kwargs)
        elif entry.options is not None and "span" in entry.options:
            result = context.run(call_in_span, entry, function, args, kwargs)
        else:
            result = context.run(function, *args, **kwargs)
        del args, kwargs
        return keep_result(entry, result, started)
    except BaseException as error:
        return keep_error(entry, error, started)
    finally:
        here.entry = None


async def run_on_loop(
    entry: Entry, function: Any, args: Any, kwargs: Any, started: float
) -> Outcome:
    """Run a coroutine task."""
    coroutine_entry.set(entry)
    try:
        if entry.cancelled:
            raise asyncio.CancelledError  # before there was anything to cancel
        with span_of(entry):
            result = await function(*args, **kwargs)
        return keep_result(entry, result, started)
    except BaseException as error:
        return keep_error(entry, error, started)
