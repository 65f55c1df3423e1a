"""Messages of a link as bytes: each is packed before it is numbered.

A batch that is numbered must arrive, or nothing after it does. So what cannot be packed is found
out before, one message at a time: it is said of its own task (`Unsendable`), and the others go on
their way. A batch of many bytes is sent in parts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from numbers import Integral, Real
from typing import Any, TypeAlias

import msgpack
from dask.utils import format_bytes

from dask_ownership.core.protocol.messages import POST, Message
from dask_ownership.core.protocol.peer_messages import instead_of
from dask_ownership.core.protocol.stream import Batch, NumberedStream
from dask_ownership.errors import NotSerializable
from dask_ownership.runtime.serialize import dumps_error

logger = logging.getLogger("dask_ownership.link")

FRAME = 1 << 26
"""Bytes of a batch above which it is sent in parts."""

LARGEST = 1 << 33
"""Bytes of a frame that the other end takes: one message of as much as msgpack can say."""

MOST = 1 << 32
"""Bytes of one value in a message, for which there are four bytes to say how many there are."""

Unsendable: TypeAlias = Callable[[Message, Exception], None]
"""Told of a message that cannot be packed, and why."""


def unpacker() -> Any:
    """What takes frames apart; tuples in place of lists."""
    return msgpack.Unpacker(use_list=False, strict_map_key=False, max_buffer_size=LARGEST)


def unpack(frame: bytes) -> Any:
    """The message in one frame."""
    return msgpack.unpackb(frame, use_list=False, strict_map_key=False)


class Packing:
    """Packs the batches of one end of a link.

    Parameters
    ----------
    state : NumberedStream
    unsendable : callable
    """

    def __init__(self, state: NumberedStream, unsendable: Unsendable) -> None:
        self._state = state
        self._unsendable = unsendable
        self._pack: Callable[[Any], bytes] = msgpack.Packer(use_bin_type=True).pack

    def again(self, received: int) -> Iterator[bytes]:
        """Frames of what a peer has not got that has received so much."""
        return (self._pack(batch) for batch in self._state.resume(received))

    def number(self, messages: list[Message], ask: bool = False) -> list[bytes]:
        """Number messages; their frames, usually one.

        Parameters
        ----------
        messages : list
            An empty one only acknowledges.
        ask : bool
            Ask for an acknowledgement, see `NumberedStream.pack`.
        """
        if not messages:
            return [self._pack(self._state.pack(messages, ask))]
        return [self._frame(self._state.pack(part), body) for part, body in self._parts(messages)]

    def _frame(self, batch: Batch, body: bytes) -> bytes:
        """A batch whose messages are packed already."""
        return b"\x93" + self._pack(batch[0]) + self._pack(batch[1]) + body

    def _parts(self, messages: list[Message]) -> Iterable[tuple[list[Message], bytes]]:
        try:
            body = self._pack(messages)
        except Exception as error:
            if len(messages) == 1:
                return self._alone(messages[0], error)
        else:
            if len(body) <= FRAME or len(messages) == 1:
                return [(messages, body)]
            del body
        half = len(messages) // 2
        return [*self._parts(messages[:half]), *self._parts(messages[half:])]

    def _alone(self, message: Message, error: Exception) -> list[tuple[list[Message], bytes]]:
        """A message that cannot be packed as it is."""
        if message[0] == POST:
            cleaned = self._clean_post(message)
            return [([cleaned], self._pack([cleaned]))]
        clean = self._clean(message)
        if clean is not None:
            return [([clean], self._pack([clean]))]
        self._unsendable(message, error)
        return []

    def _clean(self, message: Message) -> Message | None:
        """A message with what can be packed and means the same, if there is that."""
        try:
            cleaned: Message = packable(message)
            if cleaned[:3] == tuple(message[:3]):  # what it is about is what it was
                self._pack(cleaned)
                return cleaned
        except Exception as error:
            logger.debug("%r cannot be packed: %r", message[:2], error)
        return None

    def _clean_post(self, message: Message) -> Message:
        """A post: its own batch is numbered, and so has to arrive."""
        kind, to, sender, (number, acknowledged, said) = message
        sayable = []
        for one in said:
            clean = self._clean(one)
            if clean is None:
                clean = instead_of(one, "it cannot be sent to another process in one message")
                logger.error("%r of %s cannot be packed", one[:2], sender[2])
            if clean is not None:
                sayable.append(clean)
        return kind, to, sender, (number, acknowledged, sayable)


def not_sendable(message: Message, where: str, error: Exception) -> bytes:
    """The pickled error of a task about which this message cannot be sent."""
    key = message[1] if len(message) > 2 else None
    size = max((len(part) for part in message if type(part) is bytes), default=0)
    if size >= MOST:
        why = (
            f"its pickle of {format_bytes(size)} is more than the {format_bytes(MOST)} that one "
            "message takes: scatter it (client.scatter) and pass its future, or have the workers "
            "load it"
        )
    else:
        why = f"{error!r}"
    try:
        raise NotSerializable(f"{key!r} cannot be sent to {where}: {why}")
    except NotSerializable as raised:
        return dumps_error(raised, key, where)


def packable(value: Any) -> Any:
    """A value that can be packed, and means the same to people: text that is no UTF-8 with
    export, numbers of other libraries as plain ones."""
    kind = type(value)
    if kind in (int, float, bool, bytes, type(None)):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, list | tuple):
        return tuple([packable(item) for item in value])
    if isinstance(value, dict):
        return {packable(key): packable(item) for key, item in value.items()}
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    raise TypeError(f"a {kind.__name__} cannot be sent")
