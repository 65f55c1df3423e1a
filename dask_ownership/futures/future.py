"""Futures: thin objects, each a local reference to a row."""

from __future__ import annotations

import asyncio
import builtins
import logging
import os
from collections.abc import Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from sys import intern
from typing import TYPE_CHECKING, Any, Generic, overload
from weakref import WeakValueDictionary

import distributed
from dask.utils import shorten_traceback, typename

from dask_ownership.core.owner.rows.row import Borrowed, Row
from dask_ownership.core.protocol.failure import Failure
from dask_ownership.core.protocol.messages import Origin
from dask_ownership.core.protocol.names import HEIR, INCARNATION, KEY, LIFE, NAME, held_at
from dask_ownership.core.protocol.states import CANCELLED, ERROR, INLINE, LOST, STORED
from dask_ownership.errors import FutureCancelledError, NotHere, from_failure
from dask_ownership.futures.gather import value_of, values_of
from dask_ownership.monitoring.representation import future_html
from dask_ownership.runtime.dask.client import parse_timeout, tokenizing
from dask_ownership.runtime.importing import loads
from dask_ownership.runtime.owner.gc import untrack
from dask_ownership.runtime.owner.pending import late, lingers_at
from dask_ownership.runtime.owner.waiting import Callback, hang
from dask_ownership.runtime.serialize import (
    arriving,
    loads_error,
    loads_value,
    pickling,
    unpickling,
)
from dask_ownership.runtime.task import Delegated, current_entry

if TYPE_CHECKING:
    # A checker knows this module everywhere; Python itself has the default only since 3.13.
    from typing_extensions import TypeVar

    T_co = TypeVar("T_co", covariant=True, default=Any)
else:
    from typing import TypeVar

    T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")

logger = logging.getLogger("dask_ownership.client")

STATUS = {
    INLINE: "finished",
    STORED: "finished",
    ERROR: "error",
    CANCELLED: "cancelled",
    LOST: "lost",
}
"""Status of a future in Dask's words, by the state of its row; all other states are "pending"."""

RELEASED = "The future was released; keep it as long as its value is needed"
"""What a released future says."""

owned_clients: WeakValueDictionary[str, Any] = WeakValueDictionary()
"""Clients of this process by the incarnation of their owner.

A future that returns to the process of its owner becomes a future of that client again.
"""

task_clients: WeakValueDictionary[str, Any] = WeakValueDictionary()
"""The clients that tasks of workers in this process get, by the incarnation of their owner."""


