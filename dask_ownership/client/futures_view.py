"""Views for ``Client.futures`` and ``Client.refcount``, which show owned futures too.

Dask keeps the futures of the scheduler there, and changes these dicts; that works unchanged.
Readers find owned futures as well: by key, by ``in``, and counted by ``len``.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.protocol.states import CANCELLED
from dask_ownership.futures.client_like import ClientLike
from dask_ownership.futures.future import Future, RowState


def count_futures(client: ClientLike, key: Any) -> int:
    """Return how many futures of an owned key there are; none for a cancelled task."""
    row = client.owner.core.row(key)
    return 0 if row is None else _futures_of_row(client, row)


def _futures_of_row(client: ClientLike, row: Row) -> int:
    """Return how many futures a row has, without those that are dropped but not counted off."""
    if row.state == CANCELLED:
        return 0
    return row.local_refs - client.owner.dropped(row)


class FuturesView(dict[Any, Any]):
    """Key to the state of a future."""

    def __init__(self, client: ClientLike) -> None:
        super().__init__()
        self._client = client

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or count_futures(self._client, key) > 0

    def __missing__(self, key: Any) -> Any:
        # A row may be in the table without a future, for other rows that need it: no future, no
        # entry.
        if not count_futures(self._client, key):
            raise KeyError(key)
        # This takes the local reference of the future below.
        row = self._client.owner.find(key)
        if row is None:
            raise KeyError(key)
        return RowState(Future(self._client, row))

    def __len__(self) -> int:
        rows = self._client.owner.core.rows()
        return super().__len__() + sum(_futures_of_row(self._client, row) > 0 for row in rows)


class RefcountView(defaultdict[Any, int]):
    """Key to the number of its futures."""

    def __init__(self, client: ClientLike) -> None:
        super().__init__(int)
        self._client = client

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or count_futures(self._client, key) > 0

    def __missing__(self, key: Any) -> int:
        return count_futures(self._client, key)
