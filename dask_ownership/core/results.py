"""What an owner makes of the answers of workers.

An answer is about one attempt of one row: when the row has another by now, it changes
nothing. What is about no row is passed on to those that it concerns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from dask_ownership.core import messages as m
from dask_ownership.core import restarts
from dask_ownership.core.messages import DONE, DONE_ALONE, Key, Message, Origin, Process
from dask_ownership.core.placement import WorkerView
from dask_ownership.core.row import (
    ERROR,
    INLINE,
    PUSHED,
    READY,
    RETAINED,
    STORED,
    Borrowed,
    Failure,
    Options,
    Row,
    version_of,
)

if TYPE_CHECKING:
    from dask_ownership.core.ownership import Ownership

RETURN_REASONS = {
    m.DROPPED: "it was dropped before it started",
    m.BLOCKED: "a task there that it waited for ended without a value",
    m.UNKNOWN_FUNCTION: "its function was not known there",
    m.RESCHEDULED: "it asked to be run again, by Reschedule",
    m.REFUSED: "no new tasks are taken there, or not such as this one",
}


class Results:
    """Takes answers in.

    Parameters
    ----------
    core : Ownership
    """

    def __init__(self, core: Ownership) -> None:
        self.core = core

    def receive(self, view: WorkerView, batch: Iterable[Message], now: float) -> None:
        """Results of a worker, in the order in which it gave them."""
        core = self.core
        if not view.alive:
            return
        view.heard = now
        if view.suspended:
            core.suspensions.heard(view)
        messages = iter(batch)
        while (broken := self._take_in(view, messages)) is not None:
            self._broke(view, *broken)

    def _take_in(
        self, view: WorkerView, messages: Iterator[Message]
    ) -> tuple[Message, Exception] | None:
        """Take messages in, up to one that cannot be: that one, and why."""
        pushed = view.pushed
        finish_inline = self.core.lifecycle.finish_inline
        message: Message = ()
        try:
            for message in messages:
                kind = message[0]
                if kind in OF_NO_TASK:
                    OF_NO_TASK[kind](self, view, *message[1:])
                    continue
                row = pushed.get(message[1])
                if row is None or row.attempt != message[2]:
                    if kind in LATE:
                        LATE[kind](self, view, *message[1:])
                elif kind == DONE and len(message) == DONE_ALONE:  # as nearly all are
                    _, _, _, value, microseconds = message
                    view.ended(row)
                    _measured(row, microseconds)
                    finish_inline(row, value)
                elif (end := ENDS.get(kind)) is not None:
                    view.ended(row)
                    end(self, view, row, *message[3:])
                elif kind in OF_A_TASK_THAT_RUNS:
                    OF_A_TASK_THAT_RUNS[kind](self, view, row, *message[3:])
        except Exception as error:
            return message, error
        return None

    def _broke(self, view: WorkerView, message: Message, error: Exception) -> None:
        """A message could not be taken in: the task that it is about ends, and no other."""
        row = None
        name = m.NAMES.get(message[0], message[0]) if message else "?"
        if len(message) > 2:
            rows = self.core.table.rows
            found = view.pushed.get(message[1]) or rows.get(message[1])
            row = found if found is not None and found.attempt == message[2] else None
        self.core.broke(row, error, f"{name} of {view.address} could not be taken in")

    # ---- the task has ended ----

    def _done(
        self,
        view: WorkerView,
        row: Row,
        value: bytes,
        microseconds: float,
        inside: Sequence[Origin] | None = None,
    ) -> None:
        _measured(row, microseconds)
        if inside is None:
            self.core.lifecycle.finish_inline(row, value)
        else:
            self.core.lifecycle.finish_inline(row, value, self._inside(view, row, inside))

    def _stored(
        self,
        view: WorkerView,
        row: Row,
        nbytes: int | None,
        type_name: bytes | None,
        microseconds: float,
    ) -> None:
        core = self.core
        _measured(row, microseconds)
        if nbytes is None:  # the very value of its only input
            nbytes = row.dependencies[0].nbytes
            type_name = row.dependencies[0].type_name
        core.lifecycle.finish_stored(row, nbytes, type_name, (view,))
        if view.leaving and row.state == STORED:
            core.moves.away(row, view)

    def _failed(
        self,
        view: WorkerView,
        row: Row,
        error: bytes,
        microseconds: float,
        inside: Sequence[Origin] | None = None,
    ) -> None:
        lifecycle = self.core.lifecycle
        _measured(row, microseconds)
        if row.options.retries > 0:
            row.options = row.options.copy()
            row.options.retries -= 1
            detail = f"it failed at {view.address}; {row.options.retries} retries left"
            lifecycle.try_again(row, restarts.FAILED, detail)
            self._not_counted(view, row.key, row.attempt, error, microseconds, inside)
        elif inside is None:
            lifecycle.fail(row, ERROR, error)
        else:
            rows = self._inside(view, row, inside)
            lifecycle.fail(row, ERROR, error, rows)
            lifecycle.release_uses(rows)  # each row that ended has its own

    def _delegated(
        self,
        view: WorkerView,
        row: Row,
        nothing: None,
        microseconds: float,
        inside: Sequence[Origin],
    ) -> None:
        """Its value is to be another's: wait for that one, without a slot."""
        core = self.core
        _measured(row, microseconds)
        inner = self._inside(view, row, inside)
        if row.roles & RETAINED and row.lineage is None:
            core.lineages.keep(row, row.contains)  # before it becomes another's value
        was = row.options
        row.options = Options(
            depth=was.depth,
            parent=was.parent,
            heir=was.heir,
            within=was.within,
            replicas=was.replicas,
        )
        needed = core.lifecycle.become(row, core.identity, core.identity_call, inner)
        core.lifecycle.release_uses(needed)
        if core.cycles.delegated(row):
            return
        if inner:
            core.lifecycle.wait(row)
            core.reconstruction.submits_no_more(row)
        else:
            detail = (
                f"it ran at {view.address} and delegated to a future that is itself, or that its "
                f"owner has freed; it was owned by {core.name}"
            )
            core.lifecycle.cannot_be_retried(row)
            core.lifecycle.fail(row, ERROR, Failure("lost-data", row.key, detail))

    def _returned(
        self,
        view: WorkerView,
        row: Row,
        reason: int,
        keys: Any,
    ) -> None:
        core = self.core
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
            row.options = row.options.copy()
            row.options.moved = True
        elif reason == m.MISSING:
            by_key = {dependency.key: dependency for dependency in row.dependencies}
            for key, made_by, addresses in keys:
                dependency = by_key.get(key)
                if dependency is None or dependency.state not in (INLINE, STORED):
                    continue
                if version_of(dependency) != made_by:
                    continue  # it was made again since
                gone = {h for h in dependency.holders if h.address in addresses}
                # It may have been given another copy since it said this.
                if view in dependency.holders and view.copies.get(key, 0) <= row.attempt:
                    gone.add(view)
                    # Once for all the tasks that waited for one copy.
                    if isinstance(dependency, Borrowed) and dependency.state == STORED:
                        core.borrowing.missed(dependency, addresses)
                if gone:
                    core.lifecycle.drop_holders(dependency, gone, "does not have it any more")
                core.suspensions.unanswered(dependency)
        core.lifecycle.try_again(row, restarts.OF_RETURN.get(reason, restarts.RETURNED), detail)
        if reason in (m.RECALLED, m.RESCHEDULED) and row.state == READY:
            others = [v for v in core.placement.allowed(row) if v is not view]
            other = core.placement.choose(row, others)
            if other is not None:
                core.dispatch.push(row, other, view.heard)

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
        row.options.beside = row.attempt
        if view.alone is row:
            view.alone = None

    def _made(
        self,
        view: WorkerView,
        row: Row,
        child: Key,
        origin: Origin,
    ) -> None:
        took = self._took(view, m.made_name(child), row)
        self.core.reconstruction.made(row, child, origin, took)

    def _checkpoint(
        self,
        view: WorkerView,
        row: Row,
        number: int,
        name: str,
        pickled: bytes,
    ) -> None:
        self.core.checkpoints.keep(view, row, number, name, pickled)

    # ---- no task of this owner ----

    def _accepting(self, view: WorkerView, yes: bool, nthreads: int) -> None:
        view.accepting = yes
        view.nthreads = nthreads
        if yes:
            view.leaving = False  # it stayed after all
            self.core.replicas.look_at_all()
        else:
            self.core.copies.not_to(view)

    def _leaving(self, view: WorkerView) -> None:
        self.core.moves.leaves(view)

    def _post(self, view: WorkerView, receiver: Process, sender: Process, batch: Any) -> None:
        if receiver[0] == self.core.peers.process[0]:
            self.core.peers.receive(sender, batch)

    # ---- nobody waits for the answer ----
    # Who superseded its attempt sent a CANCEL, and that drops what the attempt left there.

    def _not_alone(self, view: WorkerView, key: Key, attempt: int, yes: bool) -> None:
        view.outbox.append((m.GO, key, attempt, yes))

    def _not_sought(
        self, view: WorkerView, key: Key, attempt: int, child: Key, origin: Origin
    ) -> None:
        view.outbox.append((m.TOOK, m.made_name(child), attempt))

    def _not_counted(
        self,
        view: WorkerView,
        key: Key,
        attempt: int,
        value: Any,
        microseconds: float,
        inside: Sequence[Origin] | None = None,
    ) -> None:
        if inside is not None:
            view.outbox.append((m.TOOK, key, attempt))

    def _not_kept(
        self,
        view: WorkerView,
        key: Key,
        attempt: int,
        number: int,
        name: str,
        pickled: bytes,
    ) -> None:
        self.core.checkpoints.refuse(view, key, attempt, number)

    def _recalled(self, view: WorkerView, key: Key, attempt: int, reason: int, keys: Any) -> None:
        if key is None:  # of no task: all that could be given back was
            view.recalled = False

    # ---- futures inside ----

    def _inside(self, view: WorkerView, row: Row, inside: Iterable[Origin]) -> tuple[Row, ...]:
        """Rows of the futures that came inside a result, to be kept with it.

        The worker keeps them too until they are counted for this process.
        """
        core = self.core
        inner = core.borrowing.rows_of(inside)
        core.borrowing.when_counted(inner, self._took(view, row.key, row))
        if row in inner:  # else nothing would ever free it
            core.lifecycle.release_uses([r for r in inner if r is row])
            inner = tuple([r for r in inner if r is not row])
        return inner

    @staticmethod
    def _took(view: WorkerView, name: Key, row: Row) -> Callable[[], None]:
        """Tells a worker that the futures which it keeps under this name are counted."""
        attempt = row.attempt

        def took() -> None:
            if view.alive:
                view.outbox.append((m.TOOK, name, attempt))

        return took


