"""Membership: which workers and owners are in the cluster, as one process knows it.

Only the scheduler says which processes came and which are gone (rule R5). A process that does not
answer may be frozen, busy or cut off. An owner that took a silent process for dead would have the
work done twice, and would tell borrowers that the objects there are lost.

A process is known by its *incarnation*, which no other process ever has. An address is where the
process is found today, and may belong to another process tomorrow. The owner at a worker has the
incarnation of the worker; a later owner at the same worker has a number behind the incarnation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dask_ownership.core.owner.references.peers import Peers
from dask_ownership.core.owner.references.posting import Posting
from dask_ownership.core.owner.rows.worker_view import WorkerView
from dask_ownership.core.owner.scheduling.placement import Placement
from dask_ownership.core.protocol.names import ADDRESS, INCARNATION, worker_of

REMEMBERED = 100_000
"""Number of gone processes that are remembered: so many that no message of a process that was
forgotten can still be on its way."""


@dataclass(frozen=True)
class Asked:
    """The incarnations about which the scheduler is asked.

    A process that becomes known after the question is left out, because the scheduler's answer may
    be older than the process.
    """

    #: Workers that are used, refused, or that posts wait for.
    workers: frozenset[str]
    #: Owners at clients.
    clients: frozenset[str]


class Membership:
    """The members of the cluster, as one process knows them.

    Parameters
    ----------
    placement : Placement
    peers : Peers
    posting : Posting
    refused : dict of str to WorkerView
        Filled here, see Attributes.
    refusals : dict of str to str
        Filled here: addresses of the refused members to the reasons.
    add : callable
        Has a worker used.
    remove : callable
        Has a worker used no more: the worker, the reason, and whether any message to the worker can
        have arrived.

    Attributes
    ----------
    gone : dict of str to None
        Incarnations of owners that are gone: clients, and owners at workers.
    workers_gone : dict of str to None
        Incarnations of workers that are gone. Kept apart from ``gone``, because a worker's first
        owner has the same incarnation and may end before the worker.
    refused : dict of str to WorkerView
        Incarnations of members that do not take a link of this process, or that this process
        cannot reach.
    """

    def __init__(
        self,
        placement: Placement,
        peers: Peers,
        posting: Posting,
        *,
        refused: dict[str, WorkerView],
        refusals: dict[str, str],
        add: Callable[[WorkerView], None],
        remove: Callable[[WorkerView, str, bool], None],
    ) -> None:
        self._placement = placement
        self._peers = peers
        self._posting = posting
        self._refusals = refusals
        self._add = add
        self._remove = remove
        self.gone: dict[str, None] = {}
        self.workers_gone: dict[str, None] = {}
        self.refused = refused

    def is_gone(self, incarnation: str) -> bool:
        """Return whether an owner is gone, by itself or with its worker."""
        return incarnation in self.gone or worker_of(incarnation) in self.workers_gone

    def view_of(self, incarnation: str) -> WorkerView | None:
        """Return the used worker with an incarnation; None when no such worker is used."""
        for view in self._placement.workers.values():
            if view.incarnation == incarnation:
                return view
        return None

    def replaced_by(self, view: WorkerView) -> WorkerView | None:
        """Return another worker at the address of a new worker, which proves the other one gone."""
        before = self._placement.workers.get(view.address)
        if before is None or before.incarnation == view.incarnation:
            return None
        return before

    def joined(self, view: WorkerView) -> bool:
        """Use a worker that joined, and return whether the worker is new.

        A worker that is gone does not come back: a late message names it.
        """
        if view.incarnation in self.workers_gone:
            return False
        known = self.view_of(view.incarnation) or self.refused.get(view.incarnation)
        if known is not None:
            known.resources = view.resources  # the resources of a worker may change
            return False
        before = self.replaced_by(view)
        if before is not None:
            self.left(before.incarnation, "left the cluster")
        self._add(view)
        return True

    def left(self, incarnation: str, reason: str, reached: bool = True) -> None:
        """Take in that a worker is gone, and the owners at the worker with it.

        Parameters
        ----------
        incarnation : str
        reason : str
            What became of the worker, for people.
        reached : bool
            False when no message to the worker can have arrived.
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
        """Take in that an owner is gone: the owner of a client, or the owner at a worker."""
        _remember(self.gone, incarnation)
        self._peers.process_gone(incarnation)

    def owners_at(self, worker: str) -> list[str]:
        """Return the incarnations of the owners at a worker that are peers of this process."""
        return [one for one in self._peers.known if worker_of(one) == worker]

    def refuse(self, view: WorkerView, reason: str, reached: bool) -> None:
        """Use a member no more that does not take this process's link, or cannot be reached.

        Parameters
        ----------
        view : WorkerView
        reason : str
            Why, for people.
        reached : bool
            False when no message to the worker can have arrived.
        """
        if view.incarnation not in self.workers_gone:
            self.refused[view.incarnation] = view
            self._refusals[view.address] = reason
        self._remove(view, "refused the link", reached)

    def refused_no_more(self, view: WorkerView) -> bool:
        """Forget that a member was refused, so that the member can join anew.

        Return False when the member is not refused any more.
        """
        return self._forget_refusal(view.incarnation)

    def _forget_refusal(self, incarnation: str) -> bool:
        view = self.refused.pop(incarnation, None)
        # Two incarnations may have had one address, and then share the reason.
        if view is not None and all(v.address != view.address for v in self.refused.values()):
            self._refusals.pop(view.address, None)
        return view is not None

    # ---- asking the scheduler ----

    def ask(self) -> Asked:
        """Return the incarnations about which to ask the scheduler."""
        workers = {view.incarnation for view in self._placement.workers.values()}
        workers.update(self.refused, self._posting.waiting)
        workers.discard("")  # posts that wait for any worker
        peers = self._peers.known.values()
        # A process without an address is a client.
        clients = {peer.process[INCARNATION] for peer in peers if not peer.process[ADDRESS]}
        clients.discard(self._peers.process[INCARNATION])
        return Asked(frozenset(workers), frozenset(clients))


def _remember(gone: dict[str, None], incarnation: str) -> None:
    """Add an incarnation to the gone processes, and forget the oldest one above the limit."""
    gone[incarnation] = None
    if len(gone) > REMEMBERED:
        del gone[next(iter(gone))]
