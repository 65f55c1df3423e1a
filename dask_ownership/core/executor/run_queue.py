"""Which task a free slot takes, and how many slots are taken.

Tasks that could start wait in one queue for each level: the user's priority, and below that the
nesting, because shallower tasks wait for deeper ones. Within a level owners take turns. A task that
waits for something gives its slot up (`executor.crowd`), comes back to go on, and then comes first.
Suspects run alone (`executor.exclusion`), and tasks that lack a resource are put aside
(`executor.resources`).
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dask_ownership.core.executor.crowd import Crowd
from dask_ownership.core.executor.exclusion import Exclusion
from dask_ownership.core.executor.resources import Resources
from dask_ownership.core.executor.session import QUEUED, RUNNING, Entry, Session
from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol.amounts import Amounts
from dask_ownership.core.protocol.messages import Key
from dask_ownership.core.protocol.order import BAND, URGENT
from dask_ownership.core.queue import OrderedQueue

DEPTH_BITS = 20
"""A queue is for one level: the user's priority, and below these bits the nesting."""

DEEPEST_LEVEL = -(1 << DEPTH_BITS) + 1
"""The level of the deepest nesting without a priority; those from here to 0 are kept."""

MANY_LEVELS = 64


def _depth_of(level: int) -> int:
    return -level & ((1 << DEPTH_BITS) - 1)


