"""Keys that users choose."""

from __future__ import annotations

from typing import Any

import msgpack
from distributed.scheduler import validate_key


def check_key(key: Any) -> None:
    """Refuse what is no key, or one that cannot be sent to a worker.

    Raises
    ------
    TypeError
        As `distributed` does for other than strings, numbers and tuples of them; and for
        integers of more than 64 bits and strings that are no text.
    """
    if type(key) is str and key.isascii():
        return
    validate_key(key)
    try:
        msgpack.packb(key)
    except (OverflowError, UnicodeError, ValueError) as error:
        raise TypeError(f"the key {key!r} cannot be sent to a worker: {error}") from error
