"""Reaching a cluster from the command line: options, one connection, and errors in one line."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

import click
from distributed import Security
from distributed.comm import Comm, CommClosedError, connect, get_address_host_port
from distributed.core import send_recv

from dask_ownership.runtime.comm.wrong_address import (
    WEB_SERVER,
    innermost,
    nobody_there,
    speaks_http,
    web_page,
)

Command = TypeVar("Command", bound=Callable[..., Any])
Result = TypeVar("Result")

TIMEOUT = 5.0
"""Seconds to wait for one answer, unless the user says otherwise."""

GREETING = "the greeting failed"
"""Beginning of the meaning of an error: something answers that is no Dask."""

NO_ANSWER = "no answer"
"""Beginning of the meaning of an error: nothing answers."""

SOON = 0.3
"""Seconds after which `dial` asks why a connection is not there yet."""


class Unreachable(click.ClickException):
    """No Dask scheduler or worker answers at an address; the text gives the reason in one line."""


def cluster_options(command: Command) -> Command:
    """Add the options of commands that talk to a cluster."""
    # Decorators apply from the inside out: the last option is the first in the help.
    for option in (
        click.option(
            "--tls-key", type=click.Path(exists=True, dir_okay=False), help="PEM file of the key."
        ),
        click.option(
            "--tls-cert",
            type=click.Path(exists=True, dir_okay=False),
            help="PEM file of this client's certificate.",
        ),
        click.option(
            "--tls-ca-file",
            type=click.Path(exists=True, dir_okay=False),
            help="PEM file of the authority's certificate.",
        ),
        click.option(
            "--timeout",
            type=click.FloatRange(min=0, min_open=True),
            default=TIMEOUT,
            show_default=True,
            metavar="SECONDS",
            help="How long each answer may take.",
        ),
    ):
        command = option(command)
    return command


def security_of(ca_file: str | None, cert: str | None, key: str | None) -> Security:
    """Return the security that options ask for; Dask's configuration has the rest."""
    given = {"tls_ca_file": ca_file, "tls_client_cert": cert, "tls_client_key": key}
    given = {name: value for name, value in given.items() if value}
    if given:
        return Security(require_encryption=True, **given)
    return Security()


def quietly(program: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine without the log of distributed: the command reports its errors by itself."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    return asyncio.run(program)


def complete(address: str, security: Security) -> str:
    """Return an address with its protocol.

    Raises
    ------
    Unreachable
        When the address has no port.
    """
    if web := web_page(address):
        raise Unreachable(web)
    if "://" not in address:
        address = f"{'tls' if security.require_encryption else 'tcp'}://{address}"
    try:
        if address.startswith(("tcp://", "tls://")):
            get_address_host_port(address, strict=True)
    except ValueError:
        raise Unreachable(
            f"{address} is no address of a scheduler: give HOST:PORT, such as tcp://10.0.0.1:8786"
        ) from None
    return address


async def dial(address: str, arguments: dict[str, Any], seconds: float) -> Comm:
    """Return a connection to a server of Dask.

    Raises
    ------
    Unreachable
        When there is no connection in time, or nothing listens at the address.
    """
    connecting = asyncio.ensure_future(connect(address, timeout=seconds, **arguments))
    try:
        # Dask tries a refused connection again for all of its time. So a plain connection asks
        # after a moment whether anything listens there at all.
        await asyncio.wait([connecting], timeout=min(SOON, seconds))
        if not connecting.done() and (why := await no_listener(address, seconds)):
            raise Unreachable(f"{address} cannot be reached: {why}")
        return await asyncio.wait_for(connecting, seconds)
    except Unreachable:
        raise
    except Exception as error:
        why = reason(error, seconds)
        if why.startswith((GREETING, NO_ANSWER)) and await speaks_http(address):
            why = WEB_SERVER
        raise Unreachable(f"{address} cannot be reached: {why}") from None
    finally:
        if not connecting.done():
            connecting.cancel()
        # No error of an abandoned attempt is reported later.
        await asyncio.gather(connecting, return_exceptions=True)


async def no_listener(address: str, seconds: float) -> str:
    """Return why nothing listens at an address, or ""."""
    if not address.startswith(("tcp://", "tls://")):
        return ""
    host, port = get_address_host_port(address)
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), seconds)
    except Exception as error:
        return reason(error, seconds)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return ""


