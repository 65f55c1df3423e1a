"""Dispatch: handing tasks to workers, what a push says, and chains of pushes.

A task whose unfinished inputs were all pushed to one worker is pushed to the same worker behind
the inputs. So a chain of tasks runs there without a round trip per task.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dask_ownership.core.owner.rows.attempts import UNTRIED
from dask_ownership.core.owner.rows.lifecycle import Lifecycle
from dask_ownership.core.owner.rows.limits import Limits
from dask_ownership.core.owner.rows.options import NO_OPTIONS
from dask_ownership.core.owner.rows.row import SEARCHED, TRIED, Borrowed, Row, version_of
from dask_ownership.core.owner.rows.worker_view import WINDOW, WorkerView
from dask_ownership.core.owner.scheduling.builtin import BuiltinFunctions
from dask_ownership.core.owner.scheduling.placement import SHORTEST, UNKNOWN_DURATION, Placement
from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol.messages import Message
from dask_ownership.core.protocol.order import LOW
from dask_ownership.core.protocol.states import ERROR, INLINE, PUSHED, STORED, WAITING

REPEATED = 512
"""Inline values longer than this are sent once per worker when several tasks use them."""

KEPT_ABOVE = 1024
"""Bytes of a pickled result above which it stays at its worker while the owner is full."""

CHAIN_WIDTH = 8
"""Tasks with more dependencies, or with an input that has more dependents, are not chained: such
tasks should spread."""


class Dispatch:
    """Writes pushes into the outboxes of workers.

    Parameters
    ----------
    lifecycle : Lifecycle
    placement : Placement
    functions : BuiltinFunctions
    watch_children : callable
        Has the worker of a task that was just pushed watch for children of the task.
    limits : Limits
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        placement: Placement,
        functions: BuiltinFunctions,
        watch_children: Callable[[Row], None],
        limits: Limits,
    ) -> None:
        self._lifecycle = lifecycle
        self._placement = placement
        self._alias = functions.identity
        self._watch_children = watch_children
        self._limits = limits

    def push(self, row: Row, view: WorkerView, now: float) -> None:
        """Hand a ready row to a worker, and push rows behind the row that only wait for it."""
        lifecycle = self._lifecycle
        stack = [row]
        while stack:
            row = stack.pop()
            dependencies: tuple[Any, ...] = ()
            if row.dependencies:
                # An input may have failed or been lost since the row was ready.
                failed = next((d for d in row.dependencies if d.state > STORED), None)
                if failed is not None:
                    lifecycle.inherit(row, failed)
                    continue
                if any(d.state < INLINE and d.worker is not view for d in row.dependencies):
                    lifecycle.wait(row)  # a lost input is made again
                    continue
                dependencies = tuple([self._reference(d, view) for d in row.dependencies])
            function = row.function
            assert function is not None
            if function.id not in view.functions:
                # The link keeps the order: the function arrives before the push.
                view.functions.add(function.id)
                view.outbox.append((m.FUNCTION, function.id, function.pickled))
            lifecycle.pushed(row, view)
            duration = function.duration
            if duration < 0:
                duration = UNKNOWN_DURATION
            elif duration < SHORTEST:
                duration = SHORTEST
            row.estimate = duration
            if view.active <= 0:
                # A worker without work owed no answer: the time for a recall begins here.
                view.heard = now
                view.low = 0
            order = row.order
            # Priority below the usual: `Placement` lets more urgent tasks overtake at the worker.
            if order >= LOW:
                if order > view.low:
                    view.low = order
                self._placement.any_low = True
            view.load += duration
            view.active += 1
            view.handed += 1
            view.pushed[row.key] = row
            options = row.options
            extra = None
            if options is not NO_OPTIONS or row.roles & TRIED:
                extra = self._extra(row)
            if function is self._alias:
                # The worker passes its copy of the value on, without a slot.
                extra = {"depth": 0, **(extra or {}), "alias": True}
            if lifecycle.inline_bytes > self._limits.inline_bytes:
                # The owner is full: only small results may travel.
                if extra is None:
                    extra = {"depth": 0}
                extra.setdefault("inline", KEPT_ABOVE)
            view.outbox.append(
                (
                    m.PUSH,
                    row.key,
                    row.attempt,
                    function.id,
                    row.payload,
                    order,
                    dependencies,
                    extra,
                )
            )
            if row.roles & SEARCHED:
                self._watch_children(row)
            if row.dependents is not None and len(row.dependents) <= CHAIN_WIDTH:
                for dependent in row.dependents:
                    if dependent not in stack and self._chainable(dependent, view):
                        stack.append(dependent)

    def unsendable(self, view: WorkerView, message: Message, error: bytes) -> None:
        """Fail the tasks that need a message which cannot be packed.

        Parameters
        ----------
        view : WorkerView
            The worker to which the message was to go.
        message : tuple
        error : bytes
            The pickled error with which the tasks fail.
        """
        kind, name = message[m.KIND], message[m.SUBJECT]
        if kind == m.PUSH:
            row = view.pushed.get(name)
            failed = [row] if row is not None and row.attempt == message[m.ATTEMPT] else []
        elif kind == m.FUNCTION:
            view.functions.discard(name)
            failed = [
                row
                for row in view.pushed.values()
                if row.function is not None and row.function.id == name
            ]
        elif kind == m.COPY:
            failed = []
            for row in view.pushed.values():
                for needed in row.dependencies:
                    if needed.key == name:
                        failed.append(row)
                        needed.locations = tuple(
                            [one for one in needed.locations if one is not view]
                        )
            view.copies.pop(name, None)
        else:
            failed = []  # the message takes back what never reached the worker
        for row in failed:
            self._lifecycle.fail(row, ERROR, error)

    def forget(self, function_id: int) -> None:
        """Tell workers to drop a function that no row needs any more, now or later."""
        for view in self._placement.workers.values():
            if function_id in view.functions:
                view.functions.discard(function_id)
                view.outbox.append((m.FORGET, function_id))

    def _extra(self, row: Row) -> dict[str, Any] | None:
        """Return what the worker has to know of a task beside the call, as `PUSH` describes it.

        Most tasks have nothing to say, and the answer is None, which costs least on the link.
        """
        options = row.options
        tried = self._lifecycle.attempts.of(row) if row.roles & TRIED else UNTRIED
        timed = options.timeout is not None
        again = options.repeats is not None
        kept = tried.checkpoints
        named = options.executor or options.span
        ordinal = tried.ordinal
        plain = not (options.depth or options.resources or tried.recalled or options.stays)
        if plain and not (again or timed or kept or named or ordinal > 1):
            return None
        extra: dict[str, Any] = {"depth": options.depth}
        if options.heir is not None:
            extra["heir"] = options.heir
            extra["within"] = options.within
        if again:
            extra["repeats"] = options.repeats
        if options.resources:
            extra["resources"] = options.resources
        if tried.recalled:
            extra["moved"] = True
        if timed:
            extra["timeout"] = options.timeout
        if options.stays:
            extra["inline"] = 0
        if ordinal > 1:
            extra["ordinal"] = ordinal
        if tried.died:
            extra["alone"] = tried.seconds_alone
        if options.executor:
            extra["executor"] = options.executor
        if options.span:
            extra["span"] = options.span
        if kept:
            extra["checkpoints"] = {name: kept[name][2] for name in kept}
        return extra

    def chain(self, row: Row) -> None:
        """Push a new row behind its unfinished dependencies when one worker has them all."""
        for dependency in row.dependencies:
            if dependency.state == PUSHED:
                # The first unfinished input names the only worker that can have all of them.
                view = dependency.worker
                waiting = dependency.dependents or ()
                if len(waiting) <= CHAIN_WIDTH and self._chainable(row, view):
                    self.push(row, view, view.heard)
                return

    def _chainable(self, row: Row, view: WorkerView) -> bool:
        """Return whether a waiting row may be pushed to a worker behind its dependencies."""
        if (
            row.state != WAITING
            or len(row.dependencies) > CHAIN_WIDTH
            or not view.accepting
            or view.reserved
            or view.load >= WINDOW * view.nthreads
            or (row.options is not NO_OPTIONS and row.options.restricted)
        ):
            return False
        for dependency in row.dependencies:
            state = dependency.state
            if state < INLINE:
                # Not behind a parked task: it takes no room, and may wait for a long time.
                if state != PUSHED or dependency.worker is not view or not dependency.estimate:
                    return False
            elif state > STORED:
                return False
        return True

    def _reference(self, dependency: Row, view: WorkerView) -> tuple[Any, ...]:
        """Return the entry of a dependency in a push: `VALUE`, `LOCAL` or `REMOTE`.

        The worker counts among ``locations`` from now on when the worker is to get a copy.
        """
        lifecycle = self._lifecycle
        state = dependency.state
        if state == INLINE:
            value = dependency.value
            assert isinstance(value, bytes)
            if view in dependency.locations:
                return (m.LOCAL, dependency.key, version_of(dependency))
            if len(value) <= REPEATED or dependency.task_refs <= 1:
                return (m.VALUE, value)
            if not version_of(dependency):
                # A literal, which no task made: workers know a value by a number all the same.
                lifecycle.numbers += 1
                dependency.attempt = lifecycle.numbers
            dependency.locations += (view,)
            # An answer about an attempt with a lower number says nothing of this copy.
            view.copies[dependency.key] = lifecycle.numbers + 1
            version = version_of(dependency)
            view.outbox.append((m.COPY, dependency.key, version, value))
            return (m.LOCAL, dependency.key, version)
        if state == STORED and view not in dependency.locations:
            if dependency.borrowed:
                assert isinstance(dependency, Borrowed)
                addresses = dependency.addresses
                origin = lifecycle.table.value_name(dependency)
            else:
                addresses = tuple([other.address for other in dependency.locations])
                origin = None
            dependency.locations += (view,)
            view.copies[dependency.key] = lifecycle.numbers + 1
            return (
                m.REMOTE,
                dependency.key,
                version_of(dependency),
                dependency.nbytes,
                addresses,
                origin,
            )
        return (m.LOCAL, dependency.key, version_of(dependency))
