"""A cluster in one thread: the real core over a virtual network and clock.

Every owner, executor and link state is the one that runs on a real cluster. Only
what surrounds them is virtual: messages travel through a seeded network that
delays them, reorders them between links, delivers them twice and breaks
connections; tasks are small descriptions that "run" for a virtual time. The same
seed gives the same run, so a failure is replayed by its seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import inf
from random import Random

from dask_ownership.testing.clock import Clock
from dask_ownership.testing.locks import Locks
from dask_ownership.testing.network import Faults, Network
from dask_ownership.testing.observer import Observer
from dask_ownership.testing.owner import WINDOW, VirtualOwner
from dask_ownership.testing.record import Record
from dask_ownership.testing.scheduler import VirtualScheduler
from dask_ownership.testing.task import Task
from dask_ownership.testing.waits import Waits
from dask_ownership.testing.worker import VirtualWorker
from dask_ownership.testing.world import World

NO_WORKERS_TIMEOUT = 100_000.0
"""Virtual microseconds between looks for tasks that no worker may run; the second ends them."""

__all__ = ["Faults", "Task", "VirtualCluster", "VirtualOwner", "VirtualWorker"]


class VirtualCluster:
    """Owners and workers over a seeded network and clock.

    Parameters
    ----------
    seed : int
    workers, slots : int
    clients : int
        Owners that are not workers.
    faults : Faults, optional
    check : bool
        Check the invariants after every event.
    resources : sequence of dict
        Those of the first workers.
    meshed : bool
        Whether workers link to each other; where no task submits any that only costs time.
    longest_wait : float, optional
        Virtual microseconds for which a row may wait, see `Waits`.
    no_workers_timeout : float or None
        Virtual microseconds between looks for tasks that no worker may run; the second ends them.

    Attributes
    ----------
    world : World
        What its processes share.
    """

    def __init__(
        self,
        seed: int = 0,
        workers: int = 2,
        slots: int = 1,
        clients: int = 1,
        faults: Faults | None = None,
        *,
        check: bool = True,
        resources: Sequence[dict[str, float]] = (),
        meshed: bool = True,
        longest_wait: float | None = None,
        no_workers_timeout: float | None = NO_WORKERS_TIMEOUT,
    ) -> None:
        self.check = check
        self.random = Random(seed)
        self.clock = Clock()
        self.network = Network(self.random, faults or Faults(), self.clock)
        self.record = Record(self.clock)
        self.workers: dict[str, VirtualWorker] = {}
        self.clients: list[VirtualOwner] = []
        self.scheduler = VirtualScheduler(
            self.clock, self.network, self.clients, self.workers, meshed
        )
        self.observer = Observer(self.clock, self.record, self.scheduler, self.workers)
        self.waits: Waits | None = None
        if longest_wait is not None:
            self.waits = Waits(self.network, self.scheduler, self.workers, longest_wait)
        self.world = World(
            self.clock,
            self.random,
            self.network,
            self.scheduler,
            self.observer,
            self.record,
            Locks(),
            self.workers,
            self.replace,
            no_workers_timeout,
        )
        self.steps = 0
        self._lives: dict[str, int] = {}
        # What programs and tests use all the time.
        self.dirty = self.clock.dirty
        self.later = self.clock.later
        self.delay = self.network.delay
        self.copies = self.observer.copies
        self.read = self.observer.read
        self.outcome = self.observer.outcome
        for i in range(clients):
            self.clients.append(VirtualOwner(self.world, f"client{i}"))
            self.scheduler.client_joined(self.clients[i])
        for i in range(workers):
            self.add_worker(f"worker-{i}", slots, resources[i] if i < len(resources) else None)

    @property
    def now(self) -> float:
        """Virtual microseconds since the beginning."""
        return self.clock.now

    @property
    def owners(self) -> list[VirtualOwner]:
        """All that live."""
        return [*self.clients, *(w.owner for w in self.workers.values())]

    # ---- members ----

    def add_worker(
        self, address: str, slots: int, resources: dict[str, float] | None = None
    ) -> VirtualWorker:
        """A worker joins and everyone hears of it, and links to it.

        It may have the address of one that is gone.
        """
        assert address not in self.workers, address
        life = self._lives[address] = self._lives.get(address, 0) + 1
        worker = self.workers[address] = VirtualWorker(self.world, address, slots, resources, life)
        self.scheduler.worker_joined(worker)
        return worker

    def unused(self, address: str) -> str:
        """An address like this one where no worker is."""
        while address in self.workers:
            address += address[-1]
        return address

    def kill(self, address: str, by_force: bool = True) -> None:
        """A worker dies: its tasks, values and owner are gone; all others hear of it."""
        worker = self._remove(address, by_force)
        self._end(worker)

    def replace(self, address: str) -> None:
        """A worker dies, and another one comes at another address, as with a nanny."""
        slots = self.workers[address].slots
        self.kill(address)
        self.add_worker(self.unused(f"{address.partition('~')[0]}~{self.steps}"), slots)

    def disown(self, address: str) -> None:
        """A worker is taken for dead, and works on until it hears so."""
        worker = self._remove(address, by_force=True)
        self.later(self.random.random() * WINDOW, partial(self._end, worker))

    def _remove(self, address: str, by_force: bool) -> VirtualWorker:
        self.record.killed = self.record.killed or by_force
        worker = self.workers.pop(address)
        for owner in self.owners:
            for row in owner.core.table.rows.values():
                self.observer.note_loss(owner, row)
        self.scheduler.worker_left(address)
        return worker

    def _end(self, worker: VirtualWorker) -> None:
        """A process stops."""
        worker.end()
        self.network.close(worker.owner)
        worker.owner.thaw()  # whoever waits for it finds out

    def freeze(self, address: str, microseconds: float) -> None:
        """A worker's process stops for a while: everything of it happens when that is over."""
        self.record.watchful = True
        worker = self.workers[address]
        worker.owner.freeze(microseconds)
        self.later(microseconds, partial(self._thaw, worker))
        self.dirty.update(self.owners)

    def _thaw(self, worker: VirtualWorker) -> None:
        worker.owner.thaw()
        self.dirty.update((worker, worker.owner))

    def partition(self, one: str, other: str, microseconds: float) -> None:
        """Nothing gets from one process to another for a while."""
        self.record.watchful = True
        self.network.partition(one, other, microseconds)
        self.dirty.update(self.owners)

    def retire(self, address: str) -> None:
        """A worker leaves in good order: when nothing runs there and its values are moved."""
        worker = self.workers[address]
        self.record.retiring = True
        worker.leave()
        worker.later(1_000.0, partial(self._retire, worker))

    def _retire(self, worker: VirtualWorker) -> None:
        if self.workers.get(worker.address) is not worker or worker.core.queue.accepting:
            return
        if worker.has_left():
            self.kill(worker.address, by_force=False)
        else:
            worker.later(1_000.0, partial(self._retire, worker))

    def leave(self, owner: VirtualOwner) -> None:
        """A client ends. What it said last may be lost; after a while all are told."""
        owner.core.close("the client is closed")
        self.clients.remove(owner)
        owner.step()
        self.later(self.delay(), partial(self._depart, owner))

    def _depart(self, owner: VirtualOwner) -> None:
        owner.end()
        self.network.close(owner)
        self.scheduler.client_left(owner)

    def restart_scheduler(self, workers: Sequence[tuple[str, int]]) -> None:
        """The scheduler dies, and its workers with it; another one starts at its address, with
        other workers, and the clients come back to it one after the other."""
        before = self.scheduler.restart()
        for address in list(self.workers):
            self.scheduler.roster.workers[address] = before[address]
            self.kill(address)
        for address, slots in workers:
            self.add_worker(address, slots)
        for client in self.clients:
            client.reconnect()

    # ---- the clock ----

    def run(self, limit: int = 200_000) -> None:
        """Until nothing is left to happen.

        Raises
        ------
        AssertionError
            When an invariant breaks, or things go on for more than ``limit`` events.
        """
        self._settle()
        while self.clock.next_at < inf:
            self._next_event()
            self.steps += 1
            assert self.steps < limit, "it does not come to rest"

    def run_for(self, microseconds: float) -> None:
        """As `run`, up to a virtual time from now."""
        until = self.now + microseconds
        self._settle()
        while self.clock.next_at <= until:
            self._next_event()
        self.clock.pass_until(until)

    def _next_event(self) -> None:
        if self.waits is not None:
            self.waits.passed(self.clock.next_at - self.clock.now)
        self.clock.happen()
        if self.check:
            self.observer.validate(everywhere=False)

    def _settle(self) -> None:
        """Take in what was done to the processes from outside, which may be anything."""
        self.clock.settle()
        if self.check:
            self.observer.validate()

    def assert_empty(self) -> None:
        """Every table is empty, in every process (rule R6)."""
        self.observer.assert_empty()
