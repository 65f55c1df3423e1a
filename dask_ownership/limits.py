"""``timeout=`` and ``at_most_once=``: how long a task may run, and how often.

Functions may have arguments of these names, and existing code passes those through
`submit`. So what the function itself takes goes to the function.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from datetime import timedelta
from math import isfinite
from numbers import Real
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from dask.utils import parse_timedelta

NAMES = ("timeout", "at_most_once")


class Limits(NamedTuple):
    """What was asked for; None stands for nothing, which annotations may fill in."""

    timeout: float | None = None
    at_most_once: bool | None = None


NO_LIMITS = Limits()

_taken: WeakKeyDictionary[Any, frozenset[str]] = WeakKeyDictionary()


def take(func: Callable[..., Any], kwargs: dict[str, Any]) -> Limits | None:
    """Take those limits out of the arguments of a call that its function does not take.

    Raises
    ------
    TypeError, ValueError
        When a value is of the wrong kind, or no time.
    """
    if kwargs.keys().isdisjoint(NAMES):
        return None
    taken = taken_by(func)
    mine = {name: kwargs.pop(name) for name in NAMES if name in kwargs and name not in taken}
    return _checked(mine) if mine else None


def annotated(annotations: Mapping[str, Any], limits: Limits | None) -> Limits | None:
    """Limits of a call, with those of ``dask.annotate`` where it says nothing.

    Raises
    ------
    TypeError, ValueError
        As `take`.
    """
    around = {name: annotations[name] for name in NAMES if annotations.get(name) is not None}
    if not around:
        return limits
    outer = _checked(around)
    if limits is None:
        return outer
    return Limits(
        outer.timeout if limits.timeout is None else limits.timeout,
        outer.at_most_once if limits.at_most_once is None else limits.at_most_once,
    )


def taken_by(func: Callable[..., Any]) -> frozenset[str]:
    """Which of the names a function takes itself; all when its signature cannot be read."""
    try:
        return _taken[func]
    except (KeyError, TypeError):
        pass
    try:
        parameters = inspect.signature(func).parameters.values()
    except (TypeError, ValueError):
        found = frozenset(NAMES)
    else:
        by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            found = frozenset(NAMES)
        else:
            found = frozenset(p.name for p in parameters if p.kind in by_name and p.name in NAMES)
    try:
        _taken[func] = found
    except TypeError:
        pass  # it has no hash, or nothing weak can refer to it
    return found


def _checked(given: dict[str, Any]) -> Limits:
    at_most_once = given.get("at_most_once")
    if not isinstance(at_most_once, bool | None):
        raise TypeError(f"at_most_once= must be True or False, not {at_most_once!r}")
    return Limits(_seconds(given.get("timeout")), at_most_once)


def _seconds(timeout: Any) -> float | None:
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, Real | str | timedelta):
        raise TypeError(f'timeout= takes seconds or a text such as "30s", not {timeout!r}')
    try:
        seconds = float(parse_timedelta(timeout, "s"))
    except (KeyError, ValueError) as error:
        raise ValueError(f'timeout= takes seconds or a text such as "30s", not {timeout!r}') from (
            error
        )
    if not isfinite(seconds) or seconds <= 0:
        raise ValueError(f"timeout= takes a time above 0, not {timeout!r}")
    return seconds
