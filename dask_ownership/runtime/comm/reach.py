"""The ways from a process to workers: direct connections, and relays of the scheduler.

In many clusters only the scheduler can be dialled from outside, and some workers cannot dial each
other. The scheduler can reach all workers. So for a worker that cannot be dialled, a process asks
the scheduler plugin for a *relay* (`scheduler.relay`): an ordinary connection to the scheduler,
which the scheduler splices to a connection of its own to the worker. The same bytes travel over a
relay as over a direct connection, from the first handshake on; so links and requests need not know
of relays.

The dial begins first. When the dial takes longer than `HEAD_START`, the process asks for a relay as
well, and takes the connection that is there first. A connection is there when the worker has said
a word over it: a proxy on the way may accept connections and lead nowhere.

For a worker that was reached by a relay, the process asks for a relay at once from then on, and
dials the worker in the background now and then; when a dial succeeds, the process leaves the relay.

The module registers a comm backend of distributed, so all code that connects to addresses can
connect this way: the address ``reach://N/tcp/host:port`` stands for the worker ``tcp://host:port``,
reached by the `Reach` with the number N in this process.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from weakref import WeakSet, WeakValueDictionary

from distributed.comm import Comm, connect
from distributed.comm.core import Connector, FatalCommClosedError
from distributed.comm.registry import Backend, backends, get_backend
from distributed.core import ConnectionPool

from dask_ownership.config import value_of
from dask_ownership.runtime.comm.scheduler_ops import RELAY

logger = logging.getLogger("dask_ownership.link")

SCHEME = "reach"
"""The scheme of addresses that this module's comm backend connects to."""

HEAD_START = 0.5
"""Seconds for which a process dials a worker before it asks for a relay."""

SHORT_START = 0.05
"""Seconds in place of `HEAD_START`, when the process reaches any other worker by a relay."""

TRIED_AGAIN = 30.0
"""Seconds after which a process dials a worker with a relay again; doubled each time, up to
`SELDOM`."""

SELDOM = 600.0
"""Seconds between two dials of a worker with a relay, at most."""

RELAY_TIMEOUT = 10.0
"""Seconds that the scheduler may take to open a relay."""

RELAYED = ("tcp", "tls", "ws", "wss")
"""Schemes of addresses for which there are relays. Workers in the same process (``inproc``) are
reached without."""

ENCRYPTED = ("tls://", "wss://")
"""Beginnings of addresses of workers that encrypt."""

MODES = ("auto", "direct", "relay")
"""Values of ``ownership.reach``: dial and ask for relays, only dial, or only ask for relays."""

_numbers = itertools.count()
# The `Reach` objects of this process by number, for the comm backend to find.
_reaches: WeakValueDictionary[int, Reach] = WeakValueDictionary()


class NoRelay(FatalCommClosedError):
    """The scheduler refuses to open a relay to a worker."""


