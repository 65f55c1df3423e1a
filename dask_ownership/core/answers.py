"""What an owner makes of the answers of workers.

An answer is about one attempt of one row: when the row has another by now, it changes
nothing. What is about no row is passed on to those that it concerns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from dask_ownership.core import messages as m
from dask_ownership.core import restarts
from dask_ownership.core.messages import Key, Message
from dask_ownership.core.placement import WorkerView
from dask_ownership.core.table import (
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

OF_NO_TASK = frozenset({m.ACCEPTING, m.LEAVING, m.POST})
OF_A_TASK_THAT_RUNS = frozenset({m.ALONE, m.CHECKPOINT, m.MADE, m.PARKED})

RETURN_REASONS = {
    m.DROPPED: "it was dropped before it started",
    m.BLOCKED: "a task there that it waited for ended without a value",
    m.UNKNOWN_FUNCTION: "its function was not known there",
    m.RESCHEDULED: "it asked to be run again, by Reschedule",
    m.REFUSED: "no new tasks are taken there, or not such as this one",
}


class Answers:
    """Takes answers in.

    Parameters
    ----------
    core : Ownership
    """

    def __init__(self, core: Ownership) -> None:
        self.core = core

    def receive(self, view: WorkerView, batch: Iterable[Message], now: float) -> None:
        """Answers of a worker, in the order in which it gave them."""
        core = self.core
        if not view.alive:
            return
        view.heard = now
        if view.suspended:
            core.silences.heard(view)
        messages = iter(batch)
        while (broken := self._take_in(view, messages)) is not None:
            self._broke(view, *broken)

    def _take_in(
        self, view: WorkerView, messages: Iterator[Message]
    ) -> tuple[Message, Exception] | None:
        """Take messages in, up to one that cannot be: that one, and why."""
        core = self.core
        pushed = view.pushed
        message: Message = ()
        try:
            for message in messages:
                kind = message[0]
                if kind in OF_NO_TASK:
                    self._heard(view, message)
                    continue
                key = message[1]
                row = pushed.get(key)
                if row is None or row.attempt != message[2]:
                    self._late(view, message)
                    continue
                if kind in OF_A_TASK_THAT_RUNS:
                    if kind == m.PARKED:
                        self._parked(view, row)
                    elif kind == m.ALONE:
                        self._alone(view, row, message[3])
                    elif kind == m.MADE:
                        took = self._took(view, m.made_name(message[3]), row)
                        core.climbing.made(row, message, took)
                    else:
                        core.checkpoints.keep(view, row, message)
                    continue
                del pushed[key]
                if row.estimate:
                    view.active -= 1
                    view.load -= row.estimate
                if not pushed:
                    view.load = 0.0
                if view.alone is row:
                    view.alone = None
                if kind == m.DONE:
                    value = message[3]
                    self._measured(row, message[4])
                    if len(message) > 5:
                        inside = self._inside(view, row, message)
                        core.lifecycle.finish_inline(row, value, inside)
                    else:
                        core.lifecycle.finish_inline(row, value)
                elif kind == m.STORED:
                    self._measured(row, message[5])
                    nbytes, type_name = message[3], message[4]
                    if nbytes is None:  # the very value of its only input
                        nbytes = row.dependencies[0].nbytes
                        type_name = row.dependencies[0].type_name
                    core.lifecycle.finish_stored(row, nbytes, type_name, (view,))
                    if view.leaving and row.state == STORED:
                        core.moves.away(row, view)
                elif kind == m.FAILED:
                    self._measured(row, message[4])
                    if row.options.retries > 0:
                        row.options = row.options.copy()
                        row.options.retries -= 1
                        left = row.options.retries
                        detail = f"it failed at {view.address}; {left} retries left"
                        core.lifecycle.try_again(row, restarts.FAILED, detail)
                        self._late(view, message)
                    else:
                        if len(message) > 5:
                            inside = self._inside(view, row, message)
                            core.lifecycle.fail(row, ERROR, message[3], inside)
                            core.lifecycle.release_uses(inside)  # each row that ended has its own
                        else:
                            core.lifecycle.fail(row, ERROR, message[3])
                elif kind == m.RETURNED:
                    self._returned(view, row, message[3], message[4])
                elif kind == m.DELEGATED:
                    self._measured(row, message[4])
                    self._delegated(view, row, message)
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

    def _measured(self, row: Row, microseconds: float) -> None:
        row.estimate = microseconds
        function = row.function
        if function is not None:
            known = function.duration
            if known < 0:
                function.duration = microseconds
            else:
                weight = 0.5 if microseconds > known else 0.2
                function.duration = known + weight * (microseconds - known)

    def _delegated(self, view: WorkerView, row: Row, message: Message) -> None:
        """Its value is to be another's: wait for that one, without a slot."""
        core = self.core
        inner = self._inside(view, row, message)
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
            core.climbing.submits_no_more(row)
        else:
            detail = (
                f"it ran at {view.address} and delegated to a future that is itself, or that its "
                f"owner has freed; it was owned by {core.name}"
            )
            core.lifecycle.cannot_be_retried(row)
            core.lifecycle.fail(row, ERROR, Failure("lost-data", row.key, detail))

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

    @staticmethod
    def _alone(view: WorkerView, row: Row, yes: bool) -> None:
        """A suspect is about to run alone, or may run beside others from now on."""
        view.outbox.append((m.GO, row.key, row.attempt, yes))
        if yes:
            view.alone = row
            return
        row.options.beside = row.attempt
        if view.alone is row:
            view.alone = None

    def _heard(self, view: WorkerView, message: Message) -> None:
        """A worker says something that is about no task of this owner."""
        core = self.core
        kind = message[0]
        if kind == m.ACCEPTING:
            view.accepting = message[1]
            view.nthreads = message[2]
            if view.accepting:
                view.leaving = False  # it stayed after all
                core.replicas.look_at_all()
            else:
                core.copies.not_to(view)
        elif kind == m.LEAVING:
            core.moves.leaves(view)
        elif message[1][0] == core.references.process[0]:
            core.references.receive(message[2], message[3])

    def _inside(self, view: WorkerView, row: Row, message: Message) -> tuple[Row, ...]:
        """Rows of the futures that came inside a result, to be kept with it.

        The worker keeps them too until they are counted for this process.
        """
        core = self.core
        inner = core.references.rows_of(message[5])
        core.references.when_counted(inner, self._took(view, row.key, row))
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

    def _returned(self, view: WorkerView, row: Row, reason: int, keys: Any) -> None:
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
                        core.references.missed(dependency, addresses)
                if gone:
                    core.lifecycle.drop_holders(dependency, gone, "does not have it any more")
                core.silences.unanswered(dependency)
        core.lifecycle.try_again(row, restarts.OF_RETURN.get(reason, restarts.RETURNED), detail)
        if reason in (m.RECALLED, m.RESCHEDULED) and row.state == READY:
            others = [v for v in core.placement.allowed(row) if v is not view]
            other = core.placement.choose(row, others)
            if other is not None:
                core.pushing.push(row, other, view.heard)

    def _late(self, view: WorkerView, message: Message) -> None:
        """An answer nobody waits for. Whoever superseded its attempt sent a CANCEL,
        and that drops what the attempt left there."""
        if message[0] == m.ALONE:
            view.outbox.append((m.GO, *message[1:]))
        elif message[0] == m.MADE:
            view.outbox.append((m.TOOK, m.made_name(message[3]), message[2]))
        elif len(message) > 5 and message[0] in (m.DONE, m.FAILED, m.DELEGATED):
            view.outbox.append((m.TOOK, message[1], message[2]))
        elif message[0] == m.CHECKPOINT:
            self.core.checkpoints.refuse(view, message)
        elif message[0] == m.RETURNED and message[1] is None:
            view.recalled = False
