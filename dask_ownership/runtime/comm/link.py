"""Links: one ordered, numbered stream of batches between an owner and an executor.

The owner dials with a replied, versioned operation on the worker's own listening
address, so security, ports and protocols are those of the cluster. The
connection may break; the link lives on and is dialled again until membership
says that the worker is gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import perf_counter
from typing import Any

import msgpack
from distributed.comm import Comm, CommClosedError, connect

from dask_ownership.core.executor.session import Session
from dask_ownership.core.protocol.byte_counter import ByteCounter
from dask_ownership.core.protocol.heartbeat import Heartbeat
from dask_ownership.core.protocol.messages import Message
from dask_ownership.core.protocol.stream import NumberedStream
from dask_ownership.runtime.comm.channel import Channel, channel, has_stream
from dask_ownership.runtime.comm.packing import Packing, Unsendable
from dask_ownership.runtime.comm.request import LONGEST

logger = logging.getLogger("dask_ownership.link")

PROTOCOL = 6
"""Version of the messages; both ends must have the same."""

BYE = "bye"
"""Sent instead of a batch by an owner that closes."""

BYE_FRAME: bytes = msgpack.packb(BYE)

UNSAID_BATCHES = 16
"""Batches after which an acknowledgement is sent of its own."""


CANCELLED_AGAIN = 0.5
"""Seconds after which a dial that outlived its cancellation is cancelled once more."""

LONGEST_DIAL = 10.0
"""Seconds above which a dial takes no longer before it is tried anew."""


def ignore(message: Message, error: Exception) -> None:
    """What a link does with what cannot be packed, unless it is told."""
    logger.error("a message cannot be packed: %r", error)


class LinkRefused(Exception):
    """The worker answered, and does not take this link."""


class AnotherWorker(Exception):
    """Another worker answers at this address by now: the one that is meant is gone, or about to
    be. That is for the scheduler to say."""


class OwnerLink:
    """The owner's end.

    Parameters
    ----------
    address : str
        The worker's.
    hello : dict
        Who dials, and whom: ``owner``, ``address``, ``name``, ``token`` and ``to``, the incarnation
        of the worker.
    received : callable
        ``received(messages)`` on the event loop.
    refused : callable
        ``refused(reason)``, once, when the worker will not take the link.
    unreachable : callable
        ``unreachable(reason)``, once, when no dial ever came there. That ends the link, too.
    reach : float
        Seconds after which that is so.
    silence : float
        Seconds for which a worker may be silent. A connection that stalls for half of it is
        dialled again; for twice as long each time until something arrives.
    traffic : ByteCounter, optional
        Where bytes are counted.
    unsendable : callable, optional
        Told of messages that cannot be packed.
    route : callable, optional
        Gives the address to connect to, see `comm.reach`.

    Attributes
    ----------
    reached : bool
        Whether anything that was sent may have arrived.
    """

    def __init__(
        self,
        address: str,
        hello: dict[str, Any],
        connection_args: dict[str, Any],
        *,
        received: Callable[[Any], None],
        refused: Callable[[str], None],
        unreachable: Callable[[str], None],
        reach: float = 30.0,
        silence: float = 5.0,
        traffic: ByteCounter | None = None,
        unsendable: Unsendable = ignore,
        route: Callable[[str], str] = str,
    ) -> None:
        self.address = address
        self._route = route
        self.hello = hello
        self.connection_args = connection_args
        self.received = received
        self.refused = refused
        self.unreachable = unreachable
        self.reach = reach
        self.traffic = traffic
        self.state = NumberedStream()
        self.closed = False
        self._packing = Packing(self.state, unsendable)
        self._channel: Channel | None = None
        self.reached = False
        self._greeting: dict[str, Any] = {}
        self._task: asyncio.Task[None] | None = None
        self._pulse = Heartbeat()
        self._shortest = self._patience = silence / 2
        self._stalled = 0.0
        self._seen: tuple[Channel | None, int, int] = (None, 0, 0)

    @property
    def connected(self) -> bool:
        return self._channel is not None

    def start(self) -> None:
        """Dial, and keep dialling while the link is wanted."""
        if self._task is None and not self.closed:
            self._task = asyncio.ensure_future(self._run())

    def send(self, messages: list[Message]) -> None:
        """Number a batch and send it, now or when the connection is there."""
        self._write(self._packing.number(messages))

    def _write(self, frames: list[bytes]) -> None:
        if self._channel is not None:
            try:
                for frame in frames:
                    self._channel.write(frame)
            except CommClosedError:
                self._channel = None
        elif self._task is None:
            self.start()

    def look(self, passed: float, ask_after: float | None) -> float:
        """Look for signs of life, and dial again when there are none on this connection.

        Parameters
        ----------
        passed : float
            Seconds since the last look for which this process was awake.
        ask_after : float or None
            Seconds of quiet after which the worker is asked for a sign of life.

        Returns
        -------
        float
            Seconds for which it has owed an answer and given none.
        """
        made = self._channel
        before, arrivals, _ = self._seen
        now = (made, made.arrivals, made.written) if made is not None else (None, 0, 0)
        heard = made is not None and now != self._seen
        self._seen = now
        if made is not None and made is before and made.arrivals != arrivals:
            self._patience = self._shortest
        owes = bool(self.state.unacknowledged) or (made is None and self._task is not None)
        if self._pulse.look(passed, heard, owes, ask_after):
            self._write(self._packing.number([], ask=True))
        if made is None or heard or not owes:
            self._stalled = 0.0
            return self._pulse.owed
        self._stalled += passed
        if self._stalled >= self._patience:
            logger.info("%s sent nothing for %.3g s: dialling again", self.address, self._stalled)
            self._disappointed()
            made.abort()
        return self._pulse.owed

    def dial_again(self) -> None:
        """There is a better way to the worker: end the connection, and go on over another one."""
        if self._channel is not None:
            self._channel.abort()

    def _disappointed(self) -> None:
        self._stalled = 0.0
        self._patience = min(2 * self._patience, max(LONGEST, self._shortest))

    async def _run(self) -> None:
        pause = 0.02
        began = lost_at = perf_counter()
        opened = False
        while not self.closed:
            comm = None
            try:
                try:
                    limit = min(self._patience, LONGEST_DIAL)
                    comm = await asyncio.wait_for(self._dial(), limit)
                except (TimeoutError, asyncio.TimeoutError):
                    self._disappointed()
                    raise
                if self.closed:
                    break  # a wait that ends just as it is cancelled goes on as if it was not
                greeted = self._channel = self._resume(comm)
                pause = 0.02
                if opened:
                    took = perf_counter() - lost_at
                    logger.info("the link to %s is open again after %.3g s", self.address, took)
                opened = True
                await greeted.listen(self._arrived)
            except LinkRefused as error:
                self.closed = True
                self.refused(str(error))
            except Exception as error:
                if comm is not None and not self.closed:
                    lost_at = perf_counter()
                    logger.info(
                        "the link to %s is lost, and dialled again: %s", self.address, error
                    )
                else:
                    logger.debug("link to %s: %r", self.address, error)
                answered = isinstance(error, AnotherWorker)
                if not (self.reached or answered) and perf_counter() - began >= self.reach:
                    self.closed = True
                    self.unreachable(
                        f"the worker {self.address} cannot be reached from here: for "
                        f"{self.reach:g} s no connection was made, at last because of {error!r}. "
                        "Owners send tasks to workers themselves and need a route to each of "
                        "them: give the workers an address that can be dialled from here "
                        "(--contact-address), or run this program inside the cluster's network"
                    )
            finally:
                self._channel = None
                if comm is not None:
                    comm.abort()
            if not self.closed:
                await asyncio.sleep(pause)
                pause = min(pause * 2, 1.0)

    async def probe(self) -> None:
        """Open a connection once, as `start` would, and end the link at the worker again.

        Raises
        ------
        LinkRefused
        OSError
        """
        made = self._resume(await self._dial())
        made.write(BYE_FRAME)
        await made.close()

    async def _dial(self) -> Comm:
        """A connection whose other end has answered to the greeting."""
        comm = await connect(self._route(self.address), **self.connection_args)
        try:
            comm.name = "Owner->Executor"
            await self._greet(comm)
        except BaseException:
            comm.abort()
            raise
        return comm

    async def _greet(self, comm: Comm) -> None:
        await comm.write(
            {
                "op": "ownership_link",
                "protocol": PROTOCOL,
                "received": self.state.received,
                "stream": has_stream(comm),
                **self.hello,
            }
        )
        answer = await comm.read()
        if not isinstance(answer, dict):
            raise LinkRefused(
                f"the worker {self.address} does not know dask_ownership: install the package "
                "there, and start it again so that the worker plugin is set up"
            )
        if answer.get("status") == "another":
            raise AnotherWorker(f"another worker answers at {self.address} now")
        if answer.get("status") != "OK":
            raise LinkRefused(answer.get("reason") or f"the worker answered {answer!r}")
        self.reached = True
        self._greeting = answer

    def _resume(self, comm: Comm) -> Channel:
        """Go on over a new connection, with what the worker has not got."""
        # No await in between: a batch that is numbered meanwhile would be in neither.
        made = channel(comm, self._greeting.get("stream", False), self.traffic)
        for frame in self._packing.again(self._greeting["received"]):
            made.write(frame)
        return made

    def _arrived(self, batch: Any) -> None:
        messages = self.state.receive(batch)
        if messages:
            try:
                self.received(messages)
            except Exception:
                # The link goes on: the next batches are numbered after this one.
                logger.exception("answers of %s were not taken in", self.address)

    async def close(self, say_bye: bool = True) -> None:
        """End the link; the worker drops what the owner had there."""
        self.closed = True
        channel, self._channel = self._channel, None
        if say_bye and channel is not None:
            try:
                channel.write(BYE_FRAME)
                await channel.close()
            except (OSError, CommClosedError):
                pass
        if self._task is not None and self._task is not asyncio.current_task():
            while not self._task.done():
                # Again, because `asyncio.wait_for` loses a cancellation that comes as it ends.
                self._task.cancel()
                await asyncio.wait([self._task], timeout=CANCELLED_AGAIN)


class LocalLink:
    """The owner's end of a link to the executor in the same process: no connection."""

    connected = True
    reached = True
    closed = False

    def __init__(self, deliver: Callable[[Any], None]) -> None:
        self.state = NumberedStream()
        self._deliver = deliver

    def start(self) -> None:
        pass

    def look(self, passed: float, ask_after: float | None) -> float:
        return 0.0

    def send(self, messages: list[Message]) -> None:
        self._deliver(self.state.pack(messages))

    async def close(self, say_bye: bool = True) -> None:
        self.closed = True
        if say_bye:
            self._deliver(BYE)


class ExecutorLink:
    """The executor's end of a link."""

    def __init__(self, session: Session, unsendable: Unsendable = ignore) -> None:
        self.session = session
        self.state = NumberedStream()
        self.packing = Packing(self.state, unsendable)
        self.channel: Channel | None = None
        self.local: Any = None

    @property
    def waits_for_first(self) -> bool:
        """Whether the owner never spoke here: nothing makes it connect but to ask for it."""
        return self.channel is None and self.local is None and not self.state.received

    def send(self, messages: list[Any]) -> int:
        """Number messages and send them when there is a connection; the number of the last."""
        if self.local is not None:
            self.local(self.state.pack(messages))
            return self.state.sent
        frames = self.packing.number(messages)
        if self.channel is not None:
            try:
                for frame in frames:
                    self.channel.write(frame)
            except CommClosedError:
                self.channel = None
        return self.state.sent
