"""Effects: what whoever drives an executor has to do for it, see `rows.effects`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dask_ownership.core.executor.session import Entry, Session
from dask_ownership.core.protocol.messages import Key, Message


@dataclass(slots=True)
class ExecutorEffects:
    """What is to be done for an executor, beside sending the outboxes of its sessions."""

    #: Values to fetch; `Executor.fetched` or `Executor.fetch_failed` is told of each.
    fetches: list[Entry] = field(default_factory=list)
    #: Names (`Entry.stored`) of values to delete.
    freed: list[Any] = field(default_factory=list)
    #: Running tasks that were cancelled, or whose time is up: what they submitted is cancelled.
    interrupted: list[Entry] = field(default_factory=list)
    #: Posts for the owner in this process.
    posts: list[Message] = field(default_factory=list)
    #: Tasks, and keys of their children that their owner looks for, which may be there already.
    sought: list[tuple[Entry, tuple[Key, ...]]] = field(default_factory=list)
    #: Messages that could not be taken in, in place of ending all that came after them: of which
    #: session, and why. The task that one is about fails.
    broken: list[tuple[Session, Message, Exception]] = field(default_factory=list)
    #: Something was posted to another session than that of the sender.
    passed_on: bool = False

    def __bool__(self) -> bool:
        """Whether anything is to be done."""
        return bool(
            self.fetches
            or self.freed
            or self.interrupted
            or self.posts
            or self.sought
            or self.broken
        )

    def take(self) -> ExecutorEffects | None:
        """What has collected, if anything, which is forgotten here."""
        self.passed_on = False
        if not self:
            return None
        taken = ExecutorEffects(
            self.fetches, self.freed, self.interrupted, self.posts, self.sought, self.broken
        )
        self.fetches, self.freed, self.interrupted = [], [], []
        self.posts, self.sought, self.broken = [], [], []
        return taken
