"""Effects: what the driver of a core (the runtime or the virtual cluster) has to do for the core.

A core does nothing itself. Its decisions collect here, and in the outbox of each worker (of an
owner) and each session (of an executor). After each event the driver of an owner does in this
order, and each of these things may be done once too often without harm:

1. ``peers.say_to_itself``: messages of the process to itself may make rows ready.
2. ``schedule``: ready rows get workers, and pushes go into outboxes.
3. ``posting.flush``: messages to other owners become posts, in outboxes and in ``posts``.
4. ``posts`` leave (`OwnerEffects.take_posts`), before later answers of the executor here.
5. All other effects are taken, once, and carried out in any order: a core asks for none twice.
6. The outboxes of the workers are emptied and sent.

The driver of an executor lets tasks begin (``queue.next_work``), empties the outboxes of the
sessions, takes `ExecutorEffects`, and finds links for ``posts.undelivered``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.protocol.messages import Message


@dataclass(slots=True)
class OwnerEffects:
    """What the driver has to do for an owner, beside sending the outboxes of the workers."""

    #: Rows with waiters that have ended: the driver tells the waiters.
    completed: list[Row] = field(default_factory=list)
    #: Posts that the executor in this process passes on.
    posts: list[Message] = field(default_factory=list)
    #: Seconds from now, the function to call then unless the owner is closed, and its arguments.
    timers: list[tuple[float, Callable[..., None], tuple[Any, ...]]] = field(default_factory=list)
    #: Errors inside the core, each confined to one row or one message: where, and the error. The
    #: driver logs them.
    broken: list[tuple[str, Exception]] = field(default_factory=list)

    def later(self, seconds: float, function: Callable[..., None], *args: Any) -> None:
        """Have a function called after ``seconds``, unless the owner is closed by then."""
        self.timers.append((seconds, function, args))

    def take_posts(self) -> list[Message]:
        """Return the posts collected so far, in their order: they leave before other effects."""
        taken, self.posts = self.posts, []
        return taken

    def take(self) -> OwnerEffects | None:
        """Return the effects collected since the last call, and start anew; None without any."""
        if not (self.completed or self.posts or self.timers or self.broken):
            return None
        taken = OwnerEffects(self.completed, self.posts, self.timers, self.broken)
        self.completed, self.posts, self.timers, self.broken = [], [], [], []
        return taken
