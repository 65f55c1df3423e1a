"""Operations that this project adds to Dask's servers: checks of callers and arguments.

Any process that can connect to a scheduler or worker can send any message. So each operation first
checks that the caller is a member of the cluster, then that the arguments have the types that the
handler names, and only then looks at their contents. A refused call gets one short line as its
answer, and leaves nothing behind.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from functools import wraps
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

logger = logging.getLogger("dask_ownership.operations")

Check = Callable[[dict[str, Any]], "str | None"]
"""Takes the arguments of a message, which may be of any type, and returns the reason for refusing
the message, or None."""

LONGEST_REASON = 300
"""Characters of a reason, at most: a stranger may have chosen parts of the text."""

STRANGERS = 100
"""Refusals that one server logs; further refusals are only answered."""


def refusal(reason: str, ending: bool = False) -> dict[str, Any]:
    """Return the answer to a refused call.

    ``ending`` says that this process, or the caller, is about to end: no fault of either.
    """
    return {"status": "ending" if ending else "refused", "reason": reason[:LONGEST_REASON]}


class Refusals:
    """The log of refused calls of one server: the first refusal of each kind, up to `STRANGERS`."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def say(self, what: str, reason: str) -> None:
        """Log a refusal, unless a refusal of the same ``what`` was logged before."""
        what = what[:LONGEST_REASON]
        # The number is limited because a stranger may send ever new kinds of calls.
        if what not in self._said and len(self._said) < STRANGERS:
            self._said.add(what)
            logger.warning("%s is refused: %s", what, reason[:LONGEST_REASON])


def operation(handler: Callable[..., Any], check: Check, refusals: Refusals) -> Callable[..., Any]:
    """Return a handler for a server that calls ``handler`` after checking the message.

    Parameters
    ----------
    handler : callable
        A function or coroutine function, with types for all of its parameters. An argument that
        ``handler`` does not name is refused; only ``token`` is taken away before the call.
    check : Check
        Checks the caller, by all arguments of the message.
    refusals : Refusals
    """
    parameters = inspect.signature(handler).parameters
    hints = get_type_hints(handler)
    name = handler.__name__

    @wraps(handler)
    async def guarded(**message: Any) -> Any:
        reason = check(message)
        if reason is None:
            message.pop("token", None)  # the check has seen the token, and handlers do not take it
            # Wrong are arguments without a parameter, values of other types, and missing arguments.
            wrong = [key for key in message if key not in parameters]
            wrong += [
                key
                for key, value in message.items()
                if not (key in wrong or fits(value, hints[key]))
            ]
            wrong += [
                key
                for key, parameter in parameters.items()
                if parameter.default is parameter.empty and key not in message
            ]
            if wrong:
                reason = f"the arguments of {name} are not as expected: {', '.join(wrong)}"
        if reason is not None:
            refusals.say(f"a call of {name}", reason)
            return refusal(reason)
        result = handler(**message)
        return await result if inspect.isawaitable(result) else result

    # Dask inspects signatures of handlers, and has to see that of `guarded`, which takes anything.
    del guarded.__wrapped__
    return guarded


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value is of a type; items inside of containers are not checked."""
    if hint is Any:
        return True
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in get_args(hint))
    kind = origin or hint
    if kind in (list, tuple, Sequence):
        return isinstance(value, list | tuple)  # the transport decides which of the two arrives
    # In Python a bool is an int; in a message the two are different.
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)
