"""Links: one ordered, numbered stream of batches between an owner and an executor.

The owner dials the worker's own listening address, with a replied, versioned operation; so a link
uses the security, ports and protocols of the cluster. When the connection breaks the link lives on:
the owner dials again, until membership says that the worker is gone.
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

PROTOCOL = 7
"""Version of the messages; an owner, its workers and the scheduler must have the same version."""

BYE = "bye"
"""Sent in place of a batch by an owner that closes."""

BYE_FRAME: bytes = msgpack.packb(BYE)

UNSAID_BATCHES = 16
"""Number of batches received without a batch to send, after which an end of a link sends an empty
batch to acknowledge them."""


CANCELLED_AGAIN = 0.5
"""Seconds after which a dial is cancelled once more that goes on after its cancellation."""

LONGEST_DIAL = 10.0
"""Seconds that one dial may take at most, before the next dial."""

SET_UP = 2.0
"""Seconds for which a worker may not know links yet, after it registered."""


def ignore(message: Message, error: Exception) -> None:
    """Log a message that cannot be packed: the default of a link."""
    logger.error("a message cannot be packed: %r", error)


def other_protocol(who: str, protocol: Any) -> str | None:
    """Return why ``who``, which has this version, refuses an owner of another one, or None.

    ``protocol`` is as the owner sent it, and so of any type.
    """
    if protocol == PROTOCOL and type(protocol) is int:
        return None
    older = "the owner" if type(protocol) is int and protocol < PROTOCOL else who
    return (
        f"{who} speaks version {PROTOCOL} of the ownership protocol and the owner version "
        f"{protocol!r:.20}: install the same dask_ownership in both places ({older} has the older "
        "one)"
    )


class LinkRefused(Exception):
    """The worker answered, and refuses the link.

    Attributes
    ----------
    ending : bool
        Whether the worker is closing, or was told that the owner is gone: then nothing is wrong.
    """

    def __init__(self, reason: str, ending: bool = False) -> None:
        super().__init__(reason)
        self.ending = ending


class NotSetUp(LinkRefused):
    """The worker does not know the operation: it was told of the worker plugin too late, or never.

    Owners may hear of a worker before the worker hears of the plugin: both follow from the
    registration of the worker. So the link dials on for `SET_UP` seconds.
    """


class AnotherWorker(Exception):
    """Another worker answers at the address of the worker to be dialled.

    The latter is gone, or about to be. The link goes on dialling, because only the scheduler says
    so.
    """


class OwnerLink:
    """The owner's end of a link to a worker in another process.

    A link outlives its connections, and has the state of both: hence the many attributes.

    Parameters
    ----------
    address : str
        The address of the worker.
    hello : dict
        The dialling owner, and the worker to be dialled: ``owner``, ``address``, ``name``,
        ``token`` and ``to``, the incarnation of the worker.
    connection_args : dict
        Arguments of ``distributed.comm.connect``.
    received : callable
        ``received(messages)`` is called on the event loop with each batch.
    refused : callable
        ``refused(error)`` is called once, with a `LinkRefused`, when the worker refuses the link.
        The link is closed then.
    unreachable : callable
        ``unreachable(reason)`` is called once, when no dial has reached the worker within ``reach``
        seconds. The link is closed then.
    reach : float
        Seconds.
    silence : float
        Seconds for which a worker may be silent. A connection that stalls for half of this time is
        dialled again; the time doubles with each such dial until the worker sends something.
    byte_counter : ByteCounter, optional
        Counts the bytes sent and received.
    unsendable : callable, optional
        Told of messages that cannot be packed.
    route : callable, optional
        ``route(address)`` returns the address to connect to, by which the connection may go by a
        relay, see `comm.reach`.

    Attributes
    ----------
    state : NumberedStream
        Numbers of the batches sent and received.
    closed : bool
        Whether the link has ended, and does not dial any more.
    reached : bool
        Whether any sent message may have arrived at the worker.
    """

    def __init__(
        self,
        address: str,
        hello: dict[str, Any],
        connection_args: dict[str, Any],
        *,
        received: Callable[[Any], None],
        refused: Callable[[LinkRefused], None],
        unreachable: Callable[[str], None],
        reach: float = 30.0,
        silence: float = 5.0,
        byte_counter: ByteCounter | None = None,
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
        self.byte_counter = byte_counter
        self.state = NumberedStream()
        self.closed = False
        self._packing = Packing(self.state, unsendable)
        self._channel: Channel | None = None
        self.reached = False
        # The worker's answer to the last dial.
        self._greeting: dict[str, Any] = {}
        self._task: asyncio.Task[None] | None = None
        self._heartbeat = Heartbeat()
        # Seconds for which a connection may stall: at the beginning, and now.
        self._shortest = self._limit = silence / 2
        self._stalled = 0.0
        # The channel, its arrivals and its written bytes at the last look.
        self._seen: tuple[Channel | None, int, int] = (None, 0, 0)

    @property
    def connected(self) -> bool:
        """Whether the link has a connection at the moment."""
        return self._channel is not None

    def start(self) -> None:
        """Dial the worker, and dial again after each break until the link is closed."""
        if self._task is None and not self.closed:
            self._task = asyncio.ensure_future(self._run())

    def send(self, messages: list[Message]) -> None:
        """Number a batch and send it, now or as soon as there is a connection."""
        self._write(self._packing.number(messages))

    def _write(self, frames: list[bytes]) -> None:
        """Write numbered frames, or leave them to the next connection (`_resume`)."""
        if self._channel is not None:
            try:
                for frame in frames:
                    self._channel.write(frame)
            except CommClosedError:
                self._channel = None  # `_run` notices the end, too, and dials again
        elif self._task is None:
            self.start()

    def look(self, passed: float, ask_after: float | None) -> float:
        """Look for signs of life of the worker, and end a connection without any.

        Parameters
        ----------
        passed : float
            Seconds since the last look for which this process was awake.
        ask_after : float or None
            Seconds of quiet after which the worker is asked for a sign of life; None for never.

        Returns
        -------
        float
            Seconds for which the worker has owed an answer without a sign of life.
        """
        made = self._channel
        before, arrivals, _ = self._seen
        now = (made, made.arrivals, made.written) if made is not None else (None, 0, 0)
        # Bytes that leave are a sign of life, too: a large batch takes long on a slow network.
        heard = made is not None and now != self._seen
        self._seen = now
        # Only bytes that arrive reset the limit: bytes may leave for a while to a frozen worker.
        if made is not None and made is before and made.arrivals != arrivals:
            self._limit = self._shortest
        # A worker owes an acknowledgement, or the answer to a dial.
        owes = bool(self.state.unacknowledged) or (made is None and self._task is not None)
        if self._heartbeat.look(passed, heard, owes, ask_after):
            self._write(self._packing.number([], ask=True))
        if made is None or heard or not owes:  # without a connection `_run` limits the dial
            self._stalled = 0.0
            return self._heartbeat.owed
        self._stalled += passed
        if self._stalled >= self._limit:
            logger.info("%s sent nothing for %.3g s: dialling again", self.address, self._stalled)
            self._disappointed()
            made.abort()  # this ends `listen` in `_run`, which dials again
        return self._heartbeat.owed

    def leave_relay(self, is_relay: Callable[[Comm], bool]) -> None:
        """End the connection and dial again, if the connection is a relay."""
        if self._channel is not None and is_relay(self._channel.comm):
            self._channel.abort()

    def _disappointed(self) -> None:
        """Double the limit of the worker, after a connection or a dial that stalled."""
        self._stalled = 0.0
        self._limit = min(2 * self._limit, max(LONGEST, self._shortest))

    async def _run(self) -> None:
        """Dial, listen until the connection ends, and dial again, until the link is closed."""
        pause = 0.02
        began = lost_at = perf_counter()
        opened = False
        while not self.closed:
            comm = None
            try:
                try:
                    limit = min(self._limit, LONGEST_DIAL)
                    comm = await asyncio.wait_for(self._dial(), limit)
                except (TimeoutError, asyncio.TimeoutError):
                    self._disappointed()
                    raise
                if self.closed:
                    break  # `asyncio.wait_for` loses a cancellation that comes just as it ends
                greeted = self._channel = self._resume(comm)
                pause = 0.02  # after a connection that worked, the next dial is not delayed
                if opened:
                    took = perf_counter() - lost_at
                    logger.info("the link to %s is open again after %.3g s", self.address, took)
                opened = True
                await greeted.listen(self._arrived)
            except LinkRefused as error:
                if isinstance(error, NotSetUp) and perf_counter() - began < SET_UP:
                    pause = max(pause, SET_UP / 10)  # the worker logs each dial that it refuses
                else:
                    self.closed = True
                    self.refused(error)
            except Exception as error:
                if comm is not None and not self.closed:
                    lost_at = perf_counter()
                    logger.info(
                        "the link to %s is lost, and dialled again: %s", self.address, error
                    )
                else:
                    logger.debug("link to %s: %r", self.address, error)
                # An answer of another worker proves that there is a route to the address.
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
            When the worker refuses the link.
        AnotherWorker
            When another worker answers at the address.
        OSError
            When the address does not answer.
        """
        made = self._resume(await self._dial())
        made.write(BYE_FRAME)
        await made.close()

    async def _dial(self) -> Comm:
        """Open a connection, greet the worker, and return the connection after the answer."""
        comm = await connect(self._route(self.address), **self.connection_args)
        try:
            comm.name = "Owner->Executor"
            await self._greet(comm)
        except BaseException:
            comm.abort()
            raise
        return comm

    async def _greet(self, comm: Comm) -> None:
        """Tell the worker which owner dials and which batches arrived here, and read the answer.

        Raises
        ------
        LinkRefused, AnotherWorker
        """
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
        if not isinstance(answer, dict):  # Dask answers None to an unknown operation
            raise NotSetUp(
                f"the worker {self.address} does not know dask_ownership: install the package "
                "there, and start it again so that the worker plugin is set up"
            )
        if answer.get("status") == "another":
            raise AnotherWorker(f"another worker answers at {self.address} now")
        if answer.get("status") != "OK":
            reason = answer.get("reason") or f"the worker answered {answer!r}"
            raise LinkRefused(reason, answer.get("status") == "ending")
        self.reached = True
        self._greeting = answer

    def _resume(self, comm: Comm) -> Channel:
        """Go on over a new connection, beginning with the batches that the worker has not got."""
        # No await before the caller sets the channel: a batch numbered meanwhile would be neither
        # among the batches to send again nor written to the new channel.
        made = channel(comm, self._greeting.get("stream", False), self.byte_counter)
        for frame in self._packing.again(self._greeting["received"]):
            made.write(frame)
        return made

    def _arrived(self, batch: Any) -> None:
        """Take in a batch of answers; nothing happens for a batch that arrived before."""
        messages = self.state.receive(batch)
        if messages:
            try:
                self.received(messages)
            except Exception:
                # The link goes on. The numbers of the next batches count this batch as received.
                logger.exception("answers of %s were not taken in", self.address)

    async def close(self, say_bye: bool = True) -> None:
        """End the link.

        With ``say_bye`` the worker hears that the owner closes, and drops everything of this owner.
        """
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
                # In a loop, because `asyncio.wait_for` loses a cancellation that comes as it ends.
                self._task.cancel()
                await asyncio.wait([self._task], timeout=CANCELLED_AGAIN)


