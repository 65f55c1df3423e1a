"""A cluster in one thread: the real core over a virtual network and clock.

The cores of owners and executors and the streams of links are those of a real cluster. Only their
surroundings are virtual. Messages travel through a seeded network, which delays them, reorders them
between links, delivers them twice and breaks connections. Tasks are small descriptions, which "run"
for a virtual time. The same seed gives the same run, so a failure is replayed by its seed.
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
"""Virtual microseconds between looks for infeasible tasks; the second look ends a task."""

__all__ = ["Faults", "Task", "VirtualCluster", "VirtualOwner", "VirtualWorker"]


class VirtualCluster:
    """Owners and workers over a seeded network and clock.

    Tests reach all parts of a cluster by one object: hence the many attributes.

    Parameters
    ----------
    seed : int
    workers, slots : int
        Number of workers, and of slots at each.
    clients : int
        Number of owners that are not at workers.
    faults : Faults, optional
    check : bool
        Check the invariants after every event.
    resources : sequence of dict
        Abstract resources of the first workers.
    meshed : bool
        Whether workers link to each other. Without nested tasks such links only cost time.
    longest_wait : float, optional
        Virtual microseconds for which a row may wait, see `Waits`.
    no_workers_timeout : float or None
        Virtual microseconds between looks for infeasible tasks; the second look ends a task.

    Attributes
    ----------
    check : bool
    random : Random
    clock : Clock
    network : Network
    record : Record
    workers : dict of str to VirtualWorker
        The living workers, by address.
    clients : list of VirtualOwner
        The living clients.
    scheduler : VirtualScheduler
    observer : Observer
    waits : Waits or None
        None without ``longest_wait``.
    world : World
        The parts that all processes share.
    steps : int
        Number of events in `run`.
    dirty, later, delay, copies, read, outcome
        Short names for parts of the clock, the network and the observer.
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
        # Programs and tests use these names all the time.
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
        """All living owners: those of clients, then those of workers."""
        return [*self.clients, *(w.owner for w in self.workers.values())]

    # ---- members ----

    def add_worker(
        self, address: str, slots: int, resources: dict[str, float] | None = None
    ) -> VirtualWorker:
        """Add a worker, of which all processes hear, and to which they link.

        The worker may have the address of a worker that is gone.
        """
        assert address not in self.workers, address
        # Another life at an address has another incarnation, as on a real cluster.
        life = self._lives[address] = self._lives.get(address, 0) + 1
        worker = self.workers[address] = VirtualWorker(self.world, address, slots, resources, life)
        self.scheduler.worker_joined(worker)
        return worker

    def unused(self, address: str) -> str:
        """Make an address like the given one at which no worker is."""
        while address in self.workers:
            address += address[-1]
        return address

    def kill(self, address: str, by_force: bool = True) -> None:
        """Kill a worker: its tasks, values and owner are gone, of which all processes hear.

        Without ``by_force`` the worker has left in good order, and no value may be lost.
        """
        worker = self._remove(address, by_force)
        self._end(worker)

    def replace(self, address: str) -> None:
        """Kill a worker, and add one at another address, as a nanny does."""
        slots = self.workers[address].slots
        self.kill(address)
        self.add_worker(self.unused(f"{address.partition('~')[0]}~{self.steps}"), slots)

    def disown(self, address: str) -> None:
        """Have a worker be taken for dead, while it works on until it hears so."""
        worker = self._remove(address, by_force=True)
        self.later(self.random.random() * WINDOW, partial(self._end, worker))

    def _remove(self, address: str, by_force: bool) -> VirtualWorker:
        """Take a worker out of the cluster, and record the values that it had the last copy of."""
        self.record.killed = self.record.killed or by_force
        # Before the values are looked at: the observer reads values of living workers only.
        worker = self.workers.pop(address)
        for owner in self.owners:
            for row in owner.core.table.rows.values():
                self.observer.note_loss(owner, row)
        self.scheduler.worker_left(address)
        return worker

    def _end(self, worker: VirtualWorker) -> None:
        """End the process of a worker."""
        worker.end()
        self.network.close(worker.owner)
        worker.owner.thaw()  # postponed calls find out that the process has ended

    def freeze(self, address: str, microseconds: float) -> None:
        """Stop the process of a worker for a while: its events happen when that is over."""
        self.record.watchful = True
        worker = self.workers[address]
        worker.owner.freeze(microseconds)
        self.later(microseconds, partial(self._thaw, worker))
        # With a step each owner begins to look for signs of life.
        self.dirty.update(self.owners)

    def _thaw(self, worker: VirtualWorker) -> None:
        """Have the process of a worker go on."""
        worker.owner.thaw()
        self.dirty.update((worker, worker.owner))

    def partition(self, one: str, other: str, microseconds: float) -> None:
        """Hold back all batches between two processes for a while."""
        self.record.watchful = True
        self.network.partition(one, other, microseconds)
        self.dirty.update(self.owners)

    def retire(self, address: str) -> None:
        """Have a worker leave in good order: when no task runs there and its values are moved."""
        worker = self.workers[address]
        self.record.retiring = True
        worker.leave()
        worker.later(1_000.0, partial(self._retire, worker))

    def _retire(self, worker: VirtualWorker) -> None:
        """Look whether a leaving worker can go, until it can, has died, or stays after all."""
        # The worker has died meanwhile, or takes tasks again: it stays after all.
        if self.workers.get(worker.address) is not worker or worker.core.queue.accepting:
            return
        if worker.has_left():
            self.kill(worker.address, by_force=False)
        else:
            worker.later(1_000.0, partial(self._retire, worker))

    def leave(self, owner: VirtualOwner) -> None:
        """Close a client. Its last messages may be lost, and all processes hear of it later."""
        owner.core.close("the client is closed")
        self.clients.remove(owner)
        owner.step()  # sends the last messages
        self.later(self.delay(), partial(self._depart, owner))

    def _depart(self, owner: VirtualOwner) -> None:
        """End the process of a client."""
        owner.end()
        self.network.close(owner)
        self.scheduler.client_left(owner)

    def restart_scheduler(self, workers: Sequence[tuple[str, int]]) -> None:
        """Replace the scheduler by a new one at its address, and its workers by other workers.

        The clients come back to the new scheduler one after the other.
        """
        before = self.scheduler.restart()
        # The workers die with the old scheduler: the new one hears of them only to remove them.
        for address in list(self.workers):
            self.scheduler.roster.workers[address] = before[address]
            self.kill(address)
        for address, slots in workers:
            self.add_worker(address, slots)
        for client in self.clients:
            client.reconnect()

    # ---- the clock ----

    def run(self, limit: int = 200_000) -> None:
        """Run until no event is left.

        Raises
        ------
        AssertionError
            When an invariant breaks, or there are more than ``limit`` events.
        """
        self._settle()
        while self.clock.next_at < inf:
            self._next_event()
            self.steps += 1
            assert self.steps < limit, "it does not come to rest"

    def run_for(self, microseconds: float) -> None:
        """Run for so many virtual microseconds, as `run` without a limit of events."""
        until = self.now + microseconds
        self._settle()
        while self.clock.next_at <= until:
            self._next_event()
        self.clock.pass_until(until)

    def _next_event(self) -> None:
        """Have the next event happen, and check the waits and the invariants."""
        if self.waits is not None:
            self.waits.passed(self.clock.next_at - self.clock.now)
        self.clock.happen()
        if self.check:
            self.observer.validate(everywhere=False)

    def _settle(self) -> None:
        """Have processes take their steps after calls from outside, and check the invariants."""
        self.clock.settle()
        # Everywhere: a program or a test may have changed any process without marking it.
        if self.check:
            self.observer.validate()

    def assert_empty(self) -> None:
        """Check that every table is empty, in every process (rule R6)."""
        self.observer.assert_empty()
