"""Owned values in the worker's own ``data``.

There they obey the worker's memory limits: they spill, and they count when the
worker decides to pause. Their names are hashed and hidden from the state machine.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from distributed.sizeof import safe_sizeof

from dask_ownership.core.identity import stored_name
from dask_ownership.runtime.compat import state_data


class Store:
    """Values of all owners at one worker.

    Attributes
    ----------
    sizes : dict
        Name in ``worker.data`` to bytes.
    nbytes : int
        Sum of the sizes.
    """

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self.sizes: dict[str, int] = {}
        self.nbytes = 0
        state_data(worker)

    def put(self, owner: str, key: Hashable, value: Any, nbytes: int | None = None) -> int:
        """Keep a value; its size in bytes.

        Raises
        ------
        Exception
            When the value is larger than memory allows and cannot be spilled.
        """
        name = stored_name(owner, key)
        if nbytes is None:
            nbytes = safe_sizeof(value)
        self.worker.data[name] = value
        self.nbytes += nbytes - self.sizes.get(name, 0)
        self.sizes[name] = nbytes
        return nbytes

    def get(self, owner: str, key: Hashable) -> Any:
        """The value, read back from disk when it was spilled.

        Raises
        ------
        KeyError
            When it is not here.
        """
        return self.worker.data[stored_name(owner, key)]

    def has(self, owner: str, key: Hashable) -> bool:
        return stored_name(owner, key) in self.sizes

    def delete(self, owner: str, key: Hashable) -> None:
        """Drop a value; nothing happens when it is not here."""
        name = stored_name(owner, key)
        nbytes = self.sizes.pop(name, None)
        if nbytes is not None:
            self.nbytes -= nbytes
            # ``pop`` would read a spilled value back.
            if name in self.worker.data:
                del self.worker.data[name]
