"""Signs of life of the peer of a link."""

from __future__ import annotations


class Heartbeat:
    """Whether the peer of one link gives signs of life; time is passed in.

    It is this process's own time awake: a process that was stopped itself knows nothing of
    others for as long.

    Attributes
    ----------
    owed : float
        How long an answer was owed and nothing was heard.
    idle : float
        How long nothing was heard while nothing was owed.
    """

    __slots__ = ("idle", "owed")

    def __init__(self) -> None:
        self.owed = 0.0
        self.idle = 0.0

    def look(self, passed: float, heard: bool, owes: bool, ask_after: float | None) -> bool:
        """Count time; whether the peer is to be asked for a sign of life now.

        Parameters
        ----------
        passed : float
            Since the last look.
        heard : bool
            Whether anything came since then.
        owes : bool
            Whether it has not acknowledged something.
        ask_after : float or None
            Quiet time after which one that owes nothing is asked; None for never.
        """
        if heard:
            self.owed = self.idle = 0.0
            return False
        if owes:
            self.owed += passed
            return False
        self.owed = 0.0
        self.idle += passed
        return ask_after is not None and self.idle >= ask_after
