"""Addresses that are those of web servers: a dashboard's in place of its scheduler's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

from distributed.comm import get_address_host_port

PATIENCE = 3.0
"""Seconds after which it is asked why a connection is not there yet."""

SOON = 1.0
"""Seconds in which a web server answers a question."""

WEB_SERVER = (
    "a web server answers there, such as a dashboard. The scheduler has another port, 8786 unless "
    "told otherwise; its log, and the page Info of the dashboard, have its address"
)
"""What is said of the address of a web server."""


def web_page(address: object) -> str:
    """Return what is wrong with an address that is the URL of a page, or ""."""
    if not isinstance(address, str) or not address.startswith(("http://", "https://")):
        return ""
    return (
        f"{address} is the address of a web page, such as the dashboard, and not of a scheduler, "
        "which is as tcp://10.0.0.1:8786. The log of the scheduler, and the page Info of the "
        "dashboard, have it"
    )


async def unless_web(connecting: Coroutine[Any, Any, None], address: object) -> None:
    """Connect to an address, unless a web server answers there.

    Dask's attempt to connect may go on for ever then. A scheduler that answers is asked nothing.

    Raises
    ------
    OSError
    """
    if not isinstance(address, str):
        await connecting
        return
    task = asyncio.ensure_future(connecting)
    try:
        await asyncio.wait([task], timeout=PATIENCE)
        failed = task.done() and not task.cancelled() and isinstance(task.exception(), OSError)
        if (failed or not task.done()) and await speaks_http(address):
            raise OSError(f"cannot connect to {address}: {WEB_SERVER}")
        await task
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def speaks_http(address: object) -> bool:
    """Return whether a web server answers at an address of a scheduler."""
    if not isinstance(address, str):
        return False
    if "://" in address and not address.startswith(("tcp://", "tls://")):
        return False
    writer = None
    try:
        host, port = get_address_host_port(address)
        opening = asyncio.open_connection(host, port)
        reader, writer = await asyncio.wait_for(opening, SOON)
        # A server of Dask speaks first, and is asked nothing.
        with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
            await asyncio.wait_for(reader.read(1), SOON / 4)
            return False
        writer.write(b"HEAD / HTTP/1.0\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(5), SOON)
        return answer == b"HTTP/"
    except Exception:
        return False
    finally:
        if writer is not None:
            writer.close()
            with contextlib.suppress(Exception):
                await asyncio.wait_for(writer.wait_closed(), SOON)
