"""Numbered, acknowledged batches, with which a link survives the connection that carries it.

Each direction numbers its batches. Every batch also says up to which number batches of the other
direction have arrived, and the sender keeps a batch until the acknowledgement. When the
connection breaks and is dialled again, both ends say how far batches have arrived, and the rest
is sent again; the receiver drops a batch that arrives twice by its number. The streams between
peers (`references.peers`) work in the same way.
"""

from __future__ import annotations

from collections import deque

from dask_ownership.core.protocol.messages import Message

Batch = tuple[int, int, list[Message]]


class NumberedStream:
    """Sequence numbers of one end of a link.

    Attributes
    ----------
    sent : int
        Number of the last batch that this end packed.
    received : int
        Number of the last batch that arrived at this end.
    acknowledged : int
        Number of the last batch of this end that the peer has acknowledged.
    unsaid : int
        How many batches arrived since this end last acknowledged any.
    unacknowledged : deque of tuple
        Number and messages of each batch of this end that the peer may not have, oldest first.
    """

    __slots__ = ("acknowledged", "received", "sent", "unacknowledged", "unsaid")

    def __init__(self) -> None:
        self.sent = 0
        self.received = 0
        self.acknowledged = 0
        self.unsaid = 0
        self.unacknowledged: deque[tuple[int, list[Message]]] = deque()

    def pack(self, messages: list[Message], ask: bool = False) -> Batch:
        """Number a batch and keep the batch until the peer acknowledges.

        An empty batch only acknowledges and has no number (0), unless the batch is to ``ask`` the
        peer for an acknowledgement, which is a sign of life.

        Returns
        -------
        tuple
            Number, number of the last batch received, and messages.
        """
        self.unsaid = 0
        if not messages and not ask:
            return (0, self.received, [])
        self.sent += 1
        self.unacknowledged.append((self.sent, messages))
        return (self.sent, self.received, messages)

    def receive(self, batch: Batch) -> list[Message] | tuple[()]:
        """Take a batch in and return its messages; none of a batch that arrived before.

        Raises
        ------
        ValueError
            When a batch in between is missing. A connection delivers in order, so the two ends
            of a link no longer speak of the same link. Posts between peers may overtake each
            other: there the missing batch is under way again.
        """
        number, acknowledged, messages = batch
        # Also a batch that comes again may acknowledge more than the last one did.
        if acknowledged > self.acknowledged:
            self.acknowledged = acknowledged
            waiting = self.unacknowledged
            while waiting and waiting[0][0] <= acknowledged:
                waiting.popleft()
        # Number 0 only acknowledges; a number up to the last one arrived before.
        if number == 0 or number <= self.received:
            return ()
        if number != self.received + 1:
            raise ValueError(f"batch {number} arrived after batch {self.received}")
        self.received = number
        self.unsaid += 1
        return messages

    def resume(self, received: int) -> list[Batch]:
        """Return the batches to send again to a peer that has received up to ``received``."""
        # The peer has these batches; the acknowledgement may have been lost with the connection.
        while self.unacknowledged and self.unacknowledged[0][0] <= received:
            self.unacknowledged.popleft()
        self.acknowledged = max(self.acknowledged, received)
        return [(number, self.received, messages) for number, messages in self.unacknowledged]
