"""The connection under a link: batches in, batches out.

A link takes over a comm of distributed. Between two TCP comms it then writes packed batches
to the comm's stream itself: framing them as general messages costs as much as all the rest of a
round trip (measured: 143 µs for an echo through ``Comm.read`` and ``Comm.write``, 73 µs
through the stream). Other comms (``inproc``, ``ws``) carry them as bytes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

from distributed.comm import Comm, CommClosedError
from tornado.iostream import IOStream, StreamClosedError

from dask_ownership.core.protocol.byte_counter import ByteCounter
from dask_ownership.runtime.comm.packing import unpack, unpacker
from dask_ownership.runtime.dask.comm import moved_bytes

logger = logging.getLogger("dask_ownership.link")

CHUNK = 1 << 20
"""Bytes that are taken from a stream at once."""


class Channel(Protocol):
    """What a link needs of its connection.

    Attributes
    ----------
    arrivals : int
        How often something arrived.
    """

    arrivals: int

    @property
    def written(self) -> int:
        """Bytes that have left, as far as that is known."""

    def write(self, frame: bytes) -> None:
        """Send a packed message after those before it, without waiting.

        Raises
        ------
        CommClosedError
            When the connection is gone.
        """

    async def listen(self, received: Callable[[Any], bool | None]) -> None:
        """Hand over what arrives, until ``received`` answers True.

        Raises
        ------
        CommClosedError
            When the connection ends.
        """

    async def close(self) -> None:
        """End the connection when what was written has left."""

    def abort(self) -> None:
        """End the connection now."""


def has_stream(comm: Comm) -> bool:
    """Whether this end of a connection can be a `StreamChannel`."""
    return isinstance(getattr(comm, "stream", None), IOStream)


def channel(comm: Comm, streams: bool, traffic: ByteCounter | None = None) -> Channel:
    """The channel over a comm; ``streams`` when both ends have a stream.

    Bytes on a stream are counted in ``traffic``.
    """
    return StreamChannel(comm, traffic or ByteCounter()) if streams else CommChannel(comm)


class StreamChannel:
    """Msgpack on the stream of a TCP or TLS comm."""

    def __init__(self, comm: Comm, traffic: ByteCounter) -> None:
        self.comm = comm
        self.traffic = traffic
        self.arrivals = 0
        self._stream: IOStream = comm.stream
        self._unpacker = unpacker()

    @property
    def written(self) -> int:
        moved = moved_bytes(self.comm)
        return moved[0] if moved is not None else 0

    def write(self, frame: bytes) -> None:
        try:
            self._stream.write(frame)
        except (StreamClosedError, OSError) as error:
            raise CommClosedError(f"{self.comm} is closed: {error}") from error
        self.traffic.sent += len(frame)

    async def listen(self, received: Callable[[Any], bool | None]) -> None:
        read = self._stream.read_bytes
        unpacker = self._unpacker
        try:
            while True:
                data = await read(CHUNK, partial=True)
                unpacker.feed(data)
                self.arrivals += 1
                self.traffic.received += len(data)
                for message in unpacker:
                    if received(message):
                        return
        except StreamClosedError as error:
            raise CommClosedError(f"{self.comm} is closed: {error}") from error

    async def close(self) -> None:
        await self.comm.close()

    def abort(self) -> None:
        self.comm.abort()


class CommChannel:
    """Any comm, through its own ``read`` and ``write``.

    ``Comm.write`` of a small message completes without waiting, so the coroutine is
    stepped in place; only what does wait becomes a task.
    """

    def __init__(self, comm: Comm) -> None:
        self.comm = comm
        self.arrivals = 0
        # Frames are bytes already: measuring each to see whether a thread should
        # serialize it costs more than serializing it.
        comm.allow_offload = False
        self._queue: list[bytes] = []
        self._task: asyncio.Task[None] | None = None

    @property
    def written(self) -> int:
        return 0

    def write(self, frame: bytes) -> None:
        if self._task is not None:
            self._queue.append(frame)
            return
        coroutine = self.comm.write(frame)
        try:
            waited_for = coroutine.send(None)
        except StopIteration:
            return
        self._task = asyncio.ensure_future(self._finish(coroutine, waited_for))

    async def _finish(self, coroutine: Any, waited_for: Any) -> None:
        try:
            while True:
                try:
                    if waited_for is None:
                        await asyncio.sleep(0)
                        waited_for = coroutine.send(None)
                        continue
                    waited_for._asyncio_future_blocking = False
                    try:
                        await asyncio.wait([waited_for])
                    finally:
                        waited_for = coroutine.send(None)
                except StopIteration:
                    break
            while self._queue:
                queue, self._queue = self._queue, []
                for frame in queue:
                    await self.comm.write(frame)
        except CommClosedError:
            self._queue.clear()
        except Exception:
            logger.exception("a link could not be written to; it is dialled again")
            self.comm.abort()
        finally:
            self._task = None

    async def listen(self, received: Callable[[Any], bool | None]) -> None:
        while True:
            frame = await self.comm.read()
            self.arrivals += 1
            if received(unpack(frame)):
                return

    async def close(self) -> None:
        while self._task is not None:
            await asyncio.wait([self._task])
        await self.comm.close()

    def abort(self) -> None:
        self.comm.abort()
