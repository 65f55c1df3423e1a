"""Checkpoints: small state of a running task that its owner keeps.

An attempt sends a checkpoint to the owner of the task (`CHECKPOINT`). If the attempt is the
current one, the owner keeps the checkpoint beside the row and answers (`CHECKPOINTED`). The push
of the next attempt carries all checkpoints of the row, so a task reads them without a message.
The owner drops the checkpoints when the task has a value. After an error the owner keeps them,
because an error may be retried.
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
    """Keeps the checkpoints of one owner's tasks, in the attempt records of the rows.

    Parameters
    ----------
    table : Table
        The rows of the owner.
    attempts : AttemptRecords
        The records with the checkpoints.
    """

    def __init__(self, table: Table, attempts: AttemptRecords) -> None:
        self._table = table
        self._attempts = attempts

    def on_checkpoint(
        self, view: WorkerView, row: Row, number: int, name: str, pickled: bytes
    ) -> None:
        """Handle CHECKPOINT of the current attempt of a row: keep the checkpoint and answer.

        ``number`` counts the checkpoints of the executor, so the highest number of an attempt is
        the latest.
        """
        attempt = row.attempt
        kept = self._attempts.of(row).checkpoints or {}
        known = kept.get(name)
        # Each executor counts for itself, so attempts are compared before numbers. A message
        # that comes twice changes nothing.
        if known is None or known[:2] < (attempt, number):
            kept = {**kept, name: (attempt, number, pickled)}
            self._attempts.change(row).checkpoints = kept
        view.outbox.append((m.CHECKPOINTED, row.key, attempt, number, None))

    def on_checkpoint_late(
        self, view: WorkerView, key: Key, attempt: int, number: int, name: str, pickled: bytes
    ) -> None:
        """Ignore a checkpoint of an attempt that is not the current one: nothing changes."""
        row = self._table.rows.get(key)
        if row is None:
            why = "it was cancelled, or nobody has its future any more"
        elif row.attempt != attempt:
            why = f"attempt {row.attempt} has taken the place of this one ({attempt})"
        else:
            why = f"for its owner it is {STATE_NAMES[row.state]} already"
        view.outbox.append((m.CHECKPOINTED, key, attempt, number, why))

    def finishing(self, row: Row, arguments: tuple[Row, ...]) -> None:
        """Drop the checkpoints of a row with a value: a later run of the task starts anew."""
        self._drop(row)

    def ended(self, row: Row) -> None:
        """Drop the checkpoints of a row without a value, unless an error may be retried."""
        if row.state != ERROR:
            self._drop(row)

    def _drop(self, row: Row) -> None:
        if self._attempts.of(row).checkpoints is not None:
            self._attempts.change(row).checkpoints = None
