"""Effects: what the driver of a core (the runtime or the virtual cluster) has to do for the core.

A core does nothing itself. Its decisions collect here, and in the outbox of each worker (of an
owner) and each session (of an executor). The driver takes all effects after each event, once, and
carries them out in any order; a core asks for no effect a second time.
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
