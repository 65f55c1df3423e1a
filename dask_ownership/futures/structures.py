"""Futures inside lists, tuples, sets and dicts: found, exchanged, and replaced by values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import distributed
from distributed.actor import Actor, BaseActorFuture

from dask_ownership.runtime.serialize import SEQUENCES


class _Skipped:
    """Type of `SKIPPED`."""


SKIPPED = _Skipped()
"""In place of the value of a failed future with ``errors="skip"``."""


def exchanged(value: Any, exchange: Callable[[Any], Any]) -> Any:
    """Return a structure with each future and actor replaced by ``exchange(future)``."""
    if isinstance(value, distributed.Future | Actor | BaseActorFuture):
        return exchange(value)
    if isinstance(value, dict):
        entries = {k: exchanged(v, exchange) for k, v in value.items()}
        same = all(a is b for a, b in zip(entries.values(), value.values(), strict=True))
        return value if same else entries
    if isinstance(value, SEQUENCES):
        items = [exchanged(item, exchange) for item in value]
        # A container without futures stays the same object, which may be large.
        if all(a is b for a, b in zip(items, value, strict=True)):
            return value
        # A namedtuple takes its fields as separate arguments.
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*items)
        return next(plain for plain in SEQUENCES if isinstance(value, plain))(items)
    return value


def collect(structure: Any, found: dict[Any, Any]) -> None:
    """Add the futures in nested containers to the keys of ``found``, in order."""
    kind = type(structure)
    if isinstance(structure, distributed.Future):
        found[structure] = None
    elif kind in SEQUENCES:
        for item in structure:
            collect(item, found)
    elif kind is dict:
        for item in structure.values():
            collect(item, found)
    elif isinstance(structure, tuple) and hasattr(structure, "_fields"):
        for item in structure:
            collect(item, found)


def repack(structure: Any, values: dict[Any, Any], errors: str, top: bool = True) -> Any:
    """Return the structure with values in place of futures.

    Skipped futures vanish from a list at the top, and become None elsewhere.
    """
    kind = type(structure)
    if isinstance(structure, distributed.Future):
        value = values[structure]
        return None if value is SKIPPED else value
    if kind in SEQUENCES:
        if top and kind is list and errors == "skip":
            structure = [
                item
                for item in structure
                if not (isinstance(item, distributed.Future) and values[item] is SKIPPED)
            ]
        return kind([repack(item, values, errors, False) for item in structure])
    if kind is dict:
        return {k: repack(v, values, errors, False) for k, v in structure.items()}
    if isinstance(structure, tuple) and hasattr(structure, "_fields"):
        return kind(*[repack(item, values, errors, False) for item in structure])
    return structure
