"""Counts of the bytes that went between an owner and one worker."""

from __future__ import annotations


class ByteCounter:
    """Counts of bytes since the worker joined, before encryption.

    Counted are the bytes of a link between TCP or TLS addresses, and the values that the owner
    put at the worker or read from there. Links within a process and over other protocols count
    nothing.

    Attributes
    ----------
    sent, received : int
        Bytes from the owner to the worker, and from the worker to the owner.
    """

    __slots__ = ("received", "sent")

    def __init__(self) -> None:
        self.sent = 0
        self.received = 0
