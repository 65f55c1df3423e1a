"""Unpickling in several threads, when it has modules to import.

Two threads that import modules which import each other meet in Python's deadlock avoidance, and
one of them gets a module that is half there. So only one thread at a time may unpickle what
imports. Nothing is known of a pickle before it is loaded, and a lock for each task would cost
too much. So a thread unpickles without the lock, and a finder of modules stops it where it is
about to import one that is not there yet, before anything of that module has run. The thread
then takes the lock and unpickles from the beginning.
"""

from __future__ import annotations

import importlib.abc
import pickle
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

LONGEST = 30.0
"""Seconds for which a thread waits for others that import. One of those may wait for this very
thread: a module may do anything while it is imported."""


class ImportNeeded(BaseException):
    """Something that is unpickled without the lock needs a module that is not there yet.

    Not an `Exception`, because code that looks whether a module can be imported must not
    take this for an answer.
    """


class _Here(threading.local):
    """This thread's unpickling.

    Attributes
    ----------
    unlocked : bool
        It unpickles without the lock.
    """

    unlocked = False


here = _Here()

_lock = threading.RLock()


class _Gate(importlib.abc.MetaPathFinder):
    """Finds nothing, and stops threads that unpickle without the lock."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if here.unlocked:
            raise ImportNeeded(name)


def install() -> None:
    """Put the gate before all other finders of this process. Twice is once."""
    if not any(type(finder).__name__ == "_Gate" for finder in sys.meta_path):
        sys.meta_path.insert(0, _Gate())


install()


def one_at_a_time(load: Callable[..., T], *args: Any) -> T:
    """Call what unpickles something and may import, while no other thread does so."""
    before, here.unlocked = here.unlocked, False
    held = _lock.acquire(timeout=LONGEST)
    try:
        return load(*args)
    finally:
        here.unlocked = before
        if held:
            _lock.release()


def unpickle(load: Callable[..., T], *args: Any) -> T:
    """Call what unpickles something; one thread at a time when that imports a module.

    ``load`` is called a second time then.
    """
    before, here.unlocked = here.unlocked, True
    try:
        return load(*args)
    except ImportNeeded:
        pass
    finally:
        here.unlocked = before
    return one_at_a_time(load, *args)


STACK_GLOBAL = b"\x93"
"""The instruction of a pickle that looks a name up. Without it nothing is imported."""


def loads(pickled: bytes) -> Any:
    """As `pickle.loads`, in any thread, for pickles of protocol 4 and above."""
    if STACK_GLOBAL not in pickled:
        return pickle.loads(pickled)
    return unpickle(pickle.loads, pickled)
