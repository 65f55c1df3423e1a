"""Tasks that a worker may have died of run alone, whoever owns what else is there.

Nobody knows which of its tasks a worker died of. So each that may have been running there is a
*suspect*, and runs alone from then on: only what a worker dies of while nothing else runs there is
its fault. A worker has tasks of many owners, so the worker sees to it:

- While a suspect waits, nothing else begins, until what runs there has ended or is parked.
- Then the worker says so (`ALONE`), and the suspect begins when its owner has heard it (`GO`):
  from there on the owner blames it, and nothing that dies before is.
- What it submits runs with it, while it waits for that: it is to blame for those, too, whose
  owner is the process that dies.
- Nothing else begins before the owner has heard that it is not alone any more. Only another task
  that was parked may go on at once; when one did so before, so that the suspect lost its turn, the
  next waits for the suspect, for as long as parked tasks wait for a slot.

What runs, or what is parked, may wait for what is kept waiting. So a suspect is alone for a
limited time, and waits for it no longer than that: then it runs beside others, which its owner
hears, too. With each death of which nobody knows whose fault it was, that time is four times as
long: a task that has its worker die late is alone for long enough at last.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from dask_ownership.core.executor.session import QUEUED, RUNNING, Entry, Session
from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol.messages import Key

IDLE = 0.1
"""Part of that time for which a suspect is alone while it is parked and nothing of it runs here:
what it waits for may be what is held up."""

HEARD = 1.0
"""Seconds after which others begin though the owner of the last suspect did not answer."""


class Exclusion:
    """The suspects at one worker.

    Parameters
    ----------
    busy : callable
        How many slots are taken.
    begin : callable
        Has a queued task take a slot; False when its resources are not there.
    beside : callable
        Has a queued task begin beside others.

    Attributes
    ----------
    alone : Entry or None
        The suspect that has the worker for itself: its owner is asked, or it runs, or it is
        parked.
    idle : bool
        There is none, and none was just before.
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
        self._waiting: deque[Entry] = deque()
        self._may_begin = False
        self._parting: Entry | None = None
        self._gave_way: Entry | None = None
        self._family: set[tuple[str, Key]] = set()
        self._children: deque[Entry] = deque()
        self._said = 0
        self._since: dict[tuple[Entry, str, int], float] = {}

    def _look_whether_idle(self) -> None:
        self.idle = not (self.alone or self._waiting or self._parting)
        if self.idle:
            self._since.clear()  # nobody looks any more, and it has tasks that ended
            self._gave_way = None

    @property
    def startable(self) -> int:
        """How many tasks may begin: the suspect, or it may be its turn; or what it submitted."""
        if self._parting is not None:
            return int(self._parting.session.closed)
        if self.alone is None or self._is_over(self.alone):
            return 1
        if self.alone.state == QUEUED:
            return int(self._may_begin)
        return len(self._children)

    @property
    def parting(self) -> bool:
        """Whether the owner of the last suspect may still think that it is alone."""
        return self._parting is not None and not self._parting.session.closed

    @staticmethod
    def _is_over(alone: Entry) -> bool:
        """Whether a suspect that was alone has ended, or is not wanted any more."""
        return alone.state not in (QUEUED, RUNNING) or alone.cancelled

    def takes(self, entry: Entry) -> bool:
        """Whether a task that has all that it needs, and options, is one, or of the one that is
        alone."""
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
        """Whether the task that is alone submitted it, or one that it submitted did."""
        heir = entry.options.get("heir") if entry.options is not None else None
        return heir is not None and (heir[0], heir[3]) in self._family

    def next_work(self) -> tuple[Entry | None, bool]:
        """The suspect when it begins, and whether nothing else may."""
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
            self._end()  # it waits for a resource
        if self.parting:
            return None, True
        self._parting = None
        while self._waiting and self._waiting[0].state != QUEUED:
            self._waiting.popleft()
        if not self._waiting:
            self._look_whether_idle()
            return None, False
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
        """The owner of a suspect knows that it is alone, or that it is not any more."""
        entry = self.alone if yes else self._parting
        if entry is None or (entry.session, entry.key, entry.attempt) != (session, key, attempt):
            return
        if yes:
            self._may_begin = True
        else:
            self._parting = None
            self._look_whether_idle()

    def holds_back(self, entry: Entry) -> bool:
        """Whether a task that was parked and could go on is to wait for the suspect.

        A task that looks for something again and again would take the turn of the suspect each
        time, before the owner of the suspect has answered.
        """
        alone = self.alone
        if alone is None or alone is not self._gave_way or self._is_over(alone):
            return False
        return (entry.session.owner, entry.task) not in self._family

    def comes_back(self, entry: Entry) -> None:
        """A task that was parked is about to go on: nobody is alone any more."""
        alone = self.alone
        if alone is None or (entry.session.owner, entry.task) in self._family:
            return
        self._end()
        if alone.state == QUEUED:
            self._waiting.appendleft(alone)
            self._gave_way = alone

    def look(self, now: float) -> None:
        """End what takes too long; called now and then, with seconds."""
        before, self._since = self._since, {}

        def lasts(entry: Entry, stage: str, number: int = 0) -> float:
            since = self._since[entry, stage, number] = before.get((entry, stage, number), now)
            return now - since

        first = self.alone or (self._waiting[0] if self._waiting else None)
        too_long = False
        if first is not None:
            assert first.options is not None
            # One whose turn comes and goes, as others that are parked go on, waits all the time.
            stage = "runs" if first.state == RUNNING else "waits"
            too_long = lasts(first, stage) >= first.options["alone"]
            if first is self.alone and stage == "waits" and not self._may_begin:
                too_long = lasts(first, "asks", self._said) >= HEARD or too_long
            if stage == "runs" and not self._busy() and not self._any_child():
                too_long = lasts(first, "idles") >= IDLE * first.options["alone"] or too_long
        if self._parting is not None:
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
        """Nobody is alone any more: it ended, was taken back, or others may begin."""
        if self.alone is not None:
            self._part(self.alone)
        self.alone = None
        self._family.clear()
        while self._children:
            entry = self._children.popleft()
            if entry.state == QUEUED:
                self._beside(entry)

    def _part(self, entry: Entry) -> None:
        """Let nothing begin until the owner of a suspect knows that it is not alone."""
        if not entry.session.closed:
            self._say(entry, False)
            self._parting = entry

    def _say(self, entry: Entry, yes: bool) -> None:
        self._said += 1
        entry.session.outbox.append((m.ALONE, entry.key, entry.attempt, yes))