class Future(distributed.Future, Generic[T_co]):
    """A value that may not exist yet, owned by this process; ``Future[int]`` for an int.

    Offers everything that `distributed.Future` offers, for a row of the ownership table, and
    therefore has as many methods. `Client` makes futures; users do not.
    """

    __slots__ = ("_cleared", "_client", "_owner", "_row")

    def __init__(self, client: Any, row: Row) -> None:
        # A slot of the base class.
        self.key = row.origin[KEY] if row.borrowed else row.key  # type: ignore[misc, attr-defined]
        self._client = client
        self._owner = client.owner
        self._row = row
        self._cleared = False
        # Futures need no cycle collector, and a full collection over a million of them takes long.
        untrack(self)

    # ---- what stock code looks at ----

    def _bind_late(self) -> None:
        pass

    def bind_client(self, client: Any) -> None:
        """Do nothing: an owned future belongs to its owner from the start."""

    def _verify_initialized(self) -> None:
        pass

    @property
    def client(self) -> Any:
        return self._client

    @property
    def _state(self) -> RowState:
        """The row in the shape that stock code expects of a future's state."""
        return RowState(self)

    # ---- state ----

    @property
    def status(self) -> str:
        """``pending``, ``finished``, ``error``, ``cancelled`` or ``lost``."""
        if self._cleared:
            return "cancelled"  # as in Dask, for a future that was released
        return STATUS.get(self._row.state, "pending")

    def done(self) -> bool:
        """Return whether the computation ended (in any way), or the future was released."""
        return self._cleared or self._row.state >= INLINE

    def cancelled(self) -> bool:
        """Return whether the computation was cancelled, or the future was released."""
        return self.status == "cancelled"

    @property
    def type(self) -> Any:
        """The type of the value; None while there is no value."""
        row = self._row
        if row.state == INLINE:
            try:
                # Futures inside the value become futures of this client, and are dropped at once.
                with arriving(self._client):
                    return type(loads(row.value))
            except Exception:
                return None
        if row.state == STORED and row.type_name is not None:
            try:
                return loads(row.type_name)
            except Exception:
                return None
        return None

    # ---- outcome ----

    def _error(self) -> BaseException | None:
        """Return why there is no value, with the task's traceback; None when there is a value."""
        row = self._row
        if self._cleared:
            return FutureCancelledError(self.key, "released", RELEASED)
        if row.state <= STORED:
            return None  # or not yet: a lost value is being made again
        value = row.value
        if isinstance(value, Failure):
            return from_failure(
                self.key, value, row.owner_ref[NAME] if isinstance(row, Borrowed) else ""
            )
        if isinstance(value, bytes):
            # An error may hold futures. Opening it by way of the owner keeps the row until those
            # are counted.
            if row.contains:
                error: BaseException = self._owner.open(
                    self._client, row, lambda: loads_error(value)
                )
                return error
            return loads_error(value)
        return FutureCancelledError(self.key, "released", RELEASED)

    def result(self, timeout: Any = None) -> T_co:
        """Wait for the value and bring the value to this process; see `distributed.Future.result`.

        Inside an owned task the slot is given up meanwhile.

        Raises
        ------
        TimeoutError
            After ``timeout`` (seconds or a string such as ``"2s"``).
        Exception
            The exception of the task, or the reason why the value cannot be had.
        """
        client = self._client
        if client.asynchronous:
            coroutine: Any = self._result()  # to be awaited, which the annotation does not say
            if timeout is not None:
                coroutine = self._in_time(coroutine, timeout)
            return coroutine
        row = self._row
        if row.state < INLINE:
            self._wait(timeout)
        # The fast path of a small value, without a coroutine.
        if row.state == INLINE and not self._cleared:
            if row.contains:
                return self._owner.open(client, row, lambda: loads_value(self.key, row.value))
            return loads_value(self.key, row.value)
        with shorten_traceback():
            return value_of(client, self, timeout)

    def _wait(self, timeout: Any) -> None:
        """Block until the row ends; a released future does not wait."""
        if self._cleared:
            return
        seconds = parse_timeout(timeout)
        if not self._owner.wait((self._row,), seconds):
            raise asyncio.TimeoutError(late(self._owner.core, (self._row,), seconds))

    async def _in_time(self, outcome: Coroutine[Any, Any, Any], timeout: Any) -> Any:
        """Return what a coroutine of this future returns; say why when the time runs out."""
        seconds = parse_timeout(timeout)
        try:
            return await asyncio.wait_for(outcome, seconds)
        except (TimeoutError, asyncio.TimeoutError):
            if self._row.state > STORED:
                raise  # the task itself raised the error
            raise asyncio.TimeoutError(late(self._owner.core, (self._row,), seconds)) from None

    async def _result(self, raiseit: bool = True) -> Any:
        """Return the value in a coroutine; without ``raiseit`` return the error as Dask does."""
        if not self._cleared:
            await self._owner.wait_async((self._row,))
        error = self._error()
        if error is None:
            with shorten_traceback():
                return (await values_of(self._client, [self]))[self]
        if raiseit:
            try:
                raise error
            finally:
                del error  # the traceback holds this frame, and so the future
        if self.status == "error":
            return type(error), error, error.__traceback__
        return error

    async def _exception(self) -> BaseException | None:
        """Wait in a coroutine, and return the exception of the task or None."""
        if not self._cleared:
            await self._owner.wait_async((self._row,))
        return self._raised()

    def _raised(self) -> BaseException | None:
        """Return why there is no value; None for a cancelled or released future, as in Dask."""
        error = self._error()
        try:
            return None if type(error) is FutureCancelledError else error
        finally:
            del error  # the traceback leads to this frame

    def exception(self, timeout: Any = None, **kwargs: Any) -> Any:
        """Return the exception of the task; None when there is a value, or the task was cancelled.

        See `distributed.Future.exception`.
        """
        if self._client.asynchronous:
            return self._in_time(self._exception(), timeout)
        self._wait(timeout)
        return self._raised()

    async def _traceback(self) -> Any:
        """Wait in a coroutine, and return the traceback of the task's exception or None."""
        return getattr(await self._exception(), "__traceback__", None)

    def traceback(self, timeout: Any = None, **kwargs: Any) -> Any:
        """Return the traceback of the task's exception, or None.

        See `distributed.Future.traceback`.
        """
        if self._client.asynchronous:
            return self._in_time(self._traceback(), timeout)
        # The exception stays out of a variable: its traceback holds the frames that lead to this
        # frame.
        return getattr(self.exception(timeout), "__traceback__", None)

    def add_done_callback(self, fn: Any) -> None:
        """Call ``fn(future)`` in a thread when the computation ended.

        See `distributed.Future.add_done_callback`.
        """
        # One thread for the callbacks of all futures, Dask's own. A forked process has no such
        # thread and makes another.
        cls = distributed.Future
        if cls._cb_executor is None or cls._cb_executor_pid != os.getpid():
            cls._cb_executor = ThreadPoolExecutor(1, thread_name_prefix="Dask-Callback-Thread")
            cls._cb_executor_pid = os.getpid()
        executor = cls._cb_executor

        def call() -> None:
            try:
                fn(self)
            except BaseException:
                logger.exception("Error in callback %s of %s:", fn, self)
                raise

        def ended(row: Row) -> None:
            try:
                executor.submit(call)
            except RuntimeError:
                pass  # the interpreter is being taken down

        rows = (self._row,)
        hang(Callback(rows, ended), rows, self._owner.lock)

    # ---- requests ----

    def cancel(self, reason: Any = None, msg: Any = None, **kwargs: Any) -> Any:
        """Cancel the computation and dependent tasks; see `distributed.Future.cancel`."""
        return self._client.cancel([self], reason=reason, msg=msg, **kwargs)

    def retry(self, **kwargs: Any) -> Any:
        """Run the task again after an error; see `distributed.Future.retry`."""
        return self._client.retry([self], **kwargs)

    def release(self) -> None:
        """Drop this future; a second call does nothing. See `distributed.Future.release`."""
        if not self._cleared:
            self._cleared = True
            self._owner.drop(self._row)

    def __del__(self) -> None:
        try:
            # A finalizer runs at any moment, also while its thread holds a lock: `drop` takes none.
            if not self._cleared:
                self._cleared = True
                self._owner.drop(self._row)
        except AttributeError:
            pass  # the future was never initialized, or the interpreter is being taken down

    # ---- travelling ----

    def __reduce__(self) -> Any:
        owner = self._owner
        if pickling.names or (pickling.found is None and tokenizing()):
            # Equal names are one interned object: a pickle distinguishes two equal objects from one
            # object that occurs twice, and a task that runs again may get one future as two objects
            # where the attempt before got one object.
            return named, tuple([intern(repr(part)) for part in self.__dask_tokenize__()])
        # Inside a call or a result this process keeps the object until the receiver is counted as a
        # borrower. Of a pickle made by hand no process knows who reads it and when, so the row is
        # pinned.
        if pickling.found is not None:
            pickling.found.append(self)
            owner.export(self._row)
        else:
            owner.pin(self._row)
        origin = owner.core.origin_of(self._row)
        return come_home, held_at(origin, pickling.holder) if pickling.holder else origin

    def __copy__(self) -> Future[T_co]:
        self._owner.core.hold(self._row)
        return Future(self._client, self._row)

    def __deepcopy__(self, memo: Any) -> Future[T_co]:
        return self.__copy__()

    def __await__(self) -> Generator[Any, None, T_co]:
        return self._result().__await__()

    def __dask_tokenize__(self) -> Any:
        origin = self._owner.core.origin_of(self._row)
        heir = origin[HEIR]
        if heir is not None:
            # The heir's key stays the same when the submitting task runs again elsewhere; the owner
            # does not.
            return type(self).__name__, self.key, heir[KEY]
        return type(self).__name__, self.key, origin[INCARNATION], origin[LIFE]

    # Identity, as for any object, and at the speed of C: sets of very many futures are usual.
    __hash__ = object.__hash__
    __eq__ = object.__eq__

    def __repr__(self) -> str:
        kind = self.type
        middle = f" type: {typename(kind)}," if kind else ""
        there = lingers_at(self._owner.core, self._row) if self._row.state > STORED else ()
        lingers = f", its function still runs at {', '.join(there)}" if there else ""
        return f"<Future: {self.status},{middle} key: {self.key}{lingers}>"

    def __str__(self) -> str:
        return repr(self)

    def _repr_html_(self) -> str:
        return future_html(self, self._owner, self._row)


