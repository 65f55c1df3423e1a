"""Running one task: in a thread of this worker, or as a coroutine on its loop.

This module has all the steps that cost time per task: unpickling the call, running the function,
pickling the result. The bookkeeping is the job of `dask_ownership.core.executor.entry_lifecycle`.
"""

from __future__ import annotations

import asyncio
import contextvars
import pickle
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
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
"""Seconds above which a step of a task besides computing (reading from disk, writing to disk,
unpickling) is reported to the observer, as in Dask."""


class _Here(threading.local):
    """The owned task of the current thread.

    Attributes
    ----------
    entry : Entry or None
        The task that the thread runs.
    parked : bool
        Whether the task has given its slot up.
    """

    entry: Entry | None = None
    parked = False


here = _Here()

coroutine_entry: contextvars.ContextVar[Entry | None] = contextvars.ContextVar(
    "dask_ownership_task", default=None
)
"""The owned coroutine task of the current context."""


def current_entry() -> Entry | None:
    """Return the owned task of the caller, or None.

    A thread that a task has started itself is in no task.
    """
    return here.entry or coroutine_entry.get()


def cancelled() -> bool:
    """Return whether the owned task of the caller was cancelled, so that its outcome is unwanted.

    The reason may be that the future of the task was cancelled or dropped, that the parent task
    was cancelled, that the owner is gone, that the ``timeout=`` of the task is up, or that the task
    was handed out anew. A result or an error of the task from then on is dropped. A coroutine task
    gets `asyncio.CancelledError` instead at its next ``await``; a function in a thread cannot be
    stopped and may call ``cancelled()`` as often as it likes: a call takes well under a
    microsecond.

    Returns
    -------
    bool
        False outside of owned tasks: in a client, in an ordinary Dask task, and in a thread that a
        task has started itself.

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
    """The result of ``delegate(future)``, for a task to return."""

    __slots__ = ("future",)

    def __init__(self, future: Any) -> None:
        self.future = future

    def __reduce__(self) -> Any:
        raise NotSerializable("delegate(future) must be returned by a task itself, not inside")


class MissingInput(Exception):
    """A stored dependency is no longer at this worker; ``args`` has its key and attempt."""


class UnknownFunction(Exception):
    """The executor has forgotten the function of a task: the owner has to send it again."""


def load_function(entry: Entry) -> tuple[Callable[..., Any], bool]:
    """Return the function of a task, and whether it is a coroutine function.

    Raises
    ------
    UnknownFunction
        When the executor does not have the function.
    NotUnpickled
        When the function cannot be unpickled at this worker.
    """
    functions = entry.session.functions
    function = functions.get(entry.function)
    if function is None:
        raise UnknownFunction
    try:
        if type(function) is bytes:  # the first task here that calls this function
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
    """Return the values of a task's dependencies, in the order of the slots.

    Raises
    ------
    MissingInput
        When the store no longer has a value.
    """
    values = []
    store = entry.session.runtime.store
    for dependency in entry.dependencies:
        if type(dependency) is bytes:  # an inline value that came with the push
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
    """Report a step of a task besides computing to the observer, if the step took long.

    ``began`` is the time at which the step began; the step ends now.
    """
    # Read once: the loop may remove the observer at any time.
    observer = entry.session.runtime.watch.observer
    if observer is not None and time() - began > SEEN:
        observer.step(entry, action, began)


def load_arguments(entry: Entry) -> tuple[Any, dict[str, Any]]:
    """Return the arguments of a task.

    Raises
    ------
    MissingInput
        When the store no longer has an input.
    NotUnpickled
        When an argument or an input cannot be unpickled at this worker.
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
    """Return the function of a task, its arguments, and whether it is a coroutine function."""
    function, is_coroutine = load_function(entry)
    args, kwargs = load_arguments(entry)
    if function is call:  # the function came before the arguments, see `serialize.CALL`
        function, *args = args
        is_coroutine = iscoroutinefunction(function)
    return function, args, kwargs, is_coroutine


def imports_nothing(entry: Entry) -> bool:
    """Return whether loading the call of a task looks up no name in a pickle, by a quick test.

    When the answer is False the load may import a module, and needs `importing.unpickle`.
    """
    return (
        not entry.dependencies
        and importing.STACK_GLOBAL not in entry.payload
        and type(entry.session.functions.get(entry.function)) is NamedFunction
    )


@dataclass(slots=True, eq=False, repr=False)
class Outcome:
    """The outcome of one run of a task: a message for the owner, and how to keep the value."""

    #: The answer for the owner; None when the task is given back.
    message: Any
    #: The new state of the entry, see `executor.session`.
    state: int
    #: The value to keep in the entry, when the state is `HELD`.
    value: Any = None
    #: The reason and the keys for giving the task back to its owner.
    gave_back: Any = None
    #: The futures inside the value or the error, to be kept.
    contains: Any = None


