"""Posts: batches from one owner to another that pass through this worker."""

from __future__ import annotations

from dask_ownership.core.executor.effects import ExecutorEffects
from dask_ownership.core.executor.session import Session
from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol.messages import Message


class Posts:
    """Passes posts to the owner in this process, or over the links of other owners.

    Parameters
    ----------
    home : str
        Incarnation of the owner in this process.
    sessions : dict of str to Session
        By the owner's incarnation.
    effects : ExecutorEffects
        Gets the posts that the owner in this process has to take or send.

    Attributes
    ----------
    undelivered : dict
        Posts by the incarnation of a receiver that has no session here.
    """

    def __init__(self, home: str, sessions: dict[str, Session], effects: ExecutorEffects) -> None:
        self._home = home
        self._sessions = sessions
        self._effects = effects
        self.undelivered: dict[str, list[Message]] = {}

    def deliver(self, message: Message) -> None:
        """Pass a post on: to the owner in this process, or over the link of another owner."""
        _, (to, address, _), _, _ = message
        if to == self._home:
            self._effects.posts.append(message)
            return
        session = self._sessions.get(to)
        if session is not None:
            session.outbox.append(message)
            self._effects.passed_on = True
        elif address:
            self._effects.posts.append(message)  # the owner here may have a link to that worker
        else:
            # A client cannot be dialled: the post waits until the client links to this worker.
            self.undelivered.setdefault(to, []).append(message)

    def undeliverable(self, to: str) -> None:
        """Tell the senders of waiting posts that the receiver is gone for good."""
        for message in self.undelivered.pop(to, ()):
            _, _, sender, batch = message
            # A post without a batch is such an answer itself: then both ends are gone.
            if batch is not None:
                self.deliver((m.POST, sender, (to, "", "?"), None))
