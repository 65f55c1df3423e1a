"""The life of a row. Only this module writes the state and the value of one, and what it needs.

What a state requires
---------------------

``WAITING``
    Some dependency has no value yet: ``waiting`` counts those, and each of them has the row among
    its ``dependents``. A borrowed row waits for what its owner says.
``READY``
    Nothing is missing. The row is in the queue of whoever places it.
``PUSHED``
    ``worker`` has the attempt, and has it in ``pushed``. That is written before the message
    leaves, so a worker that dies later is known to have had it.
``INLINE``
    ``value`` is the pickled value. Its bytes are counted in `Lifecycle.inline_bytes`.
``STORED``
    The value is with ``holders``, of whom there is at least one.
``ERROR``
    ``value`` says why there is no value, and the row keeps what a retry needs: its function,
    payload and dependencies.
``CANCELLED``, ``LOST``
    ``value`` says why. The row has left the table and keeps nothing else, but for the futures
    inside the value that it had, for as long as others borrow it.
``DORMANT``
    Nobody holds the value, which was freed. A row that was made from it may need it: so the row
    has a lineage, which tells how it is made again.
``FORGOTTEN``
    Nothing counts the row. It has left the table, and comes back never.

Who causes what
---------------

`TRANSITIONS` lists every change that is legal. A user submits, cancels and retries; a worker
finishes, fails and gives back; membership takes back what a worker had; counts that come to zero
forget a row or have it sleep; a value that is needed wakes it. Each comes here as a method, which
may be called twice, late, or for what is gone.

Three rules keep an end from being seen half done:

1. The value is written before the state. Another thread reads the value of a row as soon as the
   state is final.
2. What a row contains is counted before what it needed is let go of. A value may contain the
   future of an argument, and nothing may be freed in between.
3. Rows that wait are told before uses are let go of, and listeners come last. They may do anything,
   also end other rows; what they find is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dask_ownership.core.owner.rows import restarts
from dask_ownership.core.owner.rows.attempts import AttemptRecords
from dask_ownership.core.owner.rows.effects import OwnerEffects
from dask_ownership.core.owner.rows.failure_counts import LOST_DATA, UNCERTAIN
from dask_ownership.core.owner.rows.listener import RowListener
from dask_ownership.core.owner.rows.options import NO_OPTIONS
from dask_ownership.core.owner.rows.row import (
    HAS_BORROWERS,
    REPLICATED,
    RETAINED,
    TRACED,
    Borrowed,
    Function,
    Row,
)
from dask_ownership.core.owner.rows.table import Table
from dask_ownership.core.owner.rows.worker_view import WorkerView
from dask_ownership.core.protocol.failure import Failure
from dask_ownership.core.protocol.messages import Key
from dask_ownership.core.protocol.states import (
    CANCELLED,
    DORMANT,
    ERROR,
    FORGOTTEN,
    INLINE,
    LOST,
    PUSHED,
    READY,
    STATE_NAMES,
    STORED,
    WAITING,
)

TRANSITIONS = frozenset(
    {
        # On the way to a value.
        (WAITING, READY),  # nothing is missing any more
        (READY, WAITING),  # a dependency was lost before the row was pushed
        (READY, PUSHED),
        (WAITING, PUSHED),  # behind what the row waits for, at the same worker
        (PUSHED, WAITING),  # given back, taken back, delegated
        # A value.
        (PUSHED, INLINE),
        (PUSHED, STORED),
        (READY, INLINE),  # an alias
        (WAITING, INLINE),  # a borrowed value that its owner sent
        (WAITING, STORED),  # a borrowed value, a scattered one
        # The value is gone and is made again, or the error is tried again.
        (STORED, WAITING),
        (ERROR, WAITING),
        (DORMANT, WAITING),
        # Only lineage needs the value; it may just be about to be made again.
        *((state, DORMANT) for state in (WAITING, READY, PUSHED, INLINE, STORED, ERROR)),
        # No value.
        *((state, ERROR) for state in (DORMANT, WAITING, READY, PUSHED, STORED)),
        *((state, LOST) for state in (DORMANT, WAITING, READY, PUSHED, INLINE, STORED, ERROR)),
        *((state, CANCELLED) for state in (DORMANT, WAITING, READY, PUSHED, INLINE, STORED, ERROR)),
        (LOST, CANCELLED),  # the owner closed
        # Nothing counts the row.
        *((state, FORGOTTEN) for state in range(DORMANT, FORGOTTEN)),
    }
)
"""Pairs of a state and the next one, of a row that is in the table or was."""

REMEMBERED = 10_000
"""How many lives of keys that were cancelled are remembered."""


class Lifecycle:
    """Takes the rows of one owner from state to state.

    Parameters
    ----------
    table : Table
    name : str
        Of this process, for messages to people.
    log : callable
        Remembers something unusual: the row, the event and what happened.
    queue : callable
        Takes a row that is ready, to choose a worker for it.
    place : callable
        The same, for a row with dependencies: its value may be that of another already.
    why_not : callable
        Says why a value that is gone cannot be made again.
    losses : dict of str to int
        Counts what deaths cost, see `rows.failure_counts`.
    effects : OwnerEffects
    attempts : AttemptRecords

    Attributes
    ----------
    numbers : int
        The last that was given to an attempt, a borrowing or a copy. None is given twice.
    inline_bytes : int
        Of all rows that are `INLINE`.
    counts : dict of str to int
        How many rows were submitted, are done and have failed.
    cancelled_lives : dict
        Keys that others had heard of and their lives (see `Row`), of the latest `REMEMBERED`
        that were cancelled.
    of_all : int
        Roles that every row has as well.
    """

    def __init__(
        self,
        table: Table,
        name: str,
        *,
        log: Callable[[Row, str, str], None],
        queue: Callable[[Row], None],
        place: Callable[[Row], None],
        why_not: Callable[[Row], str],
        losses: dict[str, int],
        effects: OwnerEffects,
        attempts: AttemptRecords,
    ) -> None:
        self.table = table
        self.name = name
        self.log = log
        self.queue = queue
        self.place = place
        self.why_not = why_not
        self.losses = losses
        self._effects = effects
        self.attempts = attempts
        self.numbers = 0
        self.inline_bytes = 0
        self.counts = {"submitted": 0, "done": 0, "failed": 0}
        self.cancelled_lives: dict[tuple[Key, int], None] = {}
        self.of_all = 0
        self._listeners: list[tuple[int, RowListener]] = []
        self._of_roles: dict[int, tuple[RowListener, ...]] = {}
        self._forgetting: list[Row] = []
        self._forgets = False

    def listen(self, listener: RowListener, roles: int = 0) -> None:
        """Have a listener told of rows with these roles, after those that listen already."""
        self._listeners.append((roles, listener))
        self._of_roles.clear()

    def _who_listens(self, roles: int) -> tuple[RowListener, ...]:
        """Listeners to rows with these roles, in their order."""
        found = self._of_roles.get(roles)
        if found is None:
            found = tuple([one for mask, one in self._listeners if mask & roles])
            self._of_roles[roles] = found
        return found

    # ---- on the way to a value ----

    def begin(self, row: Row) -> None:
        """A row is new: it waits for its dependencies, or is ready."""
        self.counts["submitted"] += 1
        options = row.options
        if options is not NO_OPTIONS and options.replicas is not None:
            row.roles |= REPLICATED
        if row.dependencies:
            self.wait(row, first=True)
        else:
            row.state = READY
            self.queue(row)

    def wait(self, row: Row, first: bool = False) -> None:
        """Count what a row waits for. It is ready when that is nothing, and fails when a
        dependency has failed.

        ``first`` says that the row waits nowhere yet, so that nobody looks.
        """
        waiting = 0
        for dependency in row.dependencies:
            state = dependency.state
            if state == DORMANT:
                self.wake(dependency)
                state = dependency.state  # what it needs may have ended without a value
            if state == INLINE or state == STORED:
                continue
            if state > STORED:
                self.inherit(row, dependency)
                return
            waiting += 1
            if dependency.dependents is None:
                dependency.dependents = [row]
            elif first or row not in dependency.dependents:
                dependency.dependents.append(row)
        row.waiting = waiting
        if waiting:
            row.state = WAITING
        else:
            self._ready(row)

    def _ready(self, row: Row) -> None:
        row.state = READY
        self.place(row)

    def wait_for_owner(self, row: Row) -> None:
        """A borrowed row waits for what its owner says next.

        What workers of this process have copied may be another value than that, and is freed.
        """
        if row.locations:
            self.unhold(row)
        row.state = WAITING

    def pushed(self, row: Row, view: WorkerView) -> None:
        """A row is handed to a worker, in an attempt with a number of its own."""
        self.numbers = row.attempt = self.numbers + 1
        row.state = PUSHED
        row.worker = view

    def try_again(self, row: Row, path: restarts.Path, detail: str) -> None:
        """The attempt of a row ended without an outcome, or is given up: begin another.

        A row that runs at most once, and may have run, ends as uncertain.
        """
        if row.done:
            return  # with what it was found to lack
        if not restarts.may(path, row.options):
            self._uncertain(row, detail)
            return
        self.log(row, path.event, detail)
        row.worker = None
        row.state = WAITING
        self.wait(row)

    def _uncertain(self, row: Row, what: str) -> None:
        detail = (
            f"{what}. It may have been running there or have ended, and a task that runs at most "
            "once is not run again. Find out what it did; client.retry(future) runs it once more"
        )
        self.losses[UNCERTAIN] += 1
        self.fail(row, ERROR, Failure("uncertain", row.key, detail))

    def retry(self, rows: Iterable[Row]) -> None:
        """Have rows that ended with an error wait again."""
        rows = list(rows)
        for row in rows:
            if row.borrowed:
                row.state = WAITING  # as its owner said, who is told nothing
            else:
                self.withdraw(row)
            row.value = None
        for row in rows:
            if row.state == WAITING and not row.borrowed:  # not ended with one before it
                self.wait(row)

    def become(
        self,
        row: Row,
        function: Function | None,
        payload: bytes | None,
        dependencies: tuple[Row, ...],
        contains: tuple[Row, ...] = (),
    ) -> tuple[Row, ...]:
        """Have a row wait for another task to make its value, which is `wait` for then.

        Returns
        -------
        tuple of Row
            What the row needed until now. The caller lets go of these uses, once each.
        """
        needed = row.dependencies + row.contains
        row.function = function
        row.payload = payload
        row.dependencies = dependencies
        row.contains = contains
        row.worker = None
        row.state = WAITING
        return needed

    # ---- a value ----

    def finish_inline(self, row: Row, value: bytes, inside: tuple[Row, ...] = ()) -> None:
        """The value of a row is here; ``inside`` are rows of the futures in it, with a use each."""
        row.value = value
        row.nbytes = len(value)
        self.inline_bytes += row.nbytes
        self._finish(row, INLINE, inside)

    def finish_stored(
        self,
        row: Row,
        nbytes: int,
        type_name: bytes | None,
        holders: tuple[WorkerView, ...],
        inside: tuple[Row, ...] = (),
    ) -> None:
        """The value of a row is at workers."""
        row.nbytes = nbytes
        row.type_name = type_name
        row.locations = holders
        row.roles |= TRACED
        self._finish(row, STORED, inside)

    def finish_borrowed(self, row: Borrowed, state: int, value: bytes | None, nbytes: int) -> None:
        """The owner of a borrowed row has its value, and perhaps sent it."""
        row.value = value
        row.nbytes = nbytes
        if state == INLINE:
            self.inline_bytes += nbytes
        self._finish(row, state, row.contains)
        self.counts["done"] -= 1  # that was its owner's

    def finish_as(self, row: Row, source: Row) -> None:
        """The value of a row is that of another, which is inline."""
        row.worker = source.worker  # which made it, for those who ask where it is
        self.table.use_all(source.contains)
        self.finish_inline(row, source.value, source.contains)

    def _finish(self, row: Row, state: int, inside: tuple[Row, ...]) -> None:
        """A row has a value, with the futures of these rows inside."""
        arguments = row.contains
        row.contains = inside
        row.state = state
        if arguments is inside:
            arguments = ()
        self.counts["done"] += 1
        roles = row.roles | self.of_all
        if roles:
            for listener in self._who_listens(roles):
                listener.finishing(row, arguments)
        dependents = row.dependents
        dependencies = row.dependencies
        if state == STORED:
            row.worker = None
        row.payload = None
        row.function = None
        if dependencies:
            for dependency in dependencies:
                if dependency.borrowed:
                    dependency.misses = 0  # type: ignore[attr-defined]
            # Before its dependents: an alias ends at once, and this row with it, which would
            # let go of them as well.
            row.dependencies = ()
        if dependents is not None:
            row.dependents = None
            for dependent in dependents:
                if dependent.state == WAITING:
                    dependent.waiting -= 1
                    if dependent.waiting <= 0:
                        self._ready(dependent)
        if row.waiters is not None:
            self._effects.completed.append(row)
        if dependencies or arguments:
            self.release_uses(dependencies + arguments)
        roles = row.roles
        if roles:
            for listener in self._who_listens(roles):
                listener.finished(row)

    # ---- an end without a value ----

    def inherit(self, row: Row, dependency: Row) -> None:
        """Fail a row as its dependency has failed."""
        if self._goes_on(row, dependency.state):
            return
        if dependency.state == CANCELLED:
            self.fail(row, CANCELLED, dependency.value)
        else:
            inside = dependency.contains if isinstance(dependency.value, bytes) else ()
            self.fail(row, ERROR, dependency.value, tuple(r for r in inside if r is not row))

    def fail(
        self,
        row: Row,
        state: int,
        value: bytes | Failure | None,
        inside: tuple[Row, ...] = (),
    ) -> None:
        """End a row without a value, and all that wait for it.

        ``inside`` are rows of the futures in a pickled error: every row that has the error keeps
        them.
        """
        self.counts["failed"] += 1
        stack = [row]
        while stack:
            row = stack.pop()
            if row.state >= INLINE:
                continue
            if inside:
                if row.roles & RETAINED:
                    for listener in self._who_listens(RETAINED):
                        listener.failing(row)
                self.table.use_all(inside)
                row.contains += inside
            stack.extend(row.dependents or ())
            self.end(row, state, value)

    def lose(self, row: Row, detail: str) -> None:
        """The value of a row is gone for good."""
        detail = f"{detail}; it was owned by {self.name}"
        if row.local_refs > 0 or row.task_refs > 0:
            self.losses[LOST_DATA] += 1
        self.end_with_dependents(row, LOST, Failure("lost-data", row.key, detail))

    def end_with_dependents(self, row: Row, state: int, value: bytes | Failure) -> None:
        """End a row that had or was to get a value, and all that wait for it."""
        dependents = row.dependents or ()
        self.end(row, state, value)
        for dependent in dependents:
            if not self._goes_on(dependent, state):
                self.fail(dependent, CANCELLED if state == CANCELLED else ERROR, value)

    def _goes_on(self, row: Row, state: int) -> bool:
        return any(listener.instead(row, state) for _, listener in self._listeners)

    def end(self, row: Row, state: int, value: bytes | Failure | None) -> None:
        """End one row without a value, or without the value that it had."""
        self.log(row, STATE_NAMES[state], why(row, value))
        if state == CANCELLED and row.life:
            self.cancelled_lives[row.key, row.life] = None
            if len(self.cancelled_lives) > REMEMBERED:
                del self.cancelled_lives[next(iter(self.cancelled_lives))]
        if row.state == PUSHED:
            row.worker.take_back(row)
        elif row.state == INLINE:
            self.inline_bytes -= row.nbytes
        if row.locations:
            self.unhold(row)  # copies of what was borrowed
        row.value = value  # first: another thread looks at it once the state is final
        row.state = state
        row.dependents = None
        row.worker = None
        if row.waiters is not None:
            self._effects.completed.append(row)
        if state != ERROR:
            # An error may be retried and keeps what it needs for that.
            needed = row.dependencies
            row.dependencies = ()
            if not row.roles & HAS_BORROWERS:
                # Else borrowers may have taken futures out of the value which are not counted yet.
                needed += row.contains
                row.contains = ()
            row.payload = None
            row.function = None
            self.table.remove(row)
            self.release_uses(needed)
        if row.roles:
            roles = row.roles
            for listener in self._who_listens(roles):
                listener.ended(row)

    def let_go_of_inside(self, row: Row) -> None:
        """Nobody borrows a row any more: when it has no value, it keeps no futures of one."""
        if row.state in (CANCELLED, LOST):
            inside, row.contains = row.contains, ()
            self.release_uses(inside)

    def cannot_be_retried(self, row: Row) -> None:
        """Have a row keep nothing that trying it again would need."""
        needed, row.dependencies = row.dependencies, ()
        row.function = None
        row.payload = None
        self.release_uses(needed)

    # ---- where a stored value is ----

    def drop_locations(self, row: Row, gone: set[WorkerView], reason: str) -> None:
        """Workers do not have a value any more. It is made again when no other has it."""
        addresses = ", ".join(sorted(view.address for view in gone))
        row.locations = tuple([view for view in row.locations if view not in gone])
        # One that only did not have it yet must not be left with it.
        self._free(row, sorted(gone, key=lambda view: view.address))
        if row.state != STORED or row.borrowed:
            return
        if row.locations:
            if row.roles:
                for listener in self._who_listens(row.roles):
                    listener.locations_changed(row)
            return
        self.log(row, "copy-gone", f"the only one was at {addresses}, which {reason}")
        if not self._recover(row):
            why_not = self.why_not(row)
            self.lose(row, f"its only copy was at {addresses}, which {reason}; {why_not}")

    def unhold(self, row: Row) -> None:
        """Free every copy of a value."""
        self._free(row, row.locations)
        row.locations = ()

    def _free(self, row: Row, views: Iterable[WorkerView]) -> None:
        for view in views:
            if view.alive:
                view.free(row.key, self.numbers)

    # ---- a value that is made again ----

    def withdraw(self, row: Row) -> None:
        """The value of a row is gone, or its error is tried again: the row waits from now on, and
        so do those who were told of the value."""
        roles = row.roles
        if roles:
            for listener in self._who_listens(roles):
                listener.withdrawn(row)
        row.state = WAITING

    def restore(self, row: Row) -> None:
        """Have a row wait with what its lineage says; `wait` comes next."""
        lineage = row.lineage
        assert lineage is not None
        row.function = lineage.function
        row.payload = lineage.payload
        row.dependencies = lineage.dependencies
        row.contains = lineage.contains
        row.options = lineage.options
        row.locations = ()
        row.value = None
        row.state = WAITING
        self.table.use_all((*row.dependencies, *row.contains))

    def sleep(self, row: Row) -> None:
        """Free the value of a row, or give up making it: only its lineage is needed."""
        if row.state == PUSHED:
            row.worker.take_back(row)
        elif row.state == INLINE:
            self.inline_bytes -= row.nbytes
        self.unhold(row)
        needed = row.dependencies + row.contains
        row.dependencies = row.contains = ()
        row.function = None
        row.payload = None
        row.worker = None
        row.value = None
        row.state = DORMANT
        self.release_uses(needed)
        if self.table.is_held(row):
            # A thread that found it by its key before it was dormant did not wake it.
            self.wake(row)

    def wake(self, row: Row) -> None:
        """Somebody has the row: when its value is dormant, it is made again."""
        if row.state == DORMANT and not self._recover(row):
            self.lose(row, f"it was freed when nobody held it, and {self.why_not(row)}")

    def _recover(self, row: Row) -> bool:
        return any(listener.recover(row) for _, listener in self._listeners)

    # ---- nobody counts it ----

    def release(self, rows: Iterable[Row]) -> None:
        """One handle of each row went away."""
        dead = self.table.release(rows)
        if dead:
            self._forget(dead)

    def release_uses(self, rows: Iterable[Row]) -> None:
        """One use of each row went away."""
        dead = self.table.release_uses(rows)
        if dead:
            self._forget(dead)

    def forget_unneeded(self, rows: Iterable[Row]) -> None:
        """Descendants of rows went away: forget those that nothing counts now."""
        dead = self.table.unneeded(rows)
        if dead:
            self._forget(dead)

    def _forget(self, dead: list[Row]) -> None:
        """Nobody holds these rows: free what they held.

        What is freed with it follows in this loop, also what comes back here from others
        that are told: chains of any length end so.
        """
        stack = self._forgetting
        stack.extend(reversed(dead))
        if self._forgets:
            return
        self._forgets = True
        try:
            while stack:
                row = stack.pop()
                state = row.state
                if state == FORGOTTEN:
                    continue
                if row.lineage_refs:
                    for _, listener in self._listeners:
                        listener.unheld(row)
                    continue
                if state == INLINE:
                    self.inline_bytes -= row.nbytes
                elif state == PUSHED:
                    row.worker.take_back(row)
                if row.locations:
                    self.unhold(row)
                row.state = FORGOTTEN
                roles = row.roles
                if roles:
                    for listener in self._who_listens(roles):
                        listener.forgotten(row)
                if row.waiters is not None:
                    self._effects.completed.append(row)
                row.value = None
                row.payload = None
                row.dependents = None
                if row.dependencies or row.contains:
                    needed = row.dependencies + row.contains
                    row.dependencies = row.contains = ()
                    stack.extend(self.table.release_uses(needed))
        finally:
            self._forgets = False


def why(row: Row, value: bytes | Failure | None) -> str:
    """Why a row that still has what it needs ends with this."""
    if isinstance(value, Failure):
        text = f"{value.detail}; {value.where}" if value.where else value.detail
        return text if value.key == row.key else f"{value.key!r}: {text}"
    failed = next((d for d in row.dependencies if d.state == ERROR), None)
    if failed is not None:
        return f"{failed.key!r} failed"
    where = "" if row.worker is None else f" at {row.worker.address}"
    return f"it raised an exception{where}"
