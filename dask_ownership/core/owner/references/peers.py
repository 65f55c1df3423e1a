"""Other processes, and what this one has to say to them.

Processes correspond in one ordered stream per pair, carried over the links that are there anyway; a
worker passes on what is for another process (`references.posting`). What is said is described in
`protocol.peer_messages`. Each feature registers what it does about a kind of message, and about the
death of a process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from dask_ownership.core.owner.rows.effects import OwnerEffects
from dask_ownership.core.owner.rows.row import Borrowed, Row
from dask_ownership.core.owner.rows.worker_view import WorkerView
from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol.messages import Key, Message, Process
from dask_ownership.core.protocol.peer_messages import LEAVE, NAMES
from dask_ownership.core.protocol.stream import NumberedStream

HANDED_ON = 0.5
"""Seconds for which a borrower that is gone still counts: others may be about to be counted for
what it sent them."""


class Peer:
    """Another process, as references need it.

    Attributes
    ----------
    process : Process
    stream : NumberedStream
        Numbers what is said to it and what it says.
    outbox : list
        What was not sent yet.
    borrowed : dict
        Number to our row, for what we borrow from it.
    lent : dict
        ``(key, number)`` to the row, for what it borrows from us.
    kept : dict
        Key to the row, for our tasks that it has us keep.
    gone : bool
    way : str
        The worker over whose link posts to it go, see `references.posting`; ``""`` when none did.
    turn : int
        How many could not carry them.
    """

    __slots__ = ("borrowed", "gone", "kept", "lent", "outbox", "process", "stream", "turn", "way")

    def __init__(self, process: Process) -> None:
        self.process = process
        self.stream = NumberedStream()
        self.outbox: list[Message] = []
        self.borrowed: dict[int, Borrowed] = {}
        self.lent: dict[tuple[Key, int], Row] = {}
        self.kept: dict[Key, Row] = {}
        self.gone = False
        self.way = ""
        self.turn = 0

    def __repr__(self) -> str:
        return f"<Peer {self.process[2]} borrowed={len(self.borrowed)} lent={len(self.lent)}>"


Handler: TypeAlias = Callable[..., None]


class Peers:
    """All processes that this one corresponds with.

    Parameters
    ----------
    process : Process
        This one: incarnation, address (of a worker, else empty) and name.
    is_gone, process_gone : callable
        Whether an incarnation is gone; says that it is.
    unheard : callable
        Told of a peer that sends again what has arrived here.
    effects : OwnerEffects

    Attributes
    ----------
    known : dict of str to Peer
        By incarnation, but for those that are gone.
    talking : dict of str to Peer
        Those to whom there is something to say.
    mourned : dict of str to Peer
        Those that are gone, and still count for a while.
    left : bool
        Whether this process has ended.
    handlers : dict
        Kind of a message to what takes it: a peer, and the items of the message after the kind.
    last_words : dict
        The same, for what a process said before it went.
    when_gone, when_buried : list of callable
        Told of a peer that is gone, and again when it does not count any more.
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
        """The peer of a process, made when it is new."""
        peer = self.known.get(process[0])
        if peer is None:
            peer = self.known[process[0]] = Peer(process)
            peer.gone = self._is_gone(process[0])
        return peer

    def say(self, peer: Peer, message: Message) -> None:
        """Have something said to another process, unless that is gone."""
        if not peer.gone:
            peer.outbox.append(message)
            self.talking[peer.process[0]] = peer

    def receive(self, sender: Process, batch: Any) -> None:
        """What another process says. None when it cannot be reached and never will be."""
        if batch is None:
            self._process_gone(sender[0])
            return
        mourned = self.mourned.get(sender[0])
        if mourned is None and self._is_gone(sender[0]):
            return
        peer = mourned or self.peer(sender)
        before = peer.stream.received
        try:
            messages = peer.stream.receive(batch)
        except ValueError:
            return  # what is missing in between is on its way again
        if mourned is not None:
            for message in messages:
                if message and message[0] in self.last_words:
                    self.last_words[message[0]](mourned, *message[1:])
            return
        if batch[0] and batch[0] <= before:
            peer.stream.unsaid += 1  # it is sent until this is said
            self._unheard(peer)
        if peer.stream.unsaid:
            self.talking[sender[0]] = peer
        for message in messages:
            try:
                handler = self.handlers.get(message[0])
                if handler is not None:
                    handler(peer, *message[1:])
            except Exception as error:
                said = NAMES[message[0]] if message and message[0] in range(len(NAMES)) else "?"
                where = f"{said} of {sender[2]} could not be taken in"
                self._effects.broken.append((where, error))

    def on_post(self, view: WorkerView, receiver: Process, sender: Process, batch: Any) -> None:
        """A worker passed on what another process says, perhaps to one that was here before."""
        if receiver[0] == self.process[0]:
            self.receive(sender, batch)

    def say_to_itself(self) -> None:
        """Hear what this process has to say to itself, which may be to run a task."""
        myself = self.process[0]
        while myself in self.talking:
            peer = self.talking.pop(myself)
            if peer.outbox:
                messages, peer.outbox = peer.outbox, []
                self.receive(self.process, peer.stream.pack(messages))

    def flush(self, acknowledge: bool = False) -> list[tuple[Peer, Message]]:
        """What is to be posted now, by receiver.

        ``acknowledge`` also says what arrived to those to whom there is nothing to say.
        """
        posts: list[tuple[Peer, Message]] = []
        self.say_to_itself()
        for incarnation, peer in list(self.talking.items()):
            if peer.outbox or (acknowledge and peer.stream.unsaid):
                messages, peer.outbox = peer.outbox, []
                batch = peer.stream.pack(messages)
                posts.append((peer, (m.POST, peer.process, self.process, batch)))
            if not peer.stream.unsaid:
                del self.talking[incarnation]
        return posts

    def unacknowledged(self, peer: Peer) -> list[Message]:
        """What it may not have got of what was posted."""
        batches = peer.stream.resume(peer.stream.acknowledged)
        return [(m.POST, peer.process, self.process, batch) for batch in batches]

    # ---- ends ----

    def _on_leave(self, peer: Peer) -> None:
        self._process_gone(peer.process[0])

    def process_gone(self, incarnation: str) -> None:
        """A process is gone for good, as `Membership` says: as an owner, and as a borrower.

        It still counts as a borrower for a while, because others may be about to be counted
        for what it sent them.
        """
        peer = self.known.pop(incarnation, None)
        self.talking.pop(incarnation, None)
        if peer is None or peer.gone:
            return
        peer.gone = True
        peer.outbox.clear()
        self.mourned[incarnation] = peer
        self._effects.later(HANDED_ON, self._bury, incarnation)
        for gone in self.when_gone:
            gone(peer)

    def _bury(self, incarnation: str) -> None:
        """What a process that is gone handed on is counted by now."""
        peer = self.mourned.pop(incarnation)
        for buried in self.when_buried:
            buried(peer)

    def leave(self) -> None:
        """This process ends: tell everyone it corresponds with."""
        self.left = True
        for peer in list(self.known.values()):
            self.say(peer, (LEAVE,))
