"""Values of which several copies are kept, so that a death costs none of them.

How many is in the `Options` of a row. Whenever one of its copies went, its value was made
again, or a worker can take more, its copies are counted, and what is missing is copied.
What is copied is certain only when the copy has ended, see `recovery.copying`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

from dask_ownership.core.owner.recovery.copying import Copies
from dask_ownership.core.owner.rows.lifecycle import Lifecycle
from dask_ownership.core.owner.rows.listener import RowListener
from dask_ownership.core.owner.rows.options import Replication
from dask_ownership.core.owner.rows.row import REPLICATED, Row
from dask_ownership.core.owner.rows.worker_view import WorkerView
from dask_ownership.core.protocol.states import ERROR, STORED

Settled: TypeAlias = Callable[[Row, bytes | None], None]


class Replicas(RowListener):
    """The copies that one owner keeps.

    Parameters
    ----------
    lifecycle : Lifecycle
    copies : Copies

    Attributes
    ----------
    used : bool
        Somebody asked for copies once.
    waiting : dict
        Row to those who wait until nothing more is to be copied.
    """

    def __init__(self, lifecycle: Lifecycle, copies: Copies) -> None:
        self._lifecycle = lifecycle
        self._copies = copies
        copies.when_copied.append(self._copied)
        self.used = False
        self.waiting: dict[Row, list[Settled]] = {}

    def want(self, row: Row, wanted: Replication | None, settled: Settled | None = None) -> None:
        """Keep so many copies of a row's value from now on, and free what is more.

        ``settled(row, error)`` is called when there are as many as there can be now, with
        the pickled error when the value cannot be copied.
        """
        with self._lifecycle.table.lock:  # another thread may be about to replace them, too
            row.options = replace(row.options, replicas=wanted)
            if row.lineage is not None:
                row.lineage.options = replace(row.lineage.options, replicas=wanted)
        self.used = True
        row.roles |= REPLICATED
        if settled is not None:
            self.waiting.setdefault(row, []).append(settled)
        if wanted is not None and row.state == STORED and not row.borrowed:
            more = self._counted(row, wanted)[wanted.number :]
            # Tasks on their way there may name it.
            spare = {v for v in more if not any(row in t.dependencies for t in v.pushed.values())}
            if spare:
                self._lifecycle.drop_locations(row, spare, "is one more than was asked for")
        self.look(row)

    def finished(self, row: Row) -> None:
        """A value of which copies are kept was made, perhaps again."""
        self.look(row)

    def locations_changed(self, row: Row) -> None:
        """A copy may be missing."""
        self.look(row)

    def missing(self, row: Row) -> list[WorkerView]:
        """Where copies should be made now."""
        wanted = row.options.replicas
        copies = self._copies
        if wanted is None or row.state != STORED or row.borrowed or copies.closed:
            return []
        there = self._counted(row, wanted)
        going = copies.going(row)
        count = wanted.number - len(there) - len(going)
        # Each that has it gives it to so many at once.
        count = min(count, wanted.branching * max(1, len(copies.there(row))) - len(going))
        if count <= 0:
            return []
        free = [v for v in self._places(wanted) if v not in there and v not in going]
        return copies.best(row, free)[:count]

    def look(self, row: Row) -> None:
        """Make the copies that are missing; tell who waits when there is nothing to make."""
        for target in self.missing(row):
            self._copies.make(row, target)
        if not self._copies.going(row) and row in self.waiting:
            self._settled(row, None)

    def look_at_all(self) -> None:
        """A worker takes copies that did not before, or its own count no more."""
        if self.used:
            for row in self._lifecycle.table.all():
                if row.options.replicas is not None:
                    self.look(row)

    def _copied(self, row: Row, task: Row) -> None:
        """A copy of a value ended, whoever wanted it."""
        if row.options.replicas is None:
            return
        if task.state == ERROR and isinstance(task.value, bytes) and row.state == STORED:
            # It cannot be pickled, say: it would fail again.
            self._lifecycle.log(row, "not-copied", f"the copy {task.key!r} failed")
            self._settled(row, task.value)
            self.want(row, None)
            return
        self.look(row)

    def _settled(self, row: Row, error: bytes | None) -> None:
        for settled in self.waiting.pop(row, ()):
            settled(row, error)

    def _places(self, wanted: Replication) -> list[WorkerView]:
        places = self._copies.places()
        if wanted.workers is None:
            return places
        return [v for v in places if any(v.answers_to(name) for name in wanted.workers)]

    def _counted(self, row: Row, wanted: Replication) -> list[WorkerView]:
        """The copies that count: those that stay, and are where they should be."""
        names = wanted.workers
        return [
            v
            for v in self._copies.there(row)
            if not v.leaving and (names is None or any(v.answers_to(name) for name in names))
        ]
