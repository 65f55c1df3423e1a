"""The life of a row: this module alone writes a row's state, value and dependencies.

What a state requires
---------------------

``WAITING``
    Some dependencies have no value yet. ``waiting`` counts these dependencies, and each has the
    row among its ``dependents``. A borrowed row waits for its owner's answer.
``READY``
    No dependency is missing. The row is in a queue of `scheduling.placement`.
``PUSHED``
    ``worker`` has the attempt, and the row is in that worker's ``pushed``. Both are written before
    the message leaves, so the owner knows what a dead worker had.
``INLINE``
    ``value`` is the pickled value. `Lifecycle.inline_bytes` counts its bytes.
``STORED``
    The workers in ``locations``, at least one, have the value; one may only have been told to fetch
    the value (`Copies.there`). A borrowed row names the locations in ``addresses`` instead.
``ERROR``
    ``value`` says why there is no value. The row keeps what a retry needs: function, payload and
    dependencies.
``CANCELLED``, ``LOST``
    ``value`` says why. The row has left the table and keeps nothing else. Only while borrowers are
    left does the row keep the futures inside its former value.
``DORMANT``
    The value was freed, because no future and no task needed the value. A row made from the row
    may need the value again: so the row has a lineage, from which the value is made again.
``FORGOTTEN``
    Nothing counts the row. The row has left the table and never comes back.

Who causes what
---------------

`TRANSITIONS` lists every legal change. A user submits, cancels and retries. A worker finishes,
fails and gives back. Membership takes back the tasks of a dead worker. Counts that come to zero
forget a row or have the row sleep. A need for a dormant value wakes the row. Each cause comes here
as a method, which may be called twice, late, or for a row that is gone.

Three rules keep another part from seeing an end half done:

1. The value is written before the state, because another thread reads the value of a row as soon as
   the state is final.
2. The futures inside a value are counted before the task references of the arguments are let go
   of. A value may contain the future of an argument, and nothing may be freed in between.
3. Waiting rows are told before task references are let go of, and listeners come last. Listeners
   may do anything, also end other rows, and find the ended row complete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dask_ownership.core.owner.rows import restarts
from dask_ownership.core.owner.rows.attempts import AttemptRecords
from dask_ownership.core.owner.rows.effects import OwnerEffects
from dask_ownership.core.owner.rows.failure_counts import LOST_DATA, UNCERTAIN
from dask_ownership.core.owner.rows.listener import Listeners, RowListener
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
        (WAITING, READY),  # the last missing dependency has a value
        (READY, WAITING),  # a dependency was lost before the row was pushed
        (READY, PUSHED),
        (WAITING, PUSHED),  # a chain: pushed behind its dependencies, at the same worker
        (PUSHED, WAITING),  # given back, taken back, delegated
        # A value.
        (PUSHED, INLINE),
        (PUSHED, STORED),
        (READY, INLINE),  # an alias
        (WAITING, INLINE),  # a borrowed value that its owner sent
        (WAITING, STORED),  # a borrowed value, a scattered one
        # The value is gone and is made again, or the task is tried again after an error.
        (STORED, WAITING),
        (ERROR, WAITING),
        (DORMANT, WAITING),
        # Only lineage needs the value, perhaps while it is being made again.
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
"""Pairs of a state and the next state, of a row that is or was in the table."""

REMEMBERED = 10_000
"""Number of cancelled lives of keys that an owner remembers."""


class Lifecycle:
    """Takes the rows of one owner from state to state.

    All transitions are here and nowhere else, one method for each cause, so that a reader finds the
    whole life of a row in one place: hence the number of methods.
    The many attributes are what these methods count and tell.

    Parameters
    ----------
    table : Table
    name : str
        Name of this process, for messages to people.
    log : callable
        Remembers an unusual event: the row, the event and what happened.
    queue : callable
        Takes a ready row without dependencies, to choose a worker for the row.
    place : callable
        Takes a ready row with dependencies, which may be an alias and need no worker.
    why_not : callable
        Returns why the lost value of a row cannot be made again, as text.
    losses : dict of str to int
        Counts what deaths cost, see `rows.failure_counts`.
    effects : OwnerEffects
    attempts : AttemptRecords

    Attributes
    ----------
    table, name, log, queue, place, why_not, losses, attempts
        As given.
    numbers : int
        The last number that was given to an attempt, a borrowing or a copy. No number is given
        twice.
    inline_bytes : int
        Bytes of the values of all `INLINE` rows.
    counts : dict of str to int
        How many rows were submitted, are done and have failed.
    cancelled_lives : dict
        Keys with their lives (see `Row.life`) of the latest `REMEMBERED` cancelled rows of which
        another process had heard.
    of_all : int
        Roles that count as roles of every row when a row has a value.
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
        self._listeners = Listeners()
        self._forgetting: list[Row] = []
        self._forgets = False

    def listen(self, listener: RowListener, roles: int = 0) -> None:
        """Have a listener told of rows with one of ``roles``, after all earlier listeners."""
        self._listeners.add(listener, roles)

    # ---- on the way to a value ----

    def count_literal(self, row: Row) -> None:
        """Count the bytes of a row that was made with its value."""
        self.inline_bytes += row.nbytes

    def begin(self, row: Row) -> None:
        """Have a new row wait for its dependencies, or be ready without any."""
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
        """Count the dependencies for which a row has to wait.

        The row is ready when no dependency is missing, and fails when a dependency has failed.
        ``first`` says that the row is not among any ``dependents`` yet, which saves a search.
        """
        waiting = 0
        for dependency in row.dependencies:
            state = dependency.state
            if state == DORMANT:
                self.wake(dependency)
                state = dependency.state  # an end, when the dependency's own inputs have failed
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
        """Have a borrowed row wait for the owner's next answer.

        Copies at workers of this process are freed: the next value may be another value.
        """
        if row.locations:
            self.free_copies(row)
        row.state = WAITING

    def pushed(self, row: Row, view: WorkerView) -> None:
        """Note that a row is handed to a worker, and number the attempt."""
        self.numbers = row.attempt = self.numbers + 1
        row.state = PUSHED
        row.worker = view

    def try_again(self, row: Row, path: restarts.Path, detail: str) -> None:
        """Begin another attempt of a row whose attempt ended without an outcome or was given up.

        A row with ``at_most_once`` that may have run ends as uncertain instead. ``detail`` says
        what happened to the attempt, for people.
        """
        if row.done:
            return  # the row ended meanwhile, together with an input that was found to be lost
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
                row.state = WAITING  # as the owner said; no process is to be told
            else:
                self.withdraw(row)
            row.value = None
        for row in rows:
            # An earlier row of the list may have failed and have ended this row with it.
            if row.state == WAITING and not row.borrowed:
                self.wait(row)

    def become(
        self,
        row: Row,
        function: Function | None,
        payload: bytes | None,
        dependencies: tuple[Row, ...],
        contains: tuple[Row, ...] = (),
    ) -> tuple[Row, ...]:
        """Give a row another task, which is to make the value. The caller calls `wait` next.

        Returns
        -------
        tuple of Row
            The rows that the former task needed. The caller releases these task references, once
            each.
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
        """End a row with its pickled value.

        ``inside`` are the rows of the futures inside the value, each with a task reference counted
        already.
        """
        row.value = value
        row.nbytes = len(value)
        self.inline_bytes += row.nbytes
        self._finish(row, INLINE, inside)

    def finish_stored(
        self,
        row: Row,
        nbytes: int,
        type_name: bytes | None,
        locations: tuple[WorkerView, ...],
        inside: tuple[Row, ...] = (),
    ) -> None:
        """End a row with a value that is stored at workers, the ``locations``.

        ``inside`` is as in `finish_inline`.
        """
        row.nbytes = nbytes
        row.type_name = type_name
        row.locations = locations
        row.roles |= TRACED
        self._finish(row, STORED, inside)

    def finish_borrowed(self, row: Borrowed, state: int, value: bytes | None, nbytes: int) -> None:
        """End a borrowed row with the value of which the owner told; inline values come along."""
        row.value = value
        row.nbytes = nbytes
        if state == INLINE:
            self.inline_bytes += nbytes
        self._finish(row, state, row.contains)
        self.counts["done"] -= 1  # a borrowed row's task is counted at its owner

    def finish_as(self, row: Row, source: Row) -> None:
        """End an alias with the inline value of the row ``source``."""
        row.worker = source.worker  # an inline value is said to be where it was made
        self.table.add_task_refs(source.contains)
        self.finish_inline(row, source.value, source.contains)

    def _finish(self, row: Row, state: int, inside: tuple[Row, ...]) -> None:
        """End a row that has a value, with the futures of the rows ``inside`` in the value."""
        arguments = row.contains
        row.contains = inside
        row.state = state  # after the value: another thread reads the value from here on
        if arguments is inside:
            arguments = ()  # a borrowed or scattered row: the same references go on
        self.counts["done"] += 1
        roles = row.roles | self.of_all
        if roles:
            for listener in self._listeners[roles]:
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
            # Cleared before the dependents go on: an alias among them may end at once and let go
            # of this row, which would let go of the dependencies a second time.
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
            self.release_task_refs(dependencies + arguments)
        roles = row.roles
        if roles:
            for listener in self._listeners[roles]:
                listener.finished(row)

    # ---- an end without a value ----

    def inherit(self, row: Row, dependency: Row) -> None:
        """Fail a row with the error of its dependency, unless a listener has the row go on."""
        if self._listeners.has_instead(row, dependency.state):
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
        """End a row without a value, and all rows that wait for the row, and so on.

        ``inside`` are the rows of the futures in a pickled error; every row with the error has a
        task reference to each.
        """
        self.counts["failed"] += 1
        stack = [row]
        while stack:
            row = stack.pop()
            if row.state >= INLINE:
                continue
            if inside:
                if row.roles & RETAINED:
                    for listener in self._listeners[RETAINED]:
                        listener.failing(row)
                self.table.add_task_refs(inside)
                row.contains += inside
            stack.extend(row.dependents or ())
            self.end(row, state, value)

    def lose(self, row: Row, detail: str) -> None:
        """End a row whose value is gone for good, as `LOST`."""
        detail = f"{detail}; it was owned by {self.name}"
        if row.local_refs > 0 or row.task_refs > 0:
            self.losses[LOST_DATA] += 1
        self.end_with_dependents(row, LOST, Failure("lost-data", row.key, detail))

    def end_with_dependents(self, row: Row, state: int, value: bytes | Failure) -> None:
        """End a row in any state without a value, and all rows that wait for the row."""
        dependents = row.dependents or ()
        self.end(row, state, value)
        for dependent in dependents:
            if not self._listeners.has_instead(dependent, state):
                self.fail(dependent, CANCELLED if state == CANCELLED else ERROR, value)

    def end(self, row: Row, state: int, value: bytes | Failure | None) -> None:
        """End one row without a value; a value that the row had is freed."""
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
            self.free_copies(row)  # of a stored or borrowed value, or of a shared inline value
        row.value = value  # before the state: another thread looks once the state is final
        row.state = state
        row.dependents = None
        row.worker = None
        if row.waiters is not None:
            self._effects.completed.append(row)
        if state != ERROR:
            # A row with an error may be retried, and keeps what the retry needs.
            needed = row.dependencies
            row.dependencies = ()
            if not row.roles & HAS_BORROWERS:
                # Borrowers may have taken futures out of the value which no owner counts yet.
                needed += row.contains
                row.contains = ()
            row.payload = None
            row.function = None
            self.table.remove(row)
            self.release_task_refs(needed)
        if row.roles:
            roles = row.roles
            for listener in self._listeners[roles]:
                listener.ended(row)

    def let_go_of_inside(self, row: Row) -> None:
        """Let go of the futures inside a former value, once a row has no borrowers any more."""
        if row.state in (CANCELLED, LOST):
            inside, row.contains = row.contains, ()
            self.release_task_refs(inside)

    def cannot_be_retried(self, row: Row) -> None:
        """Drop the task and the dependencies of a failed row, so that no retry runs the task."""
        needed, row.dependencies = row.dependencies, ()
        row.function = None
        row.payload = None
        self.release_task_refs(needed)

    # ---- where a stored value is ----

    def drop_locations(self, row: Row, gone: set[WorkerView], reason: str) -> None:
        """Note that the workers ``gone`` do not have a value any more.

        Without a further location the value is made again, or is lost. A further one may only have
        been told to fetch the value: then ``MISSING`` or `OwnerCore.missed` leads here again.
        """
        addresses = ", ".join(sorted(view.address for view in gone))
        row.locations = tuple([view for view in row.locations if view not in gone])
        # A worker that did not have the value yet, and gets it late, must not keep it.
        self._free(row, sorted(gone, key=lambda view: view.address))
        if row.state != STORED or row.borrowed:
            return
        if row.locations:
            if row.roles:
                for listener in self._listeners[row.roles]:
                    listener.locations_changed(row)
            return
        self.log(row, "copy-gone", f"the only one was at {addresses}, which {reason}")
        if not self._listeners.recover(row):
            why_not = self.why_not(row)
            self.lose(row, f"its only copy was at {addresses}, which {reason}; {why_not}")

    def free_copies(self, row: Row) -> None:
        """Free every copy of a value at the owner's workers."""
        self._free(row, row.locations)
        row.locations = ()

    def _free(self, row: Row, views: Iterable[WorkerView]) -> None:
        for view in views:
            if view.alive:
                view.free(row.key, self.numbers)

    # ---- a value that is made again ----

    def withdraw(self, row: Row) -> None:
        """Have a row wait whose value is gone or whose error is tried again.

        `Lending` tells the borrowers. Readers in this process notice by themselves: ready rows in
        `Dispatch.push`, pushed rows by ``GIVEN_BACK``, and gathers in the runtime.
        """
        roles = row.roles
        if roles:
            for listener in self._listeners[roles]:
                listener.withdrawn(row)
        row.state = WAITING

    def restore(self, row: Row) -> None:
        """Give a row the task of its lineage. The caller calls `wait` next."""
        lineage = row.lineage
        assert lineage is not None
        row.function = lineage.function
        row.payload = lineage.payload
        row.dependencies = lineage.dependencies
        row.contains = lineage.contains
        with self.table.lock:
            row.options = lineage.options
        row.locations = ()
        row.value = None
        row.state = WAITING
        self.table.add_task_refs((*row.dependencies, *row.contains))

    def sleep(self, row: Row) -> None:
        """Free the value of a row, or give up making the value: only lineage needs the row."""
        if row.state == PUSHED:
            row.worker.take_back(row)
        elif row.state == INLINE:
            self.inline_bytes -= row.nbytes
        self.free_copies(row)
        needed = row.dependencies + row.contains
        row.dependencies = row.contains = ()
        row.function = None
        row.payload = None
        row.worker = None
        row.value = None
        row.state = DORMANT
        self.release_task_refs(needed)
        if self.table.is_held(row):
            # Another thread found the row by its key before the row was dormant, and so did not
            # wake it.
            self.wake(row)

    def wake(self, row: Row) -> None:
        """Have the value of a dormant row made again, because a future or a task needs it."""
        if row.state == DORMANT and not self._listeners.recover(row):
            self.lose(row, f"it was freed when nobody held it, and {self.why_not(row)}")

    # ---- counts that come to zero ----

    def release(self, rows: Iterable[Row]) -> None:
        """Let go of one local reference of each row."""
        dead = self.table.release(rows)
        if dead:
            self._forget(dead)

    def release_task_refs(self, rows: Iterable[Row]) -> None:
        """Let go of one task reference of each row."""
        dead = self.table.release_task_refs(rows)
        if dead:
            self._forget(dead)

    def forget_unneeded(self, rows: Iterable[Row]) -> None:
        """Forget the rows that nothing counts after lineage references went away."""
        dead = self.table.unneeded(rows)
        if dead:
            self._forget(dead)

    def _forget(self, dead: list[Row]) -> None:
        """Forget rows without a local and a task reference, and rows that only these needed.

        A row with lineage references stays: `Lineages` decides about its value.

        A listener may release further rows here. They join the stack of the outer call, so chains
        of any length end without recursion.
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
                    # Lineage needs the row: its value may be freed, but not the row.
                    for listener in self._listeners.everyone:
                        listener.only_lineage_left(row)
                    continue
                if state == INLINE:
                    self.inline_bytes -= row.nbytes
                elif state == PUSHED:
                    row.worker.take_back(row)
                if row.locations:
                    self.free_copies(row)
                row.state = FORGOTTEN
                roles = row.roles
                if roles:
                    for listener in self._listeners[roles]:
                        listener.forgotten(row)
                if row.waiters is not None:
                    self._effects.completed.append(row)
                row.value = None
                row.payload = None
                row.dependents = None
                if row.dependencies or row.contains:
                    needed = row.dependencies + row.contains
                    row.dependencies = row.contains = ()
                    stack.extend(self.table.release_task_refs(needed))
        finally:
            self._forgets = False


def why(row: Row, value: bytes | Failure | None) -> str:
    """Return why a row ends with ``value``, as text; the row still has its dependencies."""
    if isinstance(value, Failure):
        text = f"{value.detail}; {value.where}" if value.where else value.detail
        return text if value.key == row.key else f"{value.key!r}: {text}"
    failed = next((d for d in row.dependencies if d.state == ERROR), None)
    if failed is not None:
        return f"{failed.key!r} failed"
    where = "" if row.worker is None else f" at {row.worker.address}"
    return f"it raised an exception{where}"
