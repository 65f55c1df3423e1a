"""Who may take part: the secret of a cluster, and what proves that somebody is who they say.

The scheduler plugin makes a secret. Workers get it with their plugin, over the connection that
they registered. From it comes a *proof* for each name, which only those can make or check who
have the secret. A client says a *word* of its own over the connection that is registered for it,
and says it again when it joins: so nobody can join in another's name. Who joined gets the proof
of its owner's incarnation, the *token* that links and requests between processes show.
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
"""The name that the scheduler itself has at workers."""

TRIES = 10
"""How often a client says its word: it may come after the question that shows it."""

FIRST_PAUSE = 0.01
"""Seconds between the first two of these times; doubled each time."""


def proof(secret: str, name: str) -> str:
    """What shows that one has this name, to those who have the secret."""
    return hmac.new(secret.encode(), name.encode("utf-8", "replace"), "sha256").hexdigest()


def proves(secret: str, name: Any, token: Any) -> bool:
    """Whether a token is the proof of a name; both may be anything."""
    if type(name) is not str or type(token) is not str or not secret or not token:
        return False
    return hmac.compare_digest(proof(secret, name).encode(), token.encode("utf-8", "replace"))


class Joining:
    """How one client joins.

    Parameters
    ----------
    send : callable
        ``send(message)`` over its registered connection to the scheduler.
    """

    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        self._send = send
        self._word = uuid4().hex

    async def __call__(self, scheduler: Any, **request: Any) -> Any:
        """The scheduler's answer to `JOIN`.

        Parameters
        ----------
        scheduler : rpc
        request
            ``owner``, ``client``, and what else belongs to it.

        Raises
        ------
        OSError
            When it cannot be reached.
        """
        answer: Any = None
        pause = FIRST_PAUSE
        for _ in range(TRIES):
            self._send({"op": WORD, "word": self._word})
            answer = await join(scheduler, secret=self._word, **request)
            if not isinstance(answer, dict) or answer.get("status") != "prove":
                break
            await asyncio.sleep(pause)
            pause *= 2
        return answer


async def join(scheduler: Any, **request: Any) -> Any:
    """The scheduler's answer to `JOIN`, asked once.

    Raises
    ------
    OSError
        When it cannot be reached.
    """
    return await getattr(scheduler, JOIN)(protocol=PROTOCOL, **request)
