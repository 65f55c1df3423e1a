"""Checkpoints on their way from running tasks to owners, see `recovery.checkpoints`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dask_ownership.core.executor.session import RUNNING, Entry, Session
from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol.failure import Failure
from dask_ownership.core.protocol.messages import Key


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
