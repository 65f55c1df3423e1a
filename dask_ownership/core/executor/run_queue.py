"""Which task a free slot takes, and how many slots are taken.

Queued tasks wait in one queue for each level: the user's priority, and below the priority the
nesting, because shallower tasks wait for deeper ones. Within a level owners take turns. A parked
task gives its slot up (`executor.crowd`), comes back to go on, and then comes first. Suspects run
alone (`executor.exclusion`), and tasks that lack a resource are put aside (`executor.resources`).
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
"""Bits of the nesting in a level; the user's priority is above these bits."""

DEEPEST_LEVEL = -(1 << DEPTH_BITS) + 1
"""The level of the deepest nesting without a priority; levels from here to 0 are kept."""

MANY_LEVELS = 64
"""Levels beyond which empty levels of priorities are forgotten."""


def _depth_of(level: int) -> int:
    """Return the nesting of the tasks of a level."""
    return -level & ((1 << DEPTH_BITS) - 1)


class RunQueue:
    """The slots of one executor, and the tasks that want slots.

    The entry of a task that is cancelled or given back stays in its queue until its turn: removal
    from the middle would cost a search.

    Parameters
    ----------
    nthreads : int
        Threads of the worker.
    slots : int
        The slots that tasks may use at first.
    resources : Resources
        The resources that tasks may take.
    sessions : dict
        The sessions of the executor, by owner.

    Attributes
    ----------
    nthreads : int
        Threads of the worker; `ExecutorCore.set_accepting` changes the number.
    slots : int
        How many tasks may run at once now; the runtime changes the number as it leases slots.
    busy : int
        How many slots are taken; may exceed ``slots`` for a while, see `goes_on`.
    queued : int
        How many tasks lack nothing but a slot, suspects included.
    accepting : bool
        Whether the worker takes new tasks.
    resources : Resources
        Tasks that lack a resource.
    crowd : Crowd
        Parked tasks.
    exclusion : Exclusion
        Tasks that run alone.
    resuming : deque
        Parked tasks that want a slot to go on, each behind its token.
    """

    def __init__(
        self, nthreads: int, slots: int, resources: Resources, sessions: Mapping[str, Session]
    ) -> None:
        self.nthreads = nthreads
        self.slots = slots
        self.busy = 0
        self.queued = 0
        self.accepting = True
        self.crowd = Crowd(nthreads)
        self.exclusion = Exclusion(lambda: self.busy, self.begin, self.queue_beside)
        self.resources = resources
        self.resuming: deque[tuple[Any, Entry]] = deque()
        self._sessions = sessions
        # Level to the sessions with queued tasks there, the next one first.
        self._turns: dict[int, deque[Session]] = {}
        # The levels of `_turns`, in order.
        self._levels: list[int] = []
        # Queues may have entries of tasks that are not queued any more.
        self._passed_over = False

    # ---- queued tasks ----

    def add(self, entry: Entry) -> None:
        """Queue a task that lacks nothing but a slot."""
        entry.state = QUEUED
        self.queued += 1
        options = entry.options
        exclusion = self.exclusion
        # The push names a suspect; other tasks can be of its family only while a suspect is here.
        perhaps = options is not None and ("alone" in options or not exclusion.idle)
        if not (perhaps and exclusion.takes(entry)):
            self.queue_beside(entry)

    def queue_beside(self, entry: Entry) -> None:
        """Put a queued task into the queue of its level and owner, to run beside other tasks."""
        depth = entry.options["depth"] if entry.options else 0
        # `protocol.order.urgency` and `Entry.depth` without the calls: each task comes here.
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
                    # Closing may have taken this empty queue out of the session.
                    queue = session.queues.setdefault(level, queue)
                turns = self._turns[level] = deque()
                insort(self._levels, level)
            turns.append(session)
        queue.push(entry)
        if entry.awaited:
            self.crowd.awaited.append(entry)

    def leave(self) -> None:
        """Count a queued task no more that was cancelled or given back; its entry may stay."""
        self.queued -= 1
        self._passed_over = bool(self.queued)
        if not self.queued:
            self._clear_queues()

    def awaited(self, names: Iterable[tuple[str, Key]]) -> None:
        """Have the tasks start first that make objects for which parked tasks wait.

        Parameters
        ----------
        names : iterable of tuple
            Owner and key of each object. Tasks here that make one, or an input of one, start
            first; objects of which the executor has no entry change nothing.
        """
        for owner, key in names:
            session = self._sessions.get(owner)
            entry = session.entries.get(key) if session is not None else None
            if entry is not None:
                self.crowd.await_((entry,))

    @property
    def startable(self) -> int:
        """How many queued tasks may start when slots are free, for the runtime to wake threads."""
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
        """How many tasks are queued, run or are parked."""
        return self.busy + self.queued + len(self.crowd)

    def _close_levels(self) -> None:
        """Forget levels of priorities without queued tasks.

        A user may give very many priorities; the levels without a priority are few, and stay.
        """
        for level in [n for n in self._levels if n > 0 or n < DEEPEST_LEVEL]:
            if not self._turns[level]:
                del self._turns[level]
                self._levels.remove(level)
                for session in self._sessions.values():
                    session.queues.pop(level, None)

    def _clear_queues(self) -> None:
        """Empty the queues when no task is queued, of entries that were passed over.

        These entries began as awaited tasks, or were cancelled or given back. An entry in a queue
        would keep its value alive.
        """
        self._passed_over = False
        self.crowd.awaited.clear()
        for turns in self._turns.values():
            turns.clear()
        for session in self._sessions.values():
            session.queues.clear()

    # ---- slots ----

    def next_work(self) -> Any:
        """Return the work of a free slot: a token, an entry, or None when there is no work.

        A token is of a parked task that goes on (`wants_slot`); an entry is of a task that
        begins. The caller that gets either has taken the slot. Parked tasks come first; then
        tasks that parked tasks wait for; then the tasks of the highest user's priority, of all
        owners; then deeper tasks before shallower tasks, because the shallower ones wait for the
        deeper ones; then owners in turn.
        """
        # Busy may be above: a parked task may have gone on without a free slot.
        if self.busy >= self.slots:
            return None
        if self.resuming and (token := self.resume_next()) is not None:
            return token
        # A suspect holds up all tasks but those of its family.
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
        # A full worker begins only tasks nested deeper than all parked tasks.
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
                # Passed over: the task began as an awaited one, or was cancelled or given back;
                # or lacks a resource, and is put aside by `begin`.
                if entry.state != QUEUED or not self.begin(entry):
                    continue
                if not turns and (level > 0 or level < DEEPEST_LEVEL):
                    self._close_levels()
                return entry
        return None

    def resume_next(self) -> Any:
        """Give a slot to the next parked task that can go on.

        Returns
        -------
        object
            The token of the task, as given to `wants_slot`; None when no task may take a slot.
        """
        exclusion = self.exclusion
        if not self.resuming or self.busy >= self.slots or exclusion.parting:
            return None
        # A parked task outside the family ends the turn of the suspect; some wait for the suspect.
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
                return None  # the task goes on when the owner of the suspect has answered
            self.resuming.remove(first)
        self._resumed(entry)
        return token

    def begin(self, entry: Entry) -> bool:
        """Have a queued task take a free slot; return False when its resources are not there."""
        self.queued -= 1
        if entry.awaited:
            self._passed_over = True  # the entry is in two queues, and leaves one
        if self._passed_over and not self.queued:
            self._clear_queues()
        # A task that lacks a resource is put aside, and its slot stays free.
        if entry.takes_resources_or_pool and not self.resources.acquire(entry):
            return False
        entry.state = RUNNING
        self.busy += 1
        if self.crowd.one_more:
            self.crowd.began()
        return True

    def released_slot(self) -> None:
        """Free the slot of a task that ended."""
        self.busy -= 1

    def parked(self, entry: Entry, counts: bool = True) -> None:
        """Free the slot of a running task that is parked.

        ``counts`` is False when the task has said itself that other tasks should begin meanwhile.
        """
        self.busy -= 1
        self.crowd.add(entry, counts)
        # The owner stops counting the task in the worker's window: tasks that the parked task
        # waits for may need the room.
        if not entry.cancelled:
            entry.session.outbox.append((m.PARKED, entry.key, entry.attempt))

    def ended_parked(self, entry: Entry) -> None:
        """Take out a parked task that ended without taking a slot again."""
        self.crowd.remove(entry)

    def wants_slot(self, token: Any, entry: Entry) -> None:
        """Queue a parked task that can go on; `next_work` returns the token with a slot."""
        if not self.exclusion.holds_back(entry):
            self.exclusion.comes_back(entry)
        self.resuming.append((token, entry))

    def goes_on(self, entry: Entry) -> None:
        """Have a parked task go on at once, for a while on one slot more than there are.

        The tasks with the slots may wait for a thing that the parked task has, such as a lock,
        and never give their slots up.
        """
        self.exclusion.comes_back(entry)
        self._resumed(entry)

    def stops_waiting(self, token: Any, entry: Entry) -> bool:
        """Have a parked task that waits for a slot go on without a free slot, as in `goes_on`.

        Returns
        -------
        bool
            False when the task was given a slot just before.
        """
        try:
            self.resuming.remove((token, entry))
        except ValueError:
            return False
        self.goes_on(entry)
        return True

    def stays_parked(self, entry: Entry) -> Any:
        """Withdraw the wish of a parked task for a slot: the task waits for something else.

        Returns
        -------
        object
            The token, as given to `wants_slot`; None when the task has no such wish.
        """
        for pair in self.resuming:
            if pair[1] is entry:
                self.resuming.remove(pair)
                return pair[0]
        return None

    def _resumed(self, entry: Entry) -> None:
        self.busy += 1
        self.crowd.remove(entry)

    # ---- resources ----

    def lend(self, borrow: Callable[[Amounts], bool]) -> None:
        """Lease resources for put-aside tasks, for as many tasks as may find a slot.

        ``borrow`` is as in `Resources.lend`.
        """
        if self.resources.lend(borrow, self.nthreads - self.busy - self.queued):
            self.reconsider()

    def release_resources(self, entry: Entry) -> None:
        """Free the resources of a task that ends; put-aside tasks then try again."""
        # Only a running task has taken resources: any other task never began, or is put aside.
        if (
            entry.takes_resources_or_pool
            and entry.state == RUNNING
            and self.resources.release(entry)
        ):
            self.reconsider()

    def reconsider(self) -> None:
        """Queue the put-aside tasks again; each takes its resources at its turn, if free."""
        for waiting in self.resources.reconsider():
            self.add(waiting)
