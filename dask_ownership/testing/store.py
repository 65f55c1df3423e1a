"""The stored values of one worker of the virtual cluster."""

from __future__ import annotations

from typing import Any

from dask_ownership.core.executor.executor import ExecutorCore
from dask_ownership.core.executor.session import Entry
from dask_ownership.core.protocol.messages import ValueName
from dask_ownership.testing.clock import Clock


class Store:
    """Keeps pickled values, each under a name that no other value ever has.

    Parameters
    ----------
    core : ExecutorCore
        Has the entries of the values.
    clock : Clock
        Gives the numbers in the names.

    Attributes
    ----------
    values : dict
        Name (`Entry.stored`) to pickled value.
    """

    def __init__(self, core: ExecutorCore, clock: Clock) -> None:
        self.core = core
        self.clock = clock
        self.values: dict[Any, bytes] = {}

    def put(self, entry: Entry, value: bytes) -> None:
        """Keep the value of an entry, and write its name into `Entry.stored`."""
        entry.stored = (entry.session.owner, entry.key, self.clock.number())
        self.values[entry.stored] = value

    def find(self, name: ValueName) -> bytes | None:
        """Return the pickled value of this name, or None when it is not here."""
        entry = self.core.find_value(*name)
        return self.values[entry.stored] if entry is not None else None
