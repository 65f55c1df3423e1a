"""Effects: what whoever drives a core has to do for it.

A core does nothing itself. What it decides collects here, and in the outbox of each worker (of an
owner) and each session (of an executor). The runtime and the virtual cluster take all of it after
each event, once, and carry it out in any order; none of it is asked for a second time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.protocol.messages import Message


@dataclass(slots=True)
class OwnerEffects:
    """What is to be done for an owner, beside sending the outboxes of its workers."""

    #: Rows with waiters that have ended: those that wait are told.
    completed: list[Row] = field(default_factory=list)
    #: Posts that the executor in this process passes on.
    posts: list[Message] = field(default_factory=list)
    #: Seconds from now, a function to call then, unless the owner is closed, and its arguments.
    timers: list[tuple[float, Callable[..., None], tuple[Any, ...]]] = field(default_factory=list)
    #: What failed here, in place of ending all else: where, and why. It is logged.
    broken: list[tuple[str, Exception]] = field(default_factory=list)

    def later(self, seconds: float, function: Callable[..., None], *args: Any) -> None:
        """Have a function called when a time has passed, unless the owner is closed by then."""
        self.timers.append((seconds, function, args))

    def take(self) -> OwnerEffects | None:
        """What has collected, if anything, which is forgotten here."""
        if not (self.completed or self.posts or self.timers or self.broken):
            return None
        taken = OwnerEffects(self.completed, self.posts, self.timers, self.broken)
        self.completed, self.posts, self.timers, self.broken = [], [], [], []
        return taken
