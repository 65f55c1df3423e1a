"""The scheduler of the virtual cluster, which knows the members and tells them with a delay."""

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
"""Seconds of the core for which a client may be away."""


class VirtualScheduler:
    """Keeps the roster, and tells each process in order who came and who is gone.

    Parameters
    ----------
    clock : Clock
    network : Network
    clients : sequence of OwnerProcess
        The living clients; the cluster changes this list.
    workers : mapping of str to WorkerProcess
        The living workers, by address; the cluster changes this mapping.
    meshed : bool
        Whether workers link to each other.

    Attributes
    ----------
    roster : Roster
        The members and clients that the scheduler knows.
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
        """All living owners: those of clients, then those of workers."""
        return [*self.clients, *(w.owner for w in self.workers.values())]

    def is_there(self, view: WorkerView) -> bool:
        """Return whether a worker is still a member, and not another worker at the same address."""
        return self.roster.workers.get(view.address) == view.incarnation

    def _tell(self, owner: OwnerProcess, call: Callable[[], None]) -> None:
        """Call a function in a process a little later, in the order of such calls."""
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
        """Add a worker, which links to all other processes, and has them hear of it and link."""
        self.roster.workers[worker.address] = worker.owner.name
        for other in self.owners if self.meshed else self.clients:
            # At the beginning of a run all members know each other at once.
            if other is worker.owner or not self.clock.now:
                other.meet(worker)
            elif other not in self._cut_off:
                self._tell(other, partial(other.meet, worker))
        for there in list(self.workers.values()) if self.meshed else ():
            if there is not worker:
                worker.owner.meet(there)

    def worker_left(self, address: str) -> None:
        """Remove a worker that is gone, and tell all owners."""
        incarnation, _ = self.roster.worker_left(address)
        for owner in self.owners:
            if owner not in self._cut_off:
                self._tell(owner, partial(owner.hears_of_death, address, incarnation))

    # ---- clients ----

    def client_joined(self, owner: OwnerProcess) -> None:
        """Add a client that connects for the first time."""
        self.roster.join(owner.name, CLIENT, owner.name, (), 0.0)

    def client_left(self, owner: OwnerProcess) -> None:
        """Take in that a client closed and has no connection any more.

        Its last messages may still be on their way, or come later than the word that it is gone.
        """
        self.roster.client_away(owner.name, self.clock.seconds, closed=True)
        self._look()

    def _look(self) -> None:
        """Tell all owners of clients that were away for too long; look again at the next."""
        connected = [client.name for client in self.clients]
        for incarnation, _ in self.roster.look(self.clock.seconds, connected):
            for owner in self.owners:
                self._tell(owner, partial(owner.hears_of_client, incarnation))
        if self.roster.absent:
            wait = min(self.roster.absent.values()) - self.clock.seconds
            self.clock.later(max(wait, 0.001) * SECOND, self._look)

    # ---- questions ----

    def expects(self, owner: str) -> bool:
        """Return whether an owner is there, or may come back."""
        return self.roster.expects(owner, self.clock.seconds)

    def ask(self, owner: OwnerProcess, asked: Asked) -> None:
        """Answer an owner that asks for the members; a client joins by this."""
        if owner.home is not None and self.roster.workers.get(owner.home) != owner.name:
            return  # this owner is taken for dead, and will hear so
        if owner.home is None and owner.alive:
            self.roster.join(owner.name, CLIENT, owner.name, asked.clients, self.clock.seconds)
            self._look()
        workers = list(self.workers.values())
        self._tell(owner, partial(owner.answered, asked, workers, self.roster.clients))

    # ---- another scheduler ----

    def restart(self) -> dict[str, str]:
        """Begin anew without any connection; the workers known before, by address."""
        self.roster, before = Roster(self.roster.holder, GRACE), self.roster
        self._cut_off = set(self.clients)
        return before.workers

    def reconnected(self, client: OwnerProcess) -> None:
        """Take in that a client has connected to the new scheduler."""
        self._cut_off.discard(client)
