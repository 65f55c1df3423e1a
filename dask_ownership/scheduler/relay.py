"""Relays: the scheduler passes bytes between an owner's process and a worker out of its reach.

A relay is a pair of spliced connections. Between two TCP or TLS connections bytes are passed on as
they come, at most `CHUNK` at a time, and the next bytes are read when the last have been written:
so a slow reader holds up its own relay only, and the memory of a relay does not grow. Messages over
other connections (``ws``) are passed on one by one.

The scheduler does not look into the bytes. Only an owner that has joined gets a relay, and only to
a worker of the cluster.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Container, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import psutil
from distributed.comm import Comm
from distributed.core import Status
from tornado.iostream import IOStream

from dask_ownership.config import value_of
from dask_ownership.runtime.comm.channel import has_stream
from dask_ownership.runtime.comm.operations import Refusals, refusal
from dask_ownership.runtime.comm.reach import dial_raw

logger = logging.getLogger("dask_ownership.scheduler")

CHUNK = 1 << 20
"""Bytes that are passed on at once, at most."""

SMALL_CHUNK = 1 << 16
"""Bytes that are passed on at once by a relay that is not busy, or below a rate."""

AT_ONCE = 1 << 12
"""Bytes that pass without a wait for the rate: heartbeats and small answers must not be late."""

OPENS = 5.0
"""Seconds for which a worker may take to accept a connection."""


def file_descriptors() -> int:
    """Return how many files and connections this process may have open."""
    rlimit = getattr(psutil.Process(), "rlimit", None)  # of Linux only
    if rlimit is None:
        return 1024
    soft, _ = rlimit(psutil.RLIMIT_NOFILE)
    return int(soft) if soft > 0 else 1 << 20


@dataclass(slots=True, eq=False, repr=False)
class Relay:
    """One pair of spliced connections."""

    #: The incarnation of the owner that asked for the relay.
    asker: str
    #: The address of the worker.
    target: str
    #: The connection from the owner's process.
    one: Comm
    #: The connection to the worker.
    other: Comm
    #: Bytes that have passed, both ways together.
    nbytes: int = field(default=0, init=False)

    def abort(self) -> None:
        """End both connections."""
        self.one.abort()
        self.other.abort()


class Bandwidth:
    """Keeps all relays together below a rate.

    Parameters
    ----------
    limit : float or None
        Bytes per second; None for no limit.

    Attributes
    ----------
    chunk : int
        Bytes that a relay may pass on at once.
    """

    def __init__(self, limit: float | None) -> None:
        self._limit = limit
        self._free_at = 0.0
        self.chunk = CHUNK if limit is None else SMALL_CHUNK

    async def take(self, nbytes: int) -> None:
        """Count bytes of a relay, and wait until they may pass at the rate."""
        if self._limit is None:
            return
        now = monotonic()
        self._free_at = max(self._free_at, now) + nbytes / self._limit
        # Shorter waits add up in ``_free_at``: a sleep for each small batch would cost more.
        if self._free_at - now > 0.01 and nbytes > AT_ONCE:
            await asyncio.sleep(self._free_at - now)


class Relays:
    """All relays of one scheduler.

    Parameters
    ----------
    connection_args : dict
        The scheduler's arguments for connections to workers.
    workers : mapping
        By the addresses of the workers of the cluster.
    stranger : callable
        ``stranger(name, token)``: why a caller is no owner of this cluster, or None.
    gone : container of str
        Incarnations of owners that are gone.
    refusals : Refusals

    Attributes
    ----------
    open : set of Relay
        The relays that have not ended.
    nbytes : int
        Bytes that have passed since the start.
    opened : int
        Number of relays since the start.
    """

    def __init__(
        self,
        connection_args: dict[str, Any],
        workers: Mapping[str, Any],
        stranger: Callable[[Any, Any], str | None],
        gone: Container[str],
        refusals: Refusals,
    ) -> None:
        self._connection_args = connection_args
        self._workers = workers
        self._stranger = stranger
        self._gone = gone
        self._refusals = refusals
        self._enabled: bool = value_of("ownership.relay.enabled")
        self._bandwidth = Bandwidth(value_of("ownership.relay.max-bandwidth"))
        # Each relay takes two file descriptors, and the scheduler needs others for itself.
        self._most = max(1, file_descriptors() // 4)
        self._opening = 0
        self.open: set[Relay] = set()
        self.nbytes = 0
        self.opened = 0

    async def relay(
        self, comm: Comm, /, target: Any = "", asker: Any = "", token: Any = None, **other: Any
    ) -> Any:
        """Handle `RELAY`: splice a connection with a new one to a worker, until either ends.

        All arguments are of any type, as a caller sent them.

        Parameters
        ----------
        comm : distributed.comm.Comm
            The connection of the caller, which belongs to the relay from now on.
        target : str
            The address of the worker.
        asker, token : str
            The incarnation of the owner that asks, and its proof.
        other
            None: any further argument is refused.

        Returns
        -------
        dict or Status
            A refusal, or ``Status.dont_reply`` when the relay has ended.
        """
        reason = self._stranger(asker, token)
        if reason is not None:
            self._refusals.say("a relay", reason)
            return refusal(reason)
        reason = self._refuse(target, asker, other)
        if reason is not None:
            return refusal(reason)
        self._opening += 1
        try:
            there = await asyncio.wait_for(dial_raw(target, False, self._connection_args), OPENS)
        except Exception as error:  # of any kind: the address is what a worker said of itself
            return refusal(f"the scheduler cannot reach {target} either: {error!r}")
        finally:
            self._opening -= 1
        relay = Relay(asker, target, comm, there)
        # Both may have left meanwhile.
        if target not in self._workers or asker in self._gone:
            relay.abort()
            return Status.dont_reply
        self.open.add(relay)
        self.opened += 1
        try:
            with suppress(OSError):  # the caller may have taken a direct connection meanwhile
                await comm.write({"status": "OK"})
                await self._splice(relay)
        finally:
            self.open.discard(relay)
            relay.abort()
        return Status.dont_reply

    def _refuse(self, target: Any, asker: str, other: Mapping[str, Any]) -> str | None:
        """Return why a relay to this worker is refused, or None."""
        if other or type(target) is not str:
            return "the arguments of a relay are not as expected"
        if not self._enabled:
            return "relays are switched off at the scheduler (ownership.relay.enabled)"
        if asker in self._gone:
            return "the scheduler counts this owner as gone"
        if target not in self._workers:
            return "there is no such worker in the cluster"
        if len(self.open) + self._opening >= self._most:
            return (
                f"the scheduler relays {len(self.open)} connections already, which is half of the "
                "file descriptors that it may open (ulimit -n)"
            )
        return None

    async def _splice(self, relay: Relay) -> None:
        """Pass bytes or messages on in both directions, until one of the connections ends."""
        one, other = relay.one, relay.other
        pump = self._pump_bytes if has_stream(one) and has_stream(other) else self._pump_messages
        pumps = [
            asyncio.ensure_future(pump(relay, one, other)),
            asyncio.ensure_future(pump(relay, other, one)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            relay.abort()  # the end of one connection is that of the other, too
            for one_way in pumps:
                one_way.cancel()
            for ended in await asyncio.gather(*pumps, return_exceptions=True):
                if isinstance(ended, Exception) and not isinstance(ended, OSError):
                    logger.warning("a relay to %s ended by %r", relay.target, ended)

    async def _pump_bytes(self, relay: Relay, source: Any, sink: Any) -> None:
        """Pass bytes on from one stream to another."""
        read: Callable[..., Awaitable[bytes]] = source.stream.read_bytes
        out: IOStream = sink.stream
        chunk = source.stream.read_chunk_size = SMALL_CHUNK
        while True:
            data = await read(chunk, partial=True)
            if len(data) == chunk < self._bandwidth.chunk:
                # There is much to pass on. A call of the system for each 64 KiB would take most of
                # the time of the relay.
                chunk = source.stream.read_chunk_size = self._bandwidth.chunk
            await self._passed(relay, len(data))
            await out.write(data)  # until the socket has taken all: no buffer grows
            # While the streams are ready, none of these waits lets other parts of the loop run.
            await asyncio.sleep(0)

    async def _pump_messages(self, relay: Relay, source: Comm, sink: Any) -> None:
        """Pass messages on from one connection to another."""
        while True:
            message = await source.read()
            await self._passed(relay, await sink.write(message))
            if has_stream(sink):
                # The comm does not wait until the socket has taken all.
                await sink.stream.write(b"")

    async def _passed(self, relay: Relay, nbytes: int) -> None:
        """Count bytes of a relay, and wait as the bandwidth demands."""
        relay.nbytes += nbytes
        self.nbytes += nbytes
        await self._bandwidth.take(nbytes)

    def told(self) -> dict[str, Any]:
        """Return the numbers of open and opened relays and of bytes passed, and each open relay.

        A relay is told as the incarnation of the owner, the address of the worker, and bytes.
        """
        return {
            "open": len(self.open),
            "opened": self.opened,
            "nbytes": self.nbytes,
            "connections": [[one.asker, one.target, one.nbytes] for one in self.open],
        }

    # ---- ends ----

    def worker_gone(self, address: str) -> None:
        """End the relays to a worker that has left the cluster."""
        for relay in [relay for relay in self.open if relay.target == address]:
            relay.abort()

    def owner_gone(self, incarnation: str) -> None:
        """End the relays of an owner that is gone."""
        for relay in [relay for relay in self.open if relay.asker == incarnation]:
            relay.abort()

    def close(self) -> None:
        """End all relays, because the scheduler ends."""
        for relay in list(self.open):
            relay.abort()