def keep_result(entry: Entry, result: Any, started: float) -> Outcome:
    """Keep the result of a task: small results travel in the answer, large results stay here.

    Returns
    -------
    Outcome
    """
    message: m.Message
    if type(result) is Delegated:
        future = result.future
        microseconds = (perf_counter() - started - entry.parked_for) * 1e6
        message = (m.DELEGATED, entry.key, entry.attempt, None, microseconds, origins([future]))
        return Outcome(message, ex.GONE, contains=[future])
    found: list[Any] = []
    limit = inline_limit_of(entry)
    # Atoms but text and bytes are small, and pickled at once: no size and no futures to look for.
    if (limit or result is None) and type(result) in ATOMS and type(result) not in (str, bytes):
        pickled: bytes | None = pickle.dumps(result, 5)
    elif not limit or sizeof(result) > limit:
        pickled = None
    else:
        try:
            with finding() as found:
                pickled = dumps(result)
        except Exception:
            # A result that cannot be pickled stays here, for tasks at this worker. A process that
            # fetches the value learns why it cannot travel.
            pickled = None
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
    entry.contains = found or None  # before `put`, which wraps values with futures inside
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
    """Return the bytes up to which the pickled result of a task may travel to its owner.

    An owner with too many inline values asks for a smaller limit in the push.
    """
    limit: int = entry.session.runtime.inline_limit
    options = entry.options
    return limit if options is None else min(limit, int(options.get("inline", limit)))


def origins(futures: list[Any]) -> list[Origin]:
    """Return the origins of futures that are about to travel, and tell their owner so."""
    for future in futures:
        future._owner.export(future._row)
    return [future._owner.core.table.origin_of(future._row) for future in futures]


def may_contain_futures(entry: Entry) -> bool:
    """Return whether the result of a task may contain futures.

    A task can have futures from its arguments, from its inputs, and by submitting tasks. For any
    other task the result need not be searched.
    """
    return (
        entry.arrived is not None
        or entry.occurrences is not None
        or any(type(d) is Entry and d.contains for d in entry.dependencies)
    )


def keep_error(entry: Entry, error: BaseException, started: float) -> Outcome:
    """Return the outcome for an exception. Call `keep_error` while the exception is handled."""
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
        pickled = dumps_error(error, entry.key, f"worker {address} (attempt {entry.ordinal})")
    message = (m.FAILED, entry.key, entry.attempt, pickled, microseconds)
    if found:
        return Outcome((*message, origins(found)), ex.GONE, contains=found)
    return Outcome(message, ex.GONE)


def span_of(entry: Entry) -> AbstractContextManager[None]:
    """Return a context manager in which submitted tasks belong to the span of a task."""
    if entry.options is None or "span" not in entry.options:
        return nullcontext()
    annotated: AbstractContextManager[None] = dask.annotate(
        span=pickle.loads(entry.options["span"])
    )
    return annotated


def call_in_span(entry: Entry, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Call the function of a task in the span of the task."""
    with span_of(entry):
        return function(*args, **kwargs)


def run_in_thread(
    entry: Entry, base: contextvars.Context, through: Callable[..., Any] | None = None
) -> Outcome | None:
    """Run a task in the current thread.

    Parameters
    ----------
    entry : Entry
    base : contextvars.Context
        The context of the runner thread, of which each task gets a copy.
    through : callable, optional
        ``through(function, args, kwargs)`` calls the function elsewhere, in a process of a pool.

    Returns
    -------
    Outcome or None
        None for a coroutine task, which goes on on the loop.
    """
    runtime = entry.session.runtime
    started = perf_counter()
    # Dask finds the task of a thread here: `secede()` in `thread_state`, the profiler in
    # `active_threads`.
    thread_state.key = entry.key
    thread_state.start_time = time()
    active = runtime.worker.active_threads
    ident = get_ident()
    if ident in active:
        active[ident] = entry.key
    else:
        # A new item changes the size of the dict, which another thread may be iterating over.
        with runtime.worker.active_threads_lock:
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
            # The task has these futures also when loading the call failed half-way.
            if arrived:
                entry.arrived = arrived
        step(entry, "deserialize", thread_state.start_time)
        if is_coroutine:
            runtime.coroutines.run(entry, function, args, kwargs, started)
            return None
        # A context of its own for each task: the next task must not see variables of this task.
        context = base.copy()
        if through is not None:
            result = through(function, args, kwargs)
        elif entry.options is not None and "span" in entry.options:
            result = context.run(call_in_span, entry, function, args, kwargs)
        else:
            result = context.run(function, *args, **kwargs)
        del args, kwargs  # the inputs are not needed while the result is pickled
        return keep_result(entry, result, started)
    except BaseException as error:
        return keep_error(entry, error, started)
    finally:
        here.entry = None


async def run_on_loop(
    entry: Entry, function: Any, args: Any, kwargs: Any, started: float
) -> Outcome:
    """Run a coroutine task on the event loop, and return its outcome."""
    coroutine_entry.set(entry)
    try:
        # The task was cancelled before there was a coroutine that could be cancelled.
        if entry.cancelled:
            raise asyncio.CancelledError
        with span_of(entry):
            result = await function(*args, **kwargs)
        return keep_result(entry, result, started)
    except BaseException as error:
        return keep_error(entry, error, started)
