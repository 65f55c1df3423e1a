"""Telling a scheduler that is gone from one that does not answer."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from distributed.comm import connect

PAUSE = 0.1
"""Seconds between two tries."""

TRIES = 8
"""How often it is asked, at least, before a scheduler is said to be gone."""


async def connected(
    connecting: Coroutine[Any, Any, None],
    address: str,
    connection_args: dict[str, Any],
    seconds: float,
) -> bool:
    """Connect to an address again; False when nothing has listened there for so long.

    A connection that is refused says that the process is gone. One that gets no answer may be
    a partition: that is left to ``connecting``, and to the time that it allows.
    """
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
    """Return when connections are refused for so long.

    Dask tries several times in the time it is given, and tells of the last try only, which its
    own deadline may cut short: so there are several of these, and one that tells nothing does
    not count against the others.
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
        else:
            since = None
            comm.abort()
        await asyncio.sleep(PAUSE)


def _is_refusal(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ConnectionRefusedError):
            return True
        error = error.__cause__
    return False
