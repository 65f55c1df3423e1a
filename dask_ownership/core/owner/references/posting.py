"""Posting: batches from one process to another travel over the links of owners and executors.

A post to an owner at a worker goes over the link to the worker. A post to a client, or to a worker
without a link of this process, is carried by another worker; a worker's owner has the executor in
its own process carry the post first. The receiver acknowledges what has arrived. When the
acknowledgement takes too long, as when receiver and carrier cannot reach each other, the next
worker carries the post. A receiver takes in no batch twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dask_ownership.core.owner.references.peers import Peer, Peers
from dask_ownership.core.owner.rows.effects import OwnerEffects
from dask_ownership.core.owner.rows.worker_view import WorkerView
from dask_ownership.core.owner.scheduling.placement import Placement
from dask_ownership.core.protocol.messages import Message, Process
from dask_ownership.core.protocol.names import ADDRESS, INCARNATION, worker_of

CARRIED = 2.0
"""Seconds within which the first carrier of a post has to deliver; each next carrier has twice as
long."""

DOUBLED = 5
"""How often the time of `CARRIED` is doubled at most."""

HOME = "home"
"""In place of a carrier's address: the executor in this process carries the posts."""


class Posting:
    """Sends the posts of one process to its peers, and takes in or passes on posts.

    Parameters
    ----------
    peers : Peers
        The other processes, and the messages to them.
    placement : Placement
        Knows the workers with a link of this process.
    refused : dict of str to WorkerView
        Members that do not take a link of this process, by their incarnations.
    effects : OwnerEffects
        Takes timers, and posts for the executor in this process.

    Attributes
    ----------
    waiting : dict of str to list of Peer
        Peers whose posts wait for a worker to become a member, by the worker's incarnation; ``""``
        stands for any worker. The runtime asks the scheduler about these workers.
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
        # Peers that have a timer under way, which looks for acknowledgements.
        self._watched: set[Peer] = set()

    def flush(self, acknowledge: bool = False) -> None:
        """Send the messages of all features to their peers; see `Peers.flush`."""
        if self._peers.talking:
            for peer, message in self._peers.flush(acknowledge):
                self._send(peer, message)

    def _send(self, peer: Peer, message: Message) -> None:
        """Send a post to a peer.

        When no worker can carry the post, the post stays in the peer's stream until one joins.
        """
        if peer.gone:
            return
        way = self._way(peer)
        if way is None:
            return
        if way != peer.way:
            peer.way = way
            # The carrier before may not have delivered all posts, so the new carrier gets all that
            # are not acknowledged.
            for before in self._peers.unacknowledged(peer):
                self._put(way, before)
            # A numbered post is one of these. A post with number 0 only acknowledges.
            _, _, _, (number, _, _) = message
            if number:
                message = ()
        if message:
            self._put(way, message)
        # The link to the peer's own worker repeats lost batches itself, so no timer is needed.
        if way != peer.process[ADDRESS] and peer not in self._watched:
            self._watched.add(peer)
            self._look_later(peer)

    def _way(self, peer: Peer) -> str | None:
        """Return the carrier of posts to a peer: a worker's address, or `HOME`.

        Return None when no worker can carry the posts; then the peer is in ``waiting``.
        """
        workers = self._placement.workers
        incarnation, address, _ = peer.process
        worker = worker_of(incarnation)
        if address and worker not in self._refused:
            view = workers.get(address)
            # Another worker may have the address now.
            if view is None or view.incarnation != worker:
                self._wait(worker, peer)
                return None
            return address
        # The peer is a client, or a worker without a link of this process. The carrier stays the
        # same as long as it can carry.
        home = self._placement.home
        if peer.way == HOME or (peer.way in workers and not workers[peer.way].suspended):
            return peer.way
        # Suspended workers are the last choice. After each failure `turn` leads to the next one.
        others = [view for view in workers.values() if view.address != home]
        awake = [view.address for view in others if not view.suspended]
        ways = [HOME] if home is not None else []
        ways += awake or [view.address for view in others]
        if ways:
            return ways[peer.turn % len(ways)]
        self._wait("", peer)
        return None

    def _wait(self, worker: str, peer: Peer) -> None:
        """Have the posts of a peer wait for a worker to join; ``""`` is any worker."""
        waiting = self.waiting.setdefault(worker, [])
        if peer not in waiting:
            waiting.append(peer)

    def _put(self, way: str, message: Message) -> None:
        """Give a post to its carrier."""
        if way == HOME:
            self._effects.posts.append(message)
        else:
            self._placement.workers[way].outbox.append(message)

    def _again(self, peer: Peer) -> None:
        """Send all unacknowledged posts to a peer once more, with a carrier chosen anew."""
        peer.way = ""
        unacknowledged = self._peers.unacknowledged(peer)
        if unacknowledged:
            self._send(peer, unacknowledged[-1])  # with another way, `_send` sends all of them

    def _look_later(self, peer: Peer) -> None:
        """Set a timer that looks whether a peer has acknowledged its oldest post by then."""
        batches = peer.stream.unacknowledged
        oldest = next((number for number, _ in batches), 0)
        seconds = CARRIED * (1 << min(peer.turn, DOUBLED))
        self._effects.later(seconds, self._look, peer, oldest)

    def _look(self, peer: Peer, oldest: int) -> None:
        """Change the carrier when a peer has not acknowledged its oldest post since the last look.

        ``oldest`` is the number of the oldest unacknowledged batch at the last look.
        """
        batches = peer.stream.unacknowledged
        if peer.gone or not batches or peer.way == peer.process[ADDRESS]:
            self._watched.discard(peer)
            return
        first, _ = next(iter(batches))
        if first == oldest:
            peer.turn += 1
            self._again(peer)
        self._look_later(peer)

    def unheard(self, peer: Peer) -> None:
        """Change the carrier of acknowledgements: a peer repeats a batch that has arrived here.

        The acknowledgement may have been lost with the carrier.
        """
        if peer.way and peer.way != peer.process[ADDRESS]:
            peer.turn += 1
            peer.way = ""

    # ---- members ----

    def joined(self, view: WorkerView) -> None:
        """Send the posts that waited for a worker that joined, or for any worker."""
        for worker in (view.incarnation, ""):
            for peer in self.waiting.pop(worker, ()):
                self._again(peer)

    def gone(self, worker: str) -> None:
        """Stop waiting for a worker that is gone for good."""
        self.waiting.pop(worker, None)

    def way_is_gone(self, view: WorkerView) -> None:
        """Choose other carriers for posts that a worker was to carry.

        The worker is used no more, or is suspended. A post may be lost with the worker.
        """
        for peer in list(self._peers.known.values()):
            # Posts to the owner at a suspended worker wait for the worker itself.
            silent = view.alive and peer.process[ADDRESS] == view.address
            if peer.way == view.address and not peer.gone and not silent:
                self._again(peer)

    # ---- posts that arrive ----

    def receive(self, posts: Iterable[Message]) -> None:
        """Take in posts for this process, and pass on posts that it is to carry to a worker."""
        for message in posts:
            to: Process
            _, to, sender, batch = message
            if to[INCARNATION] == self._peers.process[INCARNATION]:
                self._peers.receive(sender, batch)
                continue
            view = self._placement.workers.get(to[ADDRESS])
            # Without the worker the post is lost, and its sender chooses another carrier.
            if view is not None and view.incarnation == worker_of(to[INCARNATION]):
                view.outbox.append(message)
