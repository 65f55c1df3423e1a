"""What is wrong with an address at which no scheduler answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from socket import gaierror
from typing import Any

from distributed.comm import get_address_host_port

from dask_ownership.runtime.serialize import note_on

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


def innermost(error: BaseException) -> BaseException:
    """Return the error that tells what happened: Dask wraps those of connections several times."""
    while isinstance(cause := error.__cause__, Exception):
        error = cause
    return error


def nobody_there(error: BaseException) -> str:
    """Return what an error says of an address at which nobody answers, or ""."""
    cause = innermost(error)
    if isinstance(cause, ConnectionRefusedError):
        return "nothing listens there (the connection was refused)"
    if isinstance(cause, gaierror):
        return "there is no host of this name"
    return ""


async def tried_once(address: str) -> str:
    """Try to connect to an address, and return what `nobody_there` says of the error, or ""."""
    writer = None
    try:
        opening = asyncio.open_connection(*get_address_host_port(address))
        _, writer = await asyncio.wait_for(opening, SOON)
    except Exception as error:
        return nobody_there(error)
    finally:
        if writer is not None:
            writer.close()
    return ""


async def connect_to(connecting: Coroutine[Any, Any, None], address: object) -> None:
    """Connect to an address, unless a web server answers there.

    Dask's attempt to connect may go on for ever then. A scheduler that answers is asked nothing.

    Raises
    ------
    OSError
        With a note that says what is wrong with the address, as far as that is known.
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
    except OSError as error:
        # The last try of Dask may have had no time left, and so tell nothing.
        if told := nobody_there(error) or await tried_once(address):
            note_on(error, f"{address}: {told}. The log of the scheduler has its address")
        raise
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
