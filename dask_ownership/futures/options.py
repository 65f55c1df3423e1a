"""Options of a task, from its call and from ``dask.annotate`` around the call.

Functions may have arguments named ``timeout`` and ``at_most_once``, and existing code passes these
through `submit`. So an argument that the function itself takes goes to the function.

As in Dask, annotations count that are active where a task is submitted. Inside a task these are
annotations in the task's own code: a child does not inherit the annotations of its parent, except
for ``span``.
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
"""Options of calls and annotations, without the limits."""

FIFO_TIMEOUT = "100 ms"
"""Time after a graph in which single tasks are of its generation (`scheduling.task_order`)."""

SAME = {"restrictions": "workers", "loose_restrictions": "allow_other_workers"}
"""Older names of annotations, and the present names."""


def named(workers: Any) -> Any:
    """Return ``workers=`` with a number as a name: 0 is a worker of every `LocalCluster`."""
    return str(workers) if isinstance(workers, Real) else workers


def merged(call: Mapping[str, Any], annotations: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a call, with annotations for the options that the call leaves out."""
    found = {SAME.get(k, k): v for k, v in annotations.items() if v is not None}
    # A false value is the default of a call and leaves the option to annotations. An empty list of
    # workers is a statement.
    found.update({k: v for k, v in call.items() if v or (k == "workers" and v is not None)})
    return found


def varies(settings: Mapping[str, Any]) -> bool:
    """Return whether any setting depends on the key of the task."""
    return any(map(callable, settings.values()))


def of_key(settings: Mapping[str, Any], key: Any) -> dict[str, Any]:
    """Return the settings for one key."""
    found = {name: value(key) if callable(value) else value for name, value in settings.items()}
    found["workers"] = named(found.get("workers"))
    return found


# ---- limits ----

LIMITS = ("timeout", "at_most_once")
"""Options that go to the function if the function takes them."""


class CallLimits(NamedTuple):
    """Limits of the tasks of a call; annotations may fill in a limit that is None.

    Attributes
    ----------
    timeout : float or None
        Seconds for which one attempt may run.
    at_most_once : bool or None
        Whether the task must not start again once it may have begun.
    """

    timeout: float | None = None
    at_most_once: bool | None = None


NO_LIMITS = CallLimits()

_taken: WeakKeyDictionary[Any, frozenset[str]] = WeakKeyDictionary()
"""Results of `taken_by`, by function."""


def take_limits(func: Callable[..., Any], kwargs: dict[str, Any]) -> CallLimits | None:
    """Take the limits out of the arguments of a call, unless the function itself takes them.

    Returns
    -------
    CallLimits or None
        None when the call has none.

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


def annotated(annotations: Mapping[str, Any], limits: CallLimits | None) -> CallLimits | None:
    """Return the limits of a call, with annotations for the limits that the call leaves out.

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
    return CallLimits(
        outer.timeout if limits.timeout is None else limits.timeout,
        outer.at_most_once if limits.at_most_once is None else limits.at_most_once,
    )


def taken_by(func: Callable[..., Any]) -> frozenset[str]:
    """Return the names of limits that a function takes as arguments.

    All names if the function takes any keyword, or if its signature cannot be read.
    """
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
        # ``**kwargs`` may pass any name on to another function.
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            found = frozenset(LIMITS)
        else:
            found = frozenset(p.name for p in parameters if p.kind in by_name and p.name in LIMITS)
    try:
        _taken[func] = found
    except TypeError:
        pass  # the function has no hash, or cannot be referred to weakly
    return found


def _checked(given: dict[str, Any]) -> CallLimits:
    """Return the limits after a check of their types."""
    at_most_once = given.get("at_most_once")
    if not isinstance(at_most_once, bool | None):
        raise TypeError(f"at_most_once= must be True or False, not {at_most_once!r}")
    return CallLimits(_seconds(given.get("timeout")), at_most_once)


def _seconds(timeout: Any) -> float | None:
    """Return a timeout in seconds; raise for a value that is no time above zero."""
    if timeout is None:
        return None
    # True is a number in Python, but no time.
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
    """Options of a call of `submit` or `map`, besides its function and arguments.

    Most calls have no options, and None in place of this object. The first items are `SETTINGS`.

    Attributes
    ----------
    workers, resources, retries, priority, allow_other_workers, executor, span : object
        As the user wrote them, unchecked.
    limits : CallLimits or None
    fifo_timeout : float, str or timedelta
        Seconds, or a text such as ``"100 ms"``, after a graph in which the call belongs to the
        generation of the graph.
    """

    workers: Any = None
    resources: Any = None
    retries: Any = None
    priority: Any = 0
    allow_other_workers: Any = False
    executor: Any = None
    span: Any = None
    limits: CallLimits | None = None
    fifo_timeout: Any = FIFO_TIMEOUT


PLAIN_CALL = CallOptions()


def call_of(
    settings: Mapping[str, Any], limits: CallLimits | None = None, fifo_timeout: Any = FIFO_TIMEOUT
) -> CallOptions:
    """Return the options of a call from settings by name.

    The settings may hold limits: these count where the call has none.

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
    """Return the options of a call for the task of a key, completed by annotations.

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
    """Return the name of a submitting task, as rows have it: owner, key and attempt."""
    return (entry.session.owner, entry.key, entry.attempt) if entry is not None else None


def given_in(entry: Any) -> Options:
    """Return the options of a row for a literal of an entry's task, or of a client."""
    return NO_OPTIONS if entry is None else Options(heir=entry.heir)


def named_workers(workers: Any) -> tuple[str, ...] | None:
    """Return the names in ``workers=``, or None without any.

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
    """Return the options of a row from the options of its call.

    ``entry`` is the entry of the submitting task, or None in a client.

    Raises
    ------
    TypeError, ValueError
        When an option has a wrong value.
    """
    workers, resources, retries, _, loose, executor, span, limits, _ = call
    # The usual case: all plain calls of clients share one object.
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
