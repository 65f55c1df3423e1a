"""Unpickling in several threads, when it has modules to import.

Two threads that import modules which import each other meet in Python's deadlock avoidance, and
one of them gets a module that is half there. So only one thread at a time may unpickle what
imports. Nothing is known of a pickle before it is loaded, and a lock for each task would cost
too much. So a thread unpickles without the lock, and a finder of modules has it take the lock where
it is about to import one that is not there yet. It must not wait for it there: it has Python's
own lock of that module, which the thread that has the lock may need. So while another has it,
the finder stops the thread, before anything of that module has run; it then waits for the lock
and unpickles from the beginning.
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


class Attempt:
    """One time that something is unpickled without the lock at first.

    Attributes
    ----------
    took : bool
        It took the lock where it imported something.
    stopped : bool
        It was stopped there, whatever became of that.
    may_take : bool
        Whether it may take the lock.
    """

    took = stopped = False
    may_take = True


class _Here(threading.local):
    """This thread's unpickling.

    Attributes
    ----------
    attempt : Attempt or None
        None when it does not unpickle, or with the lock.
    """

    attempt: Attempt | None = None


here = _Here()

_lock = threading.RLock()


class _Gate(importlib.abc.MetaPathFinder):
    """Finds nothing; has threads that unpickle without the lock take it, or stops them."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        attempt = here.attempt
        if attempt is not None and not attempt.took:
            if not (attempt.may_take and _lock.acquire(blocking=False)):
                attempt.stopped = True
                raise ImportNeeded(name)
            attempt.took = True


def install() -> None:
    """Put the gate before all other finders of this process. Twice is once."""
    if not any(type(finder).__name__ == "_Gate" for finder in sys.meta_path):
        sys.meta_path.insert(0, _Gate())


install()


def one_at_a_time(load: Callable[..., T], *args: Any) -> T:
    """Call what unpickles something and may import, while no other thread does so."""
    before, here.attempt = here.attempt, None
    held = _lock.acquire(timeout=LONGEST)
    try:
        return load(*args)
    finally:
        here.attempt = before
        if held:
            _lock.release()


def unpickle(load: Callable[..., T], *args: Any) -> T:
    """Call what unpickles something; one thread at a time when that imports a module.

    ``load`` is called a second time when another thread is importing something.
    """
    before = here.attempt
    attempt = here.attempt = Attempt()
    value: T | None = None
    try:
        value = load(*args)
        if not attempt.stopped:  # else it took that for an answer
            return value
    except ImportNeeded:
        pass
    except Exception:
        if not attempt.stopped:
            raise
    finally:
        value = None  # a traceback that was unpickled refers to this frame
        here.attempt = before
        if attempt.took:
            _lock.release()
    return one_at_a_time(load, *args)


def without_imports(load: Callable[..., T], *args: Any) -> T:
    """Call what unpickles something, where a module must not be imported: on a loop.

    Raises
    ------
    ImportNeeded
        When it would import one.
    """
    before = here.attempt
    attempt = here.attempt = Attempt()
    attempt.may_take = False
    value: T | None = None
    try:
        value = load(*args)
        if not attempt.stopped:
            return value
    except Exception:
        if not attempt.stopped:
            raise
    finally:
        value = None  # as above
        here.attempt = before
    raise ImportNeeded


STACK_GLOBAL = b"\x93"
"""The instruction of a pickle that looks a name up. Without it nothing is imported."""


def loads(pickled: bytes) -> Any:
    """As `pickle.loads`, in any thread, for pickles of protocol 4 and above."""
    if STACK_GLOBAL not in pickled:
        return pickle.loads(pickled)
    return unpickle(pickle.loads, pickled)
