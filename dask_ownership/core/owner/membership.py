"""Who is in the cluster.

Only the scheduler says who came and who is gone (rule R5). A process that does not answer may be
frozen, busy or cut off; whoever took it for dead would have its work done twice, and tell others
that what it owns is lost.

A process is known by its *incarnation*, which no other ever has. Its address is where it is
found, and may be another's tomorrow. The owner of a worker has the worker's incarnation, with a
number behind it when it is not the first one there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dask_ownership.core.owner.references.peers import Peers
from dask_ownership.core.owner.references.posting import Posting
from dask_ownership.core.owner.rows.worker_view import WorkerView
from dask_ownership.core.owner.scheduling.placement import Placement
from dask_ownership.core.protocol.names import worker_of

REMEMBERED = 100_000
"""How many of those that are gone are remembered: long after nothing of them can be on its way."""


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
    placement : Placement
    peers : Peers
    posting : Posting
    refused : dict of str to WorkerView
        Members that do not take a link of this process, or cannot be reached from it.
    reasons : dict of str to str
        Why, by their addresses.
    add, remove : callable
        Have a worker used, and used no more: the worker, why, and whether anything that was
        sent to it can have arrived.

    Attributes
    ----------
    gone : dict of str to None
        Incarnations of owners that are gone: clients, and owners at workers.
    workers_gone : dict of str to None
        Incarnations of workers that are gone. A worker's first owner has the same, and may end
        before it.
    """

    def __init__(
        self,
        placement: Placement,
        peers: Peers,
        posting: Posting,
        *,
        refused: dict[str, WorkerView],
        reasons: dict[str, str],
        add: Callable[[WorkerView], None],
        remove: Callable[[WorkerView, str, bool], None],
    ) -> None:
        self._placement = placement
        self._peers = peers
        self._posting = posting
        self._reasons = reasons
        self._add = add
        self._remove = remove
        self.gone: dict[str, None] = {}
        self.workers_gone: dict[str, None] = {}
        self.refused = refused

    def is_gone(self, incarnation: str) -> bool:
        """Whether a process is gone, or the worker that it was at."""
        return incarnation in self.gone or worker_of(incarnation) in self.workers_gone

    def view_of(self, incarnation: str) -> WorkerView | None:
        """A worker that is used."""
        for view in self._placement.workers.values():
            if view.incarnation == incarnation:
                return view
        return None

    def replaced_by(self, view: WorkerView) -> WorkerView | None:
        """Another worker at its address, which therefore is gone."""
        before = self._placement.workers.get(view.address)
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
        self._add(view)
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
            self._remove(view, reason, reached)
        self._posting.gone(incarnation)
        for owner in self.owners_at(incarnation):
            self._peers.process_gone(owner)

    def process_gone(self, incarnation: str) -> None:
        """A client, or the owner at a worker, is gone."""
        _remember(self.gone, incarnation)
        self._peers.process_gone(incarnation)

    def owners_at(self, worker: str) -> list[str]:
        """Those at a worker that this process corresponds with."""
        return [one for one in self._peers.known if worker_of(one) == worker]

    def refuse(self, view: WorkerView, reason: str, reached: bool) -> None:
        """A member does not take this process's link: go on without it."""
        if view.incarnation not in self.workers_gone:
            self.refused[view.incarnation] = view
            self._reasons[view.address] = reason
        self._remove(view, "refused the link", reached)

    def refused_no_more(self, view: WorkerView) -> bool:
        """Whether a member that refused may be tried again; it is as if it was new."""
        return self._forget_refusal(view.incarnation)

    def _forget_refusal(self, incarnation: str) -> bool:
        view = self.refused.pop(incarnation, None)
        if view is not None and all(v.address != view.address for v in self.refused.values()):
            self._reasons.pop(view.address, None)
        return view is not None

    # ---- asking the scheduler ----

    def ask(self) -> Asked:
        """Whom to ask about."""
        workers = {view.incarnation for view in self._placement.workers.values()}
        workers.update(self.refused, self._posting.waiting)
        workers.discard("")
        peers = self._peers.known.values()
        clients = {peer.process[0] for peer in peers if not peer.process[1]}
        clients.discard(self._peers.process[0])
        return Asked(frozenset(workers), frozenset(clients))


def _remember(gone: dict[str, None], incarnation: str) -> None:
    gone[incarnation] = None
    if len(gone) > REMEMBERED:
        del gone[next(iter(gone))]