class Reach:
    """The ways from one process to the workers of its cluster.

    Parameters
    ----------
    connection_args : dict
        Arguments for connections, from the cluster's security, for the role of this process.
    scheduler : callable or None
        Returns the address of the scheduler. With None there are no relays.
    asker, token : callable
        Return the incarnation of the owner in this process, and its token.
    now_direct : callable
        Told of the address of a worker that was reached by a relay and can be dialled now. The
        pools of this object have left their relays then.

    Attributes
    ----------
    mode : str
        One of `MODES`.
    relayed : dict of str to float
        Addresses of the workers reached by relays, with the seconds after which the process dials
        the worker again.
    pools : WeakSet of RoutedPool
        The pools that connect by way of this object.
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
        self.mode: str = value_of("ownership.reach")
        self.relayed: dict[str, float] = {}
        self.pools: WeakSet[RoutedPool] = WeakSet()
        # The connections that are relays.
        self._relays: WeakSet[Comm] = WeakSet()
        # Timers of the next dials of workers with a relay; and connections on their way that are
        # not needed, or are tried in the background.
        self._trying: dict[str, asyncio.TimerHandle] = {}
        self._background: set[asyncio.Future[Any]] = set()
        self._closed = False
        self._number = next(_numbers)
        _reaches[self._number] = self

    def route(self, address: str) -> str:
        """Return the address by which `distributed.comm.connect` connects by way of this object.

        Return the worker's own address where there are no relays.
        """
        scheme, _, location = address.rpartition("://")
        if self._scheduler is None or self.mode == "direct" or scheme not in RELAYED:
            return address
        return f"{SCHEME}://{self._number}/{scheme}/{location}"

    def way_to(self, address: str) -> str:
        """Return ``"relayed"`` for a worker reached by a relay, and ``"direct"`` for any other."""
        return "relayed" if address in self.relayed else "direct"

    def is_relay(self, comm: Comm) -> bool:
        """Return whether a connection that this object opened is a relay."""
        return comm in self._relays

    async def open(self, address: str, deserialize: bool, arguments: dict[str, Any]) -> Comm:
        """Connect to a worker, directly or by a relay, without the first handshake.

        Parameters
        ----------
        address : str
            The worker's own address.
        deserialize : bool
            Whether the comm deserializes messages.
        arguments : dict
            Further arguments of the connector of a direct connection.

        Raises
        ------
        OSError
            When neither way leads to the worker. The text tells both reasons.
        RuntimeError
            When the configuration requires encryption and the worker does not encrypt. A relay
            would not encrypt either, on its way from the scheduler to the worker.
        """
        if arguments.get("require_encryption") and not address.startswith(ENCRYPTED):
            raise RuntimeError(f"the configuration requires encryption, and {address} has none")
        if self.mode == "relay":
            comm = await self._relay(address, deserialize, arguments)
            self.relayed.setdefault(address, SELDOM)
            return comm
        dial = asyncio.ensure_future(self._dial(address, deserialize, arguments))
        relay: asyncio.Future[Comm] | None = None
        try:
            # The dial of a worker without a relay has a head start: a direct way is the better one.
            if address not in self.relayed:
                start = SHORT_START if self.relayed else HEAD_START
                await asyncio.wait([dial], timeout=start)
            if _succeeded(dial):
                self._is_direct(address)
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
        """Return the connection that is there first; the other connection is closed when it comes.

        When one of the two fails, the other is waited for.
        """
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
        reasons = f"{error}; and by way of the scheduler: {refusal}"
        # The scheduler has said no: `connect` need not ask again and again.
        raise (NoRelay if isinstance(refusal, NoRelay) else OSError)(reasons) from error

    def _let_go(self, opening: asyncio.Future[Comm]) -> None:
        """Cancel a connection on its way, or close the connection if it came all the same."""
        if opening.done():
            if _succeeded(opening):
                opening.result().abort()
            return
        # A cancelled task may still succeed, when the cancellation comes as it ends.
        opening.add_done_callback(lambda done: _succeeded(done) and done.result().abort())
        opening.cancel()
        self._background.add(opening)
        opening.add_done_callback(self._background.discard)

    async def _dial(self, address: str, deserialize: bool, arguments: dict[str, Any]) -> Comm:
        """Connect to a worker directly."""
        return await _greeted(await dial_raw(address, deserialize, arguments))

    async def _relay(self, address: str, deserialize: bool, arguments: dict[str, Any]) -> Comm:
        """Connect to the scheduler, and have it splice the connection to one to the worker.

        Raises
        ------
        OSError
            When the scheduler does not answer; `NoRelay` when the scheduler refuses.
        """
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
        self._relays.add(comm)
        return await _greeted(comm)

    # ---- leaving a relay for a direct connection ----

    def _is_direct(self, address: str) -> None:
        """Note that a worker was dialled; leave its relays, if there are any."""
        if address in self.relayed:
            self.forget(address)
            logger.info("%s can be dialled from here: it is relayed to no more", address)
            # Later: the connection that has just been made is not handed to its user yet.
            asyncio.get_running_loop().call_soon(self._leave_relays, address)

    def _leave_relays(self, address: str) -> None:
        """Let all users of relays to a worker dial the worker."""
        if not self._closed and address not in self.relayed:
            for pool in list(self.pools):
                pool.leave_relays(address)
            self._now_direct(address)

    def _is_relayed(self, address: str) -> None:
        """Note that a worker was reached by a relay, and dial the worker again later."""
        if address not in self.relayed:
            logger.info("%s cannot be dialled from here: the scheduler relays to it", address)
            self.relayed[address] = TRIED_AGAIN
        self._try_later(address)

    def _try_later(self, address: str) -> None:
        """Start the timer for the next dial of a worker with a relay, unless one is running."""
        if address not in self._trying and not self._closed:
            loop = asyncio.get_running_loop()
            pause = self.relayed[address]
            self._trying[address] = loop.call_later(pause, self._try_direct, address)

    def _try_direct(self, address: str) -> None:
        """Dial a worker with a relay in the background. Called by the timer."""
        self._trying.pop(address, None)
        if not self._closed and address in self.relayed:
            trying = asyncio.ensure_future(self._try_once(address))
            self._background.add(trying)
            trying.add_done_callback(self._background.discard)

    async def _try_once(self, address: str) -> None:
        """Dial a worker with a relay once; when the dial succeeds, leave the relay."""
        try:
            # Some connectors take longer than `connect` allows them.
            comm = await asyncio.wait_for(
                connect(address, timeout=HEAD_START, **self._connection_args), 10 * HEAD_START
            )
        except Exception:
            if address in self.relayed:
                self.relayed[address] = min(2 * self.relayed[address], SELDOM)
                self._try_later(address)
            return
        comm.abort()  # the connection was for the test only: links and requests open their own
        self._is_direct(address)

    def forget(self, address: str) -> None:
        """Forget the way to a worker that is gone, or needs no relay any more."""
        self.relayed.pop(address, None)
        trying = self._trying.pop(address, None)
        if trying is not None:
            trying.cancel()

    async def close(self) -> None:
        """End all timers and all connections on their way."""
        self._closed = True
        for trying in self._trying.values():
            trying.cancel()
        self._trying.clear()
        for one in list(self._background):
            one.cancel()
        if self._background:
            await asyncio.wait(list(self._background), timeout=1.0)


def _succeeded(opening: asyncio.Future[Comm]) -> bool:
    """Return whether a connection is there."""
    return opening.done() and not opening.cancelled() and opening.exception() is None


async def _greeted(comm: Any) -> Any:
    """Return a comm when its other end has begun the first handshake.

    The end that listens speaks first. The message is read here, and once more by the code that does
    the handshake.
    """
    try:
        greeting = await comm.read()
    except BaseException:
        comm.abort()
        raise

    async def read_again(*args: Any, **kwargs: Any) -> Any:
        """Return the message that was read; later calls read from the connection."""
        del comm.read
        return greeting

    comm.read = read_again
    return comm


async def dial_raw(address: str, deserialize: bool, arguments: dict[str, Any]) -> Comm:
    """Connect to an address, without the first handshake."""
    # The handshake is done by `distributed.comm.connect`, which called the backend below.
    scheme, _, location = address.rpartition("://")
    connector = get_backend(scheme).get_connector()
    return await connector.connect(location, deserialize=deserialize, **arguments)


class RoutedPool(ConnectionPool):
    """A pool of connections to workers, by the ways of a `Reach`.

    Callers use the workers' own addresses; the pool keeps connections under their routes.
    """

    def __init__(self, reach: Reach, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._reach = reach
        reach.pools.add(self)

    async def connect(self, addr: str, timeout: float | None = None) -> Comm:
        """Return a connection to a worker, for the caller to give back by `reuse`."""
        return await super().connect(self._reach.route(addr), timeout)

    def reuse(self, addr: str, comm: Comm) -> None:
        """Take a connection back from its caller; end a relay that is needed no more."""
        if self._reach.is_relay(comm) and self._reach.way_to(addr) == "direct":
            comm.abort()
        super().reuse(self._reach.route(addr), comm)

    def remove(self, addr: str, **reason: Any) -> None:
        """End all connections to a worker that is gone."""
        self._reach.forget(addr)
        super().remove(self._reach.route(addr), **reason)

    def end_idle(self, addr: str) -> None:
        """End the idle connections to a worker, which lead the same way as a stalled connection."""
        for idle in list(self.available[self._reach.route(addr)]):
            idle.abort()

    def leave_relays(self, addr: str) -> None:
        """End the idle relays to a worker; requests on their way end first, see `reuse`."""
        for idle in list(self.available[self._reach.route(addr)]):
            if self._reach.is_relay(idle):
                idle.abort()


class _Connector(Connector):
    """A connector for ``reach://`` addresses."""

    async def connect(self, address: str, deserialize: bool = True, **arguments: Any) -> Comm:
        """Connect to the worker of a location ``N/scheme/location`` by the `Reach` number N."""
        number, scheme, location = address.split("/", 2)
        reach = _reaches.get(int(number))
        if reach is None:
            raise OSError(f"{scheme}://{location} was to be reached by a process that is closed")
        return await reach.open(f"{scheme}://{location}", deserialize, arguments)


class _Backend(Backend):
    """The comm backend for ``reach://`` addresses, to which processes connect and never listen."""

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
