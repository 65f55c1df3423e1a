"""Relays: the scheduler passes bytes between a process and a worker that it cannot dial.

A relay is two connections that are spliced. Between two TCP or TLS connections bytes are passed
on as they come, at most `CHUNK` at a time, and nothing more is read before what was read has been
written: so a slow reader holds up its own relay only, and the memory of a relay does not grow.
Messages over other connections (``ws``) are passed on one by one.

The scheduler understands nothing of what passes. Only an owner that has joined gets a relay, and
only to a worker of the cluster.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from time import monotonic
from typing import Any

import dask
from dask.utils import parse_bytes
from distributed.comm import Comm
from distributed.core import Status
from tornado.iostream import IOStream

from dask_ownership.runtime.comm.channel import has_stream
from dask_ownership.runtime.comm.operations import Refusals, refusal
from dask_ownership.runtime.comm.reach import dial_raw

logger = logging.getLogger("dask_ownership.scheduler")

CHUNK = 1 << 20
"""Bytes that are passed on at once, at most."""

OPENS = 5.0
"""Seconds for which a worker may take to accept a connection."""


class Relay:
    """One pair of connections.

    Attributes
    ----------
    asker : str
        The incarnation of the owner that asked for it.
    target : str
        The address of the worker.
    nbytes : int
        That have passed, both ways.
    """

    __slots__ = ("asker", "nbytes", "one", "other", "target")

    def __init__(self, asker: str, target: str, one: Comm, other: Comm) -> None:
        self.asker = asker
        self.target = target
        self.one = one
        self.other = other
        self.nbytes = 0

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
    """

    def __init__(self, limit: float | None) -> None:
        self._limit = limit
        self._free_at = 0.0

    async def take(self, nbytes: int) -> None:
        """Wait until so many bytes may pass."""
        if self._limit is None:
            return
        now = monotonic()
        self._free_at = max(self._free_at, now) + nbytes / self._limit
        if self._free_at - now > 0.01:
            await asyncio.sleep(self._free_at - now)


class Relays:
    """All relays of one scheduler.

    Parameters
    ----------
    connection_args : dict
        Of the scheduler, for its connections to workers.
    workers : mapping
        The addresses of the workers of the cluster.
    stranger : callable
        Why a caller with a name and a token is none of this cluster, or None.
    refusals : Refusals

    Attributes
    ----------
    open : set of Relay
    nbytes : int
        That have passed since the start.
    opened : int
        How many relays were opened.
    """

    def __init__(
        self,
        connection_args: dict[str, Any],
        workers: Mapping[str, Any],
        stranger: Callable[[Any, Any], str | None],
        refusals: Refusals,
    ) -> None:
        self._connection_args = connection_args
        self._workers = workers
        self._stranger = stranger
        self._refusals = refusals
        self._enabled = bool(dask.config.get("ownership.relay.enabled", True))
        most = dask.config.get("ownership.relay.max-bandwidth", None)
        self._bandwidth = Bandwidth(None if most is None else float(parse_bytes(most)))
        self.open: set[Relay] = set()
        self.nbytes = 0
        self.opened = 0

    async def relay(
        self, comm: Comm, target: Any = "", asker: Any = "", token: Any = None, **other: Any
    ) -> Any:
        """Handler of `RELAY`: splice a connection to one to a worker, until either ends."""
        reason = self._stranger(asker, token)
        if reason is not None:
            self._refusals.say("a relay", reason)
            return refusal(reason)
        reason = self._refuse(target, other)
        if reason is not None:
            return refusal(reason)
        try:
            there = await asyncio.wait_for(dial_raw(target, False, self._connection_args), OPENS)
        except (OSError, asyncio.TimeoutError, TimeoutError) as error:
            return refusal(f"the scheduler cannot reach {target} either: {error!r}")
        relay = Relay(asker, target, comm, there)
        self.open.add(relay)
        self.opened += 1
        try:
            await comm.write({"status": "OK"})
            await self._splice(relay)
        finally:
            self.open.discard(relay)
            relay.abort()
        return Status.dont_reply

    def _refuse(self, target: Any, other: Mapping[str, Any]) -> str | None:
        """Why a relay is not opened, or None."""
        if other or type(target) is not str:
            return "the arguments of a relay are not as expected"
        if not self._enabled:
            return "relays are switched off at the scheduler (ownership.relay.enabled)"
        if target not in self._workers:
            return "there is no such worker in the cluster"
        return None

    async def _splice(self, relay: Relay) -> None:
        """Pass on what comes from either side, until one of them ends."""
        one, other = relay.one, relay.other
        pump = self._pump_bytes if has_stream(one) and has_stream(other) else self._pump_messages
        pumps = [
            asyncio.ensure_future(pump(relay, one, other)),
            asyncio.ensure_future(pump(relay, other, one)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            relay.abort()  # which ends the other one, too
            for one_way in pumps:
                one_way.cancel()
            for ended in await asyncio.gather(*pumps, return_exceptions=True):
                if isinstance(ended, Exception) and not isinstance(ended, OSError):
                    logger.warning("a relay to %s ended by %r", relay.target, ended)

    async def _pump_bytes(self, relay: Relay, source: Any, sink: Any) -> None:
        read: Callable[..., Awaitable[bytes]] = source.stream.read_bytes
        out: IOStream = sink.stream
        while True:
            data = await read(CHUNK, partial=True)
            await self._passed(relay, len(data))
            await out.write(data)

    async def _pump_messages(self, relay: Relay, source: Comm, sink: Comm) -> None:
        while True:
            message = await source.read()
            await self._passed(relay, await sink.write(message))

    async def _passed(self, relay: Relay, nbytes: int) -> None:
        relay.nbytes += nbytes
        self.nbytes += nbytes
        await self._bandwidth.take(nbytes)

    def counts(self) -> dict[str, int]:
        """How many relays are open, were opened, and bytes that passed."""
        return {"open": len(self.open), "opened": self.opened, "nbytes": self.nbytes}

    # ---- ends ----

    def worker_gone(self, address: str) -> None:
        """A worker left the cluster: nothing is relayed to it any more."""
        for relay in [relay for relay in self.open if relay.target == address]:
            relay.abort()

    def owner_gone(self, incarnation: str) -> None:
        """An owner is gone, and so are its relays."""
        for relay in [relay for relay in self.open if relay.asker == incarnation]:
            relay.abort()

    def close(self) -> None:
        """The scheduler ends."""
        for relay in list(self.open):
            relay.abort()