def reason(error: BaseException, seconds: float) -> str:
    """Return the meaning of a connection's error for a user, in one line."""
    if told := nobody_there(error):
        return told
    deepest = innermost(error)
    if "convert to SSL" in str(deepest) or "WRONG_VERSION_NUMBER" in str(deepest):
        return "it does not speak TLS (tcp://)"
    if isinstance(deepest, ssl.SSLError):
        return f"TLS failed ({deepest.reason or deepest}); does it speak TLS, with this authority?"
    if "ssl_context" in str(deepest):
        return "it speaks TLS: give --tls-ca-file, --tls-cert and --tls-key, or configure them"
    # Other bytes than a greeting of Dask look like lengths of frames that no memory can hold.
    if isinstance(deepest, MemoryError | CommClosedError) or isinstance(error, CommClosedError):
        return f"{GREETING}: is it a Dask scheduler, and does it speak TLS (tls://, --tls-ca-file)?"
    if isinstance(deepest, TimeoutError | asyncio.TimeoutError):
        return f"{NO_ANSWER} within {seconds:g} s"
    return " ".join(f"{type(deepest).__name__}: {deepest}".split())


class Asking:
    """One connection to a server of Dask, for questions and answers.

    Parameters
    ----------
    comm : distributed.comm.Comm
    address : str
    security : distributed.Security
    seconds : float
        How long each answer may take.

    Attributes
    ----------
    address, security, seconds
        The parameters.
    arguments : dict
        Arguments of `connect` for a client with this security.
    """

    def __init__(self, comm: Comm, address: str, security: Security, seconds: float) -> None:
        self.address = address
        self.security = security
        self.arguments = security.get_connection_args("client")
        self.seconds = seconds
        self._comm = comm

    async def __call__(self, operation: str, **arguments: Any) -> Any:
        """Return the answer to an operation; None if the server does not know the operation.

        Raises
        ------
        Unreachable
            When there is no answer in time, or the connection ends.
        """
        try:
            asked = send_recv(self._comm, op=operation, **arguments)
            return await asyncio.wait_for(asked, self.seconds)
        except Exception as error:
            # A late answer must not be taken for the answer to the next question.
            self._comm.abort()
            if isinstance(error, CommClosedError):
                why = "it closed the connection"
            else:
                why = reason(error, self.seconds)
            raise Unreachable(f"{self.address} did not answer: {why}") from None

    async def identity(self) -> dict[str, Any]:
        """Return the identity of the scheduler, with its workers.

        Raises
        ------
        Unreachable
            When the server is no scheduler.
        """
        answer = await self("identity")
        kind = answer.get("type") if isinstance(answer, dict) else None
        if not isinstance(answer, dict) or "workers" not in answer:
            raise Unreachable(
                f"{self.address} is a {kind or 'stranger'} and no scheduler; give the scheduler's "
                "address"
            )
        return answer


@contextlib.asynccontextmanager
async def scheduler_at(address: str, security: Security, seconds: float) -> AsyncIterator[Asking]:
    """Open a connection to a scheduler for the time of a context.

    Raises
    ------
    Unreachable
    """
    address = complete(address, security)
    try:
        arguments = security.get_connection_args("client")
    except Exception as error:
        raise Unreachable(f"TLS cannot be used: {reason(error, seconds)}") from None
    comm = await dial(address, arguments, seconds)
    try:
        yield Asking(comm, address, security, seconds)
    finally:
        comm.abort()
