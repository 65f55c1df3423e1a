"""Who takes part in a cluster, as its scheduler keeps it.

This is the one place where a process is found to be gone (rule R5). A worker is gone when the
scheduler removes it. A client is gone when it had no connection for a while, its *grace*: a
connection may break and be made again. An owner that others know and that was never here has the
same while to come: after a new scheduler was started at the same address, its clients come back
one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable

from dask_ownership.core.protocol.names import worker_of

REMEMBERED = 10_000
"""How many owners that are gone, or not here, are remembered."""

CLIENT = "client"
WORKER = "worker"

LONGEST = 100
"""Characters of an incarnation, at most."""


class Roster:
    """Workers, and the owners that joined.

    Parameters
    ----------
    holder : str
        Incarnation of the owner in the scheduler's process.
    grace : float
        Seconds for which the owner of a client may be away.

    Attributes
    ----------
    owners : dict
        Incarnation of each owner that joined to `CLIENT` or `WORKER` and the id of that client or
        the address of that worker.
    workers : dict of str to str
        Address of each worker to its incarnation.
    absent : dict of str to float
        Owners of clients that are not connected, or that others know and that did not join yet,
        and when they count as gone.
    gone : dict of str to None
        Owners of clients that are gone.
    """

    def __init__(self, holder: str = "", grace: float = 10.0) -> None:
        self.holder = holder
        self.grace = grace
        self.owners: dict[str, tuple[str, str]] = {}
        self.workers: dict[str, str] = {}
        self.absent: dict[str, float] = {}
        self.gone: dict[str, None] = {}

    @property
    def clients(self) -> list[str]:
        """Owners that are no workers' and that count as being there."""
        there = dict.fromkeys(one for one, (kind, _) in self.owners.items() if kind == CLIENT)
        there.update(dict.fromkeys(self.absent))
        there[self.holder] = None
        return list(there)

    def address_of(self, owner: str) -> str:
        """Of the worker that an owner is at; ``""`` when there is none."""
        worker = worker_of(owner)
        return next((one for one, known in self.workers.items() if known == worker), "")

    # ---- those who come ----

    def join(
        self, owner: str, kind: str, who: str, known: Iterable[object], now: float
    ) -> str | None:
        """An owner joins, or comes back; why it may not, or None.

        Parameters
        ----------
        kind, who : str
            As in ``owners``; that this is so was checked.
        known : iterable
            Owners of clients that it corresponds with.
        """
        if kind == WORKER:
            if worker_of(owner) != self.workers.get(who):
                return f"the worker {who} has another incarnation"
        elif owner not in self.owners:
            # A client has one owner for life.
            taken = (kind, who) in self.owners.values() or owner == self.holder
            if taken or not owner.isalnum() or len(owner) > LONGEST:
                return f"the {kind} {who} has another owner"
        elif self.owners[owner] != (kind, who):
            return "another process has that owner"
        self.owners[owner] = (kind, who)
        self.absent.pop(owner, None)
        for other in known:
            if type(other) is str:
                self.expects(other, now)
        return None

    def expects(self, owner: str, now: float) -> bool:
        """Others know an owner: whether it is here or may still come."""
        if owner in self.owners or owner == self.holder:
            return True
        if owner in self.gone or len(self.absent) >= REMEMBERED or len(owner) > LONGEST:
            return False
        self.absent.setdefault(owner, now + self.grace)
        return True

    # ---- those who go ----

    def worker_left(self, address: str) -> tuple[str, list[str]]:
        """A worker is gone; its incarnation, and the owners that were there."""
        incarnation = self.workers.pop(address, "")
        owners = [owner for owner, who in self.owners.items() if who == (WORKER, address)]
        for owner in owners:
            del self.owners[owner]
        return incarnation, owners

    def client_away(self, client: str, now: float) -> bool:
        """The connection of a client is gone; whether it had an owner."""
        owners = [owner for owner, who in self.owners.items() if who == (CLIENT, client)]
        for owner in owners:
            self.absent[owner] = now + self.grace
        return bool(owners)

    def look(self, now: float, connected: Iterable[str]) -> list[tuple[str, str]]:
        """Owners that have been away for too long, and whose they were; they are gone by this.

        Parameters
        ----------
        connected : container of str
            Clients: one that is among them is about to join again.
        """
        found = []
        for owner in [owner for owner, until in self.absent.items() if until <= now]:
            del self.absent[owner]
            _, client = self.owners.get(owner, (CLIENT, ""))
            if client and client in connected:
                continue
            self.owners.pop(owner, None)
            self.gone[owner] = None
            if len(self.gone) > REMEMBERED:
                del self.gone[next(iter(self.gone))]
            found.append((owner, client))
        return found