class TravelledFuture(distributed.Future):
    """A future in a process without a client that could ask the owner.

    It can be passed on, and becomes a live future in a process with a client. All other operations
    raise `NotHere`, which names the owner.
    """

    def __init__(self, origin: Origin) -> None:
        self.key = origin[KEY]
        self._origin = origin
        self._client = None
        self._cleared = True

    def _bind_late(self) -> None:
        pass

    def bind_client(self, client: Any) -> None:
        """Do nothing: no client of the central scheduler can ask for an owned object."""

    def _refuse(self) -> NotHere:
        """Return the error that names the owner and says what to do."""
        return NotHere(
            f"the future {self.key!r} is owned by {self._origin[NAME]} and was unpickled where "
            "there is no dask_ownership.Client: make one of the same cluster first"
        )

    def _verify_initialized(self) -> None:
        raise self._refuse()

    @property
    def client(self) -> Any:
        raise self._refuse()

    @property
    def _state(self) -> Any:
        raise self._refuse()

    @property
    def status(self) -> Any:
        raise self._refuse()

    @property
    def type(self) -> Any:
        raise self._refuse()

    def release(self) -> None:
        """Do nothing: there is no local reference in this process."""

    def __del__(self) -> None:
        pass

    def __reduce__(self) -> Any:
        return come_home, self._origin

    def __dask_tokenize__(self) -> Any:
        return "Future", self.key, self._origin[INCARNATION], self._origin[LIFE]

    def __hash__(self) -> int:
        return hash((self._origin[INCARNATION], self.key, self._origin[LIFE]))

    def __eq__(self, other: object) -> bool:
        return self is other

    def __repr__(self) -> str:
        return f"<Future: owned by {self._origin[NAME]}, key: {self.key}>"

    __str__ = __repr__


