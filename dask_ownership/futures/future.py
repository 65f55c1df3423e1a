"""Futures: thin handles on rows."""

from __future__ import annotations

import asyncio
import builtins
import logging
import os
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from sys import intern
from time import perf_counter
from typing import Any
from weakref import WeakValueDictionary

import distributed
from dask.utils import shorten_traceback, typename

from dask_ownership.core.owner.rows.row import Borrowed, Row
from dask_ownership.core.protocol.failure import Failure
from dask_ownership.core.protocol.messages import Origin
from dask_ownership.core.protocol.names import held_at
from dask_ownership.core.protocol.states import CANCELLED, ERROR, INLINE, LOST, STORED
from dask_ownership.errors import FutureCancelledError, NotHere, from_failure
from dask_ownership.monitoring.representation import future_html
from dask_ownership.runtime.dask.client import parse_timeout, tokenizing
from dask_ownership.runtime.importing import loads
from dask_ownership.runtime.owner.gc import untrack
from dask_ownership.runtime.owner.waiting import Callback, hang
from dask_ownership.runtime.serialize import (
    arriving,
    loads_error,
    loads_value,
    pickling,
    unpickling,
)
from dask_ownership.runtime.task import Delegated, current_entry

logger = logging.getLogger("dask_ownership.client")

STATUS = {
    INLINE: "finished",
    STORED: "finished",
    ERROR: "error",
    CANCELLED: "cancelled",
    LOST: "lost",
}

owned_clients: WeakValueDictionary[str, Any] = WeakValueDictionary()
"""Clients of this process by their owner's incarnation: where futures come home to."""

task_clients: WeakValueDictionary[str, Any] = WeakValueDictionary()
"""What stands for the clients of workers in this process, by their owner's incarnation."""


class Future(distributed.Future):
    """A value that may not exist yet, owned by this process.

    Everything `distributed.Future` offers, for a row of the ownership table, and therefore as
    many methods as that has. Made by `Client`; users do not make any.
    """

    __slots__ = ("_cleared", "_client", "_owner", "_row")

    def __init__(self, client: Any, row: Row) -> None:
        # A slot of the base class.
        self.key = row.origin[3] if row.borrowed else row.key  # type: ignore[misc, attr-defined]
        self._client = client
        self._owner = client.owner
        self._row = row
        self._cleared = False
        untrack(self)

    # ---- what stock code looks at ----

    def _bind_late(self) -> None:
        pass

    def bind_client(self, client: Any) -> None:
        """An owned future belongs to its owner from the start."""

    def _verify_initialized(self) -> None:
        pass

    @property
    def client(self) -> Any:
        return self._client

    @property
    def _state(self) -> RowState:
        return RowState(self)

    # ---- state ----

    @property
    def status(self) -> str:
        """``pending``, ``finished``, ``error``, ``cancelled`` or ``lost``."""
        if self._cleared:
            return "cancelled"  # as in Dask, for a future that was released
        return STATUS.get(self._row.state, "pending")

    def done(self) -> bool:
        """Whether the computation ended, with a value or without, or this was released."""
        return self._cleared or self._row.state >= INLINE

    def cancelled(self) -> bool:
        return self.status == "cancelled"

    @property
    def type(self) -> Any:
        """The type of the value; None while there is no value."""
        row = self._row
        if row.state == INLINE:
            try:
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
        """Why there is no value, with its traceback; None when there is one."""
        row = self._row
        if self._cleared:
            return FutureCancelledError(self.key, "released", "the future was released")
        if row.state <= STORED:
            return None  # or not yet: it was lost, and is being made again
        value = row.value
        if isinstance(value, Failure):
            return from_failure(
                self.key, value, row.owner_ref[2] if isinstance(row, Borrowed) else ""
            )
        if isinstance(value, bytes):
            if row.contains:
                error: BaseException = self._owner.open(
                    self._client, row, lambda: loads_error(value)
                )
                return error
            return loads_error(value)
        return FutureCancelledError(self.key, "released", "the future was released")

    def result(self, timeout: Any = None) -> Any:
        """Wait for the value and bring it here.

        Inside an owned task the slot is given up meanwhile.

        Raises
        ------
        TimeoutError
            After ``timeout`` (seconds or a string such as ``"2s"``).
        Exception
            What the task raised, or why its value is not to be had.
        """
        client = self._client
        if client.asynchronous:
            coroutine = self._result()
            if timeout is not None:
                return asyncio.wait_for(coroutine, parse_timeout(timeout))
            return coroutine
        row = self._row
        if row.state < INLINE:
            self._wait(timeout)
        if row.state == INLINE and not self._cleared:
            if row.contains:
                return self._owner.open(client, row, lambda: loads_value(self.key, row.value))
            return loads_value(self.key, row.value)
        with shorten_traceback():
            return client._value_of(self, timeout)

    def _wait(self, timeout: Any) -> None:
        if self._cleared:
            return
        if not self._owner.wait((self._row,), parse_timeout(timeout)):
            raise asyncio.TimeoutError(f"{self.key!r} did not end within {timeout}")

    async def _result(self, raiseit: bool = True) -> Any:
        if not self._cleared:
            await self._owner.wait_async((self._row,))
        error = self._error()
        if error is None:
            with shorten_traceback():
                return (await self._client._values([self]))[self]
        if raiseit:
            try:
                raise error
            finally:
                del error  # its traceback holds this frame, and so the future
        if self.status == "error":
            return type(error), error, error.__traceback__
        return error

    async def _exception(self) -> BaseException | None:
        if not self._cleared:
            await self._owner.wait_async((self._row,))
        return self._raised()

    def _raised(self) -> BaseException | None:
        """Why there is no value, but for one that was cancelled or released: as in Dask."""
        error = self._error()
        try:
            return None if type(error) is FutureCancelledError else error
        finally:
            del error  # its traceback leads to this frame

    def exception(self, timeout: Any = None, **kwargs: Any) -> Any:
        """The exception of the task; None when it has a value, or was cancelled, as in Dask."""
        if self._client.asynchronous:
            return asyncio.wait_for(self._exception(), parse_timeout(timeout))
        self._wait(timeout)
        return self._raised()

    async def _traceback(self) -> Any:
        return getattr(await self._exception(), "__traceback__", None)

    def traceback(self, timeout: Any = None, **kwargs: Any) -> Any:
        """The traceback of the task's exception, or None."""
        if self._client.asynchronous:
            return asyncio.wait_for(self._traceback(), parse_timeout(timeout))
        # Not in a variable: its frames lead back to this one.
        return getattr(self.exception(timeout), "__traceback__", None)

    def add_done_callback(self, fn: Any) -> None:
        """Call ``fn(future)`` in a thread when the computation ended."""
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
        """Cancel the computation and what depends on it."""
        return self._client.cancel([self], reason=reason, msg=msg, **kwargs)

    def retry(self, **kwargs: Any) -> Any:
        """Run it again after it failed."""
        return self._client.retry([self], **kwargs)

    def release(self) -> None:
        """Give this handle up. Twice is once."""
        if not self._cleared:
            self._cleared = True
            self._owner.drop(self._row)

    def __del__(self) -> None:
        try:
            if not self._cleared:
                self._cleared = True
                self._owner.drop(self._row)
        except AttributeError:
            pass  # it was never finished, or the interpreter is being taken down

    # ---- travelling ----

    def __reduce__(self) -> Any:
        owner = self._owner
        if pickling.names or (pickling.found is None and tokenizing()):
            # One object for each name: a pickle tells equal objects from the same one twice, and
            # a task that runs again may meet a future that it had twice as two of them.
            return named, tuple([intern(repr(part)) for part in self.__dask_tokenize__()])
        if pickling.found is not None:
            pickling.found.append(self)
            owner.export(self._row)
        else:
            owner.pin(self._row)
        origin = owner.core.origin_of(self._row)
        return come_home, held_at(origin, pickling.holder) if pickling.holder else origin

    def __copy__(self) -> Future:
        self._owner.core.hold(self._row)
        return Future(self._client, self._row)

    def __deepcopy__(self, memo: Any) -> Future:
        return self.__copy__()

    def __await__(self) -> Generator[Any, None, Any]:
        return self._result().__await__()

    def __dask_tokenize__(self) -> Any:
        origin = self._owner.core.origin_of(self._row)
        heir = origin[4]
        if heir is not None:
            # A task that runs again elsewhere makes the same of what it makes again.
            return type(self).__name__, self.key, heir[3]
        return type(self).__name__, self.key, origin[0], origin[5]

    # As any object, and at the speed of C: sets of very many futures are usual.
    __hash__ = object.__hash__
    __eq__ = object.__eq__

    def __repr__(self) -> str:
        kind = self.type
        middle = f" type: {typename(kind)}," if kind else ""
        return f"<Future: {self.status},{middle} key: {self.key}>"

    def __str__(self) -> str:
        return repr(self)

    def _repr_html_(self) -> str:
        return future_html(self)


