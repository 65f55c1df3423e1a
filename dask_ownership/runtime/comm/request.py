"""Requests to workers that are given up when nothing moves.

Such a request is asked elsewhere, or over a new connection. Each patience doubles with every
disappointment, so that what is only slow gets there in the end.
"""

from __future__ import annotations

import asyncio
from typing import Any

import dask
from dask.utils import parse_timedelta
from distributed.comm import Comm
from distributed.core import send_recv

from dask_ownership.runtime.comm.reach import RoutedPool
from dask_ownership.runtime.dask.comm import moved_bytes

LONGEST = 60.0
"""Seconds above which patience does not grow."""


def silence() -> float:
    """Seconds of ``ownership.silence``."""
    return float(parse_timedelta(dask.config.get("ownership.silence", "5s")))


class Stalled(OSError):
    """Nothing moved over a connection for as long as was waited."""


class Backoff:
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
    pool: RoutedPool, address: str, patience: Backoff, op: str, **message: Any
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
        pool.end_idle(address)  # the next request dials anew
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
