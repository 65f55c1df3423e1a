"""Private parts of connections of distributed: the counters of their streams."""

from __future__ import annotations

from typing import Any


def moved_bytes(comm: Any) -> tuple[int, int] | None:
    """Return numbers that change whenever bytes move over a connection; None without counters.

    Returns
    -------
    tuple of int or None
        Bytes that have left, and bytes that have arrived and are not read yet.
    """
    stream = getattr(comm, "stream", None)
    if stream is None or not hasattr(stream, "_total_write_done_index"):
        return None
    return stream._total_write_done_index, stream._read_buffer_size