class RunQueue:
    """The slots of one executor, and the tasks that want them.

    Parameters
    ----------
    nthreads : int
        Threads of the worker, and at first the slots that may be used.
    resources : dict
        Abstract resources of the worker and how much of each.
    sessions : dict
        Those of the executor, by owner.

    Attributes
    ----------
    slots : int
        How many tasks may run at once now; the runtime changes it.
    busy : int
        Slots that are taken.
    queued : int
        Tasks that could start.
    accepting : bool
        Whether the worker takes new tasks.
    resources : Resources
    crowd : Crowd
        Tasks without a slot that wait for something.
    exclusion : Exclusion
        Tasks that run alone.
    resuming : deque
        Those that want a slot to go on, with their tokens.
    """

    def __init__(
        self, nthreads: int, resources: dict[str, float], sessions: Mapping[str, Session]
    ) -> None:
        self.nthreads = nthreads
        self.slots = nthreads
        self.busy = 0
        self.queued = 0
        self.accepting = True
        self.crowd = Crowd(nthreads)
        self.exclusion = Exclusion(lambda: self.busy, self.begin, self.queue_beside)
        self.resources = Resources(resources)
        self.resuming: deque[tuple[Any, Entry]] = deque()
        self._sessions = sessions
        self._turns: dict[int, deque[Session]] = {}
        self._levels: list[int] = []
        self._passed_over = False

    # ---- tasks that could start ----

    def add(self, entry: Entry) -> None:
        """A task has all that it needs but a slot."""
        entry.state = QUEUED
        self.queued += 1
        options = entry.options
        exclusion = self.exclusion
        # A suspect is named so; and only while one is there may others be of it.
        perhaps = options is not None and ("alone" in options or not exclusion.idle)
        if not (perhaps and exclusion.takes(entry)):
            self.queue_beside(entry)

    def queue_beside(self, entry: Entry) -> None:
        """Have a queued task begin beside others."""
        depth = entry.options["depth"] if entry.options else 0
        level = ((entry.order - URGENT >> BAND) << DEPTH_BITS) - depth
        session = entry.session
        queue = session.queues.get(level)
        if queue is None:
            queue = session.queues[level] = OrderedQueue()
        if not queue.size:
            turns = self._turns.get(level)
            if turns is None:
                if len(self._levels) > MANY_LEVELS:
                    self._close_levels()
                    queue = session.queues.setdefault(level, queue)
                turns = self._turns[level] = deque()
                insort(self._levels, level)
            turns.append(session)
        queue.push(entry)
        if entry.awaited:
            self.crowd.awaited.append(entry)

    def leave(self) -> None:
        """A queued task is not to begin any more."""
        self.queued -= 1
        self._passed_over = bool(self.queued)
        if not self.queued:
            self._clear_queues()

    def awaited(self, names: Iterable[tuple[str, Key]]) -> None:
        """Parked tasks wait for the objects of these owners and keys: what is here of the tasks
        that make them, or that those need, starts first."""
        for owner, key in names:
            session = self._sessions.get(owner)
            entry = session.entries.get(key) if session is not None else None
            if entry is not None:
                self.crowd.await_((entry,))

    @property
    def startable(self) -> int:
        """How many queued tasks may start when there are slots."""
        if not self.exclusion.idle:
            return self.exclusion.startable
        if not self.queued or not self.crowd.full:
            return self.queued
        deepest = self.crowd.deepest
        deeper = sum(
            len(session.queues[level])
            for level in self._levels
            if _depth_of(level) > deepest
            for session in self._turns[level]
        )
        return min(self.queued, deeper + len(self.crowd.awaited))

    @property
    def unfinished(self) -> int:
        """Tasks that could run, run or are parked."""
        return self.busy + self.queued + len(self.crowd)

    def _close_levels(self) -> None:
        """Forget levels of priorities where nothing is queued: there may be very many."""
        for level in [n for n in self._levels if n > 0 or n < DEEPEST_LEVEL]:
            if not self._turns[level]:
                del self._turns[level]
                self._levels.remove(level)
                for session in self._sessions.values():
                    session.queues.pop(level, None)

    def _clear_queues(self) -> None:
        """Nothing is queued: forget what began or was given back without its turn, which may
        hold a value."""
        self._passed_over = False
        self.crowd.awaited.clear()
        for turns in self._turns.values():
            turns.clear()
        for session in self._sessions.values():
            session.queues.clear()

    # ---- slots ----

    def next_work(self) -> Any:
        """What a free slot does: a parked task that goes on, a task, or None.

        The caller that gets something has taken the slot. Parked tasks come first; then what
        those wait for; then the user's priority, whoever owns the task; then deeper tasks before
        shallower, because shallower ones wait for them; then owners in turn.
        """
        if self.busy >= self.slots:
            return None
        if self.resuming and (token := self.resume_next()) is not None:
            return token
        if not self.exclusion.idle:
            suspect, alone = self.exclusion.next_work()
            if alone:
                return suspect
        crowd = self.crowd
        if not self.queued or not self.accepting:
            return None
        while crowd.awaited and (first := crowd.take_awaited()) is not None:
            if self.begin(first):
                return first
        full = crowd.waiting and crowd.full
        for level in self._levels:
            if full and _depth_of(level) <= crowd.deepest:
                continue
            turns = self._turns[level]
            while turns:
                session = turns[0]
                queue = session.queues.get(level)
                if queue is None or not queue.size:
                    turns.popleft()
                    continue
                entry = queue.pop()
                if not queue.size:
                    turns.popleft()
                elif len(turns) > 1:
                    turns.rotate(-1)
                if entry.state != QUEUED or not self.begin(entry):
                    continue
                if not turns and (level > 0 or level < DEEPEST_LEVEL):
                    self._close_levels()
                return entry
        return None

    def resume_next(self) -> Any:
        """What `wants_slot` was given for the next parked task that goes on, or None."""
        exclusion = self.exclusion
        if not self.resuming or self.busy >= self.slots or exclusion.parting:
            return None
        if exclusion.alone is None:
            token, entry = self.resuming.popleft()
        else:
            waiting = (pair for pair in self.resuming if not exclusion.holds_back(pair[1]))
            first = next(waiting, None)
            if first is None:
                return None
            token, entry = first
            exclusion.comes_back(entry)
            if exclusion.parting:
                return None  # it goes on when the owner of the suspect knows
            self.resuming.remove(first)
        self._resumed(entry)
        return token

    def begin(self, entry: Entry) -> bool:
        """Have a queued task take a free slot; False when its resources are not there."""
        self.queued -= 1
        if entry.awaited:
            self._passed_over = True  # it is in two queues, and leaves one
        if self._passed_over and not self.queued:
            self._clear_queues()
        if entry.limited and not self.resources.acquire(entry):
            return False
        entry.state = RUNNING
        self.busy += 1
        if self.crowd.one_more:
            self.crowd.began()
        return True

    def released_slot(self) -> None:
        """A slot is free again: its task ended, or it had nothing to do."""
        self.busy -= 1

    def parked(self, entry: Entry, counts: bool = True) -> None:
        """A running task waits for something and gives its slot up.

        ``counts`` is False when the task said itself that others should begin meanwhile.
        """
        self.busy -= 1
        self.crowd.add(entry, counts)
        if not entry.cancelled:
            entry.session.outbox.append((m.PARKED, entry.key, entry.attempt))

    def ended_parked(self, entry: Entry) -> None:
        """A task ended without having taken a slot again."""
        self.crowd.remove(entry)

    def wants_slot(self, token: Any, entry: Entry) -> None:
        """A parked task can go on; `next_work` gives the token when there is a slot."""
        if not self.exclusion.holds_back(entry):
            self.exclusion.comes_back(entry)
        self.resuming.append((token, entry))

    def goes_on(self, entry: Entry) -> None:
        """A parked task goes on at once, for a while on one slot more than there are.

        Those that have the slots may wait for what it has, such as a lock, and never give
        theirs up.
        """
        self.exclusion.comes_back(entry)
        self._resumed(entry)

    def stops_waiting(self, token: Any, entry: Entry) -> bool:
        """A parked task that waits for a slot goes on without it, as in `goes_on`.

        False when it was given one just before.
        """
        try:
            self.resuming.remove((token, entry))
        except ValueError:
            return False
        self.goes_on(entry)
        return True

    def _resumed(self, entry: Entry) -> None:
        self.busy += 1
        self.crowd.remove(entry)

    # ---- resources ----

    def lend(self, borrow: Callable[[Amounts], bool]) -> None:
        """Have tasks that wait for resources get them, as far as slots may be there."""
        if self.resources.lend(borrow, self.nthreads - self.busy - self.queued):
            self.reconsider()

    def release_resources(self, entry: Entry) -> None:
        if entry.limited and entry.state == RUNNING and self.resources.release(entry):
            self.reconsider()

    def reconsider(self) -> None:
        """Look at what was put aside again."""
        for waiting in self.resources.reconsider():
            self.add(waiting)
