"""Delegation: a task ends, and its value is to be the value of another task.

Tasks may delegate to each other in a cycle, and then none of them can ever have a value. A cycle
closes only at a task that delegates: every other task has all of its dependencies before another
task can wait for it. So the owner of a task that delegates follows the rows that the new source
waits for. At a row of another owner, the owner asks the other owner to go on from there, on behalf
of the task that delegated: the edge-chasing of Chandy, Misra and Haas (1983). A search begins when
a task delegates, and when an owner hears that a row waits for a task that delegated. So the last
search of a cycle finds the whole cycle. When a search comes back to its task, the task ends with an
error, and with the task all rows that wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from dask_ownership.core.owner.recovery.lineage import Lineages
from dask_ownership.core.owner.references.borrowing import Borrowing
from dask_ownership.core.owner.rows.lifecycle import Lifecycle
from dask_ownership.core.owner.rows.options import Options
from dask_ownership.core.owner.rows.row import HAS_BORROWERS, RETAINED, Borrowed, Row, measured
from dask_ownership.core.owner.rows.worker_view import WorkerView
from dask_ownership.core.owner.scheduling.builtin import BuiltinFunctions
from dask_ownership.core.protocol.failure import Failure
from dask_ownership.core.protocol.messages import Key, Origin
from dask_ownership.core.protocol.names import INCARNATION
from dask_ownership.core.protocol.states import ERROR, INLINE

Delegation = tuple[str, Key, int]
"""Names a task that delegated: the incarnation of the owner, the key and the attempt."""

FOLLOWED = 10_000
"""How many searches of other owners are remembered. A search goes on from each row once."""


class Delegations:
    """Has tasks of one owner delegate, and ends tasks that delegate in a cycle.

    Parameters
    ----------
    lifecycle : Lifecycle
        Turns the row of a task into an alias.
    lineages : Lineages
        Keeps how to run tasks that are kept for their children.
    borrowing : Borrowing
        Borrows the future that a task delegates to, and sends requests to its owner.
    functions : BuiltinFunctions
        Has the function of aliases.
    submits_no_more : callable
        Called with the row of a task that has delegated, and so submits no more children.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        lineages: Lineages,
        borrowing: Borrowing,
        functions: BuiltinFunctions,
        submits_no_more: Callable[[Row], None],
    ) -> None:
        self._lifecycle = lifecycle
        self._table = lifecycle.table
        self._lineages = lineages
        self._borrowing = borrowing
        self._functions = functions
        self._submits_no_more = submits_no_more
        # Searches with the key and attempt of a row that each has passed, the oldest first.
        self._followed: dict[tuple[Delegation, Key, int], None] = {}

    def on_delegated(
        self,
        view: WorkerView,
        row: Row,
        nothing: None,
        microseconds: float,
        inside: Sequence[Origin],
    ) -> None:
        """Handle DELEGATED: turn a row into an alias of the future in ``inside``.

        The row waits for the future's value without a slot at any worker.
        """
        lifecycle = self._lifecycle
        measured(row, microseconds)
        inner = self._borrowing.inside_result(view, row, inside)
        if row.roles & RETAINED and row.lineage is None:
            self._lineages.keep(row, row.contains)  # before the task becomes an alias
        lifecycle.attempts.forget(row)
        # The alias keeps the options of the object. Options for running the task have no more use.
        with lifecycle.table.lock:
            was = row.options
            row.options = Options(
                depth=was.depth,
                parent=was.parent,
                heir=was.heir,
                within=was.within,
                replicas=was.replicas,
            )
        functions = self._functions
        needed = lifecycle.become(row, functions.identity, functions.payload, inner)
        lifecycle.release_task_refs(needed)
        if self.waits_for_itself(row):
            return
        # `inside_result` leaves out the row itself, and an object that this owner has freed.
        if inner:
            lifecycle.wait(row)
            self._submits_no_more(row)
        else:
            detail = (
                f"it ran at {view.address} and delegated to a future that is itself, or that its "
                f"owner has freed; it was owned by {lifecycle.name}"
            )
            lifecycle.cannot_be_retried(row)
            lifecycle.fail(row, ERROR, Failure("lost-data", row.key, detail))

    # ---- cycles ----

    def waits_for_itself(self, row: Row) -> bool:
        """Return whether a row that delegated waits for itself, and end the row then.

        When the cycle leads through other owners, the result is False, and the row ends when the
        search comes back (`follow`).
        """
        if row.dependents is None and not row.roles & HAS_BORROWERS:
            return False  # nothing waits for the row, so no cycle leads through it
        begun = (self._table.process[INCARNATION], row.key, row.attempt)
        if not self._leads_back(row.dependencies, begun):
            return False
        self._end(row)
        return True

    def follow(self, row: Row, begun: Delegation) -> None:
        """Go on with a search of another process, from a row of this process.

        ``begun`` is the task that delegated. When the search comes back to this task, the task
        ends.
        """
        owner, key, attempt = begun
        begun = (owner, key, attempt)  # a list when it comes over a link
        seen = (begun, row.key, row.attempt)
        if seen in self._followed:
            return
        self._followed[seen] = None
        if len(self._followed) > FOLLOWED:
            del self._followed[next(iter(self._followed))]
        if self._leads_back((row,), begun):
            found = self._table.rows.get(key)
            if found is not None:
                self._end(found)

    def _leads_back(self, rows: Iterable[Row], begun: Delegation) -> bool:
        """Return whether rows lead back to the task ``begun`` by rows that this process knows.

        Owners of borrowed rows on the way are asked to go on with the search.
        """
        owner, key, attempt = begun
        mine = owner == self._table.process[INCARNATION]
        stack = list(rows)
        seen: set[Row] = set()
        while stack:
            row = stack.pop()
            # A failed row keeps its dependencies for a retry, so it may be part of a cycle.
            if row in seen or (row.state >= INLINE and row.state != ERROR):
                continue
            seen.add(row)
            if isinstance(row, Borrowed):
                self._borrowing.request(row, "follow", begun)
            elif mine and row.key == key and row.attempt == attempt:
                return True
            stack.extend(row.dependencies)
        return False

    def _end(self, row: Row) -> None:
        """End a row that waits for itself with an error that names what it delegated to."""
        sources = ", ".join([repr(source.key) for source in row.dependencies])
        detail = (
            f"it delegated to {sources}, which waits for it: none of them can ever have a value; "
            f"it was owned by {self._lifecycle.name}"
        )
        self._lifecycle.fail(row, ERROR, Failure("lost-data", row.key, detail))
        self._lifecycle.cannot_be_retried(row)  # a retry would close the same cycle
