"""A process of the virtual cluster, which can be stopped for a while, be busy, and end."""

from __future__ import annotations

from collections.abc import Callable

from dask_ownership.testing.clock import Clock


class VirtualProcess:
    """Has events happen in one process only while the process is neither stopped nor busy.

    Parameters
    ----------
    clock : Clock
    name : str
        The incarnation of the owner in the process.

    Attributes
    ----------
    clock : Clock
    name : str
    alive : bool
        Whether the process has not ended.
    """

    def __init__(self, clock: Clock, name: str) -> None:
        self.clock = clock
        self.name = name
        self.alive = True
        self._frozen_until = 0.0
        self._postponed: list[Callable[[], None]] = []

    @property
    def frozen(self) -> bool:
        """Whether this process is stopped or busy."""
        return self._frozen_until > self.clock.now

    def step(self) -> None:
        """Deal with the events since the last step."""
        raise NotImplementedError

    def wants_step(self) -> None:
        """Have this process take a step before the next event."""
        self.clock.dirty.add(self)

    def end(self) -> None:
        """End this process: it takes no more steps."""
        self.alive = False
        self.clock.dirty.discard(self)

    def later(self, delay: float, call: Callable[[], None]) -> None:
        """Call a function in this process after a while, or later when it is frozen then."""

        def due() -> None:
            if self.frozen:
                self._postponed.append(call)
            else:
                self.clock.touched.add(self.name)
                call()

        self.clock.later(delay, due)

    def when_awake(self, call: Callable[[], None]) -> None:
        """Call a function now, or after all other calls that wait for a frozen process."""
        self.clock.touched.add(self.name)
        # Postponed calls come first even when the process goes on: batches of a link keep order.
        if self.frozen or self._postponed:
            self._postponed.append(call)
        else:
            call()

    def freeze(self, microseconds: float) -> None:
        """Stop this process for a while, from now."""
        self._frozen_until = max(self._frozen_until, self.clock.now + microseconds)

    def thaw(self) -> None:
        """Make one of the postponed calls, with a step, and go on so unless stopped again.

        A process that has ended makes the calls as well: each looks itself whether it is alive.
        """
        if self._postponed and not (self.alive and self.frozen):
            # Deleted after the call: so calls that come meanwhile go behind it, see `when_awake`.
            call = self._postponed[0]
            call()
            if self._postponed and self._postponed[0] is call:  # not cleared by the end of all
                del self._postponed[0]
            self.wants_step()
            self.clock.later(0.0, self.thaw)

    def occupy(self, microseconds: float) -> float:
        """Be busy for so long, in addition to the time for which this process is busy already.

        Returns
        -------
        float
            How long the process is busy from now, in virtual microseconds.
        """
        self._frozen_until = max(self._frozen_until, self.clock.now) + microseconds
        return self._frozen_until - self.clock.now

    def catch_up(self) -> None:
        """Make the postponed calls until this process is busy again, and take one step."""
        taken = 0
        while taken < len(self._postponed) and not self.frozen:
            self._postponed[taken]()
            taken += 1
        del self._postponed[:taken]
        self.wants_step()
