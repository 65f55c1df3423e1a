"""What makes a link survive the connection that carries it.

Each direction numbers its batches. Every batch also says up to which number the
other direction has arrived, so a batch is kept until it is acknowledged. When
the connection breaks and is dialled again, both ends say what they have
received and the rest is sent again; what arrives twice is dropped by its number.
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
        Number of the last batch that was packed here.
    received : int
        Number of the last batch that arrived here.
    acknowledged : int
        Number of the last batch of ours that the peer is known to have.
    unsaid : int
        How many batches arrived since the peer was last told.
    """

    __slots__ = ("acknowledged", "received", "sent", "unacknowledged", "unsaid")

    def __init__(self) -> None:
        self.sent = 0
        self.received = 0
        self.acknowledged = 0
        self.unsaid = 0
        self.unacknowledged: deque[tuple[int, list[Message]]] = deque()

    def pack(self, messages: list[Message], ask: bool = False) -> Batch:
        """Number a batch.

        An empty one only acknowledges and is not numbered, unless it is to ``ask`` for an
        acknowledgement: a sign of life.
        """
        self.unsaid = 0
        if not messages and not ask:
            return (0, self.received, [])
        self.sent += 1
        self.unacknowledged.append((self.sent, messages))
        return (self.sent, self.received, messages)

    def receive(self, batch: Batch) -> list[Message] | tuple[()]:
        """Take a batch in; what arrived before gives nothing.

        Raises
        ------
        ValueError
            When a batch is missing: a connection delivers in order, so the peer
            and this end no longer speak of the same link.
        """
        number, acknowledged, messages = batch
        if acknowledged > self.acknowledged:
            self.acknowledged = acknowledged
            waiting = self.unacknowledged
            while waiting and waiting[0][0] <= acknowledged:
                waiting.popleft()
        if number == 0 or number <= self.received:
            return ()
        if number != self.received + 1:
            raise ValueError(f"batch {number} arrived after batch {self.received}")
        self.received = number
        self.unsaid += 1
        return messages

    def resume(self, received: int) -> list[Batch]:
        """What to send again to a peer that has received up to ``received``."""
        while self.unacknowledged and self.unacknowledged[0][0] <= received:
            self.unacknowledged.popleft()
        self.acknowledged = max(self.acknowledged, received)
        return [(number, self.received, messages) for number, messages in self.unacknowledged]
