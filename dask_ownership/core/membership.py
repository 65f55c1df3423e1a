"""Who is in the cluster.

Only the scheduler says who came and who is gone (rule R5). A process that does not answer may be
frozen, busy or cut off; whoever took it for dead would have its work done twice, and tell others
that what it owns is lost.

A process is known by its *incarnation*, which no other ever has. Its address is where it is
found, and may be another's tomorrow. The owner of a worker has the worker's incarnation, with a
number behind it when it is not the first one there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dask_ownership.core.placement import WorkerView

if TYPE_CHECKING:
    from dask_ownership.core.ownership import Ownership

NEXT = "#"
"""Between the incarnation of a worker and the number of an owner that is not its first."""


REMEMBERED = 100_000
"""How many of those that are gone are remembered: long after nothing of them can be on its way."""


def worker_of(incarnation: str) -> str:
    """The incarnation of the worker that an owner is at."""
    return incarnation.partition(NEXT)[0]


@dataclass(frozen=True)
class Asked:
    """Whom the scheduler is asked about: incarnations.

    Who came to be known after that is not among them: the answer may be older.
    """

    workers: frozenset[str]
    clients: frozenset[str]


class Membership:
    """Who is in the cluster, as one process knows it.

    Parameters
    ----------
    core : Ownership

    Attributes
    ----------
    gone : dict of str to None
        Incarnations of owners that are gone: clients, and owners at workers.
    workers_gone : dict of str to None
        Incarnations of workers that are gone. A worker's first owner has the same, and may end
        before it.
    refused : dict of str to WorkerView
        Members that do not take a link of this process, or cannot be reached from it.
    """

    def __init__(self, core: Ownership) -> None:
        self.core = core
        self.gone: dict[str, None] = {}
        self.workers_gone: dict[str, None] = {}
        self.refused: dict[str, WorkerView] = {}

    def is_gone(self, incarnation: str) -> bool:
        """Whether a process is gone, or the worker that it was at."""
        return incarnation in self.gone or worker_of(incarnation) in self.workers_gone

    def view_of(self, incarnation: str) -> WorkerView | None:
        """A worker that is used."""
        for view in self.core.placement.workers.values():
            if view.incarnation == incarnation:
                return view
        return None

    def replaced_by(self, view: WorkerView) -> WorkerView | None:
        """Another worker at its address, which therefore is gone."""
        before = self.core.placement.workers.get(view.address)
        if before is None or before.incarnation == view.incarnation:
            return None
        return before

    def joined(self, view: WorkerView) -> bool:
        """A worker joined; whether this is news. Who is gone does not come back."""
        if view.incarnation in self.workers_gone:
            return False
        known = self.view_of(view.incarnation) or self.refused.get(view.incarnation)
        if known is not None:
            known.resources = view.resources
            return False
        before = self.replaced_by(view)
        if before is not None:
            self.left(before.incarnation, "left the cluster")
        self.core.add_worker(view)
        return True

    def left(self, incarnation: str, reason: str, reached: bool = True) -> None:
        """A worker is gone, and the owners there with it.

        ``reached`` is False when nothing that was sent to it can have arrived.
        """
        if incarnation in self.workers_gone:
            return
        _remember(self.workers_gone, incarnation)
        self._forget_refusal(incarnation)
        view = self.view_of(incarnation)
        if view is not None:
            self.core.remove_worker(view, reason, reached)
        self.core.posting.gone(incarnation)
        for owner in self.owners_at(incarnation):
            self.core.peers.process_gone(owner)

    def process_gone(self, incarnation: str) -> None:
        """A client, or the owner at a worker, is gone."""
        _remember(self.gone, incarnation)
        self.core.peers.process_gone(incarnation)

    def owners_at(self, worker: str) -> list[str]:
        """Those at a worker that this process corresponds with."""
        return [one for one in self.core.peers.known if worker_of(one) == worker]

    def refuse(self, view: WorkerView, reason: str, reached: bool) -> None:
        """A member does not take this process's link: go on without it."""
        if view.incarnation not in self.workers_gone:
            self.refused[view.incarnation] = view
            self.core.refused[view.address] = reason
        self.core.remove_worker(view, "refused the link", reached)

    def refused_no_more(self, view: WorkerView) -> bool:
        """Whether a member that refused may be tried again; it is as if it was new."""
        return self._forget_refusal(view.incarnation)

    def _forget_refusal(self, incarnation: str) -> bool:
        view = self.refused.pop(incarnation, None)
        if view is not None and all(v.address != view.address for v in self.refused.values()):
            self.core.refused.pop(view.address, None)
        return view is not None

    # ---- asking the scheduler ----

    def ask(self) -> Asked:
        """Whom to ask about."""
        workers = {view.incarnation for view in self.core.placement.workers.values()}
        workers.update(self.refused, self.core.posting.waiting)
        workers.discard("")
        peers = self.core.peers.known.values()
        clients = {peer.process[0] for peer in peers if not peer.process[1]}
        clients.discard(self.core.peers.process[0])
        return Asked(frozenset(workers), frozenset(clients))


def _remember(gone: dict[str, None], incarnation: str) -> None:
    gone[incarnation] = None
    if len(gone) > REMEMBERED:
        del gone[next(iter(gone))]
