"""Telling a scheduler that is gone from a scheduler that does not answer."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from distributed.comm import connect

PAUSE = 0.1
"""Seconds between two tries."""

TRIES = 8
"""Connections tried, at least, before a scheduler counts as gone."""


async def connected(
    connecting: Coroutine[Any, Any, None],
    address: str,
    connection_args: dict[str, Any],
    seconds: float,
) -> bool:
    """Connect to an address again; return False when connections are refused for so many seconds.

    A refused connection says that the process is gone. A connection without an answer may be cut
    off by a partition: then ``connecting`` decides, within its own time.
    """
    # The first to end decides.
    tasks = [
        asyncio.ensure_future(connecting),
        asyncio.ensure_future(_refused(address, connection_args, seconds)),
    ]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            tasks[0].result()
            return True
        return False
    finally:
        for task in tasks:
            task.cancel()


async def _refused(address: str, connection_args: dict[str, Any], seconds: float) -> None:
    """Return when connections were refused for so many seconds.

    Dask's `connect` tries several times within its timeout, and reports only the last try, which
    its own deadline may cut short. So there are several calls, and a call that reports no refusal
    does not count against the other calls.
    """
    clock = asyncio.get_running_loop().time
    since: float | None = None
    while True:
        started = clock()
        try:
            comm = await connect(address, timeout=seconds / TRIES, **connection_args)
        except Exception as error:
            if _is_refusal(error):
                since = started if since is None else since
                if clock() - since >= seconds:
                    return
        # A connection came up: the process is there.
        else:
            since = None
            comm.abort()
        await asyncio.sleep(PAUSE)


def _is_refusal(error: BaseException | None) -> bool:
    """Return whether an error, or a cause of it, is a refused connection."""
    while error is not None:
        if isinstance(error, ConnectionRefusedError):
            return True
        error = error.__cause__
    return False
