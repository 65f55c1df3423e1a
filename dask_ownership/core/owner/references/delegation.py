"""Delegation: a task ends, and its value is to be that of another.

Tasks may delegate to each other, so that none of them can ever have a value. Only a task that
delegates comes to wait for something after others wait for it: only there a
cycle can close. So its owner follows what the new source waits for. Where that is another
owner's, that owner is asked to go on from there, on behalf of the task that delegated: the
edge-chasing of Chandy, Misra and Haas (1983). A search begins when a task delegates, and when
an owner hears that somebody waits for one that did: whichever of a cycle is last finds all of it
there. When a search comes back to its task, that one ends with an error, and with it all that
wait for it.
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
from dask_ownership.core.protocol.states import ERROR, INLINE

Delegation = tuple[str, Key, int]
"""A task that delegated: the incarnation of its owner, its key and its attempt."""

FOLLOWED = 10_000
"""How many searches of others are remembered, each of which goes on from a row once."""


class Delegations:
    """Tasks of one owner that delegate.

    Parameters
    ----------
    lifecycle : Lifecycle
    lineages : Lineages
    borrowing : Borrowing
    functions : BuiltinFunctions
    submits_no_more : callable
        Told of a task that has delegated.
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
        self._followed: dict[tuple[Delegation, Key, int], None] = {}

    def on_delegated(
        self,
        view: WorkerView,
        row: Row,
        nothing: None,
        microseconds: float,
        inside: Sequence[Origin],
    ) -> None:
        """The value of a row is to be another's: wait for that one, without a slot."""
        lifecycle = self._lifecycle
        measured(row, microseconds)
        inner = self._borrowing.inside_result(view, row, inside)
        if row.roles & RETAINED and row.lineage is None:
            self._lineages.keep(row, row.contains)  # before it becomes another's value
        lifecycle.attempts.forget(row)
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
        lifecycle.release_uses(needed)
        if self.waits_for_itself(row):
            return
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
        """Whether a row that delegated waits for itself; it has ended then."""
        if row.dependents is None and not row.roles & HAS_BORROWERS:
            return False  # nobody waits for it
        begun = (self._table.process[0], row.key, row.attempt)
        if not self._leads_back(row.dependencies, begun):
            return False
        self._end(row)
        return True

    def follow(self, row: Row, begun: Delegation) -> None:
        """Go on with a search that came from another process to a row of this one."""
        begun = (begun[0], begun[1], begun[2])
        seen = (begun, row.key, row.attempt)
        if seen in self._followed:
            return
        self._followed[seen] = None
        if len(self._followed) > FOLLOWED:
            del self._followed[next(iter(self._followed))]
        if self._leads_back((row,), begun):
            found = self._table.rows.get(begun[1])
            if found is not None:
                self._end(found)

    def _leads_back(self, rows: Iterable[Row], begun: Delegation) -> bool:
        """Whether what these wait for is the delegation; other owners are asked to go on."""
        owner, key, attempt = begun
        mine = owner == self._table.process[0]
        stack = list(rows)
        seen: set[Row] = set()
        while stack:
            row = stack.pop()
            # What failed keeps what it needs, and may be tried again.
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
        sources = ", ".join([repr(source.key) for source in row.dependencies])
        detail = (
            f"it delegated to {sources}, which waits for it: none of them can ever have a value; "
            f"it was owned by {self._lifecycle.name}"
        )
        self._lifecycle.fail(row, ERROR, Failure("lost-data", row.key, detail))
        self._lifecycle.cannot_be_retried(row)  # it would make the same cycle
