"""What must hold after every step, checked by the tests of the virtual cluster.

Each function raises AssertionError with the row or entry that breaks the rule.
"""

from __future__ import annotations

from collections import Counter

from dask_ownership.core import session as ex
from dask_ownership.core.executor import Executor
from dask_ownership.core.ownership import Ownership
from dask_ownership.core.table import (
    FORGOTTEN,
    INLINE,
    PUSHED,
    STORED,
    WAITING,
    Borrowed,
    Failure,
    Row,
)


def check_ownership(owner: Ownership) -> None:
    """Rows, counts and workers of one owner agree with each other."""
    rows = owner.table.rows
    uses: Counter[Row] = Counter()
    for row in rows.values():
        uses.update(row.dependencies)
        uses.update(row.contains)
        if row.borrowers is not None:
            assert row.borrowers, row
            uses[row] += 1
    for key, row in rows.items():
        assert row.key == key and row.state != FORGOTTEN, row
        assert row.handles > 0 or row.uses > 0, f"nobody counts {row}"
        assert row.uses >= uses[row], f"{row} is used by {uses[row]}, counted {row.uses}"
        if row.state == PUSHED:
            assert row.worker.alive, f"{row} is with a dead worker"
            assert row.worker.pushed.get(key) is row, f"{row} is not in its worker's list"
        elif row.state == INLINE:
            assert isinstance(row.value, bytes), row
        elif row.state == STORED:
            places = row.addresses if isinstance(row, Borrowed) else row.holders
            assert places, f"{row} is stored nowhere"
            assert all(view.alive for view in row.holders), row
        elif row.state > STORED:
            assert isinstance(row.value, bytes | Failure), row
        if row.state == WAITING:
            unfinished = [d for d in row.dependencies if d.state < INLINE]
            if row.waiting:
                assert row.waiting == len(unfinished), f"{row} waits for {unfinished}"
                for dependency in unfinished:
                    assert (dependency.dependents or []).count(row) == 1, (row, dependency)
        for dependency in row.dependencies:
            assert dependency.state != FORGOTTEN, f"{row} needs {dependency}, freed early"
    for view in owner.placement.workers.values():
        for key, row in view.pushed.items():
            assert row.state == PUSHED and row.worker is view and row.key == key, (view, row)
        counted = [row for row in view.pushed.values() if row.estimate]
        assert view.active == len(counted), (view, view.active, counted)
        assert abs(view.load - sum(row.estimate for row in counted)) < 1e-3, view


def check_executor(executor: Executor) -> None:
    """Slots, queues and entries of one executor agree with each other."""
    assert executor.busy >= 0, executor.busy
    assert executor.parked_count >= 0
    queued = 0
    for session in executor.sessions.values():
        for key, entry in session.entries.items():
            assert entry.key == key and entry.state != ex.GONE, entry
            if entry.state == ex.QUEUED:
                queued += 1
                for dependency in entry.dependencies:
                    if type(dependency) is ex.Entry:
                        # GONE: its owner cancelled it, and will cancel this one.
                        assert dependency.has_value or dependency.state == ex.GONE, entry
            elif entry.state == ex.BLOCKED:
                assert entry.missing > 0, entry
    assert queued == executor.queued, (queued, executor.queued)


def check_empty(owner: Ownership) -> None:
    """Nothing is left over once nobody holds a future (rule R6)."""
    assert not owner.table.rows, list(owner.table.rows.values())[:5]
    assert not owner.desired
    for peer in owner.references.peers.values():
        assert not peer.borrowed and not peer.lent, peer
    for view in owner.placement.workers.values():
        assert not view.pushed, view
        assert view.active == 0 and view.load == 0, view


def check_executor_empty(executor: Executor) -> None:
    """No task and no value is left at a worker."""
    assert executor.queued == 0
    assert executor.parked_count == 0 and not executor.resuming
    for session in executor.sessions.values():
        left = [e for e in session.entries.values() if e.state != ex.HELD]
        assert not left, (session, left[:5])
        assert not session.handed, (session, session.handed)
