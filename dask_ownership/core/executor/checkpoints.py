"""Checkpoints on their way from running tasks to owners, see `recovery.checkpoints`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dask_ownership.core.executor.session import RUNNING, Entry, Session
from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol.failure import Failure
from dask_ownership.core.protocol.messages import Key
from dask_ownership.core.protocol.names import NAME


def restored(entry: Entry) -> dict[str, bytes]:
    """Return the checkpoints that a task finds, by name, pickled.

    These are the checkpoints of earlier attempts, which came with the push, and those of this
    attempt that the owner has said to keep.
    """
    found: dict[str, bytes] = (entry.options or {}).get("checkpoints") or {}
    return found


@dataclass(slots=True, eq=False, repr=False)
class Saving:
    """A checkpoint on its way to the owner."""

    #: The running task.
    entry: Entry
    #: The name of the checkpoint within the task.
    name: str
    #: The pickled value.
    pickled: bytes
    #: Called once: with None when the owner keeps the checkpoint, else with a `Failure`.
    answered: Callable[[Failure | None], None]


class Savings:
    """The checkpoints of one executor's tasks that are on their way to owners.

    Attributes
    ----------
    under_way : dict
        Number of each checkpoint in messages to its `Saving`.
    """

    def __init__(self) -> None:
        self.under_way: dict[int, Saving] = {}
        self._number = 0

    def size(self, entry: Entry, name: str, pickled: bytes) -> int:
        """Return the bytes, names included, of all checkpoints of a task with one more.

        The caller compares the size with the limit before `save`.
        """
        kept = dict(restored(entry))
        # Several threads of one task may save at once: count also checkpoints under way.
        kept.update({s.name: s.pickled for s in self.under_way.values() if s.entry is entry})
        kept[name] = pickled
        return sum(len(key.encode()) + len(value) for key, value in kept.items())

    def save(
        self, entry: Entry, name: str, pickled: bytes, answered: Callable[[Failure | None], None]
    ) -> None:
        """Have the owner of a task keep a checkpoint.

        ``answered`` is called once: with None when the owner keeps the checkpoint, else with a
        `Failure`, at once when the task cannot save any more.
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
        """Take in an owner's answer: None, or the problem why a checkpoint is not kept."""
        saving = self.under_way.pop(number, None)
        if saving is None:
            return  # the wait ended before: the task was cancelled, or its owner closed
        if problem is not None:
            saving.answered(Failure("superseded", key, problem))
            return
        entry = saving.entry
        # A new dict, because the owner in this process may have the same dict as the entry.
        entry.options = {
            "depth": 0,
            **(entry.options or {}),
            "checkpoints": {**restored(entry), saving.name: saving.pickled},
        }
        saving.answered(None)

    def cancelled(self, entry: Entry) -> None:
        """End the waits of a running task whose outcome is not wanted any more."""
        self._give_up(
            [n for n, saving in self.under_way.items() if saving.entry is entry], _unwanted
        )

    def closed(self, session: Session) -> None:
        """End the waits of all tasks of a session whose owner is gone."""
        self._give_up(
            [n for n, saving in self.under_way.items() if saving.entry.session is session], _closed
        )

    def _give_up(self, numbers: Iterable[int], why: Callable[[Entry], Failure]) -> None:
        for number in numbers:
            saving = self.under_way.pop(number)
            saving.answered(why(saving.entry))


def _unwanted(entry: Entry) -> Failure:
    # Superseded: the attempt may have been cancelled because a newer attempt took its place.
    detail = f"its owner has cancelled attempt {entry.attempt}, or has started another since"
    return Failure("superseded", entry.key, detail)


def _closed(entry: Entry) -> Failure:
    name = entry.session.process[NAME]
    detail = f"its checkpoint is kept nowhere: its owner {name} is gone, or this worker closes"
    return Failure("closed", entry.key, detail)
