"""Operations that this project adds to Dask's servers: who may call them, and with what.

Whoever can connect to a scheduler or worker can send it anything. So each operation first checks
that the caller is one of the cluster, then that its arguments are of the types that its handler
names, and only then looks at what they say. What is refused gets one short line, and leaves
nothing behind.
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
"""Why a message is refused, or None. It may have anything in it."""

LONGEST_REASON = 300
"""Characters of a reason, at most: strangers choose what is in it."""

STRANGERS = 100
"""Refusals that are logged, of one server; the others are only answered."""


def refusal(reason: str) -> dict[str, Any]:
    """The answer to what is refused."""
    return {"status": "refused", "reason": reason[:LONGEST_REASON]}


class Refusals:
    """Logs the first refusal of each kind, and not too many."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def say(self, what: str, reason: str) -> None:
        what = what[:LONGEST_REASON]
        if what not in self._said and len(self._said) < STRANGERS:
            self._said.add(what)
            logger.warning("%s is refused: %s", what, reason[:LONGEST_REASON])


def operation(handler: Callable[..., Any], check: Check, refusals: Refusals) -> Callable[..., Any]:
    """A handler for a server that calls another one when it may.

    Parameters
    ----------
    handler : callable
        With types for all of its parameters; it may be a coroutine function.
    check : Check
        Of the arguments, with ``token`` and whatever else they have, which is taken away from
        those that the handler does not name.
    refusals : Refusals
    """
    parameters = inspect.signature(handler).parameters
    hints = get_type_hints(handler)
    name = handler.__name__

    @wraps(handler)
    async def guarded(**message: Any) -> Any:
        reason = check(message)
        if reason is None:
            message.pop("token", None)
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

    del guarded.__wrapped__  # Dask looks at the signature
    return guarded


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, as far as what is on its outside."""
    if hint is Any:
        return True
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in get_args(hint))
    kind = origin or hint
    if kind in (list, tuple, Sequence):
        return isinstance(value, list | tuple)  # which of the two the way here decides
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)
