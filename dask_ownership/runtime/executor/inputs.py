"""Inputs of tasks, from their arrival at a worker until the tasks can have them."""

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
from dask_ownership.runtime.owner.owner import LocalRef, Owner
from dask_ownership.runtime.serialize import dumps_error


class Inputs:
    """Takes in the values that the fetcher of one worker brings. Loop thread.

    Parameters
    ----------
    core : dask_ownership.core.executor.executor.ExecutorCore
    lock : threading.Lock
        Covers the core.
    store : Store
        Keeps the values.
    owner : Owner
        The owner in this process, which borrows the futures inside.
    task_client : object
        The client of the futures inside.
    address : str
        The address of the worker.
    provide : callable
        Leases slots and has waiting tasks start.
    flush : callable
        Sends answers.
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
        """Unpack a value, and keep it once this process is counted for the futures inside."""
        try:
            value, rows = await unpack_off_loop(packed, self._task_client)
        except Exception as error:
            self.failed(entry, str(error), ())
            return
        if not rows:
            self._keep(entry, value)
            return
        local_refs = [LocalRef(self._owner, row) for row in rows]
        # The sender, or the row of the value, keeps the futures inside for now. A task here may
        # use the value only when this process is counted for those futures itself.
        self._owner.core.borrowing.when_acknowledged(
            rows, lambda: self._keep(entry, value, local_refs)
        )

    def _keep(self, entry: Entry, value: Any, contains: Any = None) -> None:
        """Put a value into the store, and start the tasks that waited for it."""
        try:
            # The owner may have freed or replaced the entry while the value was on its way.
            if entry.state == ex.FETCHING:
                entry.contains = contains
                self._store.put(entry, value)
        except Exception as error:
            self.failed(entry, str(error), ())
            return
        with self._lock:
            self._core.lifecycle.fetched(entry)
        self._provide()
        self._flush()

    def share(self, entry: Entry) -> bool:
        """Have an entry share a value that another owner has at this worker, without a copy.

        Returns
        -------
        bool
            False when the value is not here.
        """
        with self._lock:
            there = self._core.find_value(*entry.value_name)
            if (
                there is None
                or entry.state != ex.FETCHING
                or not self._core.lifecycle.share(entry, there)
            ):
                return False
            self._core.lifecycle.fetched(entry)
        self._provide()
        self._flush()
        return True

    def failed(self, entry: Entry, reason: str | None, absent: tuple[str, ...]) -> None:
        """Give the tasks that wait for a value back to their owner, or fail them.

        Parameters
        ----------
        entry : Entry
            The entry of the value.
        reason : str or None
            Why the value cannot be pickled or unpickled: then the tasks fail. None when no
            address gave the value: then the owner gets the tasks back.
        absent : tuple of str
            Addresses without the value, as they said themselves.
        """
        with self._lock:
            if reason is None:
                self._core.lifecycle.fetch_failed(entry, absent)
            else:
                try:
                    raise NotSerializable(
                        f"the input {entry.key!r} could not be brought to worker "
                        f"{self._address}: {reason}"
                    )
                except NotSerializable as error:
                    pickled = dumps_error(error, entry.key, self._address)
                    self._core.lifecycle.fetch_impossible(entry, pickled)
        self._flush()
