"""How a process reaches workers: it dials them, or has the scheduler pass bytes on.

In many clusters only the scheduler can be dialled from outside, and some workers cannot dial each
other. The scheduler can reach all workers. So when a worker cannot be dialled, its plugin is asked
for a *relay* (`scheduler.relay`): a connection to the scheduler, of the same kind as all others,
which it splices to a connection of its own to the worker. What travels over it is the same as over
a direct connection, from the first handshake on, and so are links and requests.

The dial begins first. When it takes longer than `HEAD_START`, a relay is asked for as well, and the
connection that is there first is taken. A worker that was reached by a relay is asked for another
one at once from then on, and dialled in the background now and then; when a dial gets through, the
relay is given up for it.

Reach is a comm backend of distributed, so that whatever connects to addresses connects through it:
the address ``reach://N/tcp/host:port`` is that of the worker ``tcp://host:port``, by the `Reach`
with the number N of this process.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from weakref import WeakValueDictionary

import dask
from distributed.comm import Comm, connect
from distributed.comm.core import Connector
from distributed.comm.registry import Backend, backends, get_backend
from distributed.core import ConnectionPool

from dask_ownership.runtime.comm.scheduler_ops import RELAY

logger = logging.getLogger("dask_ownership.link")

SCHEME = "reach"

HEAD_START = 0.5
"""Seconds for which a worker is dialled before a relay to it is asked for."""

SHORT_START = 0.05
"""The same, when another worker of the cluster was reached by a relay only."""

TRIED_AGAIN = 30.0
"""Seconds after which a worker that is reached by a relay is dialled again; twice as long each
time until `SELDOM`."""

SELDOM = 600.0

RELAY_TIMEOUT = 10.0
"""Seconds for which the scheduler may take to open a relay."""

RELAYED = ("tcp", "tls", "ws", "wss")
"""Schemes of workers to which there are relays. Workers of one process are reached at once."""

MODES = ("auto", "direct", "relay")

_numbers = itertools.count()
_reaches: WeakValueDictionary[int, Reach] = WeakValueDictionary()


class NoRelay(OSError):
    """The scheduler opens no relay to a worker."""


def mode_of(value: Any) -> str:
    """What ``ownership.reach`` says.

    Raises
    ------
    ValueError
    """
    if value not in MODES:
        raise ValueError(f"ownership.reach is one of {', '.join(MODES)}, not {value!r}")
    return str(value)


class Reach:
    """The ways from one process to the workers of its cluster.

    Parameters
    ----------
    connection_args : dict
        Of the cluster's security, for the role of this process.
    scheduler : callable, optional
        Gives the address of the scheduler. Without it there are no relays.
    asker, token : callable
        The incarnation of the owner in this process, and what proves it.
    now_direct : callable
        Told of the address of a worker which was reached by a relay, and can be dialled now.

    Attributes
    ----------
    relayed : dict of str to float
        Addresses of the workers that are reached by relays, to the seconds after which each is
        dialled again.
    """

    def __init__(
        self,
        connection_args: dict[str, Any],
        scheduler: Callable[[], str] | None,
        asker: Callable[[], str],
        token: Callable[[], str],
        now_direct: Callable[[str], None],
    ) -> None:
        self._connection_args = connection_args
        self._scheduler = scheduler
        self._asker = asker
        self._token = token
        self._now_direct = now_direct
        self.mode = mode_of(dask.config.get("ownership.reach", "auto"))
        self.relayed: dict[str, float] = {}
        self._trying: dict[str, asyncio.TimerHandle] = {}
        self._background: set[asyncio.Future[Any]] = set()
        self._closed = False
        self._number = next(_numbers)
        _reaches[self._number] = self

    def route(self, address: str) -> str:
        """The address by which `distributed.comm.connect` takes the way to a worker."""
        scheme, _, location = address.rpartition("://")
        if self._scheduler is None or self.mode == "direct" or scheme not in RELAYED:
            return address
        return f"{SCHEME}://{self._number}/{scheme}/{location}"

    def way_to(self, address: str) -> str:
        """``"relayed"`` or ``"direct"``, as far as is known."""
        return "relayed" if address in self.relayed else "direct"

    async def open(self, address: str, deserialize: bool, arguments: dict[str, Any]) -> Comm:
        """A connection to a worker before the first handshake, directly or by a relay.

        Raises
        ------
        OSError
            When neither can be had: why it could not be dialled, and why there is no relay.
        """
        if self.mode == "relay":
            comm = await self._relay(address, deserialize, arguments)
            self.relayed.setdefault(address, SELDOM)
            return comm
        dial = asyncio.ensure_future(dial_raw(address, deserialize, arguments))
        relay: asyncio.Future[Comm] | None = None
        try:
            if address not in self.relayed:
                start = SHORT_START if self.relayed else HEAD_START
                await asyncio.wait([dial], timeout=start)
            if _succeeded(dial):
                return dial.result()
            relay = asyncio.ensure_future(self._relay(address, deserialize, arguments))
            return await self._first(address, dial, relay)
        except BaseException:
            self._let_go(dial)
            if relay is not None:
                self._let_go(relay)
            raise

    async def _first(
        self, address: str, dial: asyncio.Future[Comm], relay: asyncio.Future[Comm]
    ) -> Comm:
        """The connection that is there first; the other one is closed when it comes."""
        waiting = {dial, relay}
        while waiting:
            _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if _succeeded(dial):
                self._is_direct(address)
                self._let_go(relay)
                return dial.result()
            if _succeeded(relay):
                self._let_go(dial)
                self._is_relayed(address)
                return relay.result()
        error, refusal = dial.exception(), relay.exception()
        assert error is not None and refusal is not None
        raise OSError(f"{error}; and by way of the scheduler: {refusal}") from error

    def _let_go(self, opening: asyncio.Future[Comm]) -> None:
        """Close a connection that is not needed, when it is there."""
        if opening.done():
            if _succeeded(opening):
                opening.result().abort()
            return
        opening.add_done_callback(lambda done: _succeeded(done) and done.result().abort())
        opening.cancel()
        self._background.add(opening)
        opening.add_done_callback(self._background.discard)

    async def _relay(self, address: str, deserialize: bool, arguments: dict[str, Any]) -> Comm:
        """A connection to the scheduler that it has spliced to one to the worker."""
        assert self._scheduler is not None
        comm = await asyncio.wait_for(
            connect(self._scheduler(), deserialize=deserialize, **self._connection_args),
            RELAY_TIMEOUT,
        )
        try:
            comm.name = "Owner->Relay"
            await comm.write(
                {
                    "op": RELAY,
                    "target": address,
                    "asker": self._asker(),
                    "token": self._token(),
                }
            )
            answer = await asyncio.wait_for(comm.read(), RELAY_TIMEOUT)
        except BaseException:
            comm.abort()
            raise
        if not isinstance(answer, dict) or answer.get("status") != "OK":
            comm.abort()
            reason = answer.get("reason") if isinstance(answer, dict) else None
            raise NoRelay(reason or "the scheduler does not know of relays")
        return comm

    # ---- leaving a relay for a direct connection ----

    def _is_direct(self, address: str) -> None:
        self.relayed.pop(address, None)
        trying = self._trying.pop(address, None)
        if trying is not None:
            trying.cancel()

    def _is_relayed(self, address: str) -> None:
        if address not in self.relayed:
            logger.info("%s cannot be dialled from here: the scheduler relays to it", address)
            self.relayed[address] = TRIED_AGAIN
        self._try_later(address)

    def _try_later(self, address: str) -> None:
        if address not in self._trying and not self._closed:
            loop = asyncio.get_running_loop()
            pause = self.relayed[address]
            self._trying[address] = loop.call_later(pause, self._try_direct, address)

    def _try_direct(self, address: str) -> None:
        self._trying.pop(address, None)
        if not self._closed and address in self.relayed:
            trying = asyncio.ensure_future(self._try_once(address))
            self._background.add(trying)
            trying.add_done_callback(self._background.discard)

    async def _try_once(self, address: str) -> None:
        try:
            comm = await connect(address, timeout=HEAD_START, **self._connection_args)
        except Exception:
            if address in self.relayed:
                self.relayed[address] = min(2 * self.relayed[address], SELDOM)
                self._try_later(address)
            return
        comm.abort()
        self._is_direct(address)
        logger.info("%s can be dialled from here: it is relayed to no more", address)
        self._now_direct(address)

    def forget(self, address: str) -> None:
        """A worker is gone."""
        self._is_direct(address)

    async def close(self) -> None:
        """End what goes on in the background."""
        self._closed = True
        for trying in self._trying.values():
            trying.cancel()
        self._trying.clear()
        for one in list(self._background):
            one.cancel()
        if self._background:
            await asyncio.wait(list(self._background), timeout=1.0)


def _succeeded(opening: asyncio.Future[Comm]) -> bool:
    return opening.done() and not opening.cancelled() and opening.exception() is None


async def dial_raw(address: str, deserialize: bool, arguments: dict[str, Any]) -> Comm:
    """A connection to an address, before the first handshake."""
    scheme, _, location = address.rpartition("://")
    connector = get_backend(scheme).get_connector()
    return await connector.connect(location, deserialize=deserialize, **arguments)


class RoutedPool(ConnectionPool):
    """A pool of connections to workers, by the ways of a `Reach`."""

    def __init__(self, reach: Reach, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._reach = reach

    async def connect(self, addr: str, timeout: float | None = None) -> Comm:
        """A connection to a worker, which is given back by `reuse`."""
        return await super().connect(self._reach.route(addr), timeout)

    def reuse(self, addr: str, comm: Comm) -> None:
        """Give a connection back."""
        super().reuse(self._reach.route(addr), comm)

    def remove(self, addr: str, **reason: Any) -> None:
        """A worker is gone, or is reached in another way: end all connections to it."""
        super().remove(self._reach.route(addr), **reason)

    def end_idle(self, addr: str) -> None:
        """End the connections to a worker that nobody uses now: they lead the same way."""
        for idle in list(self.available[self._reach.route(addr)]):
            idle.abort()


class _Connector(Connector):
    async def connect(self, address: str, deserialize: bool = True, **arguments: Any) -> Comm:
        number, scheme, location = address.split("/", 2)
        reach = _reaches.get(int(number))
        if reach is None:
            raise OSError(f"{scheme}://{location} was to be reached by a process that is closed")
        return await reach.open(f"{scheme}://{location}", deserialize, arguments)


class _Backend(Backend):
    """Lets `distributed.comm.connect` dial ``reach://`` addresses; nothing listens there."""

    def get_connector(self) -> Connector:
        return _Connector()

    def get_listener(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def get_address_host(self, loc: str) -> str:
        return loc.split("/", 2)[2].rpartition(":")[0]

    def resolve_address(self, loc: str) -> str:
        return loc

    def get_local_address_for(self, loc: str) -> str:
        raise NotImplementedError


with suppress(KeyError):
    backends.setdefault(SCHEME, _Backend())
