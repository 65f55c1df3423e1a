"""How many bytes went between an owner and one worker."""

from __future__ import annotations


class ByteCounter:
    """Bytes since the worker joined, before encryption.

    What links between TCP or TLS addresses carry, and values that were put there or read from
    there; links within a process and over other protocols count nothing.

    Attributes
    ----------
    sent, received : int
        As the owner sees it.
    """

    __slots__ = ("received", "sent")

    def __init__(self) -> None:
        self.sent = 0
        self.received = 0
