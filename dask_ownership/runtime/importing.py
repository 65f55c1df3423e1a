"""Unpickling in several threads, when pickles import modules.

When two threads import two modules which import each other, Python's deadlock avoidance hands one
of the threads a half-initialised module. So only one thread at a time may load a pickle with
imports. A pickle does not tell its imports before the load, and taking a lock for each task would
cost too much. So a thread begins to unpickle without the lock, and a module finder (`_Gate`) makes
the thread take the lock at the first import of a missing module. The thread must not wait for the
lock inside the finder: the thread holds Python's own lock of the module, and the thread with our
lock may need exactly this module. So while another thread has our lock, the finder stops the
thread, before any code of the module has run; the thread then waits for our lock and unpickles
from the beginning.
"""

from __future__ import annotations

import importlib.abc
import pickle
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

LONGEST = 30.0
"""Seconds for which a thread waits for another importing thread. The limit avoids a deadlock: code
of a module may do anything during the import, also wait for the first thread."""


class ImportNeeded(BaseException):
    """An unpickling without the lock needs a module that is not imported yet.

    The class is no `Exception`: code that tries an import, and catches `Exception`, must not take
    the stop of the thread for a missing module.
    """


@dataclass(slots=True, eq=False, repr=False)
class Attempt:
    """One attempt to unpickle, which begins without the lock."""

    #: Whether the attempt may take the lock; if not, any import of a missing module is a stop.
    may_take: bool = True
    #: Whether the attempt took the lock, at its first import.
    took: bool = field(default=False, init=False)
    #: Whether the finder stopped the attempt, also when the loaded code caught `ImportNeeded`.
    stopped: bool = field(default=False, init=False)


class _Here(threading.local):
    """The unpickling of the current thread.

    Attributes
    ----------
    attempt : Attempt or None
        None while the thread does not unpickle, and while the thread unpickles with the lock.
    """

    attempt: Attempt | None = None


here = _Here()

#: Held by the one thread that may load pickles with imports.
_lock = threading.RLock()


class _Gate(importlib.abc.MetaPathFinder):
    """A module finder without modules: makes an unpickling thread take the lock, or stops it.

    Python asks the finders only for modules that are not imported yet.
    """

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        attempt = here.attempt
        if attempt is not None and not attempt.took:
            if not (attempt.may_take and _lock.acquire(blocking=False)):
                attempt.stopped = True
                raise ImportNeeded(name)
            attempt.took = True


def install() -> None:
    """Put the gate before all other finders of this process; a second call does nothing."""
    # Compared by name, because `_Gate` is another class after a reload of this module.
    if not any(type(finder).__name__ == "_Gate" for finder in sys.meta_path):
        sys.meta_path.insert(0, _Gate())


install()


def one_at_a_time(load: Callable[..., T], *args: Any) -> T:
    """Call ``load``, which unpickles and may import, while no other thread does so.

    When the lock does not come free for `LONGEST`, ``load`` is called all the same.
    """
    before, here.attempt = here.attempt, None
    held = _lock.acquire(timeout=LONGEST)
    try:
        return load(*args)
    finally:
        here.attempt = before
        if held:
            _lock.release()


def unpickle(load: Callable[..., T], *args: Any) -> T:
    """Call ``load``, which unpickles; loads with imports run in one thread at a time.

    When another thread is importing at the same time, ``load`` is called a second time.
    """
    before = here.attempt
    attempt = here.attempt = Attempt()
    value: T | None = None
    try:
        value = load(*args)
        if not attempt.stopped:  # else the loaded code caught `ImportNeeded` and went on without
            return value
    except ImportNeeded:
        pass
    except Exception:
        if not attempt.stopped:
            raise
    finally:
        value = None  # an unpickled traceback refers to this frame, and would keep the value
        here.attempt = before
        if attempt.took:
            _lock.release()
    return one_at_a_time(load, *args)


def without_imports(load: Callable[..., T], *args: Any) -> T:
    """Call ``load``, which unpickles, on an event loop, which an import could block.

    Raises
    ------
    ImportNeeded
        When ``load`` needs a module that is not imported yet.
    """
    before = here.attempt
    attempt = here.attempt = Attempt(may_take=False)
    value: T | None = None
    try:
        value = load(*args)
        if not attempt.stopped:
            return value
    except Exception:
        if not attempt.stopped:
            raise
    finally:
        value = None  # as in `unpickle`
        here.attempt = before
    raise ImportNeeded


STACK_GLOBAL = b"\x93"
"""The pickle instruction for looking a name up. A pickle without this byte imports nothing."""


def loads(pickled: bytes) -> Any:
    """Unpickle in any thread, as `pickle.loads`; for pickles of protocol 4 and above."""
    if STACK_GLOBAL not in pickled:
        return pickle.loads(pickled)
    return unpickle(pickle.loads, pickled)
