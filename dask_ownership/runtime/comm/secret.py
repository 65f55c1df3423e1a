"""The secret of a cluster, and proofs of identity made from the secret.

The scheduler plugin makes a secret. Workers get the secret with their plugin, over their registered
connection. The secret gives a *proof* for each name; only a process with the secret can make or
check a proof. A client says a *word* of its own over its registered connection, and repeats the
word when it joins; so no process can join in the name of another client. An owner that has joined
gets the proof of its incarnation: the *token* shown by links and requests between processes.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from dask_ownership.runtime.comm.link import PROTOCOL
from dask_ownership.runtime.comm.scheduler_ops import JOIN, WORD

SCHEDULER = "scheduler"
"""The name of the scheduler itself in proofs."""

TRIES = 10
"""Attempts of a client to join. In the first ones the scheduler may not have read the word yet,
which travels on another connection than the request to join."""

FIRST_PAUSE = 0.01
"""Seconds between the first two attempts; doubled each time."""


def proof(secret: str, name: str) -> str:
    """Return the proof that its bearer has a name, for processes with the secret to check."""
    # A name from a stranger may not be valid UTF-8: encoding must not raise an error.
    return hmac.new(secret.encode(), name.encode("utf-8", "replace"), "sha256").hexdigest()


def proves(secret: str, name: Any, token: Any) -> bool:
    """Return whether a token is the proof of a name. In a message both may be of any type."""
    if type(name) is not str or type(token) is not str or not secret or not token:
        return False
    # The comparison takes the same time for any token, so the time tells a stranger nothing.
    return hmac.compare_digest(proof(secret, name).encode(), token.encode("utf-8", "replace"))


class Joining:
    """The way by which one client joins: says its word, and shows the word with `JOIN`.

    Parameters
    ----------
    send : callable
        ``send(message)`` sends over the client's registered connection to the scheduler.
    """

    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        self._send = send
        self._word = uuid4().hex

    async def __call__(self, scheduler: Any, **request: Any) -> Any:
        """Join, and return the scheduler's answer to `JOIN`.

        Parameters
        ----------
        scheduler : rpc
        request
            ``owner``, ``client`` and further arguments of `JOIN`.

        Raises
        ------
        OSError
            When the scheduler cannot be reached.
        """
        answer: Any = None
        pause = FIRST_PAUSE
        for _ in range(TRIES):
            self._send({"op": WORD, "word": self._word})
            answer = await join(scheduler, secret=self._word, **request)
            if not isinstance(answer, dict) or answer.get("status") != "prove":
                break  # any other answer is final
            await asyncio.sleep(pause)
            pause *= 2
        return answer


async def join(scheduler: Any, **request: Any) -> Any:
    """Send `JOIN` once, and return the scheduler's answer.

    Raises
    ------
    OSError
        When the scheduler cannot be reached.
    """
    return await getattr(scheduler, JOIN)(protocol=PROTOCOL, **request)
