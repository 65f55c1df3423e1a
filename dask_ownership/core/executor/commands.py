"""Commands: how an executor takes in what owners say over their links."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from dask_ownership.core.executor.checkpoints import Savings
from dask_ownership.core.executor.effects import ExecutorEffects
from dask_ownership.core.executor.entry_lifecycle import EntryLifecycle
from dask_ownership.core.executor.posts import Posts
from dask_ownership.core.executor.run_queue import RunQueue
from dask_ownership.core.executor.session import (
    ASIDE,
    COPIED,
    FETCHING,
    KEPT,
    QUEUED,
    Entry,
    Session,
)
from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol.messages import Key, Message

KNOWN_FUNCTIONS = 4096
"""How many functions of one owner an executor keeps."""

FUNCTION_BYTES = 1 << 26
"""Bytes of one owner's functions above which an executor forgets the oldest."""


class Commands:
    """Takes in the messages of owners.

    Parameters
    ----------
    lifecycle : EntryLifecycle
        Queues, cancels and drops entries as the messages say.
    run_queue : RunQueue
        Says whether the worker takes tasks, and which tasks wait for a slot.
    effects : ExecutorEffects
        Gets the fetches, the searches for children and the broken messages.
    savings : Savings
        Is told of the owner's answers to checkpoints.
    posts : Posts
        Passes posts on.
    """

    def __init__(
        self,
        lifecycle: EntryLifecycle,
        run_queue: RunQueue,
        effects: ExecutorEffects,
        savings: Savings,
        posts: Posts,
    ) -> None:
        self._lifecycle = lifecycle
        self._run_queue = run_queue
        self._effects = effects
        self._savings = savings
        self._posts = posts

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
                kind = message[m.KIND]
                if kind == m.PUSH:  # most messages are pushes
                    self._on_push(session, message)
                elif (handler := HANDLERS.get(kind)) is not None:
                    handler(self, session, *message[m.AFTER_KIND])
        except Exception as error:
            self._effects.broken.append((session, message, error))
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

    def _on_push(self, session: Session, message: Message) -> None:
        """Take in a task with its dependencies; then queue the task, block it, or give it back."""
        _, key, attempt, function, payload, order, dependencies, options = message
        entries = session.entries
        before = entries.get(key)
        if before is not None:
            if before.attempt >= attempt:
                return  # the push came twice
            self._lifecycle.replace(before)
        entry = entries[key] = Entry(session, key, attempt)
        entry.function = function
        entry.payload = payload
        entry.order = order
        entry.options = options
        if options is not None:
            entry.takes_resources_or_pool = "resources" in options or "executor" in options
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
                        self._lifecycle.replace(there)
                    # Also when the task is refused: the owner counts on the copy from now on.
                    there = entries[name] = Entry(session, name, made_by)
                    there.state = FETCHING
                    there.nbytes, there.addresses, there.origin = where
                    self._effects.fetches.append(there)
                resolved.append(there)
            entry.dependencies = resolved
        if not self._run_queue.accepting:
            self._lifecycle.give_back(entry, m.REFUSED)
        elif entry.takes_resources_or_pool and not self._run_queue.resources.possible(options):
            self._lifecycle.refuse_resources(entry)
        elif missing:
            self._lifecycle.give_back(entry, m.MISSING, tuple(missing))
        else:
            for there in entry.dependencies:
                if type(there) is Entry and not there.has_value:
                    entry.missing += 1
                    if there.waiters is None:
                        there.waiters = [entry]
                    else:
                        there.waiters.append(entry)
            if entry.missing == 0:
                self._lifecycle.queue(entry)

    def _on_free(self, session: Session, keys: Iterable[Key], number: int) -> None:
        for key in keys:
            entry = session.entries.get(key)
            # A value of a higher number was put there after the owner sent this message.
            if (
                entry is not None
                and entry.attempt <= number
                and entry.state in (KEPT, COPIED, FETCHING)
            ):
                self._lifecycle.drop(entry)
                self._lifecycle.give_back_waiters(entry)

    def _on_copy(self, session: Session, key: Key, attempt: int, pickled: bytes) -> None:
        before = session.entries.get(key)
        if before is not None:
            self._lifecycle.replace(before)
        entry = session.entries[key] = Entry(session, key, attempt)
        entry.value = pickled
        entry.state = COPIED

    def _on_go(self, session: Session, key: Key, attempt: int, yes: bool) -> None:
        self._run_queue.exclusion.go(session, key, attempt, yes)

    def _on_cancel(self, session: Session, key: Key, attempt: int) -> None:
        entry = session.entries.get(key)
        if entry is not None and entry.attempt == attempt:
            self._lifecycle.cancel(entry)

    def _on_recall(self, session: Session, count: int) -> None:
        """Give up to ``count`` unstarted tasks of an owner back, those that start last first."""
        candidates: list[Entry] = []
        for level in sorted(session.queues):
            queued = session.queues[level].items()
            candidates.extend(entry for entry in queued if entry.state == QUEUED)
        candidates.extend(
            entry
            for entry in self._run_queue.resources.aside
            if entry.session is session and entry.state == ASIDE
        )
        for entry in reversed(candidates):
            if count <= 0:
                break
            # Not a task with a chain behind it, nor a task that was moved once before.
            if entry.waiters is None and not (entry.options and entry.options.get("moved")):
                count -= 1
                self._lifecycle.give_back(entry, m.RECALLED)
        # The end of the recall, also when no task went back: the owner may recall again.
        session.outbox.append((m.GIVEN_BACK, None, 0, m.RECALLED, ()))

    def _on_watch_children(
        self, session: Session, key: Key, attempt: int, children: tuple[Key, ...]
    ) -> None:
        entry = session.entries.get(key)
        # A task with a value submits no more; its owner hears of the value.
        if entry is not None and entry.attempt == attempt and not entry.has_value:
            if entry.watched is None:
                entry.watched = set()
            entry.watched.update(children)
            self._effects.watched.append((entry, children))

    def _on_refs_counted(self, session: Session, name: Key, attempt: int) -> None:
        """Let go of futures that were kept under a name: the owner is counted for them now."""
        entry = session.handed.pop((name, attempt), None)
        if entry is not None:
            entry.contains = None
            self._lifecycle.let_go(entry)

    def _on_checkpointed(
        self,
        session: Session,
        key: Key,
        attempt: int,
        number: int,
        problem: str | None,
    ) -> None:
        self._savings.answered(key, number, problem)

    def _on_post(self, session: Session, *said: Any) -> None:
        self._posts.deliver((m.POST, *said))


HANDLERS: dict[int, Callable[..., None]] = {
    m.FUNCTION: Commands._on_function,
    m.FORGET: Commands._on_forget,
    m.FREE: Commands._on_free,
    m.COPY: Commands._on_copy,
    m.GO: Commands._on_go,
    m.CANCEL: Commands._on_cancel,
    m.RECALL: Commands._on_recall,
    m.WATCH_CHILDREN: Commands._on_watch_children,
    m.REFS_COUNTED: Commands._on_refs_counted,
    m.CHECKPOINTED: Commands._on_checkpointed,
    m.POST: Commands._on_post,
}
"""The handler of each kind of message but `PUSH`. The items of a message after the kind are the
arguments of its handler, in order."""
