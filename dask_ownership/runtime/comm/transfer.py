"""Values between processes: asking the executor that has them.

A request names several keys. Values travel in distributed's own families, arrays
without a copy, and stay opaque until the receiver wants them, so that one that
cannot be unpickled harms its own key only.
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
from dask_ownership.errors import NotSerializable
from dask_ownership.runtime import importing
from dask_ownership.runtime.comm.reach import RoutedPool
from dask_ownership.runtime.comm.request import Backoff, request
from dask_ownership.runtime.serialize import arriving, finding

logger = logging.getLogger("dask_ownership.transfer")

LARGE = 1_000_000
"""Bytes above which a value is unpickled off the event loop."""

SAME_PROCESS = "inproc://"
"""Addresses of workers that only their own process reaches."""

ITSELF = "dask-ownership-itself"
"""In the header of a packed value that is the one frame itself."""


def pack(value: Any, address: str = "") -> Serialized:
    """A value for the wire.

    Within a process what cannot be pickled goes as the object that it is, as in Dask.

    Parameters
    ----------
    value : object
    address : str
        Of the worker that gives or takes it.

    Raises
    ------
    NotSerializable
        When it cannot be pickled.
    """
    try:
        with finding():  # whoever sends it keeps the futures inside
            try:
                header, frames = serialize(value, on_error="raise")
            except RecursionError:  # which looks for arrays in lists, and does not find an end
                header, frames = serialize(
                    value, serializers=["pickle"], on_error="raise", iterate_collection=False
                )
    except Exception as error:
        if address.startswith(SAME_PROCESS):
            return Serialized({ITSELF: True}, [value])
        # Not in a variable: the error's traceback holds this frame.
        raise NotSerializable(
            f"could not pickle a {type(value).__name__}: {error.__cause__ or error}"
        ) from error
    return Serialized(header, frames)


def unpack(packed: Serialized) -> Any:
    """The value of what `pack` made.

    Raises
    ------
    NotSerializable
        When it cannot be unpickled here.
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
    """A packed value that stays packed where the comm unpacks what arrives."""

    __slots__ = ("frames", "header")

    def __init__(self, header: Any, frames: list[Any]) -> None:
        self.header = header
        self.frames = frames

    def __reduce__(self) -> Any:
        return Sealed, (self.header, [PickleBuffer(frame) for frame in self.frames])


def seal(value: Any, address: str) -> Serialize:
    """As `pack`, for a handler that unpacks the value itself."""
    packed = pack(value, address)
    return Serialize(Sealed(packed.header, packed.frames))


def size_of(packed: Serialized | Sealed) -> int:
    """Bytes of a packed value."""
    if ITSELF in packed.header:
        return 0
    return sum(memoryview(frame).nbytes for frame in packed.frames)


def _unpack_for(packed: Serialized, client: Any) -> tuple[Any, list[Row]]:
    with arriving(client) as arrived:
        return unpack(packed), arrived


async def unpack_off_loop(packed: Serialized, client: Any) -> tuple[Any, list[Row]]:
    """As `unpack`, in a thread when the value is large or imports a module; also rows of the
    futures inside.

    Those become futures of ``client``.
    """
    if size_of(packed) <= LARGE:
        with suppress(importing.ImportNeeded):
            return importing.without_imports(_unpack_for, packed, client)
    made: tuple[Any, list[Row]] = await offload(importing.unpickle, _unpack_for, packed, client)
    return made


Name: TypeAlias = tuple[Hashable, int]
"""A value of one owner: its key, and the attempt that made it."""


async def ask(
    pool: RoutedPool,
    address: str,
    owner: str,
    names: list[Name],
    *,
    reader: str,
    token: str,
    patience: Backoff,
) -> tuple[dict[Name, Serialized], dict[Name, str]]:
    """Ask one executor for values of one owner.

    Parameters
    ----------
    names : list of tuple
        Keys, each with the attempt that made the value.
    reader, token : str
        The incarnation of who asks, and its proof.

    Returns
    -------
    dict, dict
        Packed values by name, and reasons for those that cannot be pickled there. A
        name in neither is not there.

    Raises
    ------
    OSError
        When the address does not answer; `Stalled` when nothing moved for too long.
    """
    answer = await request(
        pool, address, patience, "ownership_get",
        owner=owner, names=names, reader=reader, token=token,
    )  # fmt: skip
    if not isinstance(answer, dict) or answer.get("status") != "OK":
        raise OSError(f"{address} refused to give values: {answer!r}")
    return dict(zip(answer["names"], answer["values"], strict=True)), dict(
        zip(answer["unserializable"], answer["reasons"], strict=True)
    )
