"""The scheduler of the virtual cluster: it knows who is there, and says so a little later."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from dask_ownership.core.owner.membership import Asked
from dask_ownership.core.owner.rows.worker_view import WorkerView
from dask_ownership.core.roster import CLIENT, Roster
from dask_ownership.testing.clock import SECOND, Clock
from dask_ownership.testing.network import Network
from dask_ownership.testing.pipe import OwnerProcess, WorkerProcess

GRACE = 3.0
"""Seconds for which a client may be away."""


class VirtualScheduler:
    """Keeps the roster, and tells each process in order what became of the others.

    Parameters
    ----------
    clock : Clock
    network : Network
    clients : sequence of OwnerProcess
    workers : mapping of str to WorkerProcess
        By address. Both are those of the cluster now.
    meshed : bool
        Whether workers link to each other.

    Attributes
    ----------
    roster : Roster
        What the scheduler knows.
    """

    def __init__(
        self,
        clock: Clock,
        network: Network,
        clients: Sequence[OwnerProcess],
        workers: Mapping[str, WorkerProcess],
        meshed: bool,
    ) -> None:
        self.clock = clock
        self.network = network
        self.clients = clients
        self.workers = workers
        self.meshed = meshed
        self.roster = Roster("the scheduler", GRACE)
        self._told_at: dict[str, float] = {}
        self._cut_off: set[OwnerProcess] = set()

    @property
    def owners(self) -> list[OwnerProcess]:
        """All that live."""
        return [*self.clients, *(w.owner for w in self.workers.values())]

    def is_there(self, view: WorkerView) -> bool:
        """Whether a worker is still a member, and not only another one at its address."""
        return self.roster.workers.get(view.address) == view.incarnation

    def _tell(self, owner: OwnerProcess, call: Callable[[], None]) -> None:
        """Say something to a process: in order, and a little later."""
        now = self.clock.now
        at = max(now + self.network.delay(), self._told_at.get(owner.name, 0.0) + 0.001)
        self._told_at[owner.name] = at

        def told() -> None:
            if owner.alive:
                call()
                owner.wants_step()

        owner.later(at - now, told)

    # ---- workers ----

    def worker_joined(self, worker: WorkerProcess) -> None:
        """A worker joins: everyone hears of it and links to it, and it to everyone."""
        self.roster.workers[worker.address] = worker.owner.name
        for other in self.owners if self.meshed else self.clients:
            if other is worker.owner or not self.clock.now:
                other.meet(worker)
            elif other not in self._cut_off:
                self._tell(other, partial(other.meet, worker))
        for there in list(self.workers.values()) if self.meshed else ():
            if there is not worker:
                worker.owner.meet(there)

    def worker_left(self, address: str) -> None:
        """A worker is gone: everyone hears of it."""
        incarnation, _ = self.roster.worker_left(address)
        for owner in self.owners:
            if owner not in self._cut_off:
                self._tell(owner, partial(owner.hears_of_death, address, incarnation))

    # ---- clients ----

    def client_joined(self, owner: OwnerProcess) -> None:
        """A client connects for the first time."""
        self.roster.join(owner.name, CLIENT, owner.name, (), 0.0)

    def client_left(self, owner: OwnerProcess) -> None:
        """A client has no connection any more."""
        self.roster.client_away(owner.name, self.clock.seconds)
        self._look()

    def _look(self) -> None:
        """Tell everyone of clients that were away for too long."""
        connected = [client.name for client in self.clients]
        for incarnation, _ in self.roster.look(self.clock.seconds, connected):
            for owner in self.owners:
                self._tell(owner, partial(owner.hears_of_client, incarnation))
        if self.roster.absent:
            self.clock.later(GRACE * SECOND, self._look)

    # ---- questions ----

    def expects(self, owner: str) -> bool:
        """Whether an owner is there, or may come back."""
        return self.roster.expects(owner, self.clock.seconds)

    def ask(self, owner: OwnerProcess, asked: Asked) -> None:
        """An owner asks who is there."""
        if owner.home is not None and self.roster.workers.get(owner.home) != owner.name:
            return  # it is taken for dead, and will hear so
        if owner.home is None and owner.alive:
            self.roster.join(owner.name, CLIENT, owner.name, asked.clients, self.clock.seconds)
            self._look()
        workers = list(self.workers.values())
        self._tell(owner, partial(owner.answered, asked, workers, self.roster.clients))

    # ---- another scheduler ----

    def restart(self) -> dict[str, str]:
        """Begin anew, with nobody connected; returns the workers there were, by address."""
        self.roster, before = Roster(self.roster.holder, GRACE), self.roster
        self._cut_off = set(self.clients)
        return before.workers

    def reconnected(self, client: OwnerProcess) -> None:
        """A client has found the scheduler that was started in place of another."""
        self._cut_off.discard(client)
