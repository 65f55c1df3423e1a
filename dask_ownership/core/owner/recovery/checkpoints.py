"""Checkpoints: small state of a running task that its owner keeps.

An attempt says what is to be kept (`CHECKPOINT`). Its owner keeps it beside the row, if
that attempt is the current one, and answers (`CHECKPOINTED`). The next attempt gets all of
it with its push, so that reading it asks nobody. It is dropped when the task has a value;
an error keeps it, because an error may be retried.
"""

from __future__ import annotations

from dask_ownership.core.owner.rows.attempts import AttemptRecords
from dask_ownership.core.owner.rows.listener import RowListener
from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.owner.rows.table import Table
from dask_ownership.core.owner.rows.worker_view import WorkerView
from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol.messages import Key
from dask_ownership.core.protocol.states import ERROR, STATE_NAMES


class Checkpoints(RowListener):
    """Checkpoints that one owner keeps, beside its rows.

    Parameters
    ----------
    table : Table
    attempts : AttemptRecords
    """

    def __init__(self, table: Table, attempts: AttemptRecords) -> None:
        self._table = table
        self._attempts = attempts

    def on_checkpoint(
        self, view: WorkerView, row: Row, number: int, name: str, pickled: bytes
    ) -> None:
        """The current attempt of a row wants something kept: it is, and that is said."""
        attempt = row.attempt
        kept = self._attempts.of(row).checkpoints or {}
        known = kept.get(name)
        if known is None or known[:2] < (attempt, number):
            kept = {**kept, name: (attempt, number, pickled)}
            self._attempts.change(row).checkpoints = kept
        view.outbox.append((m.CHECKPOINTED, row.key, attempt, number, None))

    def on_checkpoint_late(
        self, view: WorkerView, key: Key, attempt: int, number: int, name: str, pickled: bytes
    ) -> None:
        """An attempt that is not the current one wants something kept: nothing changes."""
        row = self._table.rows.get(key)
        if row is None:
            why = "it was cancelled, or nobody has its future any more"
        elif row.attempt != attempt:
            why = f"attempt {row.attempt} has taken the place of this one ({attempt})"
        else:
            why = f"for its owner it is {STATE_NAMES[row.state]} already"
        view.outbox.append((m.CHECKPOINTED, key, attempt, number, why))

    def finishing(self, row: Row, arguments: tuple[Row, ...]) -> None:
        """The next time, if there is one, it starts anew."""
        self._drop(row)

    def ended(self, row: Row) -> None:
        """Only an error may be retried."""
        if row.state != ERROR:
            self._drop(row)

    def _drop(self, row: Row) -> None:
        if self._attempts.of(row).checkpoints is not None:
            self._attempts.change(row).checkpoints = None
