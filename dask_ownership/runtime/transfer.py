"""Values between processes: asking the executor that has them.

A request names several keys. Values travel in distributed's own families, arrays
without a copy, and stay opaque until the receiver wants them, so that one that
cannot be unpickled harms its own key only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable, Iterable
from contextlib import suppress
from pickle import PickleBuffer
from time import perf_counter
from typing import Any, TypeAlias

from distributed.core import ConnectionPool
from distributed.protocol import Serialize, Serialized, deserialize, serialize
from distributed.protocol.compression import decompress
from distributed.protocol.serialize import merge_and_deserialize
from distributed.utils import offload

from dask_ownership.core.row import Row
from dask_ownership.core.session import Entry
from dask_ownership.errors import NotSerializable
from dask_ownership.runtime import importing
from dask_ownership.runtime.request import Patience, Stalled, request, silence
from dask_ownership.runtime.serialize import arriving, finding

logger = logging.getLogger("dask_ownership.transfer")

LARGE = 1_000_000
"""Bytes above which a value is unpickled off the event loop."""

IN_TRANSIT = 100_000_000
"""Bytes that one executor asks for at once."""

TRIES = 3
"""How often an address that does not answer is asked again."""


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
    pool: ConnectionPool,
    address: str,
    owner: str,
    names: list[Name],
    reader: str,
    token: str,
    patience: Patience,
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


class Fetcher:
    """Brings the missing dependencies of one executor's tasks.

    Parameters
    ----------
    pool : ConnectionPool
        One that leaves values packed.
    incarnation, token : str
        Of this worker, and its proof.
    here : str
        This worker's address.
    arrived : callable
        ``arrived(entry, packed)``, a coroutine function.
    failed : callable
        ``failed(entry, reason, absent)``; ``reason`` is None when nobody gave the value,
        and ``absent`` has the addresses that said that they do not have it.
    share : callable
        ``share(entry)`` takes a value that is at this very worker; False when it is not.

    Attributes
    ----------
    received : dict of str to list
        By the worker that gave it, since the start: bytes, requests, and seconds that they took.
    gone : set of str
        Addresses at which no worker is any more.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        incarnation: str,
        token: str,
        here: str,
        arrived: Callable[[Entry, Serialized], Awaitable[None]],
        failed: Callable[[Entry, str | None, tuple[str, ...]], None],
        share: Callable[[Entry], bool],
    ) -> None:
        self.pool = pool
        self.incarnation = incarnation
        self.token = token
        self.patience = Patience(silence())
        self.here = here
        self.share = share
        self.arrived = arrived
        self.failed = failed
        self.in_transit = 0
        self.received: dict[str, list[float]] = {}
        self.on_fetched: Callable[[Entry, float, str], None] | None = None
        self.gone: set[str] = set()
        self._waiting: dict[tuple[str, str], list[tuple[Entry, int]]] = {}
        self._asking: set[tuple[str, str]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._absent: dict[Entry, tuple[str, ...]] = {}

    def fetch(self, entries: Iterable[Entry]) -> None:
        """Ask for these, each at its first address; many keys go in one request."""
        for entry in entries:
            self._ask_at(entry, 0)
        self._start()

    def _ask_at(self, entry: Entry, index: int) -> None:
        if index >= len(entry.addresses):
            self.failed(entry, None, self._absent.pop(entry, ()))
            return
        place = (entry.addresses[index], entry.value_name[0])
        if place[0] == self.here:
            if not self.share(entry):
                self._absent[entry] = (*self._absent.get(entry, ()), self.here)
                self._ask_at(entry, index + 1)
            return
        self._waiting.setdefault(place, []).append((entry, index))

    def _start(self) -> None:
        for place in list(self._waiting):
            if place in self._asking:
                continue
            if self.in_transit > IN_TRANSIT:
                return
            waiting = self._waiting[place]
            batch: list[tuple[Entry, int]] = []
            nbytes = 0
            while waiting and nbytes < IN_TRANSIT / 2:
                item = waiting.pop(0)
                nbytes += item[0].nbytes
                batch.append(item)
            if not waiting:
                del self._waiting[place]
            self._asking.add(place)
            self.in_transit += nbytes
            task = asyncio.ensure_future(self._request(place, batch, nbytes))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _request(
        self, place: tuple[str, str], batch: list[tuple[Entry, int]], nbytes: int
    ) -> None:
        address, owner = place
        values: dict[Name, Serialized] = {}
        reasons: dict[Name, str] = {}
        answered = False
        took = 0.0
        try:
            for attempt in range(TRIES):
                if address in self.gone:
                    break
                try:
                    names = [entry.value_name[1:] for entry, _ in batch]
                    began = perf_counter()
                    values, reasons = await ask(
                        self.pool, address, owner, names, self.incarnation, self.token,
                        self.patience,
                    )  # fmt: skip
                    answered = True
                    took = perf_counter() - began
                    self._count(address, values.values(), took)
                    break
                except Stalled as error:
                    # Another may have it. If none has, the owner decides what is done next.
                    logger.info("fetching from %s: %s", address, error)
                    break
                except Exception as error:
                    logger.debug("fetching from %s: %r", address, error)
                    if attempt + 1 < TRIES:
                        await asyncio.sleep(0.05 * 4**attempt)
            for entry, index in batch:
                name = entry.value_name[1:]
                if name in values:
                    self._absent.pop(entry, None)
                    if self.on_fetched is not None:
                        self.on_fetched(entry, took, address)
                    await self.arrived(entry, values[name])
                elif name in reasons:
                    self._absent.pop(entry, None)
                    self.failed(entry, reasons[name], ())
                else:
                    if answered:
                        self._absent[entry] = (*self._absent.get(entry, ()), address)
                    self._ask_at(entry, index + 1)
        finally:
            self._asking.discard(place)
            self.in_transit -= nbytes
            self._start()

    def _count(self, address: str, values: Iterable[Serialized], seconds: float) -> None:
        sums = self.received.setdefault(address, [0, 0, 0.0])
        sums[0] += sum(map(size_of, values))
        sums[1] += 1
        sums[2] += seconds

    def members_changed(self, added: Iterable[str], removed: Iterable[str]) -> None:
        """Workers left the cluster: do not wait for their answers, or ask them again, unless
        another one joined at the address of one of them."""
        for address in removed:
            self.gone.add(address)
            self.received.pop(address, None)
            self.pool.remove(address)
        self.gone.difference_update(added)

    async def close(self) -> None:
        """Stop asking."""
        self._waiting.clear()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
