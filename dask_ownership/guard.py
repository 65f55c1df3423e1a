"""What a client asks the central scheduler, with an eye on owned keys.

The scheduler knows nothing of owned keys and would wait for them for ever. Futures in
queues, variables and datasets go there as data, which is nothing to the scheduler and
becomes a live future again where a client takes it out. Anything else that names an
owned key is an error here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distributed.core import PooledRPCCall

from dask_ownership.core.table import Row
from dask_ownership.future import come_home
from dask_ownership.runtime.membership import JOIN
from dask_ownership.runtime.serialize import arriving

if TYPE_CHECKING:
    from dask_ownership.client import Client

HOUSEKEEPING = {"address", "close_rpc", "identity", "register_scheduler_plugin", JOIN}
"""Operations of the scheduler that every client uses, whatever it runs."""

CENTRAL_DATA = {
    "call_stack",
    "gather",
    "has_what",
    "nbytes",
    "rebalance",
    "replicate",
    "retry",
    "who_has",
}
"""Operations of the scheduler on keys, none of which knows owned ones."""

PUT = {"queue_put", "variable_set"}
GET = {"queue_get", "variable_get"}

MARK = "dask-ownership-future"
"""Stands in a queue or variable for a future, with its origin."""


class GuardedScheduler:
    """The scheduler's operations for one client."""

    def __init__(self, rpc: PooledRPCCall, client: Client) -> None:
        self._rpc = rpc
        self._client = client

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._rpc, name)
        if name in HOUSEKEEPING or not callable(operation):
            return operation

        def counted(**kwargs: Any) -> Any:
            if name in CENTRAL_DATA:
                self._refuse_owned(name, kwargs)
            elif name in PUT:
                kwargs = self._as_data(kwargs)
            elif name == "publish_put":
                kwargs["keys"] = [
                    [key for key in keys if self._owned(key) is None] for keys in kwargs["keys"]
                ]
            self._client.central_calls += 1
            answer = operation(**kwargs)
            return self._live(answer) if name in GET else answer

        return counted

    def _owned(self, key: Any) -> Row | None:
        """The row of a key that this client owns or borrows."""
        owner = self._client.owner
        row: Row | None = owner.core.table.rows.get(key)
        if row is None:
            peers = list(owner.core.references.peers.values())
            borrowed = (row for peer in peers for row in list(peer.borrowed.values()))
            row = next((row for row in borrowed if row.origin[3] == key), None)
        return row

    def _refuse_owned(self, name: str, kwargs: dict[str, Any]) -> None:
        keys = [kwargs.get("key")]
        for key in kwargs.get("keys") or ():
            keys.extend(key if isinstance(key, list) else [key])
        for key in keys:
            if key is not None and self._owned(key) is not None:
                raise NotImplementedError(
                    f"the scheduler cannot do {name!r} for {key!r}: it is owned by this client, "
                    "and the scheduler does not know it; use its value (future.result())"
                )

    def _as_data(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """A future that is put somewhere, as data. Its owner keeps it from now on."""
        key = kwargs.get("key")
        row = self._owned(key) if key is not None else None
        if row is None:
            return kwargs
        owner = self._client.owner
        owner.core.table.pin(row)
        kwargs = {name: value for name, value in kwargs.items() if name != "key"}
        return {**kwargs, "data": {MARK: list(owner.core.references.origin_of(row))}}

    async def _live(self, answer: Any) -> Any:
        """Futures that are taken out, alive."""
        got = await answer
        for record in got if isinstance(got, list | tuple) else (got,):
            value = record.get("value") if isinstance(record, dict) else None
            if isinstance(value, dict) and list(value) == [MARK]:
                with arriving(self._client):
                    record["value"] = come_home(*value[MARK])
        return got
