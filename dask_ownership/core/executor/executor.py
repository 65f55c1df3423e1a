"""The core of an executor: which task waits for which value, and how each task ends.

One executor serves every owner that linked to its worker. For each owner the executor has a
session with entries by key: tasks that wait, run or ended, and values that are kept. The runtime
(or the virtual cluster) runs the tasks, fetches and stores; the runtime asks the run queue for
work when a slot is free (`executor.run_queue`) and calls `succeeded`, `failed` or `fetched`
afterwards. Answers for the owner collect in the session's ``outbox``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
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
    UNENDED,
    Entry,
    Session,
)
from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol.failure import Failure
from dask_ownership.core.protocol.messages import Key, Message, Origin

KNOWN_FUNCTIONS = 4096
"""How many functions of one owner an executor keeps."""

FUNCTION_BYTES = 1 << 26
"""Bytes of one owner's functions above which an executor forgets the oldest."""


class ExecutorCore:
    """Decides about the tasks and values of all owners at one worker.

    Calls change entries, and leave work in ``effects`` and in the outboxes of sessions; no call
    blocks. At a real worker the caller holds a lock.

    Parameters
    ----------
    nthreads : int
        Threads of the worker, and at first the slots that tasks may use.
    resources : dict, optional
        Abstract resources of the worker and how much of each, see `executor.resources`.
    home : str
        Incarnation of the owner in this process; also an attribute.

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
    shared : dict
        Name of a value that several entries have to how many entries there are beyond one.
    savings : Savings
        Checkpoints on their way to owners.
    undelivered : dict
        Posts by the incarnation of a receiver that has no session here.
    """

    def __init__(
        self, nthreads: int, resources: dict[str, float] | None = None, home: str = ""
    ) -> None:
        self.sessions: dict[str, Session] = {}
        self.queue = RunQueue(nthreads, {} if resources is None else resources, self.sessions)
        self.leaving = False
        self.effects = ExecutorEffects()
        self.shared: dict[Any, int] = {}
        self.savings = Savings()
        self.home = home
        self.undelivered: dict[str, list[Message]] = {}

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

    # ---- sessions ----

    def open(self, owner: str) -> Session:
        """Return the session of an owner, made for a new owner."""
        session = self.sessions.get(owner)
        if session is None:
            session = self.sessions[owner] = Session(owner)
            session.outbox.append((m.ACCEPTING, self.queue.accepting, self.queue.nthreads))
            if self.leaving:
                session.outbox.append((m.LEAVING,))
            session.outbox.extend(self.undelivered.pop(owner, ()))
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
            self._drop(entry)
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
                        self._give_back(entry, m.REFUSED)

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

    # ---- from the owner ----

    def receive(self, session: Session, batch: Iterable[Message]) -> None:
        """Take in messages of an owner, in the order in which the owner sent them."""
        if session.closed:
            return  # the owner was declared gone while the batch was on its way
        messages = iter(batch)
        while not self._take_in(session, messages):
            pass

    def _take_in(self, session: Session, messages: Iterator[Message]) -> bool:
        """Take messages in up to and with a broken one; return whether no message was broken."""
        message: Message = ()
        try:
            for message in messages:
                kind = message[0]
                if kind == m.PUSH:  # most messages are pushes
                    self._on_push(session, message)
                elif (handler := HANDLERS.get(kind)) is not None:
                    handler(self, session, *message[1:])
        except Exception as error:
            self.effects.broken.append((session, message, error))
            return False
        return True

    def _on_function(self, session: Session, number: int, pickled: bytes) -> None:
        session.add_function(number, pickled)
        while len(session.functions) > KNOWN_FUNCTIONS or (
            session.function_bytes > FUNCTION_BYTES and len(session.functions) > 1
        ):
            # The owner sends the function again when a task that needs it is given back.
            session.forget_function(next(iter(session.functions)))

    def _on_forget(self, session: Session, number: int) -> None:
        session.forget_function(number)

    def _on_free(self, session: Session, keys: Iterable[Key], number: int) -> None:
        for key in keys:
            entry = session.entries.get(key)
            # A value of a higher number was put there after the owner sent this message.
            if (
                entry is not None
                and entry.attempt <= number
                and entry.state in (KEPT, COPIED, FETCHING)
            ):
                self._drop(entry)
                self._give_back_waiters(entry)

    def _on_copy(self, session: Session, key: Key, attempt: int, pickled: bytes) -> None:
        before = session.entries.get(key)
        if before is not None:
            self._replace(before)
        entry = session.entries[key] = Entry(session, key, attempt)
        entry.value = pickled
        entry.state = COPIED

    def _on_go(self, session: Session, key: Key, attempt: int, yes: bool) -> None:
        self.queue.exclusion.go(session, key, attempt, yes)

    def _on_cancel(self, session: Session, key: Key, attempt: int) -> None:
        entry = session.entries.get(key)
        if entry is not None and entry.attempt == attempt:
            self._cancel(entry)

    def _on_seek(self, session: Session, key: Key, attempt: int, children: tuple[Key, ...]) -> None:
        entry = session.entries.get(key)
        # A task with a value submits no more; its owner hears of the value.
        if entry is not None and entry.attempt == attempt and not entry.has_value:
            if entry.sought is None:
                entry.sought = set()
            entry.sought.update(children)
            self.effects.sought.append((entry, children))

    def _on_took(self, session: Session, name: Key, attempt: int) -> None:
        """Let go of futures that were kept under a name: the owner is counted for them now."""
        entry = session.handed.pop((name, attempt), None)
        if entry is not None:
            entry.contains = None
            self._let_go(entry)

    def _on_checkpointed(
        self,
        session: Session,
        key: Key,
        attempt: int,
        number: int,
        problem: str | None,
    ) -> None:
        self.savings.answered(key, number, problem)

    def _on_post(self, session: Session, *said: Any) -> None:
        self.deliver((m.POST, *said))

    def unsendable(self, session: Session, message: Message, error: bytes) -> None:
        """Fail the task of an answer that cannot be packed, or of a push that was not taken in."""
        if len(message) < 3 or message[0] not in (m.PUSH, m.DONE, m.STORED, m.FAILED, m.DELEGATED):
            return
        _, key, attempt = message[:3]
        session.handed.pop((key, attempt), None)
        entry = session.entries.get(key)
        if entry is not None and entry.attempt == attempt:
            self._drop(entry)
            self._give_back_waiters(entry)
        session.outbox.append((m.FAILED, key, attempt, error, 0.0))

    def made(self, entry: Entry, child: Key, origin: Origin, contains: Any) -> None:
        """Tell the owner of a task that the task submitted a child, if the owner looks for it.

        ``contains`` keeps the child alive until `REFS_COUNTED`.
        """
        if entry.sought is None or child not in entry.sought:
            return
        entry.sought.discard(child)
        session = entry.session
        if entry.cancelled or session.closed:
            return
        # An entry outside the session's table, only to keep the child under a name of its own.
        kept = Entry(session, m.made_name(child), entry.attempt)
        kept.contains = contains
        session.handed[kept.key, kept.attempt] = kept
        session.outbox.append((m.CHILD_SUBMITTED, entry.key, entry.attempt, child, origin))

    def deliver(self, message: Message) -> None:
        """Pass a post on: to the owner in this process, or over the link of another owner."""
        to, address, _ = message[1]
        if to == self.home:
            self.effects.posts.append(message)
            return
        session = self.sessions.get(to)
        if session is not None:
            session.outbox.append(message)
            self.effects.passed_on = True
        elif address:
            self.effects.posts.append(message)  # the owner here may have a link to that worker
        else:
            # A client cannot be dialled: the post waits until the client links to this worker.
            self.undelivered.setdefault(to, []).append(message)

    def undeliverable(self, to: str) -> None:
        """Tell the senders of waiting posts that the receiver is gone for good."""
        for message in self.undelivered.pop(to, ()):
            sender = message[2]
            # A post without a batch is such an answer itself: then both ends are gone.
            if message[3] is not None:
                self.deliver((m.POST, sender, (to, "", "?"), None))

    def acknowledged(self, session: Session, batch: int) -> None:
        """Let go of `HELD` values in answers up to a batch, which the owner has acknowledged."""
        waiting = session.unacknowledged
        while waiting and waiting[0][0] <= batch:
            for entry in waiting.popleft()[1]:
                self._let_go(entry)

    @staticmethod
    def _let_go(entry: Entry) -> None:
        """Take an entry out of the table; queued tasks that need its value hold the entry."""
        entries = entry.session.entries
        if entries.get(entry.key) is entry:
            del entries[entry.key]

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

    # ---- outcomes ----

    def succeeded(self, entry: Entry, message: Message, state: int, value: Any) -> bool:
        """End a task with a value, and have waiting tasks go on.

        ``message`` is the answer for the owner. A `HELD` value travels, a `KEPT` one is in the
        store. Return False when the task was cancelled or its owner is gone: the value is freed.
        """
        if entry.limited:
            self.queue.release_resources(entry)
        session = entry.session
        if entry.cancelled or session.closed:
            self._forget(entry)
            return False
        entry.state = state
        entry.dependencies = ()
        entry.payload = b""
        session.outbox.append(message)
        if state == HELD:
            entry.value = value
            # A DONE with futures inside has one item more, and waits for REFS_COUNTED.
            if len(message) > 5:
                session.handed[entry.key, entry.attempt] = entry
            else:
                session.fresh.append(entry)
        if entry.waiters is not None:
            self._serve(entry)
        return True

    def failed(self, entry: Entry, message: Message) -> None:
        """End a task with an error or as delegated; ``message`` is the answer for the owner."""
        self.queue.release_resources(entry)
        contains = entry.contains  # `_forget` takes it away
        heard = not entry.cancelled and not entry.session.closed
        if heard:
            entry.session.outbox.append(message)
        self._forget(entry)
        # The entry, `GONE`, keeps the futures inside the answer until REFS_COUNTED.
        if heard and len(message) > 5:
            entry.contains = contains
            entry.session.handed[entry.key, entry.attempt] = entry
        self._give_back_waiters(entry)

    def expired(self, entry: Entry, message: Message) -> None:
        """Fail a running task whose time is up; its later outcome is not wanted.

        The task keeps its slot and its resources until its thread or coroutine really ends.
        """
        if entry.state == RUNNING and not entry.cancelled and not entry.session.closed:
            entry.session.outbox.append(message)
            self._cancel(entry)

    def give_back(self, entry: Entry, reason: int, keys: tuple[Any, ...] = ()) -> None:
        """Give a task back that took a slot and could not run, for a reason of `GIVEN_BACK`."""
        self.queue.release_resources(entry)
        if entry.state != GONE:
            self._give_back(entry, reason, keys)

    def fetched(self, entry: Entry) -> None:
        """Take in that a value arrived in the store, and have waiting tasks go on."""
        if entry.state != FETCHING:
            self._free(entry)  # freed or replaced while the value was on its way
            return
        entry.state = KEPT
        if entry.waiters is not None:
            self._serve(entry)

    def share(self, entry: Entry, there: Entry) -> bool:
        """Have an entry keep the very value of another entry; return False when none is stored."""
        if there.state != KEPT or there.stored is None:
            return False
        entry.stored = there.stored
        entry.contains = there.contains
        self.shared[there.stored] = self.shared.get(there.stored, 0) + 1
        return True

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
                self._give_back(waiter, m.MISSING, missing)

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
            self._replace(before)
        session.entries[entry.key] = entry
        entry.state = KEPT

    # ---- entries and their dependencies ----

    def _on_push(self, session: Session, message: Message) -> None:
        """Take in a task with its dependencies; then queue the task, block it, or give it back."""
        _, key, attempt, function, payload, order, dependencies, options = message
        entries = session.entries
        before = entries.get(key)
        if before is not None:
            if before.attempt >= attempt:
                return  # the push came twice
            self._replace(before)
        entry = entries[key] = Entry(session, key, attempt)
        entry.function = function
        entry.payload = payload
        entry.order = order
        entry.options = options
        if options is not None:
            entry.limited = "resources" in options or "executor" in options
        missing: list[tuple[Key, int, tuple[str, ...]]] = []
        if dependencies:
            resolved: list[Any] = []
            for reference in dependencies:
                how, name, *rest = reference
                if how == m.VALUE:
                    resolved.append(name)
                    continue
                made_by, *where = rest
                there = entries.get(name)
                # Another attempt of the key made another value, which may differ.
                if there is None or there.attempt != made_by:
                    # The owner counts on a value that is not here, as after a failed fetch.
                    if how == m.LOCAL:
                        missing.append((name, made_by, ()))
                        continue
                    if there is not None:
                        self._replace(there)
                    # Also when the task is refused: the owner counts on the copy from now on.
                    there = entries[name] = Entry(session, name, made_by)
                    there.state = FETCHING
                    there.nbytes, there.addresses, there.origin = where
                    self.effects.fetches.append(there)
                resolved.append(there)
            entry.dependencies = resolved
        if not self.queue.accepting:
            self._give_back(entry, m.REFUSED)
        elif entry.limited and not self.queue.resources.possible(options):
            self._give_back(entry, m.REFUSED, (tuple(self.queue.resources.totals.items()),))
        elif missing:
            self._give_back(entry, m.MISSING, tuple(missing))
        else:
            for there in entry.dependencies:
                if type(there) is Entry and not there.has_value:
                    entry.missing += 1
                    if there.waiters is None:
                        there.waiters = [entry]
                    else:
                        there.waiters.append(entry)
            if entry.missing == 0:
                self._queue(entry)

    def _queue(self, entry: Entry) -> None:
        """Queue a task that has all its inputs, or end an alias of a stored value at once."""
        if entry.options and "alias" in entry.options:
            there = next(iter(entry.dependencies), None)
            if type(there) is Entry and self.share(entry, there):
                # An alias runs no function, and so needs no slot.
                message = (m.STORED, entry.key, entry.attempt, None, None, 0.0)
                self.succeeded(entry, message, KEPT, None)
                return
        self.queue.add(entry)

    def _serve(self, entry: Entry) -> None:
        waiters = entry.waiters or ()
        entry.waiters = None
        for waiter in waiters:
            if waiter.state == BLOCKED:
                waiter.missing -= 1
                if waiter.missing == 0:
                    self._queue(waiter)

    def _replace(self, before: Entry) -> None:
        """Make way for a new entry of the same key."""
        if before.state in (HELD, COPIED):
            # Queued tasks may need the old value; futures inside stay until they are counted.
            self._let_go(before)
        else:
            self._cancel(before)

    def _cancel(self, entry: Entry) -> None:
        """Cancel a task, or drop a value; tasks that wait for the entry are given back."""
        if entry.state == RUNNING:
            if not entry.cancelled:
                self._interrupt(entry)
                # The key is free for the next attempt while the thread still runs.
                if entry.session.entries.get(entry.key) is entry:
                    del entry.session.entries[entry.key]
        else:
            self._drop(entry)
        self._give_back_waiters(entry)

    def _interrupt(self, entry: Entry) -> None:
        """Mark a running task as cancelled; the runtime then cancels its coroutine and children."""
        entry.cancelled = True
        self.queue.crowd.unwanted(entry)
        self.effects.interrupted.append(entry)
        self.savings.cancelled(entry)

    def _drop(self, entry: Entry) -> None:
        """Take an entry out, of a task or a value in any state."""
        if entry.state == RUNNING:
            if not entry.cancelled:
                self._interrupt(entry)
            return
        if entry.state == QUEUED:
            self.queue.leave()
        self._forget(entry)

    def _free(self, entry: Entry) -> None:
        """Have the runtime delete an entry's value in the store, unless other entries share it."""
        name = entry.stored
        if name is None:
            return
        # A second call must not free the value once more, for another entry that shares it.
        entry.stored = None
        others = self.shared.get(name, 0)
        if not others:
            self.effects.freed.append(name)
        elif others == 1:
            del self.shared[name]
        else:
            self.shared[name] = others - 1

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
            self.queue.reconsider()  # other put-aside tasks waited behind this task

    def _give_back(self, entry: Entry, reason: int, keys: tuple[Any, ...] = ()) -> None:
        """Give a task back to its owner, with all tasks here that wait for the task."""
        if entry.state == QUEUED:
            self.queue.leave()
        if not entry.cancelled and not entry.session.closed:
            entry.session.outbox.append((m.GIVEN_BACK, entry.key, entry.attempt, reason, keys))
        self._forget(entry)
        self._give_back_waiters(entry)

    def _give_back_waiters(self, entry: Entry) -> None:
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

    def _on_recall(self, session: Session, count: int) -> None:
        """Give up to ``count`` unstarted tasks of an owner back, those that start last first."""
        candidates: list[Entry] = []
        for level in sorted(session.queues):
            queued = session.queues[level].items()
            candidates.extend(entry for entry in queued if entry.state == QUEUED)
        candidates.extend(
            entry
            for entry in self.queue.resources.aside
            if entry.session is session and entry.state == ASIDE
        )
        for entry in reversed(candidates):
            if count <= 0:
                break
            # Not a task with a chain behind it, nor a task that was moved once before.
            if entry.waiters is None and not (entry.options and entry.options.get("moved")):
                count -= 1
                self._give_back(entry, m.RECALLED)
        # The end of the recall, also when no task went back: the owner may recall again.
        session.outbox.append((m.GIVEN_BACK, None, 0, m.RECALLED, ()))

    # ---- resources ----

    def resources_changed(self) -> None:
        """Take in that the worker's resources changed; tasks that can never start here go back."""
        for session in self.sessions.values():
            for entry in list(session.entries.values()):
                waits = entry.state in (BLOCKED, QUEUED, ASIDE)
                if waits and not self.queue.resources.possible(entry.options):
                    self._give_back(entry, m.REFUSED, (tuple(self.queue.resources.totals.items()),))
        self.queue.reconsider()


HANDLERS: dict[int, Callable[..., None]] = {
    m.FUNCTION: ExecutorCore._on_function,
    m.FORGET: ExecutorCore._on_forget,
    m.FREE: ExecutorCore._on_free,
    m.COPY: ExecutorCore._on_copy,
    m.GO: ExecutorCore._on_go,
    m.CANCEL: ExecutorCore._on_cancel,
    m.RECALL: ExecutorCore._on_recall,
    m.WATCH_CHILDREN: ExecutorCore._on_seek,
    m.REFS_COUNTED: ExecutorCore._on_took,
    m.CHECKPOINTED: ExecutorCore._on_checkpointed,
    m.POST: ExecutorCore._on_post,
}
"""The handler of each kind of message but `PUSH`. The items of a message after the kind are the
arguments of its handler, in order."""
