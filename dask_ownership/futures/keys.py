"""Keys that users choose, and tokens for keys that are made."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any
from uuid import uuid4

import msgpack
from dask.tokenize import tokenize
from distributed.scheduler import validate_key


def check_key(key: Any) -> Any:
    """Refuse an object that is no key, or a key that cannot be sent to a worker.

    Returns
    -------
    hashable
        The key, or an equal key of plain numbers and strings: arrays that are indexed by arrays
        have NumPy's numbers in their keys.

    Raises
    ------
    TypeError
        As `distributed` does for other objects than strings, numbers and tuples of them; and for
        integers of more than 64 bits and strings that are no text.
    """
    # Nearly all keys are of this kind, and need none of the checks below.
    if type(key) is str and key.isascii():
        return key
    try:
        validate_key(key)
    except TypeError:
        key = _plain(key)
        validate_key(key)
    try:
        # Workers receive keys as msgpack.
        msgpack.packb(key)
    except (OverflowError, UnicodeError, ValueError) as error:
        raise TypeError(f"the key {key!r} cannot be sent to a worker: {error}") from error
    return key


def _plain(key: Any) -> Any:
    """Return a key with Python's own numbers and strings in place of subclasses."""
    if isinstance(key, tuple):
        return tuple(map(_plain, key))
    if isinstance(key, bool):
        return key
    if isinstance(key, str):
        return str(key)
    if isinstance(key, Integral):
        return int(key)
    return float(key) if isinstance(key, Real) else key


def token_of(*values: Any) -> str:
    """Return a token that is the same for the same values, as far as `dask.tokenize` can tell.

    A value that contains itself, or is too deep for `dask.tokenize`, gets another token each time.
    """
    try:
        return str(tokenize(*values))
    except RecursionError:
        return uuid4().hex
