"""Rows and futures outside of the cyclic garbage collector.

A full collection over a million rows and futures takes half a second, and happens in the middle of
some `submit`. Rows and futures do not need the collector: the protocol drops every reference to a
row, so reference counting frees both.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any


def _nothing(thing: Any) -> None:
    """Do nothing: the interpreter has no such collector, or one with small steps."""


def _find() -> Callable[[Any], None]:
    """Return the function that takes an object out of the collector's lists."""
    if sys.implementation.name != "cpython" or sys.version_info >= (3, 14):
        return _nothing  # Python 3.14 collects in small steps
    try:
        function = ctypes.pythonapi.PyObject_GC_UnTrack
    except AttributeError:
        return _nothing
    function.argtypes = [ctypes.py_object]
    function.restype = None
    return function


untrack = _find()
"""Take an object out of the cyclic collector's lists. Call it once per object."""