@overload
def delegate(future: Future[T]) -> T: ...
@overload
def delegate(future: Any) -> Any: ...
def delegate(future: Any) -> Any:
    """Have the value of another future be this task's value: ``return delegate(future)``.

    The task ends at once and keeps no slot and no thread; processes that wait for the task get the
    value or error of the other future. This is the tail spawn of CIEL: a loop of tasks that each
    return a delegate of the next task runs with a constant number of threads.

    Parameters
    ----------
    future : Future
        A future that this task submitted or was given.

    Raises
    ------
    TypeError
        For anything else.
    """
    if not isinstance(future, Future):
        raise TypeError(
            f"delegate takes a future of dask_ownership, not a {builtins.type(future).__name__}"
        )
    return Delegated(future)


def named(*name: Any) -> Any:
    """Return the name of a future: its form in a pickle that is only made to be compared."""
    return name


def come_home(incarnation: str, address: str, name: str, key: Any, heir: Any, life: int) -> Any:
    """Unpickle a future: of the owner's row, or in other processes of a borrowed row."""
    origin = (incarnation, address, name, key, heir, life)
    # The client or task that unpickles comes first: owners in one process borrow from each other as
    # owners in different processes do.
    entry = current_entry()
    if unpickling.client is not None:
        client = unpickling.client
    elif entry is not None:
        client = entry.session.runtime.task_client
    else:
        client = owned_clients.get(incarnation) or _client_here()
    if client is None:
        return TravelledFuture(origin)
    return Future(client, client.owner.arrive(origin))


def _client_here() -> Any:
    """Return the client for a future that is unpickled outside of a client's or task's work."""
    try:
        default = distributed.default_client()
    except ValueError:
        default = None
    # Dask's current client is taken if it is a client of dask_ownership.
    if default is not None and default.id in (c.id for c in owned_clients.values()):
        return default
    running = next((c for c in owned_clients.values() if c.status == "running"), None)
    return running or next(iter(task_clients.values()), None)


class RowState:
    """A row in the shape of `distributed.client.FutureState`, for stock functions."""

    __slots__ = ("future",)

    def __init__(self, future: Future) -> None:
        self.future = future

    @property
    def key(self) -> Any:
        return self.future.key

    @property
    def status(self) -> str:
        return self.future.status

    @property
    def type(self) -> Any:
        return self.future.type

    @property
    def exception(self) -> Any:
        return self.future._error()

    @property
    def traceback(self) -> Any:
        return getattr(self.future._error(), "__traceback__", None)

    def done(self) -> bool:
        return self.future.done()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RowState) and self.future._row is other.future._row

    def __hash__(self) -> int:
        return hash(self.future._row)

    async def wait(self, timeout: Any = None) -> None:
        """Wait until the row ends.

        Raises
        ------
        TimeoutError
        """
        owner, rows = self.future._owner, (self.future._row,)
        if not await owner.wait_async(rows, timeout):
            raise asyncio.TimeoutError(late(owner.core, rows, timeout))

    def __repr__(self) -> str:
        return f"<RowState: {self.status}>"
