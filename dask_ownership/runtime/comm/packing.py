"""Messages of a link as bytes: each message is packed before its batch is numbered.

A numbered batch must arrive, or no later batch does. So messages that cannot be packed are found
before the numbering, one by one: the task of such a message fails (`Unsendable`), and all other
messages are sent. A batch of many bytes is sent in parts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from numbers import Integral, Real
from typing import Any, TypeAlias

import msgpack
from dask.utils import format_bytes

from dask_ownership.core.protocol.messages import ATTEMPT, IDENTITY, KIND, POST, SUBJECT, Message
from dask_ownership.core.protocol.names import NAME
from dask_ownership.core.protocol.peer_messages import instead_of
from dask_ownership.core.protocol.stream import Batch, NumberedStream
from dask_ownership.errors import NotSerializable
from dask_ownership.runtime.serialize import dumps_error

logger = logging.getLogger("dask_ownership.link")

FRAME = 1 << 26
"""Bytes of a batch above which the batch is sent in parts."""

LARGEST = 1 << 33
"""Bytes of a frame that the other end accepts: enough for one message with the largest value that
msgpack can express."""

MOST = 1 << 32
"""Bytes of one value in a message: msgpack has four bytes for the length of a value."""

Unsendable: TypeAlias = Callable[[Message, Exception], None]
"""Told of a message that cannot be packed, and of the error."""


def unpacker() -> Any:
    """Return a msgpack unpacker for a stream of batches, which makes tuples in place of lists."""
    return msgpack.Unpacker(use_list=False, strict_map_key=False, max_buffer_size=LARGEST)


def unpack(frame: bytes) -> Any:
    """Return the batch in one frame, with tuples in place of lists."""
    return msgpack.unpackb(frame, use_list=False, strict_map_key=False)


class Packing:
    """The packing of batches at one end of a link.

    Parameters
    ----------
    state : NumberedStream
        Numbers the batches.
    unsendable : callable
        Told of messages that cannot be packed.
    """

    def __init__(self, state: NumberedStream, unsendable: Unsendable) -> None:
        self._state = state
        self._unsendable = unsendable
        self._pack: Callable[[Any], bytes] = msgpack.Packer(use_bin_type=True).pack

    def again(self, received: int) -> Iterator[bytes]:
        """Pack the batches again that a peer lacks.

        ``received`` is the number of the last batch that the peer has received.
        """
        return (self._pack(batch) for batch in self._state.resume(received))

    def number(self, messages: list[Message], ask: bool = False) -> list[bytes]:
        """Number messages and pack them; return the frames, usually one.

        Parameters
        ----------
        messages : list
            An empty list makes a frame that only acknowledges.
        ask : bool
            Whether a frame without messages asks the peer for an acknowledgement, see
            `NumberedStream.pack`.
        """
        if not messages:
            return [self._pack(self._state.pack(messages, ask))]
        return [self._frame(self._state.pack(part), body) for part, body in self._parts(messages)]

    def _frame(self, batch: Batch, body: bytes) -> bytes:
        """Return the frame of a batch whose messages are packed already, as ``body``."""
        # 0x93 begins an array of three items in msgpack: number, acknowledged, messages.
        number, acknowledged, _ = batch
        return b"\x93" + self._pack(number) + self._pack(acknowledged) + body

    def _parts(self, messages: list[Message]) -> Iterable[tuple[list[Message], bytes]]:
        """Pack messages into one or more parts, and leave out messages that cannot be packed.

        Halving a batch again and again finds its bad messages, and cuts a large batch into parts.
        """
        try:
            body = self._pack(messages)
        except Exception as error:
            if len(messages) == 1:
                [message] = messages
                return self._alone(message, error)
        else:
            if len(body) <= FRAME or len(messages) == 1:
                return [(messages, body)]
            del body  # not kept in memory beside the packed halves
        half = len(messages) // 2
        return [*self._parts(messages[:half]), *self._parts(messages[half:])]

    def _alone(self, message: Message, error: Exception) -> list[tuple[list[Message], bytes]]:
        """Deal with a message that cannot be packed: repair it, or report it and leave it out."""
        if message[KIND] == POST:
            cleaned = self._clean_post(message)
            return [([cleaned], self._pack([cleaned]))]
        clean = self._clean(message)
        if clean is not None:
            return [([clean], self._pack([clean]))]
        self._unsendable(message, error)
        return []

    def _clean(self, message: Message) -> Message | None:
        """Return a message of the same meaning that can be packed, or None."""
        try:
            cleaned: Message = packable(message)
            # A changed key or attempt would name another task.
            if cleaned[IDENTITY] == tuple(message[IDENTITY]):
                self._pack(cleaned)
                return cleaned
        except Exception as error:
            logger.debug("%r cannot be packed: %r", message[IDENTITY], error)
        return None

    def _clean_post(self, message: Message) -> Message:
        """Return a post with a substitute for each inner message that cannot be packed.

        The batch inside a post is numbered already, by the stream between two owners, and so has to
        arrive.
        """
        kind, to, sender, (number, acknowledged, said) = message
        sayable = []
        for one in said:
            clean = self._clean(one)
            # The other owner has to hear of the loss, where a message can say so.
            if clean is None:
                clean = instead_of(one, "it cannot be sent to another process in one message")
                logger.error("%r of %s cannot be packed", one[IDENTITY], sender[NAME])
            if clean is not None:
                sayable.append(clean)
        return kind, to, sender, (number, acknowledged, sayable)


def not_sendable(message: Message, where: str, error: Exception) -> bytes:
    """Return the pickled error for the task of a message that cannot be sent.

    Parameters
    ----------
    message : tuple
    where : str
        The receiver of the message, for the text of the error.
    error : Exception
        The error of packing the message.
    """
    key = message[SUBJECT] if len(message) > ATTEMPT else None
    size = max((len(part) for part in message if type(part) is bytes), default=0)
    if size >= MOST:
        why = (
            f"its pickle of {format_bytes(size)} is more than the {format_bytes(MOST)} that one "
            "message takes: scatter it (client.scatter) and pass its future, or have the workers "
            "load it"
        )
    else:
        why = f"{error!r}"
    try:  # `dumps_error` needs an error that is being handled
        raise NotSerializable(f"{key!r} cannot be sent to {where}: {why}")
    except NotSerializable as raised:
        return dumps_error(raised, key, where)


def packable(value: Any) -> Any:
    """Return a value with the same meaning to people that can be packed.

    Text that cannot be encoded in UTF-8 gets escape sequences, and numbers of other libraries
    become plain numbers.

    Raises
    ------
    TypeError
        When there is no such value.
    """
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
