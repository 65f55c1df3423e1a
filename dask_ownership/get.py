"""The scheduler for ``dask.config.set(scheduler=...)``: ``"ownership"`` or `get` itself."""

from __future__ import annotations

import atexit
import threading
import warnings
from multiprocessing import current_process
from typing import Any
from weakref import WeakKeyDictionary

import dask
import dask.base
import distributed
from distributed.worker import get_worker

from dask_ownership.client.client import Client
from dask_ownership.runtime.serialize import note_on

UNGUARDED = (
    "scheduler='ownership' without a client starts worker processes, which import the script that "
    "computes: in a script, put the code that computes below `if __name__ == '__main__':`"
)
"""What is said when the embedded cluster does not start."""

_lock = threading.Lock()
_attached: WeakKeyDictionary[Any, Client] = WeakKeyDictionary()
"""Clients that were made here, by the stock client whose cluster they share."""
_embedded: Client | None = None
"""The client with an embedded cluster, if one was needed."""


def current_client() -> Client:
    """Return the client whose owner serves the caller.

    Inside a task the client of the worker; else the current or default client if it is a client of
    this project; else a client attached to the cluster of the default `distributed.Client`; else a
    client with an embedded cluster, started now and closed at exit.
    """
    found = _found()
    if found is None:
        return _embedded_client()
    return found if isinstance(found, Client) else _attach(found)


def _found() -> Any:
    """Return the client that is there, of this project or of Dask, or None."""
    try:
        worker = get_worker()
    except ValueError:
        pass
    else:
        side = worker.extensions.get("dask-ownership")
        if side is not None:
            return side.owned_client()
    try:
        return distributed.Client.current()
    except ValueError:
        return None


def _attach(stock: Any) -> Client:
    """Return a client for the cluster of a stock client; made at the first call."""
    with _lock:
        client = _attached.get(stock)
        if client is None or client.status != "running":
            target = stock.cluster if stock.cluster is not None else stock.scheduler.address
            client = _attached[stock] = Client(
                target, security=stock.security, set_as_default=False
            )
            atexit.register(_close, client)
        return client


def _embedded_client() -> Client:
    """Return the client with an embedded cluster; started at the first call."""
    global _embedded
    with _lock:
        if _embedded is None or _embedded.status != "running":
            # A worker process that imports the script would start a cluster of its own there.
            if getattr(current_process(), "_inheriting", False):
                raise RuntimeError(UNGUARDED)
            try:
                _embedded = Client(dashboard_address=":0", set_as_default=False)
            except RuntimeError as error:
                note_on(error, UNGUARDED)
                raise
            atexit.register(_close, _embedded)
        return _embedded


def _close(client: Client) -> None:
    """Close a client at exit, unless it is closed."""
    if client.status != "closed":
        client.close()


def _cluster_of(client: Any) -> Any:
    """Return a value that is equal for clients of the same cluster."""
    return getattr(client.scheduler, "address", client)


class OwnershipScheduler:
    """A Dask scheduler that finds the current owner at each call.

    Code that chooses a lock for all processes asks Dask for the scheduler, and compares it with the
    ``get`` of a `distributed.Client`, or looks whether it is a method of a client. This object
    counts as the ``get`` of the current client.
    """

    @property
    def __self__(self) -> Any:
        """The client whose method this object stands for."""
        found = _found()
        return _embedded_client() if found is None else found

    def __eq__(self, other: object) -> bool:
        """Return whether the other is this object or ``get`` of a client of the same cluster."""
        if other is self:
            return True
        theirs = getattr(other, "__self__", None)
        if getattr(other, "__name__", "") != "get" or not isinstance(theirs, distributed.Client):
            return False
        mine = self.__self__
        return mine is theirs or _cluster_of(mine) == _cluster_of(theirs)

    __hash__ = object.__hash__

    def __call__(self, dsk: Any, keys: Any, **kwargs: Any) -> Any:
        """Compute the keys of a graph; see `distributed.Client.get`.

        Raises
        ------
        RuntimeError
            In a coroutine, which must not block, unless ``admin.async-client-fallback`` of the
            configuration names another scheduler for this case.
        """
        found = _found()
        if found is not None and found.asynchronous:
            return self._instead()(dsk, keys, **kwargs)
        # Options of Dask's local schedulers; a cluster has its own threads.
        kwargs.pop("num_workers", None)
        kwargs.pop("pool", None)
        return current_client().get(dsk, keys, **kwargs)

    def _instead(self) -> Any:
        """Return the scheduler for coroutines that call ``dask.compute``, chosen as in Dask."""
        name = dask.config.get("admin.async-client-fallback", None)
        fallback = name and dask.base.get_scheduler(scheduler=name)
        if not fallback or fallback is self:
            raise RuntimeError(
                "Attempting to use an asynchronous Client in a synchronous context of "
                "`dask.compute`: use `await client.gather(client.compute(...))`, or set "
                "admin.async-client-fallback to the name of another scheduler"
            )
        warnings.warn(
            f"An asynchronous Client is there: falling back to the `{name}` scheduler. Use "
            "``Client.compute`` and ``Client.gather`` instead of ``dask.compute``",
            UserWarning,
            stacklevel=4,
        )
        return fallback

    def persist(self, collections: Any, **kwargs: Any) -> Any:
        """Start computing collections; `dask.persist` calls this."""
        kwargs.pop("num_workers", None)
        return current_client().persist(collections, **kwargs)

    def __reduce__(self) -> str:
        return "get"

    def __repr__(self) -> str:
        return "<dask_ownership.get>"


get = OwnershipScheduler()

dask.base.named_schedulers["ownership"] = get