class TravelledFuture(distributed.Future):
    """What a future becomes where there is no client that could ask its owner.

    It can be passed on, and comes alive where there is one. Asking it for anything
    says what it is.
    """

    def __init__(self, origin: Origin) -> None:
        self.key = origin[3]
        self._origin = origin
        self._client = None
        self._cleared = True

    def _bind_late(self) -> None:
        pass

    def bind_client(self, client: Any) -> None:
        """No client of the central scheduler can ask for it."""

    def _refuse(self) -> NotHere:
        return NotHere(
            f"the future {self.key!r} is owned by {self._origin[2]} and was unpickled where there "
            "is no dask_ownership.Client: make one of the same cluster first"
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
        """There is nothing to release here."""

    def __del__(self) -> None:
        pass

    def __reduce__(self) -> Any:
        return come_home, self._origin

    def __dask_tokenize__(self) -> Any:
        return "Future", self.key, self._origin[0], self._origin[5]

    def __hash__(self) -> int:
        return hash((self._origin[0], self.key, self._origin[5]))

    def __eq__(self, other: object) -> bool:
        return self is other

    def __repr__(self) -> str:
        return f"<Future: owned by {self._origin[2]}, key: {self.key}>"

    __str__ = __repr__


def delegate(future: Any) -> Any:
    """Have the value of another future be this task's: ``return delegate(future)``.

    The task ends at once and keeps no slot and no thread; whoever waits for it gets what
    the other resolves to, its error too. This is the tail spawn of CIEL: a loop of
    tasks that each return a delegate of the next runs in constant memory of threads.

    Parameters
    ----------
    future : Future
        One that this task submitted or was given.

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
    """What a future is in a pickle that is only made to compare it with others."""
    return name


def come_home(incarnation: str, address: str, name: str, key: Any, heir: Any, life: int) -> Any:
    """Unpickle a future: its owner's own where it is owned, borrowed elsewhere."""
    origin = (incarnation, address, name, key, heir, life)
    # Who asks comes first: owners of one process borrow from each other like any others.
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
    """The client that a future becomes one of, when nobody says which."""
    try:
        default = distributed.default_client()
    except ValueError:
        default = None
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
        """Wait until the row ends."""
        started = perf_counter()
        owner = self.future._owner
        if not await owner.wait_async((self.future._row,), timeout):
            waited = perf_counter() - started
            raise asyncio.TimeoutError(f"{self.key!r} did not end within {waited:.1f} s")

    def __repr__(self) -> str:
        return f"<RowState: {self.status}>"
