"""Who may take part: the secret of a cluster, and what proves that somebody is who they say.

The scheduler plugin makes a secret. Workers get it with their plugin, over the connection that
they registered. From it comes a *proof* for each name, which only those can make or check who
have the secret. A client or worker that wants to join is told the proof of its name over the
connection that is registered for it, so nobody can join in another's name; who joined gets the
proof of its owner's incarnation, the *token* that links and requests between processes show.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from typing import Any

from dask_ownership.runtime.link import PROTOCOL
from dask_ownership.runtime.membership import JOIN, SECRET

SCHEDULER = "scheduler"
"""The name that the scheduler itself has at workers."""

ANSWERED = 1.0
"""Seconds for which the answer over the registered connection is waited for."""

TRIES = 10
"""How often it is asked for."""


def proof(secret: str, name: str) -> str:
    """What shows that one has this name, to those who have the secret."""
    return hmac.new(secret.encode(), name.encode("utf-8", "replace"), "sha256").hexdigest()


def proves(secret: str, name: Any, token: Any) -> bool:
    """Whether a token is the proof of a name; both may be anything."""
    if type(name) is not str or type(token) is not str or not secret or not token:
        return False
    return hmac.compare_digest(proof(secret, name), token.encode("utf-8", "replace").decode())


class Joining:
    """How one client or worker joins.

    Parameters
    ----------
    send : callable
        ``send(message)`` over its registered connection to the scheduler.
    """

    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        self._send = send
        self._secret = ""
        self._told = asyncio.Event()

    def told(self, secret: str) -> None:
        """Stream handler of `SECRET`."""
        self._secret = secret
        self._told.set()

    async def __call__(self, scheduler: Any, **request: Any) -> Any:
        """The scheduler's answer to `JOIN`.

        Parameters
        ----------
        scheduler : rpc
        request
            ``owner``, ``client`` or ``worker``, and what else belongs to it.

        Raises
        ------
        OSError
            When it cannot be reached.
        """
        answer: Any = None
        for _ in range(TRIES):
            answer = await getattr(scheduler, JOIN)(
                secret=self._secret, protocol=PROTOCOL, **request
            )
            if not isinstance(answer, dict) or answer.get("status") != "prove":
                break
            self._told.clear()
            self._send({"op": SECRET})
            try:
                await asyncio.wait_for(self._told.wait(), ANSWERED)
            except (TimeoutError, asyncio.TimeoutError):
                pass  # it may have been lost with a connection: it is asked for again
        return answer
