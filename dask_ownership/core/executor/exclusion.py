"""Suspects, tasks under which a worker may have died, run alone among the tasks of all owners.

No process knows which task a worker died of. So each task that may have been running there is a
*suspect*, and runs alone from then on: a suspect is to blame only for a death during which no
other task runs at the worker. A worker has tasks of many owners, so the worker keeps other tasks
away:

- While a suspect waits, no other task begins, until all running tasks have ended or are parked.
- Then the worker tells the suspect's owner (`ALONE`), and the suspect begins when the owner has
  heard so (`GO`). From the answer on the owner blames the suspect for a death, and not before.
- Tasks that the suspect submits run with the suspect, while the suspect waits for them. The
  suspect is to blame for these tasks, too: their owner is the process that dies.
- No other task begins before the owner has heard that the suspect is not alone any more. Only
  another parked task may go on at once, and the suspect loses its turn by that. The next parked
  task then waits for the suspect, at most as long as parked tasks wait for a slot.

Running and parked tasks may wait for tasks that are held up. So two limits of equal length apply:
one on the time for which a suspect waits to be alone, and one on the time for which it is alone.
Then the suspect runs beside other tasks, and its owner hears so, too. With each death of unknown
cause the time is four times as long: a task that kills its worker late is alone for long enough at
last.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from dask_ownership.core.executor.session import QUEUED, RUNNING, Entry, Session
from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol.messages import Key
from dask_ownership.core.protocol.names import INCARNATION, KEY

IDLE = 0.1
"""Part of its time for which a suspect is alone while parked, with no task of its family running
here: the suspect may wait for a task that is held up."""

HEARD = 1.0
"""Seconds after which the worker goes on although the owner of a suspect has not answered."""


class Exclusion:
    """The suspects at one worker.

    Parameters
    ----------
    busy : callable
        Returns how many slots are taken.
    begin : callable
        Has a queued task take a slot; returns False when its resources are not there.
    beside : callable
        Puts a queued task into the queues of tasks that run beside other tasks.

    Attributes
    ----------
    alone : Entry or None
        The suspect that has the worker for itself: its owner is asked, or the suspect runs or is
        parked.
    idle : bool
        Whether there is no suspect, and the owner of the last suspect has answered.
    """

    def __init__(
        self,
        busy: Callable[[], int],
        begin: Callable[[Entry], bool],
        beside: Callable[[Entry], None],
    ) -> None:
        self._busy = busy
        self._begin = begin
        self._beside = beside
        self.alone: Entry | None = None
        self.idle = True
        # Suspects that wait for their turn.
        self._waiting: deque[Entry] = deque()
        # The owner of `alone` has answered GO.
        self._may_begin = False
        # The last suspect, until its owner has heard that the suspect is not alone any more.
        self._parting: Entry | None = None
        # The suspect that lost its turn to a parked task.
        self._gave_way: Entry | None = None
        # Owner and key of `alone`, and of all tasks below that have begun with it.
        self._family: set[tuple[str, Key]] = set()
        # Queued tasks that the family submitted.
        self._children: deque[Entry] = deque()
        # Number of the last ALONE: each question has a time of its own.
        self._said = 0
        # When each stage was seen first, see `look`.
        self._since: dict[tuple[Entry, str, int], float] = {}

    def _look_whether_idle(self) -> None:
        self.idle = not (self.alone or self._waiting or self._parting)
        if self.idle:
            self._since.clear()  # else tasks that ended would stay in it
            self._gave_way = None

    @property
    def startable(self) -> int:
        """How many tasks may begin now: a suspect, or tasks of the suspect's family.

        While a turn ends or begins the answer is 1, so that a thread calls `next_work`.
        """
        if self._parting is not None:
            return int(self._parting.session.closed)
        if self.alone is None or self._is_over(self.alone):
            return 1
        if self.alone.state == QUEUED:
            return int(self._may_begin)
        return len(self._children)

    @property
    def parting(self) -> bool:
        """Whether the owner of the last suspect may still think that the suspect is alone."""
        return self._parting is not None and not self._parting.session.closed

    @staticmethod
    def _is_over(alone: Entry) -> bool:
        """Return whether a suspect that was alone has ended, or was cancelled."""
        return alone.state not in (QUEUED, RUNNING) or alone.cancelled

    def takes(self, entry: Entry) -> bool:
        """Take in a queued task that is a suspect, or of the family of the suspect that is alone.

        Returns
        -------
        bool
            False when the task is neither, and so waits in the other queues.
        """
        assert entry.options is not None
        if self._family and self._is_of(entry):
            self._children.append(entry)
            return True
        if "alone" in entry.options:
            self._waiting.append(entry)
            self.idle = False
            return True
        return False

    def _is_of(self, entry: Entry) -> bool:
        """Return whether a task was submitted by the family of the suspect that is alone."""
        heir = entry.options.get("heir") if entry.options is not None else None
        return heir is not None and (heir[INCARNATION], heir[KEY]) in self._family

    def next_work(self) -> tuple[Entry | None, bool]:
        """Return a task that begins now, if any, and whether all other tasks have to wait.

        The task, which has taken a slot, is a suspect or a task of the suspect's family.
        """
        alone = self.alone
        if alone is not None and self._is_over(alone):
            self._end()
            alone = None
        if alone is not None:
            if alone.state == RUNNING:
                return self._next_child(), True
            if not self._may_begin:
                return None, True
            if self._begin(alone):
                self._family.add((alone.session.owner, alone.task))
                return alone, True
            self._end()  # the suspect was put aside, and waits for a resource
        if self.parting:
            return None, True
        self._parting = None
        # Drop suspects that were cancelled or given back meanwhile.
        while self._waiting and self._waiting[0].state != QUEUED:
            self._waiting.popleft()
        if not self._waiting:
            self._look_whether_idle()
            return None, False
        # The turn of the next suspect comes when no task runs; parked tasks have no slot.
        if not self._busy():
            self.alone = self._waiting.popleft()
            self._may_begin = False
            self._say(self.alone, True)
        return None, True

    def _next_child(self) -> Entry | None:
        while self._children:
            entry = self._children.popleft()
            if entry.state == QUEUED and self._begin(entry):
                self._family.add((entry.session.owner, entry.task))
                return entry
        return None

    def _any_child(self) -> bool:
        return any(entry.state == QUEUED for entry in self._children)

    def go(self, session: Session, key: Key, attempt: int, yes: bool) -> None:
        """Take in `GO`: the owner knows that a suspect is alone (``yes``), or is not any more."""
        entry = self.alone if yes else self._parting
        # A late answer, about an earlier suspect or turn, changes nothing.
        if entry is None or (entry.session, entry.key, entry.attempt) != (session, key, attempt):
            return
        if yes:
            self._may_begin = True
        else:
            self._parting = None
            self._look_whether_idle()

    def holds_back(self, entry: Entry) -> bool:
        """Return whether a parked task that could go on has to wait for the suspect.

        A parked task that polls would take the turn of the suspect each time, before the owner
        of the suspect has answered.
        """
        alone = self.alone
        if alone is None or alone is not self._gave_way or self._is_over(alone):
            return False
        return (entry.session.owner, entry.task) not in self._family

    def comes_back(self, entry: Entry) -> None:
        """End the turn of the suspect, because a parked task outside its family goes on."""
        alone = self.alone
        if alone is None or (entry.session.owner, entry.task) in self._family:
            return
        self._end()
        # A suspect that has not begun yet is the next again.
        if alone.state == QUEUED:
            self._waiting.appendleft(alone)
            self._gave_way = alone

    def look(self, now: float) -> None:
        """End turns and questions that take too long; called now and then, with seconds."""
        # Only stages that are met again are carried over, with the time when each was met first.
        before, self._since = self._since, {}

        def lasts(entry: Entry, stage: str, number: int = 0) -> float:
            since = self._since[entry, stage, number] = before.get((entry, stage, number), now)
            return now - since

        first = self.alone or (self._waiting[0] if self._waiting else None)
        too_long = False
        if first is not None:
            assert first.options is not None
            # A suspect whose turn comes and goes, as parked tasks go on, waits all the time.
            stage = "runs" if first.state == RUNNING else "waits"
            too_long = lasts(first, stage) >= first.options["alone"]
            if first is self.alone and stage == "waits" and not self._may_begin:
                too_long = lasts(first, "asks", self._said) >= HEARD or too_long
            if stage == "runs" and not self._busy() and not self._any_child():
                too_long = lasts(first, "idles") >= IDLE * first.options["alone"] or too_long
        if self._parting is not None:
            # The owner does not answer: the worker goes on all the same.
            if lasts(self._parting, "parts", self._said) >= HEARD:
                self._parting = None
        elif first is not None and too_long:
            if first is self.alone:
                self._end()
            else:
                self._part(self._waiting.popleft())
            if first.state == QUEUED:
                self._beside(first)
        self._look_whether_idle()

    def _end(self) -> None:
        """End the turn of the suspect that is alone, and have its children queue as other tasks.

        The suspect has ended or was cancelled, or its time is up, or a parked task goes on.
        """
        if self.alone is not None:
            self._part(self.alone)
        self.alone = None
        self._family.clear()
        while self._children:
            entry = self._children.popleft()
            if entry.state == QUEUED:
                self._beside(entry)

    def _part(self, entry: Entry) -> None:
        """Let no task begin until the owner of a suspect knows that the suspect is not alone."""
        if not entry.session.closed:
            self._say(entry, False)
            self._parting = entry

    def _say(self, entry: Entry, yes: bool) -> None:
        """Tell the owner of a suspect whether the suspect is alone; the owner answers `GO`."""
        self._said += 1
        entry.session.outbox.append((m.ALONE, entry.key, entry.attempt, yes))
