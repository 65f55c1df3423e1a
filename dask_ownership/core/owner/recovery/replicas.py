"""Replicas: several copies of a value are kept, so that the death of a worker loses no value.

The `Options` of a row say how many copies are wanted. The owner counts the copies of the row
whenever a copy was lost, the value was made again, or another worker accepts copies; and makes the
missing copies. A new copy counts only when the task that makes the copy has ended, see
`recovery.copying`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from dask_ownership.core.owner.recovery.copying import Copies
from dask_ownership.core.owner.rows.lifecycle import Lifecycle
from dask_ownership.core.owner.rows.listener import RowListener
from dask_ownership.core.owner.rows.options import Replication
from dask_ownership.core.owner.rows.row import REPLICATED, Row
from dask_ownership.core.owner.rows.worker_view import WorkerView
from dask_ownership.core.protocol.states import ERROR, STORED

Settled: TypeAlias = Callable[[Row, bytes | None], None]
"""Called with a row, and with the pickled error when the value cannot be copied."""


class Replicas(RowListener):
    """Keeps as many copies of values of one owner as their rows want.

    Parameters
    ----------
    lifecycle : Lifecycle
        Drops the locations of superfluous copies.
    copies : Copies
        Makes the missing copies.

    Attributes
    ----------
    used : bool
        Whether `want` was ever called. Until then `look_at_all` does nothing.
    waiting : dict of Row to list of callable
        By row: what to call when nothing more is to be copied.
    """

    def __init__(self, lifecycle: Lifecycle, copies: Copies) -> None:
        self._lifecycle = lifecycle
        self._copies = copies
        copies.when_copied.append(self._copied)
        self.used = False
        self.waiting: dict[Row, list[Settled]] = {}

    def want(self, row: Row, wanted: Replication | None, settled: Settled | None = None) -> None:
        """Keep ``wanted`` copies of a row's value from now on, and free superfluous copies.

        ``settled(row, error)`` is called when as many copies are there as can be now; ``error``
        is the pickled error when the value cannot be copied, else None.
        """
        with self._lifecycle.table.lock:  # another thread may be about to replace the options, too
            row.options = row.options._replace(replicas=wanted)
            if row.lineage is not None:
                # The lineage brings its options back when the value is made again.
                row.lineage.options = row.lineage.options._replace(replicas=wanted)
        self.used = True
        row.roles |= REPLICATED
        if settled is not None:
            self.waiting.setdefault(row, []).append(settled)
        if wanted is not None and row.state == STORED and not row.borrowed:
            more = self._counted(row, wanted)[wanted.number :]
            # Tasks on their way to a worker may name the copy there, so that copy stays.
            spare = {v for v in more if not any(row in t.dependencies for t in v.pushed.values())}
            if spare:
                self._lifecycle.drop_locations(row, spare, "is one more than was asked for")
        self.look(row)

    def finishing(self, row: Row, arguments: tuple[Row, ...]) -> None:
        """Note that copies of values are kept here: options of a task may ask for them, too."""
        self.used = True

    def finished(self, row: Row) -> None:
        """Make copies of a replicated value that was made, perhaps again."""
        self.look(row)

    def locations_changed(self, row: Row) -> None:
        """Replace a copy that may have been lost."""
        self.look(row)

    def missing(self, row: Row) -> list[WorkerView]:
        """Return the workers to which the row's value should be copied now, the best first."""
        wanted = row.options.replicas
        copies = self._copies
        if wanted is None or row.state != STORED or row.borrowed or copies.closed:
            return []
        there = self._counted(row, wanted)
        going = copies.going(row)
        count = wanted.number - len(there) - len(going)
        # Each worker with the value gives copies to ``branching`` workers at once, so that copies
        # spread as a tree and no worker sends all of them.
        count = min(count, wanted.branching * max(1, len(copies.there(row))) - len(going))
        if count <= 0:
            return []
        free = [v for v in self._places(wanted) if v not in there and v not in going]
        return copies.best(row, free)[:count]

    def look(self, row: Row) -> None:
        """Make the missing copies of a row; call what waits when no copy is on its way."""
        for target in self.missing(row):
            self._copies.make(row, target)
        if not self._copies.going(row) and row in self.waiting:
            self._settled(row, None)

    def look_at_all(self) -> None:
        """Make the missing copies of all rows.

        The caller has learned of a worker that accepts copies now, or of a leaving worker whose
        copies count no more.
        """
        if self.used:
            for row in self._lifecycle.table.all():
                if row.options.replicas is not None:
                    self.look(row)

    def _copied(self, row: Row, task: Row) -> None:
        """Look at a row again when a task that copied the row has ended.

        The copy may have been made for another feature, such as a move.
        """
        if row.options.replicas is None:
            return
        if task.state == ERROR and isinstance(task.value, bytes) and row.state == STORED:
            # The copy failed with an error of its own: the value cannot be pickled, say. Another
            # copy would fail too.
            self._lifecycle.log(row, "not-copied", f"the copy {task.key!r} failed")
            self._settled(row, task.value)
            self.want(row, None)
            return
        self.look(row)

    def _settled(self, row: Row, error: bytes | None) -> None:
        """Call what waits for the copies of a row."""
        for settled in self.waiting.pop(row, ()):
            settled(row, error)

    def _places(self, wanted: Replication) -> list[WorkerView]:
        """Return the workers that accept copies and that ``wanted`` allows."""
        places = self._copies.places()
        if wanted.workers is None:
            return places
        return [v for v in places if any(v.answers_to(name) for name in wanted.workers)]

    def _counted(self, row: Row, wanted: Replication) -> list[WorkerView]:
        """Return the workers whose copies count: they stay, and ``wanted`` names them or any."""
        names = wanted.workers
        return [
            v
            for v in self._copies.there(row)
            if not v.leaving and (names is None or any(v.answers_to(name) for name in names))
        ]
