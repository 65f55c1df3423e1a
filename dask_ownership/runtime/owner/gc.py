"""Rows and futures without the cyclic garbage collector.

A full collection over a million rows and futures takes half a second, and it
happens in the middle of some `submit`. Neither needs it: whoever refers to a row
lets go of it by the protocol, so reference counting frees them.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any


def _nothing(thing: Any) -> None:
    """Where there is no such collector, nothing is to be done."""


def _find() -> Callable[[Any], None]:
    if sys.implementation.name != "cpython" or sys.version_info >= (3, 14):
        return _nothing  # 3.14 collects in small steps
    try:
        function = ctypes.pythonapi.PyObject_GC_UnTrack
    except AttributeError:
        return _nothing
    function.argtypes = [ctypes.py_object]
    function.restype = None
    return function


untrack = _find()
"""Take an object out of the cyclic collector's lists; once per object."""
