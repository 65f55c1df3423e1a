"""Why there is no value, as owners and executors tell it."""

from __future__ import annotations

from dataclasses import dataclass

from dask_ownership.core.protocol.messages import Key


@dataclass(slots=True, eq=False, repr=False)
class Failure:
    """Why a row has no value, when it was not its function that raised.

    The runtime makes the exception of it when someone asks for the value.
    """

    #: ``cancelled``, ``lost-data``, ``owner-lost``, ``killed-worker``, ``uncertain``,
    #: ``no-worker``, ``scheduler-gone``, ``internal`` or ``closed``.
    kind: str
    #: The key that it happened to; for those that depend on it, not their own.
    key: Key
    #: What happened, where, what was tried.
    detail: str
    #: Who owned it and where it was, when ``detail`` is what a user said.
    where: str = ""
    #: For ``owner-lost``: the names of its owner and of those who owned the tasks that led to it,
    #: nearest first.
    chain: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Failure {self.kind} {self.key!r}: {self.detail}>"
