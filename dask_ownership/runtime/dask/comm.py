"""What is private to a connection of distributed."""

from __future__ import annotations

from typing import Any


def moved_bytes(comm: Any) -> tuple[int, int] | None:
    """What changes whenever bytes move over a connection; None when nothing shows it."""
    stream = getattr(comm, "stream", None)
    if stream is None or not hasattr(stream, "_total_write_done_index"):
        return None
    return stream._total_write_done_index, stream._read_buffer_size
