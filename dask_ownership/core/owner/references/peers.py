"""Peers: the other processes that this process exchanges references with.

Each pair of processes exchanges messages in one ordered stream. The links between owners and
executors carry the stream; a worker passes on batches for other processes
(`references.posting`). `protocol.peer_messages` describes the messages. Each feature registers a
handler for its kinds of messages, and a function for the death of a process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from dask_ownership.core.owner.rows.effects import OwnerEffects
from dask_ownership.core.owner.rows.row import Borrowed, Row
from dask_ownership.core.owner.rows.worker_view import WorkerView
from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol.messages import AFTER_KIND, KIND, Key, Message, Process
from dask_ownership.core.protocol.names import INCARNATION, NAME
from dask_ownership.core.protocol.peer_messages import LEAVE, NAMES
from dask_ownership.core.protocol.stream import NumberedStream

HANDED_ON = 0.5
"""Seconds for which a dead borrower still counts. Other processes to which the borrower sent
futures may be about to borrow the objects themselves."""


@dataclass(slots=True, eq=False, repr=False)
class Peer:
    """What one process knows of another process with which it exchanges references."""

    #: Incarnation, address and name of the peer.
    process: Process
    #: Whether the peer has left or died.
    gone: bool = False
    #: Numbers the batches of both directions.
    stream: NumberedStream = field(default_factory=NumberedStream, init=False)
    #: Messages to the peer that have not left yet.
    outbox: list[Message] = field(default_factory=list, init=False)
    #: Objects that this process borrows from the peer, by the number of the borrowing.
    borrowed: dict[int, Borrowed] = field(default_factory=dict, init=False)
    #: Objects that the peer borrows from this process: ``(key, number)`` to row.
    lent: dict[tuple[Key, int], Row] = field(default_factory=dict, init=False)
    #: Tasks of this process that are kept at the peer's request, see `references.retention`.
    kept: dict[Key, Row] = field(default_factory=dict, init=False)
    #: The address of the worker whose link carries posts to the peer, see `references.posting`;
    #: ``""`` when no worker was chosen.
    way: str = field(default="", init=False)
    #: How often the carrier was changed, because posts or acknowledgements may not have arrived.
    turn: int = field(default=0, init=False)

    def __repr__(self) -> str:
        return f"<Peer {self.process[NAME]} borrowed={len(self.borrowed)} lent={len(self.lent)}>"


Handler: TypeAlias = Callable[..., None]


class Peers:
    """Exchanges messages about references with all other processes.

    Parameters
    ----------
    process : Process
        This process: incarnation, address (of a worker, else empty) and name.
    is_gone, process_gone : callable
        Whether an incarnation is gone; take note that an incarnation is gone.
    unheard : callable
        Called with a peer that repeats a batch which has arrived here before.
    effects : OwnerEffects
        Takes timers, and errors of handlers.

    Attributes
    ----------
    known : dict of str to Peer
        All peers by incarnation, but for processes that `process_gone` has named.
    talking : dict of str to Peer
        Peers with messages or acknowledgements to send.
    mourned : dict of str to Peer
        Dead peers that still count as borrowers, for `HANDED_ON` seconds.
    left : bool
        Whether this process has ended.
    handlers : dict of int to Handler
        By kind of message: called with the peer and the items of the message after the kind.
    last_words : dict of int to Handler
        The same for messages of a mourned peer, sent before its death. Other kinds are ignored.
    when_gone, when_buried : list of callable
        Called with a peer that is gone, and again when the peer no longer counts as a borrower.
    """

    def __init__(
        self,
        process: Process,
        *,
        is_gone: Callable[[str], bool],
        process_gone: Callable[[str], None],
        unheard: Callable[[Peer], None],
        effects: OwnerEffects,
    ) -> None:
        self.process = process
        self._is_gone = is_gone
        self._process_gone = process_gone
        self._unheard = unheard
        self._effects = effects
        self.known: dict[str, Peer] = {}
        self.talking: dict[str, Peer] = {}
        self.mourned: dict[str, Peer] = {}
        self.left = False
        self.handlers: dict[int, Handler] = {LEAVE: self._on_leave}
        self.last_words: dict[int, Handler] = {}
        self.when_gone: list[Callable[[Peer], None]] = []
        self.when_buried: list[Callable[[Peer], None]] = []

    def peer(self, process: Process) -> Peer:
        """Return the peer of a process; a new peer is added."""
        peer = self.known.get(process[INCARNATION])
        if peer is None:
            incarnation = process[INCARNATION]
            peer = self.known[incarnation] = Peer(process, self._is_gone(incarnation))
        return peer

    def say(self, peer: Peer, message: Message) -> None:
        """Queue a message to a peer, unless the peer is gone."""
        if not peer.gone:
            peer.outbox.append(message)
            self.talking[peer.process[INCARNATION]] = peer

    def receive(self, sender: Process, batch: Any) -> None:
        """Take in a batch of another process.

        No batch (None) says that the process cannot be reached and never will be. A batch that
        arrives twice or late changes nothing. An error in one handler is logged and leaves the
        other messages alone.
        """
        if batch is None:
            self._process_gone(sender[INCARNATION])
            return
        mourned = self.mourned.get(sender[INCARNATION])
        if mourned is None and self._is_gone(sender[INCARNATION]):
            return  # too late: the process does not count any more
        peer = mourned or self.peer(sender)
        before = peer.stream.received
        try:
            messages = peer.stream.receive(batch)
        except ValueError:
            return  # a batch is missing in between, and is sent again
        if mourned is not None:
            # The batch left before the process died, and was slow on its way.
            for message in messages:
                if message and message[KIND] in self.last_words:
                    self.last_words[message[KIND]](mourned, *message[AFTER_KIND])
            return
        number, _, _ = batch
        if number and number <= before:
            # A peer repeats a batch until the acknowledgement arrives, so send that once more.
            peer.stream.unsaid += 1
            self._unheard(peer)
        if peer.stream.unsaid:
            self.talking[sender[INCARNATION]] = peer
        for message in messages:
            try:
                handler = self.handlers.get(message[KIND])
                if handler is not None:
                    handler(peer, *message[AFTER_KIND])
            except Exception as error:
                said = (
                    NAMES[message[KIND]] if message and message[KIND] in range(len(NAMES)) else "?"
                )
                where = f"{said} of {sender[NAME]} could not be taken in"
                self._effects.broken.append((where, error))

    def on_post(self, view: WorkerView, receiver: Process, sender: Process, batch: Any) -> None:
        """Handle POST: a worker passes on a batch of another process.

        A batch for an earlier process at this address is ignored.
        """
        if receiver[INCARNATION] == self.process[INCARNATION]:
            self.receive(sender, batch)

    def say_to_itself(self) -> None:
        """Take in the messages of this process to itself, which may lead to more of them.

        A process is its own peer when it borrows from itself: after an ownership transfer, or
        when a task of its own has to run again (`references.reconstruction`).
        """
        myself = self.process[INCARNATION]
        while myself in self.talking:
            peer = self.talking.pop(myself)
            if peer.outbox:
                messages, peer.outbox = peer.outbox, []
                self.receive(self.process, peer.stream.pack(messages))

    def flush(self, acknowledge: bool = False) -> list[tuple[Peer, Message]]:
        """Return the posts to send now, each with the peer that is to receive the post.

        With ``acknowledge``, peers to whom there is nothing else to say get an acknowledgement
        of what has arrived; without, acknowledgements only travel with messages.
        """
        posts: list[tuple[Peer, Message]] = []
        self.say_to_itself()
        for incarnation, peer in list(self.talking.items()):
            if peer.outbox or (acknowledge and peer.stream.unsaid):
                messages, peer.outbox = peer.outbox, []
                batch = peer.stream.pack(messages)
                posts.append((peer, (m.POST, peer.process, self.process, batch)))
            # A peer that only awaits an acknowledgement stays, for the next message or call.
            if not peer.stream.unsaid:
                del self.talking[incarnation]
        return posts

    def unacknowledged(self, peer: Peer) -> list[Message]:
        """Return posts with all batches that a peer has not acknowledged."""
        batches = peer.stream.resume(peer.stream.acknowledged)
        return [(m.POST, peer.process, self.process, batch) for batch in batches]

    # ---- ends ----

    def _on_leave(self, peer: Peer) -> None:
        """Handle LEAVE: a peer ends by itself."""
        self._process_gone(peer.process[INCARNATION])

    def process_gone(self, incarnation: str) -> None:
        """Take note that a process is gone for good, as `Membership` says.

        As an owner the process is gone at once. As a borrower the process counts for `HANDED_ON`
        seconds more.
        """
        peer = self.known.pop(incarnation, None)
        self.talking.pop(incarnation, None)
        if peer is None or peer.gone:
            return
        peer.gone = True
        peer.outbox.clear()
        self.mourned[incarnation] = peer
        self._effects.later(HANDED_ON, self._bury, incarnation)
        # Last, when `say` sends the peer nothing any more: listeners send messages to heirs.
        for gone in self.when_gone:
            gone(peer)

    def _bury(self, incarnation: str) -> None:
        """Stop counting a dead peer as a borrower.

        By now other processes borrow the objects whose futures the peer sent on.
        """
        peer = self.mourned.pop(incarnation)
        for buried in self.when_buried:
            buried(peer)

    def leave(self) -> None:
        """Tell all peers that this process ends."""
        self.left = True
        for peer in list(self.known.values()):
            self.say(peer, (LEAVE,))
