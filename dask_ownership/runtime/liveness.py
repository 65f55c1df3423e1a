"""Signs of life: connections that are half-open, workers that do not answer, transfers that
stall.

One look every half second finds all of it; nothing is added per task. A link over which an
answer is owed and nothing moves is dialled again. A worker that stays silent all the same
is reported to the core (`core.suspension`). A request for values is given up when nothing
moves, and asked elsewhere or over a new connection. Each patience doubles with every
disappointment, so that what is only slow gets there in the end.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING, Any

import dask
from dask.utils import parse_timedelta
from distributed.comm import Comm
from distributed.core import ConnectionPool, send_recv

from dask_ownership.runtime.compat import moved_bytes

if TYPE_CHECKING:
    from dask_ownership.runtime.owner import Owner

LOOKS = 10
"""Looks within the time for which a worker may be silent."""

LONGEST = 60.0
"""Seconds above which patience does not grow."""


def silence() -> float:
    """Seconds of ``ownership.silence``."""
    return float(parse_timedelta(dask.config.get("ownership.silence", "5s")))


class Liveness:
    """Looks after the links of one owner.

    Parameters
    ----------
    owner : Owner
    """

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
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
        core = self.owner.core
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
            self.owner.step()


class Stalled(OSError):
    """Nothing moved over a connection for as long as was waited."""


class Patience:
    """How long a request may stall, by address: twice as long each time it did.

    Parameters
    ----------
    limit : float
        Seconds, at first.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._longer: dict[str, float] = {}

    def with_(self, address: str) -> float:
        """Seconds without progress after which a request there is given up."""
        return self._longer.get(address, self.limit)

    def stalled(self, address: str) -> None:
        """One was given up."""
        self._longer[address] = min(2 * self.with_(address), max(LONGEST, self.limit))

    def answered(self, address: str) -> None:
        """One was answered."""
        self._longer.pop(address, None)


async def request(
    pool: ConnectionPool, address: str, patience: Patience, op: str, **message: Any
) -> Any:
    """Ask a worker something over a connection of the pool.

    Raises
    ------
    OSError
        When it cannot be reached; `Stalled` when nothing moved for too long.
    """
    limit = patience.with_(address)
    try:
        comm = await asyncio.wait_for(pool.connect(address), limit)
        try:
            answer = await _while_moving(comm, send_recv(comm, op=op, **message), limit)
        finally:
            pool.reuse(address, comm)
    except (TimeoutError, asyncio.TimeoutError, Stalled) as error:
        patience.stalled(address)
        for idle in list(pool.available[address]):
            idle.abort()  # they lead the same way: the next request dials anew
        raise Stalled(f"{address} sent nothing for {limit:.3g} s") from error
    patience.answered(address)
    return answer


async def _while_moving(comm: Comm, coroutine: Any, limit: float) -> Any:
    """The outcome of a request, unless nothing moves over its connection for a while."""
    task = asyncio.ensure_future(coroutine)
    quiet = 0
    before = None
    try:
        while True:
            done, _ = await asyncio.wait([task], timeout=limit / 4)
            if done:
                return task.result()
            now = moved_bytes(comm)
            quiet = 0 if now is None or now != before else quiet + 1
            before = now
            if quiet >= 4:
                raise Stalled
    finally:
        if not task.done():
            comm.abort()
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()
