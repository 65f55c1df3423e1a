"""A proxy of the central scheduler, for a client's requests that may name owned keys.

The scheduler knows nothing of owned keys and would wait for them for ever. Futures in queues,
variables and datasets go there in envelopes (`dask_ownership.client.envelopes`) and are alive again
where a client takes them out. Any other request with an owned key is an error here.
"""

from __future__ import annotations

from typing import Any

from distributed.core import PooledRPCCall

from dask_ownership.client.envelopes import AROUND, put_item
from dask_ownership.core.owner.rows.row import Row
from dask_ownership.futures.client_like import ClientLike
from dask_ownership.monitoring.lookup import find
from dask_ownership.runtime.comm.scheduler_ops import HOLD, JOIN, WHERE

HOUSEKEEPING = {
    "address", "close_rpc", "identity", "register_scheduler_plugin", HOLD, JOIN, WHERE,
}  # fmt: skip
"""Operations of the scheduler that every client uses, whatever tasks it has."""

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
"""Operations of the scheduler on keys; none knows owned keys."""

PUT = {"queue_put", "variable_set"}
"""Operations of the scheduler that put one item somewhere."""


class SchedulerProxy:
    """The scheduler's operations for one client.

    Parameters
    ----------
    rpc : distributed.core.PooledRPCCall
        The operations of the scheduler itself.
    client : ClientLike
    """

    def __init__(self, rpc: PooledRPCCall, client: ClientLike) -> None:
        self._rpc = rpc
        self._client = client

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._rpc, name)
        if name in HOUSEKEEPING or not callable(operation):
            return operation

        def counted(**kwargs: Any) -> Any:
            if name == "who_has" and any(self._owned(key) for key in kwargs.get("keys") or ()):
                # Packages, XGBoost's for one, ask the scheduler itself where to send tasks.
                return self._client.who_has(list(kwargs["keys"]), asynchronous=True)
            if name in CENTRAL_DATA:
                self._refuse_owned(name, kwargs)
            elif name == "publish_put":
                # The scheduler would look for owned keys among its tasks.
                kwargs["keys"] = self._without_owned(kwargs["keys"])
            self._client.central_calls += 1
            if name in PUT:
                key = kwargs.get("key")
                row = self._owned(key) if key is not None else None
                return put_item(self._client, operation, row, kwargs)
            if name in AROUND:
                return AROUND[name](self._client, operation, kwargs)
            return operation(**kwargs)

        counted.__name__ = name  # `Client.sync` looks at the name
        return counted

    def _owned(self, key: Any) -> Row | None:
        """Return the row of a key that this client owns or borrows, or None."""
        return find(self._client.owner, key)

    def _refuse_owned(self, name: str, kwargs: dict[str, Any]) -> None:
        """Raise when an operation on keys names an owned key."""
        keys = [kwargs.get("key")]
        for key in kwargs.get("keys") or ():
            keys.extend(key if isinstance(key, list) else [key])
        for key in keys:
            if key is not None and self._owned(key) is not None:
                raise NotImplementedError(
                    f"the scheduler cannot do {name!r} for {key!r}: it is owned by this client, "
                    "and the scheduler does not know it; use its value (future.result())"
                )

    def _without_owned(self, keys: list[Any]) -> list[Any]:
        """Return keys without the owned ones.

        Distributed 2025.12 passes the keys of one dataset, later versions a list for each dataset.
        """
        return [
            self._without_owned(key) if isinstance(key, list) else key
            for key in keys
            if isinstance(key, list) or self._owned(key) is None
        ]
