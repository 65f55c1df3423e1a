"""Channels: the connection under a link, with batches in and batches out.

A link takes over a comm of distributed. Between two TCP comms the channel writes packed batches
to the stream of the comm directly: framing batches as general messages costs as much as all the
rest of a round trip (measured: 143 µs for an echo through ``Comm.read`` and ``Comm.write``, 73 µs
through the stream). Other comms (``inproc``, ``ws``) carry packed batches as bytes.
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
"""Bytes to take from a stream at once, at most."""


class Channel(Protocol):
    """The interface of a connection, as links need it.

    Attributes
    ----------
    arrivals : int
        The number of reads that brought bytes: grows with each sign of life from the other end.
    comm : Comm
        The comm that the channel took over.
    """

    arrivals: int
    comm: Comm

    @property
    def written(self) -> int:
        """Bytes that have left this process; 0 when the comm does not tell."""

    def write(self, frame: bytes) -> None:
        """Send a packed batch, in order, without waiting.

        Raises
        ------
        CommClosedError
            When the connection is gone.
        """

    async def listen(self, received: Callable[[Any], bool | None]) -> None:
        """Call ``received`` with each batch that arrives, until ``received`` returns True.

        Raises
        ------
        CommClosedError
            When the connection ends.
        """

    async def close(self) -> None:
        """End the connection when all written bytes have left."""

    def abort(self) -> None:
        """End the connection now."""


def has_stream(comm: Comm) -> bool:
    """Return whether a `StreamChannel` is possible at this end of a connection."""
    return isinstance(getattr(comm, "stream", None), IOStream)


def channel(comm: Comm, streams: bool, byte_counter: ByteCounter | None = None) -> Channel:
    """Return a channel over a comm.

    Parameters
    ----------
    comm : Comm
    streams : bool
        Whether both ends have a stream (`has_stream`).
    byte_counter : ByteCounter, optional
        Counts the bytes on a stream; other comms are not counted.
    """
    return StreamChannel(comm, byte_counter or ByteCounter()) if streams else CommChannel(comm)


class StreamChannel:
    """A channel that writes msgpack to the stream of a TCP or TLS comm.

    Msgpack says where each batch ends, so the batches need no frames.
    """

    def __init__(self, comm: Comm, byte_counter: ByteCounter) -> None:
        self.comm = comm
        self.byte_counter = byte_counter
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
        self.byte_counter.sent += len(frame)

    async def listen(self, received: Callable[[Any], bool | None]) -> None:
        read = self._stream.read_bytes
        unpacker = self._unpacker
        try:
            while True:
                data = await read(CHUNK, partial=True)
                unpacker.feed(data)
                self.arrivals += 1  # also for a part of a large batch: the other end is alive
                self.byte_counter.received += len(data)
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
    """A channel over any comm, through the comm's own ``read`` and ``write``.

    ``Comm.write`` of a small message completes without waiting, so `write` steps the coroutine in
    place. Only a coroutine that does wait becomes a task.
    """

    def __init__(self, comm: Comm) -> None:
        self.comm = comm
        self.arrivals = 0
        # Frames are bytes already. Dask would measure each frame to decide whether a thread should
        # serialize the frame, and measuring costs more than serializing.
        comm.allow_offload = False
        # Frames that came while an earlier frame is being written.
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
            return  # the frame is written, as nearly always
        self._task = asyncio.ensure_future(self._finish(coroutine, waited_for))

    async def _finish(self, coroutine: Any, waited_for: Any) -> None:
        """Drive a write to its end that has to wait, then write the queued frames."""
        try:
            # The coroutine is half run, and cannot become a task any more. So this loop does the
            # work of a task: wait for each future that the coroutine yields, and go on.
            while True:
                try:
                    if waited_for is None:  # a bare yield, as of `asyncio.sleep(0)`
                        await asyncio.sleep(0)
                        waited_for = coroutine.send(None)
                        continue
                    # A task clears this flag, which says that a coroutine awaits the future.
                    waited_for._asyncio_future_blocking = False
                    try:
                        await asyncio.wait([waited_for])
                    finally:
                        waited_for = coroutine.send(None)
                except StopIteration:
                    break
            # Frames may come during each of these writes, and are written in the next round.
            while self._queue:
                queue, self._queue = self._queue, []
                for frame in queue:
                    await self.comm.write(frame)
        except CommClosedError:
            self._queue.clear()  # the link sends unacknowledged batches again when it is dialled
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
        # Each `_finish` sets `_task` to None at its end.
        while self._task is not None:
            await asyncio.wait([self._task])
        await self.comm.close()

    def abort(self) -> None:
        self.comm.abort()
