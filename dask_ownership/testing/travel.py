"""Futures of the virtual cluster, pickled and unpickled for real."""

from __future__ import annotations

import pickle
from typing import Any, Protocol

from dask_ownership.core.owner.ownership import OwnerCore
from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.protocol.messages import Origin


class FutureOwner(Protocol):
    """The owner in a process, as far as futures need it.

    Attributes
    ----------
    core : OwnerCore
    dropped : list of Row
        Rows of dropped local references: the owner counts them off with its next step.
    """

    core: OwnerCore
    dropped: list[Row]

    def arrive(self, origin: Origin, wanted: bool = True) -> Row: ...

    def wants_step(self) -> None: ...


class VirtualFuture:
    """One local reference to a row, dropped when this object goes."""

    __slots__ = ("owner", "row")

    def __init__(self, owner: FutureOwner, row: Row) -> None:
        self.owner = owner
        self.row = row

    def __reduce__(self) -> Any:
        # As `Future.__reduce__`: the pickle takes the future out of its process.
        _found.append(self)
        self.owner.core.retention.export(self.row)
        self.owner.wants_step()
        return _come_home, (self.owner.core.table.origin_of(self.row),)

    def __del__(self) -> None:
        self.owner.dropped.append(self.row)
        self.owner.wants_step()

    def __repr__(self) -> str:
        return f"<VirtualFuture {self.row}>"


_found: list[VirtualFuture] = []
_here: list[tuple[FutureOwner, bool]] = []


def dumps(value: Any) -> tuple[bytes, list[VirtualFuture]]:
    """Pickle a value; the pickle, and the futures inside."""
    _found.clear()
    data = pickle.dumps(value)
    found = list(_found)
    _found.clear()
    return data, found


def loads(owner: FutureOwner, data: bytes, wanted: bool = True) -> tuple[Any, list[VirtualFuture]]:
    """Unpickle a value at an owner; the value, and the futures inside.

    ``wanted`` is False for a task that its owner has given up: then its futures may be freed.
    """
    _here.append((owner, wanted))
    try:
        value = pickle.loads(data)
    finally:
        _here.pop()
    return value, inside(value)


def inside(value: Any) -> list[VirtualFuture]:
    """Return the futures in a value or a task, each as often as it is inside."""
    futures = value[1] if isinstance(value, tuple) else getattr(value, "carries", ())
    return list(futures)


def _come_home(origin: Origin) -> VirtualFuture:
    """Unpickle a future at the owner for which this thread unpickles."""
    owner, wanted = _here[-1]
    return VirtualFuture(owner, owner.arrive(origin, wanted))


def number(value: Any) -> int:
    """Return the number in a value, with or without futures beside it."""
    return int(value[0]) if isinstance(value, tuple) else int(value)
