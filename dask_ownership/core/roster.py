"""The roster: which workers and owners take part in a cluster, kept at the scheduler.

Only the roster decides that a process is gone (rule R5). A worker is gone when the scheduler
removes the worker. A client is gone when the client had no connection for the *grace*, some
seconds: a connection may break and be made again. An owner that other owners know and that never
joined gets the same grace to come: after a new scheduler was started at the same address, the
clients come back one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable

from dask_ownership.core.protocol.names import worker_of

REMEMBERED = 10_000
"""How many gone owners, and how many absent owners, the roster remembers."""

CLIENT = "client"
WORKER = "worker"

FAREWELL = 0.5
"""Seconds until the owner of a client that closed counts as gone. The last messages of the owner,
which say that it closed, arrive within this time, before the scheduler says that it is gone."""

LONGEST = 100
"""Characters of an incarnation, at most."""


class Roster:
    """The workers of a cluster, and the owners that joined.

    The caller passes the time in, as seconds of one clock.

    Parameters
    ----------
    holder : str
        Incarnation of the holder, in the scheduler's process.
    grace : float
        Seconds for which the owner of a client may be away.

    Attributes
    ----------
    holder, grace
        As above; the scheduler's plugin writes both when it learns of new ones.
    owners : dict
        Incarnation of each owner that joined to a pair: `CLIENT` and the id of the client, or
        `WORKER` and the address of the worker.
    workers : dict of str to str
        Address of each worker to the incarnation of the worker.
    absent : dict of str to float
        Incarnations of client owners without a connection, and of owners that other owners know
        and that did not join yet, to the time at which each counts as gone.
    gone : dict of str to None
        Incarnations of client owners that are gone, oldest first.
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
        """Incarnations of all owners that are at no worker and do not count as gone.

        The holder is one of the owners returned.
        """
        there = dict.fromkeys(one for one, (kind, _) in self.owners.items() if kind == CLIENT)
        # An owner in its grace may come back: to leave the owner out would declare the owner gone.
        there.update(dict.fromkeys(self.absent))
        there[self.holder] = None
        return list(there)

    def address_of(self, owner: str) -> str:
        """Return the address of the worker that an owner is at; ``""`` when no worker is known."""
        worker = worker_of(owner)
        return next((one for one, known in self.workers.items() if known == worker), "")

    # ---- processes that come ----

    def join(
        self, owner: str, kind: str, who: str, known: Iterable[object], now: float
    ) -> str | None:
        """Admit an owner that joins or comes back.

        Parameters
        ----------
        owner : str
            Incarnation of the owner.
        kind, who : str
            As in ``owners``. The caller has checked that the owner is in that process.
        known : iterable
            Incarnations of client owners with which the owner corresponds; not checked yet.
        now : float

        Returns
        -------
        str or None
            The reason why the owner may not join; None for an admitted owner.
        """
        if kind == WORKER:
            if worker_of(owner) != self.workers.get(who):
                return f"the worker {who} has another incarnation"
        elif owner not in self.owners:
            # A client has one owner for life. The incarnation is made of letters and digits,
            # because keys and names made of an incarnation are split at other characters.
            taken = (kind, who) in self.owners.values() or owner == self.holder
            if taken or not owner.isalnum() or len(owner) > LONGEST:
                return f"the {kind} {who} has another owner"
        elif self.owners[owner] != (kind, who):
            return "another process has that owner"
        self.owners[owner] = (kind, who)
        self.absent.pop(owner, None)
        for other in known:
            # The list came over the network, so an entry may be of any type.
            if type(other) is str:
                self.expects(other, now)
        return None

    def expects(self, owner: str, now: float) -> bool:
        """Return whether an owner that another owner knows is here, or may still come.

        An owner heard of for the first time gets the grace to come.
        """
        if owner in self.owners or owner == self.holder or owner in self.absent:
            return True
        # A process may name any number of owners: beyond the bound they count as gone.
        if owner in self.gone or len(self.absent) >= REMEMBERED or len(owner) > LONGEST:
            return False
        self.absent.setdefault(owner, now + self.grace)
        return True

    # ---- processes that go ----

    def worker_left(self, address: str) -> tuple[str, list[str]]:
        """Strike out a worker that is gone, and the owners there.

        Returns
        -------
        str, list of str
            The incarnation of the worker (``""`` for an unknown worker), and those of the owners.
        """
        incarnation = self.workers.pop(address, "")
        owners = [owner for owner, who in self.owners.items() if who == (WORKER, address)]
        for owner in owners:
            del self.owners[owner]
        return incarnation, owners

    def client_away(self, client: str, now: float, closed: bool = False) -> bool:
        """Start the grace of a client without a connection; return whether an owner joined.

        ``closed`` says that the client closed by itself: only its last messages get time then.
        """
        owners = [owner for owner, who in self.owners.items() if who == (CLIENT, client)]
        for owner in owners:
            self.absent[owner] = now + (min(FAREWELL, self.grace) if closed else self.grace)
        return bool(owners)

    def look(self, now: float, connected: Iterable[str]) -> list[tuple[str, str]]:
        """Declare owners gone that have been away for longer than the grace.

        Parameters
        ----------
        now : float
        connected : container of str
            Ids of the clients that have a connection.

        Returns
        -------
        list of tuple
            Incarnation of each owner that is gone by this call, and the id of the client
            (``""`` for an owner that never joined).
        """
        found = []
        for owner in [owner for owner, until in self.absent.items() if until <= now]:
            del self.absent[owner]
            _, client = self.owners.get(owner, (CLIENT, ""))
            # A connected client is about to join again with its owner.
            if client and client in connected:
                continue
            self.owners.pop(owner, None)
            self.gone[owner] = None
            if len(self.gone) > REMEMBERED:
                del self.gone[next(iter(self.gone))]
            found.append((owner, client))
        return found
