"""The failure detector: finds half-open connections, and workers that do not answer.

One look every half second serves for all links; nothing is added per task. A link is dialled again
when the worker owes an answer and no byte moves. A worker that stays silent all the same is
reported to the core (`scheduling.suspension`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter

from dask_ownership.core.owner.ownership import OwnerCore
from dask_ownership.runtime.comm.request import silence

LOOKS = 10
"""Number of looks within the time for which a worker may be silent."""


class FailureDetector:
    """The failure detector of one owner: looks for signs of life on all links.

    Parameters
    ----------
    core : OwnerCore
    step : callable
        Has the owner send the messages that the core decided on.

    Attributes
    ----------
    limit : float
        Seconds for which a worker may be silent (``ownership.silence``).
    """

    def __init__(self, core: OwnerCore, step: Callable[[], None]) -> None:
        self.core = core
        self._step = step
        self.limit = silence()
        self._looked_at = 0.0
        self._next: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to look at the links. Loop thread."""
        self._looked_at = perf_counter()
        self._later()

    def stop(self) -> None:
        """Stop looking at the links."""
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _later(self) -> None:
        """Schedule the next look."""
        self._next = asyncio.get_running_loop().call_later(self.limit / LOOKS, self._look)

    def _look(self) -> None:
        """Look at each link, and report workers that fell silent or gave a sign of life."""
        now = perf_counter()
        # Time does not count in which this process or its loop was stopped: it read no answers.
        passed = min(now - self._looked_at, 2 * self.limit / LOOKS)
        self._looked_at = now
        self._later()
        core = self.core
        expects = bool(core.table.rows)
        silent = []
        awake = []
        for view in core.placement.workers.values():
            link = view.link
            if link is None:
                continue
            # A worker that owes nothing is asked for a sign of life after a quiet time. The time is
            # short when the worker has tasks of this owner or is suspended; an owner without rows
            # asks no other workers.
            ask_after: float | None = self.limit if expects else None
            if view.pushed or view.suspended:
                ask_after = self.limit / 4
            owed = link.look(passed, ask_after)
            if owed >= self.limit:
                silent.append((view, owed / self.limit))
            elif view.suspended and not owed:
                awake.append(view)
        if silent or awake:
            core.suspensions.silent(silent)
            for view in awake:
                core.suspensions.heard(view)
            self._step()
