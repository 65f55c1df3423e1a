"""Reaching a cluster from the command line: options, one connection, and errors in one line."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from socket import gaierror
from typing import Any, TypeVar

import click
from distributed import Security
from distributed.comm import Comm, CommClosedError, connect, get_address_host_port
from distributed.core import send_recv

Command = TypeVar("Command", bound=Callable[..., Any])
Result = TypeVar("Result")

TIMEOUT = 5.0
"""Seconds for which one answer is waited for, unless the user says otherwise."""

SOON = 0.3
"""Seconds after which it is asked why a connection is not there yet."""


class Unreachable(click.ClickException):
    """Nobody answers as a Dask scheduler or worker would; the text says why, in one line."""


def cluster_options(command: Command) -> Command:
    """The options of commands that talk to a cluster."""
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
    """The security that options ask for; what they leave open is in Dask's configuration."""
    given = {"tls_ca_file": ca_file, "tls_client_cert": cert, "tls_client_key": key}
    given = {name: value for name, value in given.items() if value}
    if given:
        return Security(require_encryption=True, **given)
    return Security()


def quietly(program: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine; what it cannot do it says itself, and no log of distributed does."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    return asyncio.run(program)


def complete(address: str, security: Security) -> str:
    """An address with its protocol.

    Raises
    ------
    Unreachable
        When it has no port.
    """
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
    """A connection to a server of Dask.

    Raises
    ------
    Unreachable
        When there is none in time, or nothing listens there.
    """
    connecting = asyncio.ensure_future(connect(address, timeout=seconds, **arguments))
    try:
        # A connection that is refused is tried again by Dask for all the time that it has.
        await asyncio.wait([connecting], timeout=min(SOON, seconds))
        if not connecting.done() and (why := await no_listener(address, seconds)):
            raise Unreachable(f"{address} cannot be reached: {why}")
        return await asyncio.wait_for(connecting, seconds)
    except Unreachable:
        raise
    except Exception as error:
        raise Unreachable(f"{address} cannot be reached: {reason(error, seconds)}") from None
    finally:
        if not connecting.done():
            connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)


async def no_listener(address: str, seconds: float) -> str:
    """Why nothing listens at an address, or ""."""
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
    """What an error of a connection means to a user, in one line."""
    deepest = error
    while (cause := deepest.__cause__) is not None and isinstance(cause, Exception):
        deepest = cause
    if isinstance(deepest, ConnectionRefusedError):
        return "nothing listens there (the connection was refused)"
    if isinstance(deepest, gaierror):
        return "there is no host of this name"
    if "convert to SSL" in str(deepest) or "WRONG_VERSION_NUMBER" in str(deepest):
        return "it does not speak TLS (tcp://)"
    if isinstance(deepest, ssl.SSLError):
        return f"TLS failed ({deepest.reason or deepest}); does it speak TLS, with this authority?"
    if "ssl_context" in str(deepest):
        return "it speaks TLS: give --tls-ca-file, --tls-cert and --tls-key, or configure them"
    # What is no greeting of Dask is taken for lengths that no memory has.
    if isinstance(deepest, MemoryError | CommClosedError) or isinstance(error, CommClosedError):
        return (
            "the greeting failed: is it a Dask scheduler, and does it speak TLS (tls://, "
            "--tls-ca-file)?"
        )
    if isinstance(deepest, TimeoutError | asyncio.TimeoutError):
        return f"no answer within {seconds:g} s"
    return " ".join(f"{type(deepest).__name__}: {deepest}".split())


class Asking:
    """One connection to a scheduler, and what it answers.

    Attributes
    ----------
    address : str
    arguments : dict
        Of the cluster's security, for the role of a client.
    seconds : float
        How long each answer may take.
    """

    def __init__(self, comm: Comm, address: str, security: Security, seconds: float) -> None:
        self.address = address
        self.security = security
        self.arguments = security.get_connection_args("client")
        self.seconds = seconds
        self._comm = comm

    async def __call__(self, operation: str, **arguments: Any) -> Any:
        """The answer to an operation; None from whoever does not know it.

        Raises
        ------
        Unreachable
            When there is none in time, or the connection ends.
        """
        try:
            asked = send_recv(self._comm, op=operation, **arguments)
            return await asyncio.wait_for(asked, self.seconds)
        except Exception as error:
            self._comm.abort()
            if isinstance(error, CommClosedError):
                why = "it closed the connection"
            else:
                why = reason(error, self.seconds)
            raise Unreachable(f"{self.address} did not answer: {why}") from None

    async def identity(self) -> dict[str, Any]:
        """Who the scheduler is, and its workers.

        Raises
        ------
        Unreachable
            When it is no scheduler.
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
    """A connection to a scheduler.

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
