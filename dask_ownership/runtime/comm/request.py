"""Requests to workers, given up when no byte moves for a while.

The caller repeats a request at another worker, or over a new connection. The limit of an address
doubles with every request given up, so a worker that is only slow answers in the end.
"""

from __future__ import annotations

import asyncio
from typing import Any

from distributed.comm import Comm
from distributed.core import send_recv

from dask_ownership.config import value_of
from dask_ownership.runtime.comm.reach import RoutedPool
from dask_ownership.runtime.dask.comm import moved_bytes

LONGEST = 60.0
"""Seconds above which the limit of an address does not grow."""


def silence() -> float:
    """Return the seconds for which a worker may be silent: ``ownership.silence``."""
    return float(value_of("ownership.silence"))


class Stalled(OSError):
    """No byte moved over a connection for as long as the limit of the address."""


class Backoff:
    """How long a request to a worker may stall: a limit for each address.

    The limit of an address doubles with each stalled request and starts anew with an answer.

    Parameters
    ----------
    limit : float
        Seconds of the first limit.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._longer: dict[str, float] = {}

    def with_(self, address: str) -> float:
        """Return the seconds without progress after which a request to an address is given up."""
        return self._longer.get(address, self.limit)

    def stalled(self, address: str) -> None:
        """Double the limit of an address: a request was given up."""
        self._longer[address] = min(2 * self.with_(address), max(LONGEST, self.limit))

    def answered(self, address: str) -> None:
        """Reset the limit of an address: a request was answered."""
        self._longer.pop(address, None)


async def request(pool: RoutedPool, address: str, backoff: Backoff, op: str, **message: Any) -> Any:
    """Send a request to a worker over a connection of the pool, and return the answer.

    Parameters
    ----------
    pool : RoutedPool
    address : str
    backoff : Backoff
    op : str
        The operation.
    message
        Arguments of the operation.

    Raises
    ------
    OSError
        When the worker cannot be reached; `Stalled` when no byte moved for too long.
    """
    limit = backoff.with_(address)
    try:
        comm = await asyncio.wait_for(pool.connect(address), limit)
        try:
            answer = await _while_moving(comm, send_recv(comm, op=op, **message), limit)
        finally:
            pool.reuse(address, comm)  # the pool drops a connection that was aborted
    except (TimeoutError, asyncio.TimeoutError, Stalled) as error:
        backoff.stalled(address)
        # Idle connections lead the same way, and may be half-open as well: dial anew next time.
        pool.end_idle(address)
        raise Stalled(f"{address} sent nothing for {limit:.3g} s") from error
    backoff.answered(address)
    return answer


async def _while_moving(comm: Comm, coroutine: Any, limit: float) -> Any:
    """Return the result of a request, or end the request when no byte moves for a while.

    Raises
    ------
    Stalled
        When no byte has moved over the connection for ``limit`` seconds.
    """
    task = asyncio.ensure_future(coroutine)
    # Looks in a row that found no progress; a comm that does not count its bytes never stalls.
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
            if quiet >= 4:  # four quarters of the limit
                raise Stalled
    finally:
        if not task.done():
            comm.abort()
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()  # else asyncio logs that the error was never retrieved