class LocalLink:
    """The owner's end of a link to the executor in the same process, without a connection.

    Parameters
    ----------
    deliver : callable
        ``deliver(batch)`` hands a batch to the executor, see `Executor.local_link`.
    """

    connected = True
    reached = True
    closed = False

    def __init__(self, deliver: Callable[[Any], None]) -> None:
        self.state = NumberedStream()  # the executor drops held values by acknowledgements
        self._deliver = deliver

    def start(self) -> None:
        pass  # there is nothing to dial

    def look(self, passed: float, ask_after: float | None) -> float:
        """Return 0: an executor in the same process is never silent."""
        return 0.0

    def send(self, messages: list[Message]) -> None:
        """Number a batch and hand it to the executor, unpacked."""
        self._deliver(self.state.pack(messages))

    async def close(self, say_bye: bool = True) -> None:
        """End the link, as `OwnerLink.close`."""
        self.closed = True
        if say_bye:
            self._deliver(BYE)


class ExecutorLink:
    """The executor's end of a link. The executor never dials.

    Parameters
    ----------
    session : Session
        The session of the owner.
    unsendable : callable
        Told of messages that cannot be packed.

    Attributes
    ----------
    state : NumberedStream
        Numbers of the batches sent and received.
    packing : Packing
        Packs the batches to send.
    channel : Channel or None
        The connection that the owner has opened last; None when the connection is lost.
    local : callable or None
        Takes the batches in place of a channel, when the owner is in the same process.
    """

    def __init__(self, session: Session, unsendable: Unsendable = ignore) -> None:
        self.session = session
        self.state = NumberedStream()
        self.packing = Packing(self.state, unsendable)
        self.channel: Channel | None = None
        self.local: Any = None

    @property
    def waits_for_first(self) -> bool:
        """Whether the owner has never linked to this worker.

        Such an owner links only when the executor has the scheduler ask for it.
        """
        return self.channel is None and self.local is None and not self.state.received

    def send(self, messages: list[Any]) -> int:
        """Number messages, and send them when there is a connection.

        Returns
        -------
        int
            The number of the last batch: its acknowledgement says that the owner has all of them.
        """
        if self.local is not None:
            self.local(self.state.pack(messages))
            return self.state.sent
        frames = self.packing.number(messages)
        if self.channel is not None:
            try:
                for frame in frames:
                    self.channel.write(frame)
            except CommClosedError:
                self.channel = None  # the owner dials again, and gets the batches then
        return self.state.sent
