"""The life of an entry: how each task and each value at an executor ends, and who is told.

A task waits for its inputs (`BLOCKED`), is queued, runs, and becomes the value that the task made;
or the task fails, is cancelled, or is given back to its owner. A value is fetched, kept and freed.
The states are those of `executor.session`. When an entry gets a value, tasks here that wait for the
value go on; when an entry ends without one, those tasks are given back.
"""

from __future__ import annotations

from typing import Any

from dask_ownership.core.executor.checkpoints import Savings
from dask_ownership.core.executor.effects import ExecutorEffects
from dask_ownership.core.executor.run_queue import RunQueue
from dask_ownership.core.executor.session import (
    ASIDE,
    BLOCKED,
    COPIED,
    FETCHING,
    GONE,
    HELD,
    KEPT,
    QUEUED,
    RUNNING,
    Entry,
    Session,
)
from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol.messages import Message


class EntryLifecycle:
    """Takes the entries of all sessions from state to state.

    Calls leave answers in the outboxes of sessions, and other work in the effects.

    Parameters
    ----------
    run_queue : RunQueue
        The slots of the worker, and the tasks that want slots.
    effects : ExecutorEffects
        Work for the runtime.
    savings : Savings
        Checkpoints on their way to owners.

    Attributes
    ----------
    shared : dict
        Name of a value that several entries have to how many entries there are beyond one.
    lingering : set of Entry
        Cancelled tasks that keep their slots, because their functions go on.
    """

    def __init__(self, run_queue: RunQueue, effects: ExecutorEffects, savings: Savings) -> None:
        self._run_queue = run_queue
        self._effects = effects
        self._savings = savings
        self.shared: dict[Any, int] = {}
        self.lingering: set[Entry] = set()

    def queue(self, entry: Entry) -> None:
        """Queue a task that has all its inputs, or end an alias of a stored value at once."""
        if entry.options and "alias" in entry.options:
            there = next(iter(entry.dependencies), None)
            if type(there) is Entry and self.share(entry, there):
                # An alias runs no function, and so needs no slot.
                message = (m.STORED, entry.key, entry.attempt, None, None, 0.0)
                self.succeeded(entry, message, KEPT, None)
                return
        self._run_queue.add(entry)

    def succeeded(self, entry: Entry, message: Message, state: int, value: Any) -> bool:
        """End a task with a value, and have waiting tasks go on.

        ``message`` is the answer for the owner. A `HELD` value travels, a `KEPT` one is in the
        store. Return False when the task was cancelled or its owner is gone: the value is freed.
        """
        if entry.takes_resources_or_pool:
            self._run_queue.release_resources(entry)
        session = entry.session
        if entry.cancelled or session.closed:
            self._lingers_no_more(entry)
            self._forget(entry)
            return False
        entry.state = state
        entry.dependencies = ()
        entry.payload = b""
        session.outbox.append(message)
        if state == HELD:
            entry.value = value
            # An answer with futures inside waits for REFS_COUNTED.
            if m.has_futures(message):
                session.handed[entry.key, entry.attempt] = entry
            else:
                session.fresh.append(entry)
        if entry.waiters is not None:
            self._serve(entry)
        return True

    def _serve(self, entry: Entry) -> None:
        waiters = entry.waiters or ()
        entry.waiters = None
        for waiter in waiters:
            if waiter.state == BLOCKED:
                waiter.missing -= 1
                if waiter.missing == 0:
                    self.queue(waiter)

    def failed(self, entry: Entry, message: Message) -> None:
        """End a task with an error or as delegated; ``message`` is the answer for the owner."""
        self._run_queue.release_resources(entry)
        contains = entry.contains  # `_forget` takes it away
        heard = not entry.cancelled and not entry.session.closed
        if heard:
            entry.session.outbox.append(message)
        else:
            self._lingers_no_more(entry)
        self._forget(entry)
        # The entry, `GONE`, keeps the futures inside the answer until REFS_COUNTED.
        if heard and m.has_futures(message):
            entry.contains = contains
            entry.session.handed[entry.key, entry.attempt] = entry
        self.give_back_waiters(entry)

    def expired(self, entry: Entry, message: Message) -> None:
        """Fail a running task whose time is up; its later outcome is not wanted.

        The task keeps its slot and its resources until its thread or coroutine really ends.
        """
        if entry.state == RUNNING and not entry.cancelled and not entry.session.closed:
            entry.session.outbox.append(message)
            self.cancel(entry)

    def could_not_start(self, entry: Entry, reason: int, keys: tuple[Any, ...] = ()) -> None:
        """Give a task back that took a slot and could not run, for a reason of `GIVEN_BACK`."""
        self._run_queue.release_resources(entry)
        if entry.cancelled:
            self._lingers_no_more(entry)
        if entry.state != GONE:
            self.give_back(entry, reason, keys)

    def unsendable(self, session: Session, message: Message, error: bytes) -> None:
        """Fail the task of an answer that cannot be packed, or of a push that was not taken in."""
        of_a_task = (m.PUSH, m.DONE, m.STORED, m.FAILED, m.DELEGATED)
        if len(message) <= m.ATTEMPT or message[m.KIND] not in of_a_task:
            return
        key, attempt = message[m.SUBJECT], message[m.ATTEMPT]
        session.handed.pop((key, attempt), None)
        entry = session.entries.get(key)
        if entry is not None and entry.attempt == attempt:
            self.drop(entry)
            self.give_back_waiters(entry)
        session.outbox.append((m.FAILED, key, attempt, error, 0.0))

    def fetched(self, entry: Entry) -> None:
        """Take in that a value arrived in the store, and have waiting tasks go on."""
        if entry.state != FETCHING:
            self._free(entry)  # freed or replaced while the value was on its way
            return
        entry.state = KEPT
        if entry.waiters is not None:
            self._serve(entry)

    def fetch_failed(self, entry: Entry, addresses: tuple[str, ...]) -> None:
        """Give tasks back that wait for a value which no address gave.

        The workers at ``addresses`` said that they do not have the value. A worker that did not
        answer is not among these: only membership says that a worker is dead.
        """
        if entry.state != FETCHING:
            return
        # Taken off first: these tasks hear MISSING below, and not BLOCKED.
        waiters = entry.waiters or []
        entry.waiters = None
        self._forget(entry)
        for waiter in waiters:
            if waiter.state == BLOCKED:
                missing = ((entry.key, entry.attempt, tuple(addresses)),)
                self.give_back(waiter, m.MISSING, missing)

    def fetch_impossible(self, entry: Entry, pickled_error: bytes) -> None:
        """Fail the tasks that wait for a value which cannot be pickled or unpickled."""
        if entry.state != FETCHING:
            return
        waiters = entry.waiters or []
        entry.waiters = None
        self._forget(entry)
        for waiter in waiters:
            if waiter.state == BLOCKED:
                self.failed(waiter, (m.FAILED, waiter.key, waiter.attempt, pickled_error, 0.0))

    def keep(self, entry: Entry) -> None:
        """Take in a value that an owner put into the store (scattered), numbered like an attempt.

        The value does not come over the link, so messages about an older value of the key may
        arrive later, and must not touch the new value: the number tells.
        """
        session = entry.session
        before = session.entries.get(entry.key)
        if before is entry:
            return
        if session.closed or (before is not None and before.attempt >= entry.attempt):
            self._forget(entry)
            return
        if before is not None:
            self.replace(before)
        session.entries[entry.key] = entry
        entry.state = KEPT

    def share(self, entry: Entry, there: Entry) -> bool:
        """Have an entry keep the very value of another entry; return False when none is stored."""
        if there.state != KEPT or there.stored is None:
            return False
        entry.stored = there.stored
        entry.contains = there.contains
        self.shared[there.stored] = self.shared.get(there.stored, 0) + 1
        return True

    def replace(self, before: Entry) -> None:
        """Make way for a new entry of the same key."""
        if before.state in (HELD, COPIED):
            # Queued tasks may need the old value; futures inside stay until they are counted.
            self.let_go(before)
        else:
            self.cancel(before)

    def cancel(self, entry: Entry) -> None:
        """Cancel a task, or drop a value; tasks that wait for the entry are given back."""
        if entry.state == RUNNING:
            if not entry.cancelled:
                self._interrupt(entry)
                # The key is free for the next attempt while the thread still runs.
                if entry.session.entries.get(entry.key) is entry:
                    del entry.session.entries[entry.key]
        else:
            self.drop(entry)
        self.give_back_waiters(entry)

    def _interrupt(self, entry: Entry) -> None:
        """Mark a running task as cancelled; the runtime then cancels its coroutine and children."""
        entry.cancelled = True
        crowd = self._run_queue.crowd
        if entry not in crowd.waiting:  # a parked task has no slot
            self.lingering.add(entry)
            self._say_lingers(entry, True)
        crowd.unwanted(entry)
        self._effects.interrupted.append(entry)
        self._savings.cancelled(entry)

    def _lingers_no_more(self, entry: Entry) -> None:
        """Take in that the function of a cancelled task has ended."""
        if entry in self.lingering:
            self.lingering.remove(entry)
            self._say_lingers(entry, False)

    @staticmethod
    def _say_lingers(entry: Entry, yes: bool) -> None:
        """Tell the owner of a cancelled task whether its function goes on."""
        if not entry.session.closed:
            entry.session.outbox.append((m.LINGERS, entry.key, entry.attempt, yes))

    def drop(self, entry: Entry) -> None:
        """Take an entry out, of a task or a value in any state."""
        if entry.state == RUNNING:
            if not entry.cancelled:
                self._interrupt(entry)
            return
        if entry.state == QUEUED:
            self._run_queue.leave()
        self._forget(entry)

    @staticmethod
    def let_go(entry: Entry) -> None:
        """Take an entry out of the table; queued tasks that need its value hold the entry."""
        entries = entry.session.entries
        if entries.get(entry.key) is entry:
            del entries[entry.key]

    def give_back(self, entry: Entry, reason: int, keys: tuple[Any, ...] = ()) -> None:
        """Give a task back to its owner, with all tasks here that wait for the task."""
        if entry.state == QUEUED:
            self._run_queue.leave()
        if not entry.cancelled and not entry.session.closed:
            entry.session.outbox.append((m.GIVEN_BACK, entry.key, entry.attempt, reason, keys))
        self._forget(entry)
        self.give_back_waiters(entry)

    def refuse_resources(self, entry: Entry) -> None:
        """Give a task back, with the worker's resources, of which the task needs more."""
        self.give_back(entry, m.REFUSED, (tuple(self._run_queue.resources.totals.items()),))

    def give_back_waiters(self, entry: Entry) -> None:
        """Give tasks back that wait for an entry without a value, and tasks that wait for those."""
        # A stack, because a chain may be longer than Python allows calls to nest.
        stack = list(entry.waiters or ())
        entry.waiters = None
        while stack:
            waiter = stack.pop()
            if waiter.state != BLOCKED:
                continue
            stack.extend(waiter.waiters or ())
            waiter.waiters = None
            if not waiter.session.closed:
                waiter.session.outbox.append(
                    (m.GIVEN_BACK, waiter.key, waiter.attempt, m.BLOCKED, ())
                )
            self._forget(waiter)

    def _forget(self, entry: Entry) -> None:
        """Take an entry out of the table, free its value, and make it `GONE`."""
        self._free(entry)
        aside = entry.state == ASIDE
        entry.state = GONE
        # Queues and waiting tasks may refer to the entry for long: drop all that takes memory.
        entry.value = None
        entry.contains = None
        entry.dependencies = ()
        entry.payload = b""
        if entry.session.entries.get(entry.key) is entry:
            del entry.session.entries[entry.key]
        if aside:
            self._run_queue.reconsider()  # other put-aside tasks waited behind this task

    def _free(self, entry: Entry) -> None:
        """Have the runtime delete an entry's value in the store, unless other entries share it."""
        name = entry.stored
        if name is None:
            return
        # A second call must not free the value once more, for another entry that shares it.
        entry.stored = None
        others = self.shared.get(name, 0)
        if not others:
            self._effects.freed.append(name)
        elif others == 1:
            del self.shared[name]
        else:
            self.shared[name] = others - 1
