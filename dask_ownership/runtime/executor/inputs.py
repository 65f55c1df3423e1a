"""Values that arrive at a worker for the tasks that wait for them there."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from distributed.protocol import Serialized

from dask_ownership.core.executor import session as ex
from dask_ownership.core.executor.executor import ExecutorCore
from dask_ownership.core.executor.session import Entry
from dask_ownership.errors import NotSerializable
from dask_ownership.runtime.comm.transfer import unpack_off_loop
from dask_ownership.runtime.executor.store import Store
from dask_ownership.runtime.owner.owner import Handle, Owner
from dask_ownership.runtime.serialize import dumps_error


class Inputs:
    """Takes what the fetcher of one worker brings. On the loop's thread.

    Parameters
    ----------
    core : dask_ownership.core.executor.executor.ExecutorCore
    lock : threading.Lock
        Covers the core.
    store : Store
        Keeps the values.
    owner : Owner
        The one in this process, which counts the futures inside.
    task_client : object
        Whose futures they become.
    address : str
        Of the worker.
    provide, flush : callable
        Have what waits start, and send what there is.
    """

    def __init__(
        self,
        core: ExecutorCore,
        lock: threading.Lock,
        store: Store,
        owner: Owner,
        task_client: Any,
        *,
        address: str,
        provide: Callable[[], None],
        flush: Callable[[], None],
    ) -> None:
        self._core = core
        self._lock = lock
        self._store = store
        self._owner = owner
        self._task_client = task_client
        self._address = address
        self._provide = provide
        self._flush = flush

    async def arrived(self, entry: Entry, packed: Serialized) -> None:
        """A value came, packed."""
        try:
            value, rows = await unpack_off_loop(packed, self._task_client)
        except Exception as error:
            self.failed(entry, str(error), ())
            return
        if not rows:
            self._keep(entry, value)
            return
        handles = [Handle(self._owner, row) for row in rows]
        # Whoever sent it keeps the futures inside until this one uses it: not before this
        # process is counted for them itself.
        self._owner.core.borrowing.when_acknowledged(
            rows, lambda: self._keep(entry, value, handles)
        )

    def _keep(self, entry: Entry, value: Any, contains: Any = None) -> None:
        try:
            if entry.state == ex.FETCHING:
                entry.contains = contains
                self._store.put(entry, value)
        except Exception as error:
            self.failed(entry, str(error), ())
            return
        with self._lock:
            self._core.fetched(entry)
        self._provide()
        self._flush()

    def share(self, entry: Entry) -> bool:
        """Take a value that another owner has at this very worker; False when it is not here."""
        with self._lock:
            there = self._core.find_value(*entry.value_name)
            if there is None or entry.state != ex.FETCHING or not self._core.share(entry, there):
                return False
            self._core.fetched(entry)
        self._provide()
        self._flush()
        return True

    def failed(self, entry: Entry, reason: str | None, absent: tuple[str, ...]) -> None:
        """Nobody gave a value (``absent`` say that they have not got it), or not one that can
        be brought here, for a ``reason``."""
        with self._lock:
            if reason is None:
                self._core.fetch_failed(entry, absent)
            else:
                try:
                    raise NotSerializable(
                        f"the input {entry.key!r} could not be brought to worker "
                        f"{self._address}: {reason}"
                    )
                except NotSerializable as error:
                    self._core.fetch_impossible(entry, dumps_error(error, entry.key, self._address))
        self._flush()
