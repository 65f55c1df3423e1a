"""Invariants of owners and executors, which the virtual cluster checks after every event.

Each function raises AssertionError with the row or entry that breaks the rule.
"""

from __future__ import annotations

from collections import Counter

from dask_ownership.core.executor import session as ex
from dask_ownership.core.executor.executor import ExecutorCore
from dask_ownership.core.owner.ownership import OwnerCore
from dask_ownership.core.owner.rows.row import HAS_BORROWERS, Borrowed, Row
from dask_ownership.core.protocol.failure import Failure
from dask_ownership.core.protocol.states import DORMANT, FORGOTTEN, INLINE, PUSHED, STORED, WAITING


def rows_of(owner: OwnerCore) -> list[Row]:
    """Return all rows of an owner as `Table.all` does, but quickly where most shards are empty."""
    return [row for shard in filter(None, owner.table.rows.shards) for row in shard.values()]


def check_ownership(owner: OwnerCore) -> None:
    """Check that the rows, counts and views of workers of one owner agree with each other."""
    rows = rows_of(owner)
    # Count the references anew, from the objects that hold them.
    task_refs: Counter[Row] = Counter()
    lineage_refs: Counter[Row] = Counter()
    kept = 0
    lineage_refs.update(owner.retention.keepers)
    for row in rows:
        if row.dependencies:
            task_refs.update(row.dependencies)
        if row.contains:
            task_refs.update(row.contains)
        if row.lineage is not None:
            lineage_refs.update(row.lineage.dependencies)
            lineage_refs.update(row.lineage.contains)
            kept += row.lineage.nbytes
        # All borrowers of a row together are one task reference.
        if row in owner.lending.borrowers:
            assert owner.lending.borrowers[row] and row.roles & HAS_BORROWERS, row
            task_refs[row] += 1
        else:
            assert not row.roles & HAS_BORROWERS, row
    for row in rows:
        key = row.key
        assert owner.table.rows.get(key) is row and row.state != FORGOTTEN, row
        assert row.local_refs > 0 or row.task_refs > 0 or row.lineage_refs > 0, (
            f"nobody counts {row}"
        )
        assert row.lineage_refs == lineage_refs[row], (row, row.lineage_refs, lineage_refs[row])
        # Only lineage needs a dormant row, whose value is freed.
        if row.state == DORMANT:
            assert row.lineage is not None and not row.locations, row
        if row.lineage is not None:
            for needed in (*row.lineage.dependencies, *row.lineage.contains):
                assert needed.state != FORGOTTEN, f"{needed} is lineage of {row}, freed early"
        # It may be more: a search for children holds a row, and so does the opening of its value.
        assert row.task_refs >= task_refs[row], (
            f"{row} has {task_refs[row]} task references, counted {row.task_refs}"
        )
        if row.state == PUSHED:
            assert row.worker.alive, f"{row} is with a dead worker"
            assert row.worker.pushed.get(key) is row, f"{row} is not in its worker's list"
        elif row.state == INLINE:
            assert isinstance(row.value, bytes), row
        elif row.state == STORED:
            places = row.addresses if isinstance(row, Borrowed) else row.locations
            assert places, f"{row} is stored nowhere"
            assert all(view.alive for view in row.locations), row
        elif row.state > STORED:
            assert isinstance(row.value, bytes | Failure), row
        if row.state == WAITING:
            unfinished = [d for d in row.dependencies if d.state < INLINE]
            if row.waiting:
                # A dependency may have been lost since: the push finds that out.
                told = [(d.dependents or []).count(row) for d in unfinished]
                assert row.waiting == sum(told), f"{row} waits for {unfinished}, told by {told}"
                assert max(told) == 1, (row, unfinished, told)
        for dependency in row.dependencies:
            assert dependency.state != FORGOTTEN, f"{row} needs {dependency}, freed early"
    # Lineage is evicted by this sum: an error in it would evict too much or too little.
    kept += sum(row.nbytes for row in owner.lineages.pinned)
    assert owner.lineages.nbytes == kept, (owner.lineages.nbytes, kept)
    for row in rows:
        if row.options.replicas is not None:
            assert not owner.replicas.missing(row), f"{row} has too few copies"
    for view in owner.placement.workers.values():
        for key, row in view.pushed.items():
            assert row.state == PUSHED and row.worker is view and row.key == key, (view, row)
        # A parked task has no estimate: it takes no part in the load of its worker.
        counted = [row for row in view.pushed.values() if row.estimate]
        assert view.active == len(counted), (view, view.active, counted)
        assert abs(view.load - sum(row.estimate for row in counted)) < 1e-3, view


def check_executor(executor: ExecutorCore) -> None:
    """Check that the slots, queues and entries of one executor agree with each other."""
    assert executor.queue.busy >= 0, executor.queue.busy
    crowd = executor.queue.crowd
    assert crowd.counting == sum(crowd.waiting.values()), crowd.waiting
    depths = Counter(entry.depth for entry, counts in crowd.waiting.items() if counts)
    assert crowd.depths == depths, (crowd.depths, depths)
    queued = 0
    for session in executor.sessions.values():
        for key, entry in session.entries.items():
            assert entry.key == key and entry.state != ex.GONE, entry
            if entry.state == ex.QUEUED:
                queued += 1
                for dependency in entry.dependencies:
                    if type(dependency) is ex.Entry:
                        # GONE: the owner has cancelled the dependency, and will cancel the entry.
                        assert dependency.has_value or dependency.state == ex.GONE, entry
            elif entry.state == ex.BLOCKED:
                assert entry.missing > 0, entry
    assert queued == executor.queue.queued, (queued, executor.queue.queued)


def check_empty(owner: OwnerCore) -> None:
    """Check that no future has left anything over at an owner, after all were dropped (rule R6)."""
    assert not owner.table.rows, list(owner.table.rows.values())[:5]
    assert not owner.desired.rows
    assert not owner.lending.borrowers, owner.lending.borrowers
    assert not owner.copies.under_way and not owner.copies.latest, owner.copies.under_way
    assert not owner.moves.under_way and not owner.replicas.waiting, owner.replicas.waiting
    assert owner.lineages.nbytes == 0 and not owner.lineages.pinned, owner.lineages.nbytes
    assert not owner.transfer.under_way, owner.transfer.under_way
    retention, reconstruction = owner.retention, owner.reconstruction
    assert not retention.keepers and not retention.exported, (retention.keepers, retention.exported)
    assert not retention.children and not reconstruction.repeats, retention.children
    assert not retention.untold, retention.untold
    assert not retention.heirs and not retention.above, (retention.heirs, retention.above)
    assert not reconstruction.searches and not reconstruction.questions and not retention.orphans
    for peer in owner.peers.known.values():
        assert not peer.borrowed and not peer.lent and not peer.kept, peer
    for view in owner.placement.workers.values():
        assert not view.pushed, view
        assert view.active == 0 and view.load == 0, view


def check_executor_empty(executor: ExecutorCore) -> None:
    """Check that no task and no value is left at a worker."""
    assert executor.queue.queued == 0
    assert not executor.queue.crowd.waiting and not executor.queue.resuming
    assert not executor.queue.crowd.awaited
    assert not executor.savings.under_way, executor.savings.under_way
    for session in executor.sessions.values():
        # A held value stays until the owner's next batch acknowledges the answer with it.
        left = [e for e in session.entries.values() if e.state != ex.HELD]
        assert not left, (session, left[:5])
        assert not any(map(len, session.queues.values())), session.queues
        assert not session.handed, (session, session.handed)
