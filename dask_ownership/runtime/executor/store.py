"""Owned values in the worker's own ``data``.

In ``data`` owned values obey the worker's memory limits: they spill, and count when the worker
decides to pause. Their names there are hashed and hidden from the state machine, and no name is
used twice: a cancelled attempt may end after the next attempt of its key, and must not touch the
value of the latter. A user who looks at ``Worker.data`` finds owned values by their keys
(`KeyedData`).
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterator, MutableMapping
from typing import Any

import cloudpickle

from dask_ownership.core.executor.session import Entry
from dask_ownership.core.protocol.names import stored_name
from dask_ownership.runtime.dask.worker import HiddenData, share_data
from dask_ownership.runtime.importing import one_at_a_time
from dask_ownership.runtime.serialize import finding, sizeof, unpickling


class Containing:
    """A value with futures inside, as it stands in ``data``.

    When the value spills, the futures are pickled with it and the `Future` objects go away. The
    local references in `Entry.contains` keep their rows meanwhile.
    """

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        with finding():
            return _contained, (cloudpickle.dumps(self.value, 5),)

    def __sizeof__(self) -> int:
        return sizeof(self.value)


def _contained(pickled: bytes) -> Containing:
    return Containing(pickle.loads(pickled))


class KeyedData(HiddenData):
    """A worker's ``data`` as ``Worker.data`` shows it: with owned values by their keys.

    All other attributes (``fast``, ``slow``, ``evict``) are those of the mapping underneath. An
    instance also passes for one of the class of that mapping, which is a dict when the worker has
    no memory limit.
    """

    @property  # type: ignore[misc]  # the class of an object can be written elsewhere
    def __class__(self) -> Any:
        return type(self.__dict__["data"])

    def __init__(self, data: MutableMapping[Any, Any], store: Store) -> None:
        super().__init__(data)
        self._store = store

    def __getitem__(self, key: Any) -> Any:
        name = self._store.names.get(key)
        if name is None or key in self.data:
            return self.data[key]
        value = self.data[name]
        return value.value if type(value) is Containing else value

    def __delitem__(self, key: Any) -> None:
        if key in self.data:
            del self.data[key]
        else:
            self._store.delete(self._store.names[key])

    def __contains__(self, key: object) -> bool:
        return key in self._store.names or key in self.data

    def __iter__(self) -> Iterator[Any]:
        yield from super().__iter__()
        for key in list(self._store.names):
            if key not in self.data:
                yield key

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["data"], name)


class Store:
    """Values of all owners at one worker.

    Attributes
    ----------
    sizes : dict
        Name in ``worker.data`` to bytes.
    names : dict
        Key to name, of the latest value when several owners have a value of the same key here.
    nbytes : int
        Sum of the sizes.
    """

    def __init__(self, worker: Any) -> None:
        self.sizes: dict[str, int] = {}
        self.names: dict[Any, str] = {}
        self._keys: dict[str, Any] = {}
        self.nbytes = 0
        self._numbers = itertools.count()
        self._data = share_data(worker, lambda data: KeyedData(data, self))
        self._in_memory = getattr(self._data, "fast", self._data)

    def put(self, entry: Entry, value: Any) -> int:
        """Keep the value of an entry, and write its name into `Entry.stored`.

        Returns
        -------
        int
            The size of the value in bytes.

        Raises
        ------
        Exception
            When the value is larger than memory allows and cannot be spilled.
        """
        if entry.contains and type(value) is not Containing:
            value = Containing(value)
        name = f"{stored_name(entry.session.owner, entry.key)}-{next(self._numbers):x}"
        nbytes = sizeof(value)
        self._data[name] = value
        self.nbytes += nbytes
        self.sizes[name] = nbytes
        self.names[entry.key] = name
        self._keys[name] = entry.key
        entry.stored = name
        return nbytes

    def get(self, entry: Entry) -> Any:
        """Return the value of an entry, read back from disk when it was spilled.

        Raises
        ------
        KeyError
            When the value is not here.
        """
        name = entry.stored
        if name is None:
            raise KeyError(entry.key)
        # Reading back unpickles, and may import modules: in one thread at a time.
        if name in self._data and name not in self._in_memory:
            return one_at_a_time(self._read, entry, name)
        return self._read(entry, name)

    def _read(self, entry: Entry, name: str) -> Any:
        if not entry.contains:
            return self._data[name]
        # Futures that are read back from disk become futures of this worker's own client, also
        # when the value is read for another process.
        before, unpickling.client = unpickling.client, entry.session.runtime.task_client
        try:
            value = self._data[name]
        finally:
            unpickling.client = before
        return value.value if type(value) is Containing else value

    @property
    def spilled(self) -> int:
        """Bytes of the values that are on disk only."""
        slow = getattr(self._data, "slow", None)
        if not slow:
            return 0
        return sum(nbytes for name, nbytes in list(self.sizes.items()) if name in slow)

    def delete(self, name: str) -> None:
        """Delete the value of this name; nothing happens when it is not here."""
        nbytes = self.sizes.pop(name, None)
        if nbytes is not None:
            self.nbytes -= nbytes
            key = self._keys.pop(name)
            # Another owner's value, or a later one, may have the key by now.
            if self.names.get(key) == name:
                del self.names[key]
            # ``pop`` would read a spilled value back.
            if name in self._data:
                del self._data[name]
