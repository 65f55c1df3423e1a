"""Outcomes: what an owner tells the borrowers of an object that has ended.

An outcome travels inside a message as a tuple, whose first item is the state in which the row at
the owner has ended. `read_outcome` gives the items their names again.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

from dask_ownership.core.protocol.messages import Key, Origin
from dask_ownership.core.protocol.states import ERROR, INLINE, STORED


class InlineValue(NamedTuple):
    """The value itself."""

    #: `INLINE`.
    state: int
    #: The pickled value.
    pickled: bytes
    #: The names of the futures inside the value.
    inside: tuple[Origin, ...]


class StoredValue(NamedTuple):
    """Where the value is."""

    #: `STORED`.
    state: int
    #: Size of the value in bytes.
    nbytes: int
    #: The pickled type of the value, or the type's name.
    type_name: bytes | None
    #: Addresses of the workers that have the value.
    addresses: tuple[str, ...]
    #: The attempt of the owner that made the value.
    made_by: int


class TaskError(NamedTuple):
    """The error of the task."""

    #: `ERROR`.
    state: int
    #: The pickled error.
    pickled: bytes
    #: The names of the futures inside the error.
    inside: tuple[Origin, ...]


class NoValue(NamedTuple):
    """Why there is no value: the items after the state are those of a `Failure`."""

    #: The state in which the row has ended.
    state: int
    #: What happened.
    kind: str
    #: The key of the object that could not be had.
    key: Key
    #: What happened, for people.
    detail: str
    #: The owners above the object, for people, when they are gone.
    chain: tuple[str, ...]


Outcome: TypeAlias = InlineValue | StoredValue | TaskError | NoValue

Sent: TypeAlias = tuple[Any, ...]
"""An outcome as it arrives, without names."""


def read_outcome(sent: Sent) -> Outcome:
    """Return an outcome with named items, from the tuple that another process sent.

    Raises
    ------
    TypeError
        When the tuple is no outcome.
    """
    state = sent[0]
    if state == INLINE:
        return InlineValue._make(sent)
    if state == STORED:
        return StoredValue._make(sent)
    # A row in the state of an error may also have ended without an error of its task.
    if state == ERROR and isinstance(sent[1], bytes):
        return TaskError._make(sent)
    return NoValue._make(sent)
