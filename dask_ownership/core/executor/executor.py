"""The core of an executor: its sessions with owners, and the parts that decide about entries.

One executor serves every owner that linked to its worker. For each owner the executor has a
session with entries by key: tasks that wait, run or ended, and values that are kept. What owners
say comes to `executor.commands`. The runtime (or the virtual cluster) runs the tasks, fetches and
stores: the runtime asks the run queue for work when a slot is free (`executor.run_queue`), and
tells `executor.entry_lifecycle` what became of the work. Answers for the owner collect in the
session's ``outbox``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dask_ownership.core.executor.checkpoints import Savings
from dask_ownership.core.executor.commands import Commands
from dask_ownership.core.executor.effects import ExecutorEffects
from dask_ownership.core.executor.entry_lifecycle import EntryLifecycle
from dask_ownership.core.executor.posts import Posts
from dask_ownership.core.executor.resources import Resources
from dask_ownership.core.executor.run_queue import RunQueue
from dask_ownership.core.executor.session import (
    ASIDE,
    BLOCKED,
    KEPT,
    QUEUED,
    RUNNING,
    UNENDED,
    Entry,
    Session,
)
from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol.amounts import Amounts
from dask_ownership.core.protocol.failure import Failure
from dask_ownership.core.protocol.messages import Key, Origin


class ExecutorCore:
    """Decides about the tasks and values of all owners at one worker.

    Calls change entries, and leave work in ``effects`` and in the outboxes of sessions; no call
    blocks. At a real worker the caller holds a lock.

    Parameters
    ----------
    nthreads : int
        Threads of the worker.
    resources : dict, optional
        Abstract resources of the worker and how much of each, see `executor.resources`.
    home : str
        Incarnation of the owner in this process; also an attribute.
    leases : bool
        Whether the runtime leases slots and resources, which other tasks of the worker use as
        well: then owned tasks may use none of them at first. By default owned tasks may use all.
    pool_threads : callable, optional
        Returns the number of threads of a pool, by the pool's name; by default one.

    Attributes
    ----------
    sessions : dict of str to Session
        By the owner's incarnation.
    queue : RunQueue
        The slots, and the tasks that want slots.
    leaving : bool
        Whether the worker is about to leave.
    effects : ExecutorEffects
        Work for the runtime.
    savings : Savings
        Checkpoints on their way to owners.
    lifecycle : EntryLifecycle
        Takes entries from state to state; the runtime tells it of values and errors.
    posts : Posts
        Batches between owners that pass through this worker.
    commands : Commands
        Takes in the messages of owners.
    """

    def __init__(
        self,
        nthreads: int,
        resources: Amounts | None = None,
        home: str = "",
        *,
        leases: bool = False,
        pool_threads: Callable[[str], int] = lambda name: 1,
    ) -> None:
        self.sessions: dict[str, Session] = {}
        self.queue = RunQueue(
            nthreads,
            0 if leases else nthreads,
            Resources({} if resources is None else resources, leases, pool_threads),
            self.sessions,
        )
        self.leaving = False
        self.effects = ExecutorEffects()
        self.savings = Savings()
        self.home = home
        self.lifecycle = EntryLifecycle(self.queue, self.effects, self.savings)
        self.posts = Posts(home, self.sessions, self.effects)
        self.commands = Commands(self.lifecycle, self.queue, self.effects, self.savings, self.posts)

    @property
    def unfinished(self) -> int:
        """How many tasks are queued, run or are parked."""
        return self.queue.unfinished

    @property
    def running(self) -> int:
        """How many tasks have a slot."""
        return self.queue.busy

    def checkpoint_size(self, entry: Entry, name: str, pickled: bytes) -> int:
        """Return the bytes of all checkpoints that the owner of a task would keep with one more."""
        return self.savings.size(entry, name, pickled)

    def save_checkpoint(
        self, entry: Entry, name: str, pickled: bytes, answered: Callable[[Failure | None], None]
    ) -> None:
        """Have the owner of a task keep a checkpoint, see `Savings.save`."""
        self.savings.save(entry, name, pickled, answered)

    def open(self, owner: str) -> Session:
        """Return the session of an owner, made for a new owner."""
        session = self.sessions.get(owner)
        if session is None:
            session = self.sessions[owner] = Session(owner)
            session.outbox.append((m.ACCEPTING, self.queue.accepting, self.queue.nthreads))
            if self.leaving:
                session.outbox.append((m.LEAVING,))
            session.outbox.extend(self.posts.undelivered.pop(owner, ()))
        return session

    def close(self, owner: str) -> int:
        """Drop the tasks and values of an owner that is gone; cancel running tasks unheard.

        Return how many tasks had not ended and were not cancelled before.
        """
        session = self.sessions.pop(owner, None)
        if session is None:
            return 0
        session.closed = True
        self.savings.closed(session)
        unended = 0
        for entry in list(session.entries.values()):
            unended += entry.state in UNENDED and not entry.cancelled
            self.lifecycle.drop(entry)
        session.entries.clear()
        session.functions.clear()
        session.function_sizes.clear()
        session.function_bytes = 0
        session.outbox.clear()
        session.unacknowledged.clear()
        session.handed.clear()
        return unended

    def set_accepting(self, yes: bool, nthreads: int) -> None:
        """Take in that the worker pauses, goes on, or has another number of threads."""
        if yes == self.queue.accepting and nthreads == self.queue.nthreads:
            return
        self.queue.accepting = yes
        # A worker that takes tasks again does not leave after all.
        self.leaving = self.leaving and not yes
        self.queue.nthreads = nthreads
        self.queue.crowd.limit_for(nthreads)
        for session in self.sessions.values():
            session.outbox.append((m.ACCEPTING, yes, nthreads))
            if not yes:
                for entry in list(session.entries.values()):
                    if entry.state in (QUEUED, BLOCKED, ASIDE):
                        self.lifecycle.give_back(entry, m.REFUSED)

    def leave(self) -> None:
        """Start no task any more, and have owners move their values: the worker leaves."""
        self.set_accepting(False, self.queue.nthreads)
        self.leaving = True
        for session in self.sessions.values():
            session.outbox.append((m.LEAVING,))

    @property
    def keeps_values(self) -> bool:
        """Whether the store has a value of any owner."""
        return any(
            entry.state == KEPT
            for session in self.sessions.values()
            for entry in session.entries.values()
        )

    def find_value(self, owner: str, key: Key, attempt: int) -> Entry | None:
        """Return the entry of a value in the store, by its `ValueName`; None when not there."""
        session = self.sessions.get(owner)
        entry = session.entries.get(key) if session is not None else None
        if entry is None or entry.state != KEPT or entry.attempt != attempt:
            return None
        return entry

    def child_submitted(self, entry: Entry, child: Key, origin: Origin, contains: Any) -> None:
        """Tell the owner of a task that the task submitted a child, if the owner looks for it.

        ``contains`` keeps the child alive until `REFS_COUNTED`.
        """
        if entry.watched is None or child not in entry.watched:
            return
        entry.watched.discard(child)
        session = entry.session
        if entry.cancelled or session.closed:
            return
        # An entry outside the session's table, only to keep the child under a name of its own.
        kept = Entry(session, m.child_name(child), entry.attempt)
        kept.contains = contains
        session.handed[kept.key, kept.attempt] = kept
        session.outbox.append((m.CHILD_SUBMITTED, entry.key, entry.attempt, child, origin))

    def acknowledged(self, session: Session, batch: int) -> None:
        """Let go of `HELD` values in answers up to a batch, which the owner has acknowledged."""
        waiting = session.unacknowledged
        while waiting and waiting[0][0] <= batch:
            for entry in waiting.popleft()[1]:
                self.lifecycle.let_go(entry)

    def packed(self, session: Session, batch: int, fresh: list[Entry]) -> None:
        """Remember that the answers of entries left, up to a batch, until the acknowledgement."""
        if fresh:
            session.unacknowledged.append((batch, fresh))

    @property
    def awaits_tasks(self) -> bool:
        """Whether a task that was not cancelled runs or is parked."""
        return bool(self.queue.busy or len(self.queue.crowd)) and any(
            entry.state == RUNNING and not entry.cancelled
            for session in self.sessions.values()
            for entry in session.entries.values()
        )

    def resources_changed(self) -> None:
        """Take in that the worker's resources changed; tasks that can never start here go back."""
        for session in self.sessions.values():
            for entry in list(session.entries.values()):
                waits = entry.state in (BLOCKED, QUEUED, ASIDE)
                if waits and not self.queue.resources.possible(entry.options):
                    self.lifecycle.refuse_resources(entry)
        self.queue.reconsider()
