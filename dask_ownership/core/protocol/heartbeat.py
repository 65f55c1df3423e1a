"""Signs of life of the peer of a link."""

from __future__ import annotations


class Heartbeat:
    """Measures for how long the peer of one link has given no sign of life.

    The caller passes in the time for which this process was awake: a process that was stopped
    itself heard no peer meanwhile, and so can conclude nothing about a peer.

    Attributes
    ----------
    owed : float
        Seconds for which the peer owed an answer and nothing moved on the connection.
    idle : float
        Seconds for which the peer owed nothing and nothing moved on the connection.
    """

    __slots__ = ("idle", "owed")

    def __init__(self) -> None:
        self.owed = 0.0
        self.idle = 0.0

    def look(self, passed: float, heard: bool, owes: bool, ask_after: float | None) -> bool:
        """Count time, and return whether to ask the peer for a sign of life now.

        Parameters
        ----------
        passed : float
            Seconds awake since the last look.
        heard : bool
            Whether anything moved on the connection since the last look.
        owes : bool
            Whether the peer has not acknowledged a batch yet.
        ask_after : float or None
            Seconds of quiet after which to ask a peer that owes nothing; None for never.
        """
        # Any sign of life ends both counts, also when an answer is still owed.
        if heard:
            self.owed = self.idle = 0.0
            return False
        if owes:
            self.owed += passed
            return False  # the batch that is not acknowledged is question enough
        self.owed = 0.0
        self.idle += passed
        # Once asked, the peer owes an acknowledgement, and is not asked again before it comes.
        return ask_after is not None and self.idle >= ask_after
