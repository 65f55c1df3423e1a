"""Signs of life: connections that are half-open, and workers that do not answer.

One look every half second finds all of it; nothing is added per task. A link over which an
answer is owed and nothing moves is dialled again. A worker that stays silent all the same
is reported to the core (`scheduling.suspension`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter

from dask_ownership.core.owner.ownership import OwnerCore
from dask_ownership.runtime.comm.request import silence

LOOKS = 10
"""Looks within the time for which a worker may be silent."""


class FailureDetector:
    """Looks after the links of one owner.

    Parameters
    ----------
    core : OwnerCore
    step : callable
        Has the owner send what the core decided.
    """

    def __init__(self, core: OwnerCore, step: Callable[[], None]) -> None:
        self.core = core
        self._step = step
        self.limit = silence()
        self._looked_at = 0.0
        self._next: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to look. Loop thread."""
        self._looked_at = perf_counter()
        self._later()

    def stop(self) -> None:
        """Look no more."""
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _later(self) -> None:
        self._next = asyncio.get_running_loop().call_later(self.limit / LOOKS, self._look)

    def _look(self) -> None:
        now = perf_counter()
        # A process that was stopped itself, or whose loop was, heard nobody meanwhile.
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