def _measured(row: Row, microseconds: float) -> None:
    row.estimate = microseconds
    function = row.function
    if function is not None:
        known = function.duration
        if known < 0:
            function.duration = microseconds
        else:
            weight = 0.5 if microseconds > known else 0.2
            function.duration = known + weight * (microseconds - known)


Handler: TypeAlias = Callable[..., None]

OF_NO_TASK: dict[int, Handler] = {
    m.ACCEPTING: Results._accepting,
    m.LEAVING: Results._leaving,
    m.POST: Results._post,
}
"""What is done about each kind of message that is about no task of this owner. The items after
the kind are the arguments, by name."""

OF_A_TASK_THAT_RUNS: dict[int, Handler] = {
    m.ALONE: Results._alone,
    m.CHECKPOINT: Results._checkpoint,
    m.MADE: Results._made,
    m.PARKED: Results._parked,
}
"""About each that a task sends while it runs. The items after kind, key and attempt are the
arguments: the row has those."""

ENDS: dict[int, Handler] = {
    m.DONE: Results._done,
    m.STORED: Results._stored,
    m.FAILED: Results._failed,
    m.RETURNED: Results._returned,
    m.DELEGATED: Results._delegated,
}
"""About each with which an attempt ends; with the same arguments."""

LATE: dict[int, Handler] = {
    m.ALONE: Results._not_alone,
    m.CHECKPOINT: Results._not_kept,
    m.MADE: Results._not_sought,
    m.DONE: Results._not_counted,
    m.FAILED: Results._not_counted,
    m.DELEGATED: Results._not_counted,
    m.RETURNED: Results._recalled,
}
"""About each when the row has another attempt by now, or is gone. The items after the kind are
the arguments."""
