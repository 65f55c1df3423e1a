"""Slots and locks of one worker of the virtual cluster: how tasks give them up and get them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from dask_ownership.core.executor.executor import ExecutorCore
from dask_ownership.core.executor.session import Entry
from dask_ownership.core.owner.rows.row import Borrowed, Row
from dask_ownership.core.protocol.messages import Key
from dask_ownership.core.protocol.names import INCARNATION, KEY
from dask_ownership.testing.clock import SECOND
from dask_ownership.testing.locks import Locks
from dask_ownership.testing.owner import WINDOW, VirtualOwner
from dask_ownership.testing.task import Task
from dask_ownership.testing.world import World

PATIENCE = 90_000.0
"""Virtual microseconds for which a parked task that can go on waits for a slot."""

LONG = 10_000.0
"""Virtual microseconds after which a task that waits for a lock of the cluster is parked."""


def names_of(home: str, rows: Iterable[Row]) -> list[tuple[str, Key]]:
    """Return owners and keys of the objects of rows, for the rows that have not ended."""
    return [
        (row.owner_ref[INCARNATION], row.owner_ref[KEY])
        if isinstance(row, Borrowed)
        else (home, row.key)
        for row in rows
        if not row.done
    ]


class Parking:
    """Has tasks give up their slots while they wait, and ask for slots again, as the runtime does.

    Parameters
    ----------
    world : World
    owner : VirtualOwner
        The owner in the worker's process.
    core : ExecutorCore
    wants_step : callable
        Has the worker take a step.

    Attributes
    ----------
    beyond : set of Entry
        Tasks that went on without a slot, because none became free in `PATIENCE`.
    """

    def __init__(
        self,
        world: World,
        owner: VirtualOwner,
        core: ExecutorCore,
        wants_step: Callable[[], None],
    ) -> None:
        self.world = world
        self.owner = owner
        self.core = core
        self.wants_step = wants_step
        self.beyond: set[Entry] = set()
        self._locks = Locks()
        self._has_locks: dict[Entry, tuple[str, str]] = {}
        self._watching = False
        self._ended_at = 0.0

    def watch(self) -> None:
        """Look later whether more tasks may begin, when tasks are kept from beginning now."""
        if (
            self.core.queue.crowd.full or not self.core.queue.exclusion.idle
        ) and not self._watching:
            self._watching = True
            self.owner.later(SECOND / 10, self._watch)

    def _watch(self) -> None:
        """Look whether more tasks may begin, as `Executor._look` does."""
        self._watching = False
        self.core.queue.crowd.relieve((self.world.clock.now - self._ended_at) / 1e6)
        self.core.queue.exclusion.look(self.world.clock.seconds)
        self._look_at_awaited()
        self.wants_step()

    def _look_at_awaited(self) -> None:
        """Have the tasks for which parked tasks wait start first, here and at this owner."""
        rows = [row for entry in self.core.queue.crowd.waiting for row in entry.awaits]
        # Inputs of these rows as well: the list grows while it is walked.
        for row in rows:
            rows.extend(one for one in row.dependencies if one not in rows)
        self.core.queue.awaited(names_of(self.core.home, rows))
        if self.core.queue.crowd.full:
            self.owner.core.hurry(rows, self.world.clock.now)
            self.owner.wants_step()

    def park(self, entry: Entry, rows: Iterable[Row] = ()) -> None:
        """Give up the slot of a task that waits for rows, or for an event without a row."""
        self.beyond.discard(entry)
        entry.awaits = tuple(rows)
        self.core.queue.parked(entry)
        if self.core.queue.crowd.full:
            self.core.queue.awaited(names_of(self.core.home, entry.awaits))

    def want_slot(self, entry: Entry, go_on: Callable[[], None]) -> None:
        """Have a parked task go on with a slot, or without one after `PATIENCE`."""
        entry.awaits = ()
        self.core.queue.wants_slot(go_on, entry)
        self.owner.later(PATIENCE, partial(self._lacks_slot, entry, go_on))
        self.wants_step()

    def _lacks_slot(self, entry: Entry, go_on: Callable[[], None]) -> None:
        """Have a task that still waits for a slot go on without one."""
        # The tasks with slots may wait for a lock of this task, and never give a slot up.
        if self.owner.alive and self.core.queue.stops_waiting(go_on, entry):
            self.beyond.add(entry)
            go_on()
            self.wants_step()

    def release_slot(self, entry: Entry) -> None:
        """Free the slot and the locks of a task that ended."""
        self.core.queue.released_slot()
        self.beyond.discard(entry)
        self._ended_at = self.world.clock.now
        local, of_cluster = self._has_locks.pop(entry, ("", ""))
        # The scheduler hears of it after a while. A lock of the process is free at once.
        if of_cluster:
            self.owner.later(
                self.world.network.delay(), lambda: self.world.locks.release(of_cluster, entry)
            )
        if local:
            self._locks.release(local, entry)
        self.wants_step()

    # ---- locks ----

    def take_locks(self, entry: Entry, task: Task, begin: Callable[[], None]) -> None:
        """Begin a task when it has its locks: first the one of its process, for which it keeps its
        slot, then the one of the cluster."""
        self._has_locks[entry] = (task.local_lock, task.cluster_lock)

        def has_local() -> None:
            if task.cluster_lock and self.owner.alive:
                self.owner.later(
                    self.world.network.delay(), partial(self._ask_cluster, entry, task, begin)
                )
            else:
                begin()

        if task.local_lock:
            self._locks.acquire(task.local_lock, entry, has_local)
        else:
            has_local()

    def _ask_cluster(self, entry: Entry, task: Task, begin: Callable[[], None]) -> None:
        """Ask the scheduler for a lock, and give the slot up when that lasts."""
        parked = over = False

        def lasts() -> None:
            nonlocal parked
            if self.owner.alive and not over:
                parked = True
                self.park(entry)
                self.wants_step()

        def granted() -> None:
            self.owner.later(self.world.network.delay(), arrives)

        def arrives() -> None:
            nonlocal over
            over = True
            # The process has ended while the lock was on its way: the next task gets it.
            if not self.owner.alive:
                self.world.locks.release(task.cluster_lock, entry)
            elif parked:
                self.want_slot(entry, begin)
            else:
                begin()

        self.owner.later(LONG, lasts)
        self.world.locks.acquire(task.cluster_lock, entry, granted)

    def end(self) -> None:
        """Free the locks of the cluster that tasks of an ended process had, a while later."""
        for entry, (_, lock) in self._has_locks.items():
            self.world.clock.later(WINDOW, partial(self.world.locks.release, lock, entry))
