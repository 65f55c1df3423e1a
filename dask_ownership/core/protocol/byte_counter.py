"""Counts of the bytes that went between an owner and one worker."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, eq=False, repr=False)
class ByteCounter:
    """Counts of bytes since the worker joined, before encryption.

    Counted are the bytes of a link between TCP or TLS addresses, and the values that the owner
    put at the worker or read from there. Links within a process and over other protocols count
    nothing.
    """

    #: Bytes from the owner to the worker.
    sent: int = 0
    #: Bytes from the worker to the owner.
    received: int = 0
