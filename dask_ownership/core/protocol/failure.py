"""Failures: reasons why an object has no value, as owners and executors tell each other."""

from __future__ import annotations

from dataclasses import dataclass

from dask_ownership.core.protocol.messages import Key


@dataclass(slots=True, eq=False, repr=False)
class Failure:
    """The reason why a row has no value, or a checkpoint is not kept, other than a raised error.

    The runtime makes an exception of a failure when a caller asks for the value
    (`errors.from_failure`).
    """

    #: ``cancelled``, ``lost-data``, ``owner-lost``, ``killed-worker``, ``uncertain``,
    #: ``no-worker``, ``scheduler-gone``, ``internal`` or ``closed``; of a checkpoint
    #: ``superseded`` or ``closed``. Between owners also `peer_messages.FREED` and ``LEAVES``.
    kind: str
    #: The key of the row that failed first; rows that depend on it name this key, too.
    key: Key
    #: What happened, where, and what the owner tried; for people.
    detail: str
    #: Owner and locations of the row, when ``detail`` is a text of the user.
    where: str = ""
    #: For ``owner-lost``: names of the owner of the object and of the owners of the tasks that
    #: led to the object, nearest first.
    chain: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Failure {self.kind} {self.key!r}: {self.detail}>"
