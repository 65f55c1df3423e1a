"""Owned values in the worker's own ``data``.

There they obey the worker's memory limits: they spill, and they count when the
worker decides to pause. Their names are hashed and hidden from the state machine,
and no name is used twice: an attempt that nobody wants any more may end after the
next attempt of its key, and must not touch what that one made.
"""

from __future__ import annotations

import itertools
import pickle
from typing import Any

import cloudpickle
from distributed.sizeof import safe_sizeof

from dask_ownership.core.identity import stored_name
from dask_ownership.core.session import Entry
from dask_ownership.runtime.compat import state_data
from dask_ownership.runtime.serialize import finding, unpickling


class Containing:
    """A value with futures inside, as it stands in ``data``.

    When it spills, the futures are pickled there and their objects go away; what keeps
    them meanwhile is `Entry.contains`.
    """

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        with finding():
            return _contained, (cloudpickle.dumps(self.value, 5),)

    def __sizeof__(self) -> int:
        return int(safe_sizeof(self.value))


def _contained(pickled: bytes) -> Containing:
    return Containing(pickle.loads(pickled))


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
        self._numbers = itertools.count()
        state_data(worker)

    def put(self, entry: Entry, value: Any) -> int:
        """Keep the value of an entry and write its name there; its size in bytes.

        Raises
        ------
        Exception
            When the value is larger than memory allows and cannot be spilled.
        """
        if entry.contains and type(value) is not Containing:
            value = Containing(value)
        name = f"{stored_name(entry.session.owner, entry.key)}-{next(self._numbers):x}"
        nbytes = safe_sizeof(value)
        self.worker.data[name] = value
        self.nbytes += nbytes
        self.sizes[name] = nbytes
        entry.stored = name
        return nbytes

    def get(self, entry: Entry) -> Any:
        """The value of an entry, read back from disk when it was spilled.

        Raises
        ------
        KeyError
            When it is not here.
        """
        name = entry.stored
        if name is None:
            raise KeyError(entry.key)
        if not entry.contains:
            return self.worker.data[name]
        # What is read back from disk has its futures made here, whoever asks.
        before, unpickling.client = unpickling.client, entry.session.runtime.task_client
        try:
            value = self.worker.data[name]
        finally:
            unpickling.client = before
        return value.value if type(value) is Containing else value

    def delete(self, name: str) -> None:
        """Drop a value; nothing happens when it is not here."""
        nbytes = self.sizes.pop(name, None)
        if nbytes is not None:
            self.nbytes -= nbytes
            # ``pop`` would read a spilled value back.
            if name in self.worker.data:
                del self.worker.data[name]
