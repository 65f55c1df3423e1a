"""Bringing the values of futures to this process."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterable
from functools import partial
from typing import Any, TypeVar

from distributed.utils import sync

from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.protocol.states import INLINE, STORED
from dask_ownership.errors import NotHere, NotSerializable
from dask_ownership.futures.structures import SKIPPED
from dask_ownership.runtime.dask.client import parse_timeout
from dask_ownership.runtime.owner.fetch import fetch, unpacked
from dask_ownership.runtime.owner.owner import Owner
from dask_ownership.runtime.owner.pending import late
from dask_ownership.runtime.serialize import loads_value

T = TypeVar("T")


class Gathered(list[T]):
    """What `Client.gather` gives for a list, for type checkers: the values.

    An asynchronous client gives an awaitable of them, and a checker cannot know which client it is.
    There is no instance of this class.
    """

    def __await__(self) -> Generator[Any, None, list[T]]:
        raise NotImplementedError


class Gathering:
    """Owned futures that ended, and their values as these come in.

    Parameters
    ----------
    client : Client
    futures : iterable of Future
    errors : str
        ``"raise"`` or ``"skip"``.

    Attributes
    ----------
    client, errors
        The parameters.
    owner : Owner
        The owner of the client.
    values : dict
        Future to its value, `SKIPPED`, or None while the value is not here.
    """

    def __init__(self, client: Any, futures: Iterable[Any], errors: str) -> None:
        self.client = client
        self.owner: Owner = client.owner
        self.errors = errors
        self.values: dict[Any, Any] = dict.fromkeys(futures)

    @property
    def rows(self) -> list[Row]:
        """The rows of all futures."""
        return [future._row for future in self.values]

    def read_here(self) -> list[Any]:
        """Fill in the values in this process; return the futures whose values are elsewhere."""
        values = self.values
        stored = []
        for future in values:
            row = future._row
            if future._cleared:
                self._bad(future, future._error())
            elif row.state == INLINE:
                try:
                    if row.contains:
                        load = partial(loads_value, row.key, row.value)
                        values[future] = self.owner.open(self.client, row, load)
                    else:
                        values[future] = loads_value(row.key, row.value)
                except NotSerializable as error:
                    self._bad(future, error)
            elif row.state == STORED:
                stored.append(future)
            else:
                if row.state < INLINE:
                    # Waiting ended early because another future failed, and the error of that
                    # future is raised. Or the value was lost after the wait and is being made
                    # again: then fetching waits for it.
                    failed = next((f for f in values if f._row.state > STORED), None)
                    if failed is None:
                        stored.append(future)
                        continue
                    future = failed
                self._bad(future, future._error())
        return self._read_store(stored) if stored else stored

    def _read_store(self, futures: list[Any]) -> list[Any]:
        """Fill in the values in the store of this process's worker; return the other futures."""
        executor = self.owner.executor
        if executor is None:
            return futures
        remaining = []
        for future in futures:
            try:
                name = self.owner.core.value_name(future._row)
                self.values[future] = executor.stored(name)
            except KeyError:
                remaining.append(future)
        return remaining

    def read_fetched(self, futures: list[Any], fetched: dict[Row, Any]) -> None:
        """Fill in the values that `owner.fetch.fetch` brought."""
        for future in futures:
            row = future._row
            try:
                if row in fetched:
                    unpack = partial(unpacked, future.key, fetched[row])
                    self.values[future] = self.owner.open(self.client, row, unpack)
                    continue
                error = future._error()  # the value was lost, or the task cancelled, meanwhile
            except Exception as problem:
                error = problem
            try:
                self._bad(future, error)
            finally:
                del error  # the traceback holds this frame, and so the futures

    def _bad(self, future: Any, error: BaseException | None) -> None:
        """Raise the error of a future, or skip the future, as the caller of gather wishes."""
        if self.errors != "raise":
            self.values[future] = SKIPPED
            return
        # The traceback of the error holds this object, which must not keep all values alive.
        self.values.clear()
        try:
            raise error if error is not None else NotHere(f"{future.key!r} has no value")
        finally:
            del error, future  # the traceback holds this frame


async def values_of(client: Any, futures: Iterable[Any], errors: str = "raise") -> dict[Any, Any]:
    """Wait for futures of a client, and return their values by future.

    ``errors`` is as in `Gathering`.
    """
    owner = client.owner
    gathering = Gathering(client, futures, errors)
    await owner.wait_async(gathering.rows, stop_at_error=errors == "raise")
    remaining = gathering.read_here()
    if remaining:
        fetched = await fetch(owner, [future._row for future in remaining])
        gathering.read_fetched(remaining, fetched)
    return gathering.values


def value_of(client: Any, future: Any, timeout: Any) -> Any:
    """Return the value of a future of a client that has ended, for `Future.result`.

    Raises
    ------
    TimeoutError
    Exception
        The reason why there is no value.
    """
    error = future._error()
    if error is not None:
        try:
            raise error
        finally:
            del error  # the traceback holds this frame, and so the future
    seconds = parse_timeout(timeout)
    try:
        return sync(client.loop, values_of, client, [future], callback_timeout=seconds)[future]
    except (TimeoutError, asyncio.TimeoutError):
        if future._row.state > STORED:
            raise  # the value was lost meanwhile, and the task raised the error
        raise asyncio.TimeoutError(late(client.owner.core, [future._row], seconds)) from None
