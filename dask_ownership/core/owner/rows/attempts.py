"""What the attempts of a task leave behind for the next ones.

Nearly every task has one attempt, which leaves nothing. So the records are kept here and not on the
rows; a row that has one is marked as `TRIED`.
"""

from __future__ import annotations

from dataclasses import dataclass

from dask_ownership.core.owner.rows.listener import RowListener
from dask_ownership.core.owner.rows.row import TRIED, Row

ALONE = 5.0
"""Seconds for which a suspect is alone, and waits for it, the first time."""

LONGER = 4
"""So many times as long is it after each death of which nobody knows whose fault it was."""

LENGTHENED = 6
"""How often it gets longer at most."""


@dataclass(slots=True)
class Attempts:
    """What became of the attempts of one task so far."""

    #: How many of the retries that its user allows were used up.
    failures: int = 0
    #: Workers that died while the task may have been running there, and why. Such a task is a
    #: suspect, see `executor.exclusion`.
    died: tuple[str, ...] = ()
    #: How many of these died while the task ran there alone.
    deaths: int = 0
    #: The attempt of a suspect that may run beside others.
    beside: int = 0
    #: The task was recalled once and is not recalled again.
    recalled: bool = False
    #: For how many times the allowed silence a worker may keep it; doubles with each move.
    patience: float = 1.0
    #: Name to attempt, number and pickled value, see `recovery.checkpoints`.
    checkpoints: dict[str, tuple[int, int, bytes]] | None = None

    @property
    def seconds_alone(self) -> float:
        """For how long the next attempt of a suspect is alone at most."""
        unknown = len(self.died) - self.deaths
        return float(ALONE * LONGER ** min(max(unknown - 1, 0), LENGTHENED))


UNTRIED = Attempts()
"""Of a task whose attempts left nothing. Never written to."""


class AttemptRecords(RowListener):
    """The records of one owner's rows."""

    def __init__(self) -> None:
        self._records: dict[Row, Attempts] = {}

    def of(self, row: Row) -> Attempts:
        """The record of a row, to be read."""
        return self._records.get(row, UNTRIED)

    def change(self, row: Row) -> Attempts:
        """The record of a row, to be written to."""
        record = self._records.get(row)
        if record is None:
            record = self._records[row] = Attempts()
            row.roles |= TRIED
        return record

    def forget(self, row: Row) -> None:
        """A row has become another task, or is gone."""
        if self._records.pop(row, None) is not None:
            row.roles &= ~TRIED

    def finishing(self, row: Row, arguments: tuple[Row, ...]) -> None:
        """A task that has come to its end is no suspect, also when its value is made again."""
        record = self._records.get(row)
        if record is not None:
            record.died, record.deaths = (), 0

    def forgotten(self, row: Row) -> None:
        """Nothing counts a row any more."""
        self.forget(row)
