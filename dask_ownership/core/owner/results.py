"""Results: how an owner takes in the answers of workers.

An answer concerns one attempt of one row, and changes nothing when the row has another attempt by
now. Messages that concern no row are passed on to the features that registered for them.
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
from dask_ownership.core.protocol.messages import (
    AFTER_ATTEMPT,
    AFTER_KIND,
    ATTEMPT,
    DONE,
    DONE_ALONE,
    KIND,
    SUBJECT,
    Key,
    Message,
    Origin,
)
from dask_ownership.core.protocol.states import ERROR, INLINE, PUSHED, READY, STORED

Handler: TypeAlias = Callable[..., None]

# What `story` and the error messages say, after the worker's address.
REASONS = {
    m.DROPPED: "it was dropped before it started",
    m.BLOCKED: "a task there that it waited for ended without a value",
    m.UNKNOWN_FUNCTION: "its function was not known there",
    m.RESCHEDULED: "it asked to be run again, by Reschedule",
    m.REFUSED: "no new tasks are taken there, or not such as this one",
}


class Results:
    """Takes in the answers of workers, by tables of handlers in which features register.

    Parameters
    ----------
    lifecycle : Lifecycle
    placement : Placement
    dispatch : Dispatch
    borrowing : Borrowing
    suspensions : Suspensions
    away : callable
        Told of a row whose value was made at a leaving worker, and of the worker.
    broke : callable
        Told of a message that met an unexpected error: the row (or None), the error, and which
        message of which worker.

    Attributes
    ----------
    ends : dict
        Handlers of messages with which an attempt ends, by kind. A handler is given the worker, the
        row, and the items of the message after kind, key and attempt.
    running : dict
        Handlers, in the same way, of messages that a task sends while the attempt goes on.
    late : dict
        Handlers of messages about an old attempt, or about a row that is gone. A handler is given
        the worker and all items after the kind. Little is left to do: when the attempt was
        superseded the worker was sent a `CANCEL`, which drops what the attempt made.
    of_no_task : dict
        Handlers of messages that concern no task of this owner. A handler is given the worker and
        all items after the kind.
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
            m.GIVEN_BACK: self._given_back,
        }
        self.running: dict[int, Handler] = {m.ALONE: self._alone, m.PARKED: self._parked}
        self.late: dict[int, Handler] = {
            m.ALONE: self._alone_late,
            m.DONE: self._inside_late,
            m.FAILED: self._inside_late,
            m.DELEGATED: self._inside_late,
            m.GIVEN_BACK: self._given_back_late,
        }
        self.of_no_task: dict[int, Handler] = {m.LINGERS: self._lingers}

    def receive(self, view: WorkerView, batch: Iterable[Message], now: float) -> None:
        """Take in a batch of a worker's answers, in the worker's order.

        Parameters
        ----------
        view : WorkerView
        batch : iterable of tuple
        now : float
            Microseconds.
        """
        if not view.alive:
            return  # the tasks of a removed worker were given up already
        view.heard = now
        if view.suspended:
            self._suspensions.heard(view)
        # A message that cannot be taken in harms its own task only: the rest follows after it.
        messages = iter(batch)
        while (broken := self._take_in(view, messages)) is not None:
            self._broke(view, *broken)

    def _take_in(
        self, view: WorkerView, messages: Iterator[Message]
    ) -> tuple[Message, Exception] | None:
        """Take messages in until one meets an unexpected error.

        Returns
        -------
        tuple or None
            The message and the error; None when all messages were taken in.
        """
        pushed = view.pushed
        of_no_task = self.of_no_task
        finish_inline = self._lifecycle.finish_inline
        message: Message = ()
        try:
            for message in messages:
                kind = message[KIND]
                if kind in of_no_task:
                    of_no_task[kind](view, *message[AFTER_KIND])
                    continue
                row = pushed.get(message[SUBJECT])
                if row is None or row.attempt != message[ATTEMPT]:
                    if kind in self.late:
                        self.late[kind](view, *message[AFTER_KIND])
                elif kind == DONE and len(message) == DONE_ALONE:
                    # Nearly all answers are of this form: as `_done`, without further calls.
                    _, _, _, value, microseconds = message
                    view.ended(row)
                    measured(row, microseconds)
                    finish_inline(row, value)
                elif (end := self.ends.get(kind)) is not None:
                    view.ended(row)
                    end(view, row, *message[AFTER_ATTEMPT])
                elif kind in self.running:
                    self.running[kind](view, row, *message[AFTER_ATTEMPT])
        except Exception as error:
            return message, error
        return None

    def _broke(self, view: WorkerView, message: Message, error: Exception) -> None:
        """End the task of a message that could not be taken in, and no other task."""
        row = None
        name = m.NAMES.get(message[KIND], message[KIND]) if message else "?"
        if len(message) > ATTEMPT:
            key, rows = message[SUBJECT], self._lifecycle.table.rows
            found = view.pushed.get(key) or rows.get(key)
            row = found if found is not None and found.attempt == message[ATTEMPT] else None
        self._could_not(row, error, f"{name} of {view.address} could not be taken in")

    # ---- the attempt has ended ----

    def _done(
        self,
        view: WorkerView,
        row: Row,
        value: bytes,
        microseconds: float,
        inside: Sequence[Origin] | None = None,
    ) -> None:
        """Handle `DONE`: end a row with the value in the message, and the futures inside."""
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
        """Handle `STORED`: end a row whose value stays at the worker."""
        measured(row, microseconds)
        if nbytes is None:  # an alias: the value is the value of the only input
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
        """Handle `FAILED`: try a row again while retries are left, else end it with the error."""
        lifecycle = self._lifecycle
        measured(row, microseconds)
        left = row.options.retries - lifecycle.attempts.of(row).failures
        if left > 0:
            lifecycle.attempts.change(row).failures += 1
            detail = f"it failed at {view.address}; {left - 1} retries left"
            lifecycle.try_again(row, restarts.FAILED, detail)
            # No row keeps this error: the worker may let go of the futures inside.
            self._inside_late(view, row.key, row.attempt, error, microseconds, inside)
        elif inside is None:
            lifecycle.fail(row, ERROR, error)
        else:
            rows = self._borrowing.inside_result(view, row, inside)
            lifecycle.fail(row, ERROR, error, rows)
            # Each row that ended with the error has task references of its own.
            lifecycle.release_task_refs(rows)

    def _given_back(
        self,
        view: WorkerView,
        row: Row,
        reason: int,
        keys: Any,
    ) -> None:
        """Handle `GIVEN_BACK`: learn from the reason, and have the row run elsewhere.

        Parameters
        ----------
        view : WorkerView
        row : Row
        reason : int
            One of the reasons in `protocol.messages`.
        keys : sequence of tuple, or None
            Details of the reason, see `protocol.messages`.
        """
        if reason == m.RECALLED:
            detail = f"from {view.address}, for a worker with nothing to do"
        else:
            why = REASONS.get(reason)
            if why is None:
                why = f"it did not get {', '.join([repr(key) for key, *_ in keys or ()])}"
            detail = f"by {view.address}: {why}"
        if reason == m.UNKNOWN_FUNCTION and row.function is not None:
            view.functions.discard(row.function.id)
        elif reason == m.REFUSED:
            # With ``keys`` the worker lacks resources and takes other tasks. A worker that takes
            # none at all has said so before, with `ACCEPTING`.
            if keys:
                [resources] = keys
                view.resources = dict(resources)
        elif reason == m.RECALLED:
            self._lifecycle.attempts.change(row).recalled = True
        elif reason == m.MISSING:
            by_key = {dependency.key: dependency for dependency in row.dependencies}
            for key, made_by, addresses in keys:
                dependency = by_key.get(key)
                if dependency is None or dependency.state not in (INLINE, STORED):
                    continue
                if version_of(dependency) != made_by:
                    continue  # the input was made again since
                gone = {h for h in dependency.locations if h.address in addresses}
                # The worker may have been given another copy since it gave the task back.
                if view in dependency.locations and view.copies.get(key, 0) <= row.attempt:
                    gone.add(view)
                    # This branch comes once for all the tasks that waited for one copy, so the
                    # owner is asked once.
                    if isinstance(dependency, Borrowed) and dependency.state == STORED:
                        self._borrowing.missed(dependency, addresses)
                if gone:
                    self._lifecycle.drop_locations(dependency, gone, "does not have it any more")
                self._suspensions.unanswered(dependency)
        path = restarts.OF_REASON.get(reason, restarts.GIVEN_BACK)
        self._lifecycle.try_again(row, path, detail)
        if reason in (m.RECALLED, m.RESCHEDULED) and row.state == READY:
            # Not back to the same worker, if another worker has room.
            others = [v for v in self._placement.allowed(row) if v is not view]
            other = self._placement.choose(row, others)
            if other is not None:
                self._dispatch.push(row, other, view.heard)

    # ---- the attempt goes on ----

    def _parked(self, view: WorkerView, row: Row) -> None:
        """Handle `PARKED`: a task gave its slot up, and takes no room of the window any more.

        Tasks that were pushed behind the parked task take no room either. The tasks for which the
        parked task waits may need the room.
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
        """Handle `ALONE`: a suspect is about to run alone, or may run beside other tasks now."""
        view.outbox.append((m.GO, row.key, row.attempt, yes))
        if yes:
            view.alone = row
            return
        self._lifecycle.attempts.change(row).beside = row.attempt
        if view.alone is row:
            view.alone = None

    # ---- the attempt is an old one ----

    @staticmethod
    def _lingers(view: WorkerView, key: Key, attempt: int, yes: bool) -> None:
        """Handle `LINGERS`: note which cancelled attempts keep slots of a worker, for people."""
        if yes:
            view.lingering[key, attempt] = None
        else:
            view.lingering.pop((key, attempt), None)

    @staticmethod
    def _alone_late(view: WorkerView, key: Key, attempt: int, yes: bool) -> None:
        """Answer `ALONE` of an old attempt, for which the worker holds up other tasks."""
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
        """Have the worker let go of the futures inside a result that this owner does not keep."""
        if inside is not None:
            view.outbox.append((m.REFS_COUNTED, key, attempt))

    @staticmethod
    def _given_back_late(view: WorkerView, key: Key, attempt: int, reason: int, keys: Any) -> None:
        """Take in the end of a recall; a task that came back late has another attempt already."""
        if key is None:  # no task: the recall is over
            view.recalled = False
