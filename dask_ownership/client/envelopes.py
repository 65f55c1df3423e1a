"""Envelopes: values with owned futures inside that go through the scheduler.

A value for a queue, a variable or a dataset is pickled by the client; the scheduler passes the
bytes on, and the client that takes the value out unpickles it. Before the value is put, the cluster
is asked to hold the objects of the futures inside (`scheduler.detached`). The hold is released when
the taker is counted as their borrower.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextvars import ContextVar
from typing import Any
from uuid import uuid4

from distributed.protocol import Serialized, serialize

from dask_ownership.core.owner.rows.row import Row
from dask_ownership.errors import NotSerializable
from dask_ownership.futures.client_like import ClientLike
from dask_ownership.futures.future import Future
from dask_ownership.runtime.comm.scheduler_ops import HOLD, RELEASE_HOLD
from dask_ownership.runtime.importing import loads
from dask_ownership.runtime.serialize import ATOMS, CALL, arriving, dumps, finding
from dask_ownership.scheduler.detached import ENVELOPE, MARK

KNOWN_SOON = 1.0
"""Seconds for which a client that takes futures out waits to hear their states."""

opening: ContextVar[bool] = ContextVar("opening", default=False)
"""Whether arriving envelopes stay closed, for the client that asked for them."""


class Envelope:
    """A pickled value, unpickled where it arrives.

    Attributes
    ----------
    pickled : bytes
    """

    __slots__ = ("pickled",)

    def __init__(self, pickled: bytes) -> None:
        self.pickled = pickled

    def __reduce__(self) -> Any:
        return arrived, (self.pickled,)


def arrived(pickled: bytes) -> Any:
    """Unpickle an envelope; it stays closed for a client of this project that waits for it.

    Any other process opens it at once.
    """
    return Envelope(pickled) if opening.get() else loads(pickled)


async def put(client: ClientLike, value: Any) -> tuple[str, Serialized] | None:
    """Have the cluster hold the futures inside a value.

    Returns
    -------
    tuple or None
        The id of the hold and the value, packed; None when there are no futures inside.

    Raises
    ------
    NotSerializable
        When the value cannot be pickled.
    """
    if type(value) in ATOMS:
        return None
    with finding(client.owner.holder) as found:
        try:
            pickled = dumps(value)
        except Exception as error:
            raise NotSerializable(
                f"could not pickle a {type(value).__name__} to put it at the scheduler: {error!r}"
            ) from error
    if not found:
        return None
    hold = uuid4().hex
    # The futures may be of several clients in this process: each owner says what it owns.
    owners = {future._owner.incarnation: future._owner for future in found}
    for owner in owners.values():
        rows = list({f._row: None for f in found if f._owner is owner})
        # With the tasks of this client's rows the holder can make the objects again when this
        # client is gone.
        functions, tasks, also = (
            owner.core.describe(rows) if owner is client.owner else ([], [], [])
        )
        origins = [owner.core.origin_of(row) for row in rows]
        counted = await getattr(client.scheduler, HOLD)(
            hold=hold,
            asker=client.owner.incarnation,
            token=client.owner.token,
            owner=owner.core.process,
            origins=[*origins, *also],
            functions=[(f.name, f.pickled, f.name if f.pickled == CALL else "") for f in functions],
            tasks=tasks,
        )
        # The cluster does not hold the objects: pinned rows stay as long as their owner.
        if not counted:
            for row in rows:
                owner.pin(row)
    header, frames = serialize(Envelope(pickled))
    return hold, Serialized(header, frames)


def not_put(client: ClientLike, hold: str) -> None:
    """Release a hold, because the value was not put after all."""
    _release(client, hold, taken=False)


def _release(client: ClientLike, hold: str | None, taken: bool) -> None:
    """Tell the scheduler that this process does not need a hold any more."""
    owner = client.owner
    client._send_to_scheduler(
        {
            "op": RELEASE_HOLD,
            "hold": hold,
            "owner": owner.incarnation,
            "token": owner.token,
            "taken": taken,
        }
    )


async def closed(answer: Awaitable[Any]) -> Any:
    """Return the scheduler's answer, with the envelopes in it closed."""
    token = opening.set(True)
    try:
        return await answer
    finally:
        opening.reset(token)


async def take(client: ClientLike, hold: str | None, value: Any) -> Any:
    """Open an envelope for a client, and release the hold when all futures inside are counted.

    Waits for the count, though not for long: the states of the futures come with the count, and a
    stock future knows its state at once.
    """
    if type(value) is not Envelope:
        return value
    with arriving(client) as rows:
        content = loads(value.pickled)

    known = asyncio.Event()

    def counted() -> None:
        known.set()
        if client.status == "running":
            _release(client, hold, taken=True)

    owner = client.owner
    owner.call(owner.core.when_acknowledged, rows, counted)
    if rows:
        try:
            await asyncio.wait_for(known.wait(), KNOWN_SOON)
        except asyncio.TimeoutError:
            pass  # the owner is away; the future waits for the owner by itself
    return content


async def put_item(client: ClientLike, operation: Any, row: Row | None, kwargs: Any) -> Any:
    """Put a future, or data, into a queue or a variable."""
    if row is not None:
        client.owner.core.hold(row)
        value: Any = Future(client, row)
        # The scheduler must not see the owned key: it would wait for the key for ever.
        kwargs = {name: given for name, given in kwargs.items() if name != "key"}
    # The key of a future of the scheduler goes the stock way.
    elif kwargs.get("key") is not None:
        return await operation(**kwargs)
    else:
        value = kwargs.get("data")
    envelope = await put(client, value)
    if envelope is None:
        return await operation(**kwargs)
    hold, packed = envelope
    try:
        return await operation(**{**kwargs, "data": {MARK: hold, ENVELOPE: packed}})
    except BaseException:
        not_put(client, hold)
        raise


async def get_items(client: ClientLike, operation: Any, kwargs: Any) -> Any:
    """Take an item, or several items, out of a queue or a variable."""
    got = await closed(operation(**kwargs, owner=client.owner.incarnation))
    for record in got if isinstance(got, list | tuple) else (got,):
        value = record.get("value") if isinstance(record, dict) else None
        if isinstance(value, dict) and MARK in value:
            record["value"] = await take(client, value[MARK], value[ENVELOPE])
    return got


async def publish(client: ClientLike, operation: Any, kwargs: Any) -> Any:
    """Publish datasets, with their owned futures in envelopes."""
    holds: list[str | None] = []
    data: list[Any] = []
    try:
        for packed in kwargs["data"]:
            envelope = await put(client, packed.data)
            holds.append(envelope[0] if envelope else None)
            data.append(envelope[1] if envelope else packed)
    except BaseException:
        for hold in filter(None, holds):
            not_put(client, hold)
        raise
    return await operation(**{**kwargs, "data": data, "holds": holds})


async def get_published(client: ClientLike, operation: Any, kwargs: Any) -> Any:
    """Get published datasets, and open their envelopes."""
    got = await closed(operation(**kwargs, owner=client.owner.incarnation))
    shown = []
    for found in got:
        if found is not None and "hold" in found:
            found = {**found, "data": await take(client, found["hold"], found["data"])}
        elif found is not None and type(found["data"]) is Envelope:
            found = {**found, "data": arrived(found["data"].pickled)}
        shown.append(found)
    return shown


AROUND = {
    "queue_get": get_items,
    "variable_get": get_items,
    "publish_put": publish,
    "publish_get": get_published,
}
"""Operations of the scheduler that put or take envelopes, and what runs in their place."""
