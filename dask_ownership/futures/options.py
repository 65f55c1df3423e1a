"""What a call, or ``dask.annotate`` around it, says of its task: where, how often, how long.

Functions may have arguments named ``timeout`` and ``at_most_once``, and existing code passes those
through `submit`. So what the function itself takes goes to the function.

As in Dask the annotations count that are active where something is submitted, so inside a task
those of the task's own code: what it submits does not inherit what was said of the task itself,
but for its ``span``.
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

from dask_ownership.core.owner.rows.options import NO_OPTIONS, Options
from dask_ownership.runtime.serialize import dumps

SETTINGS = (
    "workers",
    "resources",
    "retries",
    "priority",
    "allow_other_workers",
    "executor",
    "span",
)
"""What calls and annotations say of a task, but for its limits."""

FIFO_TIMEOUT = "100 ms"
"""For how long after a graph what is submitted is of its generation (`scheduling.task_order`)."""

SAME = {"restrictions": "workers", "loose_restrictions": "allow_other_workers"}
"""Older names of annotations."""


def named(workers: Any) -> Any:
    """``workers=`` with a number as the name that it is: 0 is a worker of every `LocalCluster`."""
    return str(workers) if isinstance(workers, Real) else workers


def merged(call: Mapping[str, Any], annotations: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a call, with annotations where it says nothing."""
    found = {SAME.get(k, k): v for k, v in annotations.items() if v is not None}
    found.update({k: v for k, v in call.items() if v or (k == "workers" and v is not None)})
    return found


def varies(settings: Mapping[str, Any]) -> bool:
    """Whether they depend on the key."""
    return any(map(callable, settings.values()))


def of_key(settings: Mapping[str, Any], key: Any) -> dict[str, Any]:
    """What they say of one key."""
    found = {name: value(key) if callable(value) else value for name, value in settings.items()}
    found["workers"] = named(found.get("workers"))
    return found


# ---- limits ----

LIMITS = ("timeout", "at_most_once")


class Limits(NamedTuple):
    """What was asked for; None stands for nothing, which annotations may fill in."""

    timeout: float | None = None
    at_most_once: bool | None = None


NO_LIMITS = Limits()

_taken: WeakKeyDictionary[Any, frozenset[str]] = WeakKeyDictionary()


def take_limits(func: Callable[..., Any], kwargs: dict[str, Any]) -> Limits | None:
    """Take those limits out of the arguments of a call that its function does not take.

    Raises
    ------
    TypeError, ValueError
        When a value is of the wrong kind, or no time.
    """
    if kwargs.keys().isdisjoint(LIMITS):
        return None
    taken = taken_by(func)
    mine = {name: kwargs.pop(name) for name in LIMITS if name in kwargs and name not in taken}
    return _checked(mine) if mine else None


def annotated(annotations: Mapping[str, Any], limits: Limits | None) -> Limits | None:
    """Limits of a call, with those of ``dask.annotate`` where it says nothing.

    Raises
    ------
    TypeError, ValueError
        As `take_limits`.
    """
    around = {name: annotations[name] for name in LIMITS if annotations.get(name) is not None}
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
        found = frozenset(LIMITS)
    else:
        by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            found = frozenset(LIMITS)
        else:
            found = frozenset(p.name for p in parameters if p.kind in by_name and p.name in LIMITS)
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


# ---- options of a call ----


class CallOptions(NamedTuple):
    """What a call of `submit` or `map` says of its tasks, besides their function and arguments.

    Most say nothing: they have None in its place. The first items are `SETTINGS`.

    Attributes
    ----------
    workers, resources, retries, priority, allow_other_workers, executor, span : object
        As the user wrote them, unchecked.
    limits : Limits or None
    fifo_timeout : float, str or timedelta
        Seconds, or a text such as ``"100 ms"``, after a graph for which it is of its generation.
    """

    workers: Any = None
    resources: Any = None
    retries: Any = None
    priority: Any = 0
    allow_other_workers: Any = False
    executor: Any = None
    span: Any = None
    limits: Limits | None = None
    fifo_timeout: Any = FIFO_TIMEOUT


PLAIN_CALL = CallOptions()


def call_of(
    settings: Mapping[str, Any], limits: Limits | None = None, fifo_timeout: Any = FIFO_TIMEOUT
) -> CallOptions:
    """Options of a call from settings by name, which may hold limits that the call has not.

    Raises
    ------
    TypeError, ValueError
        When a limit has a wrong value.
    """
    given = map(settings.get, SETTINGS)
    return CallOptions._make((*given, annotated(settings, limits), fifo_timeout))


def with_annotations(
    call: CallOptions | None, annotations: Mapping[str, Any], key: Any
) -> CallOptions:
    """What a call says of the task of a key, with annotations where it says nothing.

    Raises
    ------
    TypeError, ValueError
        When a limit has a wrong value.
    """
    call = call or PLAIN_CALL
    settings = merged(dict(zip(SETTINGS, call, strict=False)), annotations)
    return call_of(of_key(settings, key), call.limits, call.fifo_timeout)


# ---- options of a row ----


def parent_of(entry: Any) -> Any:
    """How rows name the task that submitted them."""
    return (entry.session.owner, entry.key, entry.attempt) if entry is not None else None


def given_in(entry: Any) -> Options:
    """Options of a row for a value that the task of an entry has, if it is one."""
    return NO_OPTIONS if entry is None else Options(heir=entry.heir)


def named_workers(workers: Any) -> tuple[str, ...] | None:
    """What ``workers=`` names.

    Raises
    ------
    TypeError
    """
    if not workers:
        return None
    if isinstance(workers, list | tuple | set | frozenset):
        return tuple(str(name) for name in workers)
    if isinstance(workers, str | Real):
        return (str(workers),)
    raise TypeError(
        "workers= takes an address, a name, a host or a list of them, "
        f"not a {type(workers).__name__}: {workers!r}"
    )


def make_options(call: CallOptions, entry: Any) -> Options:
    """Options of a row from those of its call, and the entry of the task that submits it or None.

    Raises
    ------
    TypeError, ValueError
        When one has a wrong value.
    """
    workers, resources, retries, _, loose, executor, span, limits, _ = call
    if entry is None and not (workers or resources or retries or limits or executor or span):
        return NO_OPTIONS
    names = named_workers(workers)
    if retries and not isinstance(retries, int):
        raise TypeError(f"retries= takes a whole number, not {retries!r}")
    if executor is not None and not isinstance(executor, str):
        raise TypeError(f"executor= takes the name of a worker's executor, not {executor!r}")
    if resources and not (
        isinstance(resources, dict)
        and all(isinstance(k, str) and isinstance(v, Real) for k, v in resources.items())
    ):
        raise TypeError(f"resources= takes a dict of names and numbers, not {resources!r}")
    timeout, at_most_once = limits or NO_LIMITS
    if retries and at_most_once:
        raise ValueError("retries= runs a task again, and at_most_once=True does not: use one")
    return Options(
        workers=names,
        loose=bool(loose),
        retries=int(retries or 0),
        resources={k: float(v) for k, v in resources.items()} if resources else None,
        timeout=timeout,
        at_most_once=bool(at_most_once),
        executor=executor,
        span=dumps(span) if span else None,
        depth=entry.depth + 1 if entry is not None else 0,
        parent=parent_of(entry),
        heir=entry.heir if entry is not None else None,
        within=entry.identity if entry is not None else None,
    )
