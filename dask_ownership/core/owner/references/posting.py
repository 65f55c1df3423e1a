"""The ways of posts: what one process says to another, over the links that are there.

To an owner at a worker a post goes over the link to that worker. To a client, and to a worker
that this process has no link with, another worker carries it: in a worker its own executor
first. Whether it arrives is seen when the receiver acknowledges it. When that takes too long, as
when the receiver and the carrier cannot reach each other, the next worker carries it; a receiver
takes nothing in twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dask_ownership.core.owner.references.peers import Peer, Peers
from dask_ownership.core.owner.rows.effects import OwnerEffects
from dask_ownership.core.owner.rows.worker_view import WorkerView
from dask_ownership.core.owner.scheduling.placement import Placement
from dask_ownership.core.protocol.messages import Message, Process
from dask_ownership.core.protocol.names import worker_of

CARRIED = 2.0
"""Seconds for which the first carrier of a post is waited for; each next one twice as long."""

DOUBLED = 5
"""How often that time is doubled at most."""

HOME = "home"
"""In place of the address of a carrier: the executor in this process."""


class Posting:
    """Sends what one process has to say to others.

    Parameters
    ----------
    peers : Peers
    placement : Placement
    refused : dict
        Members that do not take a link of this process, by their incarnations.
    effects : OwnerEffects

    Attributes
    ----------
    waiting : dict
        What waits for a worker to become a member, by its incarnation; ``""`` for any. The
        runtime asks the scheduler about those.
    """

    def __init__(
        self,
        peers: Peers,
        placement: Placement,
        refused: Mapping[str, WorkerView],
        effects: OwnerEffects,
    ) -> None:
        self._peers = peers
        self._placement = placement
        self._refused = refused
        self._effects = effects
        self.waiting: dict[str, list[Peer]] = {}
        self._watched: set[Peer] = set()

    def flush(self, acknowledge: bool = False) -> None:
        """Send what references have to say; see `Peers.flush`."""
        if self._peers.talking:
            for peer, message in self._peers.flush(acknowledge):
                self._send(peer, message)

    def _send(self, peer: Peer, message: Message) -> None:
        """Send a post on its way, or leave it until there is one."""
        if peer.gone:
            return
        way = self._way(peer)
        if way is None:
            return
        if way != peer.way:
            peer.way = way
            for before in self._peers.unacknowledged(peer):  # this one among them
                self._put(way, before)
            if message[3][0]:
                message = ()
        if message:
            self._put(way, message)
        if way != peer.process[1] and peer not in self._watched:
            self._watched.add(peer)
            self._look_later(peer)

    def _way(self, peer: Peer) -> str | None:
        """The worker over whose link something goes; None when it has to wait."""
        workers = self._placement.workers
        incarnation, address, _ = peer.process
        worker = worker_of(incarnation)
        if address and worker not in self._refused:
            view = workers.get(address)
            if view is None or view.incarnation != worker:
                self._wait(worker, peer)
                return None
            return address
        home = self._placement.home
        if peer.way == HOME or (peer.way in workers and not workers[peer.way].suspended):
            return peer.way
        others = [view for view in workers.values() if view.address != home]
        awake = [view.address for view in others if not view.suspended]
        ways = [HOME] if home is not None else []
        ways += awake or [view.address for view in others]
        if ways:
            return ways[peer.turn % len(ways)]
        self._wait("", peer)
        return None

    def _wait(self, worker: str, peer: Peer) -> None:
        waiting = self.waiting.setdefault(worker, [])
        if peer not in waiting:
            waiting.append(peer)

    def _put(self, way: str, message: Message) -> None:
        if way == HOME:
            self._effects.posts.append(message)
        else:
            self._placement.workers[way].outbox.append(message)

    def _again(self, peer: Peer) -> None:
        """Send all that was not acknowledged once more, another way."""
        peer.way = ""
        unacknowledged = self._peers.unacknowledged(peer)
        if unacknowledged:
            self._send(peer, unacknowledged[-1])

    def _look_later(self, peer: Peer) -> None:
        batches = peer.stream.unacknowledged
        oldest = batches[0][0] if batches else 0
        seconds = CARRIED * (1 << min(peer.turn, DOUBLED))
        self._effects.later(seconds, self._look, peer, oldest)

    def _look(self, peer: Peer, oldest: int) -> None:
        """Have another carry what did not arrive."""
        batches = peer.stream.unacknowledged
        if peer.gone or not batches or peer.way == peer.process[1]:
            self._watched.discard(peer)
            return
        if batches[0][0] == oldest:
            peer.turn += 1
            self._again(peer)
        self._look_later(peer)

    def unheard(self, peer: Peer) -> None:
        """It sends what has arrived here: what was said of that may not have arrived there."""
        if peer.way and peer.way != peer.process[1]:
            peer.turn += 1
            peer.way = ""

    # ---- members ----

    def joined(self, view: WorkerView) -> None:
        """A worker joined: what waited for it can go."""
        for worker in (view.incarnation, ""):
            for peer in self.waiting.pop(worker, ()):
                self._again(peer)

    def gone(self, worker: str) -> None:
        """A worker is gone for good: nothing waits for it."""
        self.waiting.pop(worker, None)

    def way_is_gone(self, view: WorkerView) -> None:
        """A worker is not used any more, or is silent: what it was to carry may not arrive."""
        for peer in list(self._peers.known.values()):
            silent = view.alive and peer.process[1] == view.address
            if peer.way == view.address and not peer.gone and not silent:
                self._again(peer)

    # ---- posts that arrive ----

    def receive(self, posts: Iterable[Message]) -> None:
        """What others said to this process, or have it carry to a worker."""
        for message in posts:
            to: Process = message[1]
            if to[0] == self._peers.process[0]:
                self._peers.receive(message[2], message[3])
                continue
            view = self._placement.workers.get(to[1])
            # Else it is lost, and whoever sent it tries another way.
            if view is not None and view.incarnation == worker_of(to[0]):
                view.outbox.append(message)
