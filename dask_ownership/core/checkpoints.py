"""Checkpoints: small state of a running task that its owner keeps.

An attempt says what is to be kept (`CHECKPOINT`). Its owner keeps it beside the row, if
that attempt is the current one, and answers (`CHECKPOINTED`). The next attempt gets all of
it with its push, so that reading it asks nobody. It is dropped when the task has a value;
an error keeps it, because an error may be retried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dask_ownership.core import messages as m
from dask_ownership.core.attempts import AttemptRecords
from dask_ownership.core.listener import RowListener
from dask_ownership.core.messages import Key
from dask_ownership.core.placement import WorkerView
from dask_ownership.core.row import ERROR, STATE_NAMES, Failure, Row
from dask_ownership.core.session import RUNNING, Entry, Session
from dask_ownership.core.table import Table

# ---- at the owner ----


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


# ---- at the executor ----


def restored(entry: Entry) -> dict[str, bytes]:
    """What a task finds: of attempts before, and what its owner said that it keeps."""
    found: dict[str, bytes] = (entry.options or {}).get("checkpoints") or {}
    return found


class Saving:
    """A checkpoint on its way to the owner."""

    __slots__ = ("answered", "entry", "name", "pickled")

    def __init__(
        self, entry: Entry, name: str, pickled: bytes, answered: Callable[[Failure | None], None]
    ) -> None:
        self.entry = entry
        self.name = name
        self.pickled = pickled
        self.answered = answered


class Savings:
    """The checkpoints of one executor's tasks that are on their way.

    Attributes
    ----------
    under_way : dict
        Number to `Saving`.
    """

    def __init__(self) -> None:
        self.under_way: dict[int, Saving] = {}
        self._number = 0

    def size(self, entry: Entry, name: str, pickled: bytes) -> int:
        """Bytes of all that would be kept of a task, names included."""
        kept = dict(restored(entry))
        kept.update({s.name: s.pickled for s in self.under_way.values() if s.entry is entry})
        kept[name] = pickled
        return sum(len(key.encode()) + len(value) for key, value in kept.items())

    def save(
        self, entry: Entry, name: str, pickled: bytes, answered: Callable[[Failure | None], None]
    ) -> None:
        """Have the owner of a task keep something.

        ``answered`` is called once: with None when it is kept, or with why it is not.
        """
        session = entry.session
        if session.closed:
            answered(_closed(entry))
        elif entry.cancelled:
            answered(_unwanted(entry))
        elif entry.state != RUNNING:
            answered(Failure("superseded", entry.key, "it has ended"))
        else:
            self._number += 1
            self.under_way[self._number] = Saving(entry, name, pickled, answered)
            session.outbox.append(
                (m.CHECKPOINT, entry.key, entry.attempt, self._number, name, pickled)
            )

    def answered(self, key: Key, number: int, problem: str | None) -> None:
        """An owner keeps it, or says why not; one that is not waited for changes nothing."""
        saving = self.under_way.pop(number, None)
        if saving is None:
            return
        if problem is not None:
            saving.answered(Failure("superseded", key, problem))
            return
        entry = saving.entry
        # Never written to: the owner in this process may have the same dict.
        entry.options = {
            "depth": 0,
            **(entry.options or {}),
            "checkpoints": {**restored(entry), saving.name: saving.pickled},
        }
        saving.answered(None)

    def cancelled(self, entry: Entry) -> None:
        """Nobody wants a running task any more."""
        self._give_up(
            [n for n, saving in self.under_way.items() if saving.entry is entry], _unwanted
        )

    def closed(self, session: Session) -> None:
        """An owner is gone."""
        self._give_up(
            [n for n, saving in self.under_way.items() if saving.entry.session is session], _closed
        )

    def _give_up(self, numbers: Iterable[int], why: Callable[[Entry], Failure]) -> None:
        for number in numbers:
            saving = self.under_way.pop(number)
            saving.answered(why(saving.entry))


def _unwanted(entry: Entry) -> Failure:
    detail = f"its owner has cancelled attempt {entry.attempt}, or has started another since"
    return Failure("superseded", entry.key, detail)


def _closed(entry: Entry) -> Failure:
    name = entry.session.process[2]
    detail = f"its checkpoint is kept nowhere: its owner {name} is gone, or this worker closes"
    return Failure("closed", entry.key, detail)
