"""Records of what the attempts of a task leave behind for the next attempts.

Nearly every task has one attempt, which leaves nothing. So the records are kept here and not on the
rows; a row with a record has the role `TRIED`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from dask_ownership.core.owner.rows.listener import RowListener
from dask_ownership.core.owner.rows.row import TRIED, Row

ALONE = 5.0
"""Seconds for which a suspect runs alone the first time, and waits at most for its turn."""

LONGER = 4
"""Factor by which a suspect's time alone grows after each death for which other tasks may be to
blame."""

LENGTHENED = 6
"""How often a suspect's time alone grows at most."""


class Death(NamedTuple):
    """The death of a worker under which a task may have been running."""

    #: Incarnation of the worker.
    worker: str
    #: The address of the worker, and what became of the worker, for people.
    what: str


@dataclass(slots=True)
class Attempts:
    """Record of what became of the attempts of one task so far."""

    #: How many retries were used up; `Options.retries` has how many the user allows.
    failures: int = 0
    #: The workers that died while the task may have been running there. A task with any is a
    #: suspect, see `executor.exclusion`.
    died: tuple[Death, ...] = ()
    #: How many of the workers in ``died`` died while the task ran there alone.
    deaths: int = 0
    #: Number of the last attempt that the worker let run beside other tasks though the task is a
    #: suspect; 0 when there was none.
    beside: int = 0
    #: The task was recalled once and is not recalled again.
    recalled: bool = False
    #: How long a worker may be silent and still keep the task, in multiples of the allowed
    #: silence. After a move: twice as long as the last worker was silent.
    patience: float = 1.0
    #: Name of each checkpoint to attempt, number and pickled value, see `recovery.checkpoints`.
    checkpoints: dict[str, tuple[int, int, bytes]] | None = None

    @property
    def ordinal(self) -> int:
        """Which attempt runs, or is next, as people count: the first, or one after some failed.

        Attempts that were given back, recalled or moved do not count, because they did not run.
        """
        return 1 + self.failures + len(self.died)

    @property
    def seconds_alone(self) -> float:
        """How many seconds the next attempt of a suspect runs alone at most."""
        # Deaths beside other tasks: each may be the fault of another task. A suspect that kills
        # its worker late needs a longer time alone to be found out.
        unknown = len(self.died) - self.deaths
        return float(ALONE * LONGER ** min(max(unknown - 1, 0), LENGTHENED))


UNTRIED = Attempts()
"""Record of every task whose attempts left nothing. Shared, and never written to."""


class AttemptRecords(RowListener):
    """The records of the attempts of one owner's tasks, by row."""

    def __init__(self) -> None:
        self._records: dict[Row, Attempts] = {}

    def of(self, row: Row) -> Attempts:
        """Return the record of a row for reading: `UNTRIED` when the attempts left nothing."""
        return self._records.get(row, UNTRIED)

    def change(self, row: Row) -> Attempts:
        """Return the record of a row for writing; a new record when there is none."""
        record = self._records.get(row)
        if record is None:
            record = self._records[row] = Attempts()
            row.roles |= TRIED
        return record

    def forget(self, row: Row) -> None:
        """Drop the record of a row that has become another task, or is gone."""
        if self._records.pop(row, None) is not None:
            row.roles &= ~TRIED

    def finishing(self, row: Row, arguments: tuple[Row, ...]) -> None:
        """Clear the deaths of a task that has a value.

        The task is no suspect any more, also when its value is lost and made again.
        """
        record = self._records.get(row)
        if record is not None:
            record.died, record.deaths = (), 0

    def forgotten(self, row: Row) -> None:
        """Drop the record of a row that nothing counts any more."""
        self.forget(row)
