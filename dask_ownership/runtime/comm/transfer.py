"""Transfer of values between processes: packing, unpacking, and asking an executor for values.

A request names several values. Values travel in distributed's own serialization families, arrays
without a copy. A value stays packed until its receiver unpacks it, so a value that cannot be
unpickled harms only its own key.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable
from contextlib import suppress
from pickle import PickleBuffer
from typing import Any, TypeAlias

from distributed.protocol import Serialize, Serialized, deserialize, serialize
from distributed.protocol.compression import decompress
from distributed.protocol.serialize import merge_and_deserialize
from distributed.utils import offload

from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.protocol.messages import ValueName
from dask_ownership.errors import NotSerializable
from dask_ownership.runtime import importing
from dask_ownership.runtime.comm.reach import RoutedPool
from dask_ownership.runtime.comm.request import Backoff, request
from dask_ownership.runtime.serialize import arriving, finding

logger = logging.getLogger("dask_ownership.transfer")

LARGE = 1_000_000
"""Bytes above which a value is unpickled off the event loop."""

SAME_PROCESS = "inproc://"
"""Prefix of addresses of workers that only their own process reaches."""

ITSELF = "dask-ownership-itself"
"""Key in the header of a packed value whose only frame is the value itself, not pickled."""


def pack(value: Any, address: str = "") -> Serialized:
    """Pack a value for sending it to another process.

    Within a process, a value that cannot be pickled is passed on as the object itself, as in Dask.

    Parameters
    ----------
    value : object
    address : str
        The address of the worker that sends or receives the value.

    Raises
    ------
    NotSerializable
        When the value cannot be pickled.
    """
    try:
        # The futures found are not used: the sender of the value keeps the futures inside.
        with finding():
            try:
                header, frames = serialize(value, on_error="raise")
            except RecursionError:
                # `serialize` looks for arrays inside of lists, without end in a list that contains
                # itself.
                header, frames = serialize(
                    value, serializers=["pickle"], on_error="raise", iterate_collection=False
                )
    except Exception as error:
        if address.startswith(SAME_PROCESS):
            return Serialized({ITSELF: True}, [value])
        # The error is not kept in a variable: its traceback keeps this frame.
        raise NotSerializable(
            f"could not pickle a {type(value).__name__}: {error.__cause__ or error}"
        ) from error
    return Serialized(header, frames)


def unpack(packed: Serialized) -> Any:
    """Unpack a value that `pack` packed.

    Raises
    ------
    NotSerializable
        When the value cannot be unpickled in this process.
    """
    header, frames = packed.header, packed.frames
    if ITSELF in header:
        return frames[0]
    try:
        if "compression" in header:
            frames = decompress(header, frames)
        if "num-sub-frames" in header or "split-num-sub-frames" in header:
            return merge_and_deserialize(header, frames)
        return deserialize(header, frames)
    except Exception as error:
        raise NotSerializable(f"could not unpickle a value that arrived: {error!r}") from error


class Sealed:
    """A packed value that stays packed when a comm unpacks the message around it.

    Attributes
    ----------
    header, frames
        As in the `Serialized` that `pack` returns.
    """

    __slots__ = ("frames", "header")

    def __init__(self, header: Any, frames: list[Any]) -> None:
        self.header = header
        self.frames = frames

    def __reduce__(self) -> Any:
        # Pickle buffers travel out of band: the frames are not copied into the pickle.
        return Sealed, (self.header, [PickleBuffer(frame) for frame in self.frames])


def seal(value: Any, address: str) -> Serialize:
    """Pack a value, as `pack`, for a handler that unpacks the value itself."""
    packed = pack(value, address)
    return Serialize(Sealed(packed.header, packed.frames))


def size_of(packed: Serialized | Sealed) -> int:
    """Return the bytes of a packed value; 0 for a value passed on as the object itself."""
    if ITSELF in packed.header:
        return 0
    return sum(memoryview(frame).nbytes for frame in packed.frames)


def _unpack_for(packed: Serialized, client: Any) -> tuple[Any, list[Row]]:
    """Unpack a value; return the value, and the rows of the futures inside, made for a client."""
    with arriving(client) as arrived:
        return unpack(packed), arrived


async def unpack_off_loop(packed: Serialized, client: Any) -> tuple[Any, list[Row]]:
    """Unpack a value on the event loop, or in a thread when the value is large or imports a module.

    Parameters
    ----------
    packed : Serialized
    client : object
        The client that the futures inside are made for.

    Returns
    -------
    object, list of Row
        The value, and the rows of the futures inside.

    Raises
    ------
    NotSerializable
        When the value cannot be unpickled in this process.
    """
    if size_of(packed) <= LARGE:
        with suppress(importing.ImportNeeded):  # then the thread below imports
            return importing.without_imports(_unpack_for, packed, client)
    made: tuple[Any, list[Row]] = await offload(importing.unpickle, _unpack_for, packed, client)
    return made


Name: TypeAlias = tuple[Hashable, int]
"""A value of one owner: its key, and the attempt that made it."""


def within_owner(name: ValueName) -> Name:
    """Return the part of a value's name that follows its owner."""
    _owner, key, attempt = name
    return key, attempt


async def ask(
    pool: RoutedPool,
    address: str,
    owner: str,
    names: list[Name],
    *,
    reader: str,
    token: str,
    backoff: Backoff,
) -> tuple[dict[Name, Serialized], dict[Name, str]]:
    """Ask one executor for values of one owner.

    Parameters
    ----------
    pool : RoutedPool
    address : str
        The address of the executor's worker.
    owner : str
        The incarnation of the owner.
    names : list of tuple
        Keys, each with the attempt that made the value.
    reader, token : str
        The incarnation of the asking process, and its token.
    backoff : Backoff

    Returns
    -------
    dict, dict
        Packed values by name, and by name the reasons why the executor cannot pickle a value. A
        name in neither dict means that the executor does not have the value.

    Raises
    ------
    OSError
        When the address does not answer; `Stalled` when no byte moved for too long.
    """
    answer = await request(
        pool, address, backoff, "ownership_get",
        owner=owner, names=names, reader=reader, token=token,
    )  # fmt: skip
    if not isinstance(answer, dict) or answer.get("status") != "OK":
        raise OSError(f"{address} refused to give values: {answer!r}")
    return dict(zip(answer["names"], answer["values"], strict=True)), dict(
        zip(answer["unserializable"], answer["reasons"], strict=True)
    )
