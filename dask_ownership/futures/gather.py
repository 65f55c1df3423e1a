"""Bringing the values of futures here."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.protocol.states import INLINE, STORED
from dask_ownership.errors import NotHere, NotSerializable
from dask_ownership.futures.structures import SKIPPED
from dask_ownership.runtime.owner.fetch import unpacked
from dask_ownership.runtime.owner.owner import Owner
from dask_ownership.runtime.serialize import loads_value


class Gathering:
    """Owned futures that ended, and their values as they come in.

    Parameters
    ----------
    client : Client
    futures : iterable of Future
    errors : str
        ``"raise"`` or ``"skip"``.

    Attributes
    ----------
    values : dict
        Future to its value, `SKIPPED`, or None while it is not there.
    """

    def __init__(self, client: Any, futures: Iterable[Any], errors: str) -> None:
        self.client = client
        self.owner: Owner = client.owner
        self.errors = errors
        self.values: dict[Any, Any] = dict.fromkeys(futures)

    @property
    def rows(self) -> list[Row]:
        return [future._row for future in self.values]

    def read_here(self) -> list[Any]:
        """Fill in what this process has; the futures whose values are elsewhere."""
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
                    # Waiting ended because another failed, and that one is told; or it was
                    # lost since, and is being made again.
                    failed = next((f for f in values if f._row.state > STORED), None)
                    if failed is None:
                        stored.append(future)
                        continue
                    future = failed
                self._bad(future, future._error())
        return self._read_store(stored) if stored else stored

    def _read_store(self, futures: list[Any]) -> list[Any]:
        """Fill in what this process's own worker stores; the futures that remain."""
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
        """Fill in what `owner.fetch.fetch` brought."""
        for future in futures:
            row = future._row
            try:
                if row in fetched:
                    unpack = partial(unpacked, future.key, fetched[row])
                    self.values[future] = self.owner.open(self.client, row, unpack)
                    continue
                error = future._error()  # it was lost or cancelled meanwhile
            except Exception as problem:
                error = problem
            try:
                self._bad(future, error)
            finally:
                del error  # its traceback holds this frame, and so the futures

    def _bad(self, future: Any, error: BaseException | None) -> None:
        if self.errors != "raise":
            self.values[future] = SKIPPED
            return
        self.values.clear()
        try:
            raise error if error is not None else NotHere(f"{future.key!r} has no value")
        finally:
            del error, future  # the traceback holds this frame
