"""What an owner makes of the answers of workers.

An answer is about one attempt of one row: when the row has another by now, it changes
nothing. What is about no row is passed on to those that it concerns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

from dask_ownership.core.owner.references.borrowing import Borrowing
from dask_ownership.core.owner.rows import restarts
from dask_ownership.core.owner.rows.lifecycle import Lifecycle
from dask_ownership.core.owner.rows.row import Borrowed, Row, measured, version_of
from dask_ownership.core.owner.rows.worker_view import WorkerView
from dask_ownership.core.owner.scheduling.dispatch import Dispatch
from dask_ownership.core.owner.scheduling.placement import Placement
from dask_ownership.core.owner.scheduling.suspension import Suspensions
from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol.messages import DONE, DONE_ALONE, Key, Message, Origin
from dask_ownership.core.protocol.states import ERROR, INLINE, PUSHED, READY, STORED

Handler: TypeAlias = Callable[..., None]

RETURN_REASONS = {
    m.DROPPED: "it was dropped before it started",
    m.BLOCKED: "a task there that it waited for ended without a value",
    m.UNKNOWN_FUNCTION: "its function was not known there",
    m.RESCHEDULED: "it asked to be run again, by Reschedule",
    m.REFUSED: "no new tasks are taken there, or not such as this one",
}


class Results:
    """Takes answers in. What a feature does about a kind of message it registers here.

    Parameters
    ----------
    lifecycle : Lifecycle
    placement : Placement
    dispatch : Dispatch
    borrowing : Borrowing
    suspensions : Suspensions
    away : callable
        Told of a value that was made at a worker which leaves.
    broke : callable
        Told of a row that could not be dealt with, the error, and what was tried.

    Attributes
    ----------
    ends : dict
        Kind of a message with which an attempt ends to its handler, which is given the worker,
        the row, and the items of the message after kind, key and attempt.
    running : dict
        The same for what a task sends while it runs.
    late : dict
        The same for what is about a row that has another attempt by now, or is gone. A handler
        is given the worker, and all items after the kind. Whoever superseded the attempt sent
        a `CANCEL`, and that drops what the attempt left there.
    of_no_task : dict
        The same for what is about no task of this owner.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        placement: Placement,
        *,
        dispatch: Dispatch,
        borrowing: Borrowing,
        suspensions: Suspensions,
        away: Callable[[Row, WorkerView], None],
        broke: Callable[[Row | None, Exception, str], None],
    ) -> None:
        self._lifecycle = lifecycle
        self._placement = placement
        self._dispatch = dispatch
        self._borrowing = borrowing
        self._suspensions = suspensions
        self._away = away
        self._could_not = broke
        self.ends: dict[int, Handler] = {
            m.DONE: self._done,
            m.STORED: self._stored,
            m.FAILED: self._failed,
            m.GIVEN_BACK: self._returned,
        }
        self.running: dict[int, Handler] = {m.ALONE: self._alone, m.PARKED: self._parked}
        self.late: dict[int, Handler] = {
            m.ALONE: self._alone_late,
            m.DONE: self._inside_late,
            m.FAILED: self._inside_late,
            m.DELEGATED: self._inside_late,
            m.GIVEN_BACK: self._returned_late,
        }
        self.of_no_task: dict[int, Handler] = {}

    def receive(self, view: WorkerView, batch: Iterable[Message], now: float) -> None:
        """Results of a worker, in the order in which it gave them."""
        if not view.alive:
            return
        view.heard = now
        if view.suspended:
            self._suspensions.heard(view)
        messages = iter(batch)
        while (broken := self._take_in(view, messages)) is not None:
            self._broke(view, *broken)

    def _take_in(
        self, view: WorkerView, messages: Iterator[Message]
    ) -> tuple[Message, Exception] | None:
        """Take messages in, up to one that cannot be: that one, and why."""
        pushed = view.pushed
        of_no_task = self.of_no_task
        finish_inline = self._lifecycle.finish_inline
        message: Message = ()
        try:
            for message in messages:
                kind = message[0]
                if kind in of_no_task:
                    of_no_task[kind](view, *message[1:])
                    continue
                row = pushed.get(message[1])
                if row is None or row.attempt != message[2]:
                    if kind in self.late:
                        self.late[kind](view, *message[1:])
                elif kind == DONE and len(message) == DONE_ALONE:  # as nearly all are
                    _, _, _, value, microseconds = message
                    view.ended(row)
                    measured(row, microseconds)
                    finish_inline(row, value)
                elif (end := self.ends.get(kind)) is not None:
                    view.ended(row)
                    end(view, row, *message[3:])
                elif kind in self.running:
                    self.running[kind](view, row, *message[3:])
        except Exception as error:
            return message, error
        return None

    def _broke(self, view: WorkerView, message: Message, error: Exception) -> None:
        """A message could not be taken in: the task that it is about ends, and no other."""
        row = None
        name = m.NAMES.get(message[0], message[0]) if message else "?"
        if len(message) > 2:
            rows = self._lifecycle.table.rows
            found = view.pushed.get(message[1]) or rows.get(message[1])
            row = found if found is not None and found.attempt == message[2] else None
        self._could_not(row, error, f"{name} of {view.address} could not be taken in")

    # ---- the task has ended ----

    def _done(
        self,
        view: WorkerView,
        row: Row,
        value: bytes,
        microseconds: float,
        inside: Sequence[Origin] | None = None,
    ) -> None:
        measured(row, microseconds)
        if inside is None:
            self._lifecycle.finish_inline(row, value)
        else:
            rows = self._borrowing.inside_result(view, row, inside)
            self._lifecycle.finish_inline(row, value, rows)

    def _stored(
        self,
        view: WorkerView,
        row: Row,
        nbytes: int | None,
        type_name: bytes | None,
        microseconds: float,
    ) -> None:
        measured(row, microseconds)
        if nbytes is None:  # the very value of its only input
            nbytes = row.dependencies[0].nbytes
            type_name = row.dependencies[0].type_name
        self._lifecycle.finish_stored(row, nbytes, type_name, (view,))
        if view.leaving and row.state == STORED:
            self._away(row, view)

    def _failed(
        self,
        view: WorkerView,
        row: Row,
        error: bytes,
        microseconds: float,
        inside: Sequence[Origin] | None = None,
    ) -> None:
        lifecycle = self._lifecycle
        measured(row, microseconds)
        left = row.options.retries - lifecycle.attempts.of(row).failures
        if left > 0:
            lifecycle.attempts.change(row).failures += 1
            detail = f"it failed at {view.address}; {left - 1} retries left"
            lifecycle.try_again(row, restarts.FAILED, detail)
            self._inside_late(view, row.key, row.attempt, error, microseconds, inside)
        elif inside is None:
            lifecycle.fail(row, ERROR, error)
        else:
            rows = self._borrowing.inside_result(view, row, inside)
            lifecycle.fail(row, ERROR, error, rows)
            lifecycle.release_uses(rows)  # each row that ended has its own

    def _returned(
        self,
        view: WorkerView,
        row: Row,
        reason: int,
        keys: Any,
    ) -> None:
        if reason == m.RECALLED:
            detail = f"from {view.address}, for a worker with nothing to do"
        else:
            why = RETURN_REASONS.get(reason)
            if why is None:
                why = f"it did not get {', '.join([repr(key) for key, *_ in keys or ()])}"
            detail = f"by {view.address}: {why}"
        if reason == m.UNKNOWN_FUNCTION and row.function is not None:
            view.functions.discard(row.function.id)
        elif reason == m.REFUSED:
            if keys:  # it takes others; `ACCEPTING` has said when it does not
                view.resources = dict(keys[0])
        elif reason == m.RECALLED:
            self._lifecycle.attempts.change(row).recalled = True
        elif reason == m.MISSING:
            by_key = {dependency.key: dependency for dependency in row.dependencies}
            for key, made_by, addresses in keys:
                dependency = by_key.get(key)
                if dependency is None or dependency.state not in (INLINE, STORED):
                    continue
                if version_of(dependency) != made_by:
                    continue  # it was made again since
                gone = {h for h in dependency.locations if h.address in addresses}
                # It may have been given another copy since it said this.
                if view in dependency.locations and view.copies.get(key, 0) <= row.attempt:
                    gone.add(view)
                    # Once for all the tasks that waited for one copy.
                    if isinstance(dependency, Borrowed) and dependency.state == STORED:
                        self._borrowing.missed(dependency, addresses)
                if gone:
                    self._lifecycle.drop_locations(dependency, gone, "does not have it any more")
                self._suspensions.unanswered(dependency)
        path = restarts.OF_RETURN.get(reason, restarts.GIVEN_BACK)
        self._lifecycle.try_again(row, path, detail)
        if reason in (m.RECALLED, m.RESCHEDULED) and row.state == READY:
            others = [v for v in self._placement.allowed(row) if v is not view]
            other = self._placement.choose(row, others)
            if other is not None:
                self._dispatch.push(row, other, view.heard)

    # ---- the task goes on ----

    def _parked(self, view: WorkerView, row: Row) -> None:
        """A task gave its slot up: it takes no room, and nor does what was pushed behind it.

        What it waits for may need that room.
        """
        stack = [row]
        while stack:
            row = stack.pop()
            if row.state == PUSHED and row.worker is view and row.estimate:
                view.load -= row.estimate
                view.active -= 1
                row.estimate = 0.0
                stack.extend(row.dependents or ())

    def _alone(self, view: WorkerView, row: Row, yes: bool) -> None:
        """A suspect is about to run alone, or may run beside others from now on."""
        view.outbox.append((m.GO, row.key, row.attempt, yes))
        if yes:
            view.alone = row
            return
        self._lifecycle.attempts.change(row).beside = row.attempt
        if view.alone is row:
            view.alone = None

    # ---- nobody waits for the answer ----

    @staticmethod
    def _alone_late(view: WorkerView, key: Key, attempt: int, yes: bool) -> None:
        view.outbox.append((m.GO, key, attempt, yes))

    @staticmethod
    def _inside_late(
        view: WorkerView,
        key: Key,
        attempt: int,
        value: Any,
        microseconds: float,
        inside: Sequence[Origin] | None = None,
    ) -> None:
        if inside is not None:
            view.outbox.append((m.REFS_COUNTED, key, attempt))

    @staticmethod
    def _returned_late(view: WorkerView, key: Key, attempt: int, reason: int, keys: Any) -> None:
        if key is None:  # of no task: all that could be given back was
            view.recalled = False
