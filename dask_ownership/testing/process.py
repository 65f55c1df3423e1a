"""A process of the virtual cluster: it can be stopped for a while, be busy, and end."""

from __future__ import annotations

from collections.abc import Callable

from dask_ownership.testing.clock import Clock


class VirtualProcess:
    """Lets things happen in one process only while it is neither stopped nor busy.

    Parameters
    ----------
    clock : Clock
    name : str
        The incarnation of its owner.
    """

    def __init__(self, clock: Clock, name: str) -> None:
        self.clock = clock
        self.name = name
        self.alive = True
        self._frozen_until = 0.0
        self._postponed: list[Callable[[], None]] = []

    @property
    def frozen(self) -> bool:
        """Whether this process is stopped."""
        return self._frozen_until > self.clock.now

    def step(self) -> None:
        """Deal with what happened to this process."""
        raise NotImplementedError

    def wants_step(self) -> None:
        """Something happened to this process."""
        self.clock.dirty.add(self)

    def end(self) -> None:
        """Take part in nothing from now on."""
        self.alive = False
        self.clock.dirty.discard(self)

    def later(self, delay: float, call: Callable[[], None]) -> None:
        """Do something in this process after a while, when it is not frozen then."""

        def due() -> None:
            if self.frozen:
                self._postponed.append(call)
            else:
                self.clock.touched.add(self.name)
                call()

        self.clock.later(delay, due)

    def when_awake(self, call: Callable[[], None]) -> None:
        """Do something now, or after all that this process has slept through."""
        self.clock.touched.add(self.name)
        if self.frozen or self._postponed:
            self._postponed.append(call)
        else:
            call()

    def freeze(self, microseconds: float) -> None:
        """Stop for a while, from now."""
        self._frozen_until = max(self._frozen_until, self.clock.now + microseconds)

    def thaw(self) -> None:
        """Go on, with what happened to this process meanwhile, unless it was stopped again.

        One thing after the other, each with a step.
        """
        if self._postponed and not (self.alive and self.frozen):
            self._postponed[0]()
            del self._postponed[0]
            self.wants_step()
            self.clock.later(0.0, self.thaw)

    def occupy(self, microseconds: float) -> float:
        """Be busy for so long, after what keeps this process busy already.

        Returns
        -------
        float
            How long it is busy from now, in virtual microseconds.
        """
        self._frozen_until = max(self._frozen_until, self.clock.now) + microseconds
        return self._frozen_until - self.clock.now

    def catch_up(self) -> None:
        """Deal with what came while this process was busy, until that keeps it busy again."""
        taken = 0
        while taken < len(self._postponed) and not self.frozen:
            self._postponed[taken]()
            taken += 1
        del self._postponed[:taken]
        self.wants_step()
