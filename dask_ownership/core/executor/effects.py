"""Effects: the work that the runtime has to do for an executor's core, see `rows.effects`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dask_ownership.core.executor.session import Entry, Session
from dask_ownership.core.protocol.messages import Key, Message


@dataclass(slots=True)
class ExecutorEffects:
    """Work that the runtime has to do for an executor, beside sending the outboxes of sessions."""

    #: Values to fetch. Afterwards the runtime calls `EntryLifecycle.fetched`, `fetch_failed` or
    #: `fetch_impossible` for each.
    fetches: list[Entry] = field(default_factory=list)
    #: Names (`Entry.stored`) of values to delete from the store.
    freed: list[Any] = field(default_factory=list)
    #: Running tasks that were cancelled, or whose time is up: the runtime cancels the coroutine
    #: of each, and the tasks that each submitted.
    interrupted: list[Entry] = field(default_factory=list)
    #: Posts for the owner in this process, to receive or to carry to another worker.
    posts: list[Message] = field(default_factory=list)
    #: Tasks, with keys of children that their owner looks for. The runtime names the children
    #: that the task has submitted already (`ExecutorCore.child_submitted`).
    watched: list[tuple[Entry, tuple[Key, ...]]] = field(default_factory=list)
    #: Messages that could not be taken in, with their session and the error. Only the task of
    #: such a message fails; the messages behind it are taken in.
    broken: list[tuple[Session, Message, Exception]] = field(default_factory=list)
    #: A post went into the outbox of another session than that of the sender.
    passed_on: bool = False

    def __bool__(self) -> bool:
        """Return whether the runtime has any work to do."""
        # Not for `passed_on`, which only says that some other outbox is to be sent.
        return bool(
            self.fetches
            or self.freed
            or self.interrupted
            or self.posts
            or self.watched
            or self.broken
        )

    def take(self) -> ExecutorEffects | None:
        """Return the work that has collected and start afresh; None when there is no work."""
        self.passed_on = False
        if not self:
            return None
        taken = ExecutorEffects(
            self.fetches, self.freed, self.interrupted, self.posts, self.watched, self.broken
        )
        self.fetches, self.freed, self.interrupted = [], [], []
        self.posts, self.watched, self.broken = [], [], []
        return taken
