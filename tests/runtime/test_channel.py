"""Connections under links: over a stream, and over any other comm."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from distributed.comm import CommClosedError, connect, listen

from dask_ownership.runtime.comm.channel import (
    Channel,
    CommChannel,
    StreamChannel,
    channel,
    has_stream,
)

BATCH = (1, 0, ((1, ("x", 1, 2.5, b"k"), 1, 7, b"payload", -3, (), None),))


async def between(
    address: str, client: Callable[[Channel, list[Any]], Any], last: Any = "bye"
) -> list[Any]:
    """Open a channel to a listener that echoes; what came back until the last message."""
    ends: list[Channel] = []

    async def serve(comm: Any) -> None:
        end = channel(comm, has_stream(comm))
        ends.append(end)

        def received(message: Any) -> bool:
            end.write(msgpack.packb(message))
            return bool(message == last)

        try:
            await end.listen(received)
        except CommClosedError:
            pass
        finally:
            await end.close()

    listener = await listen(address, serve)
    comm = await connect(listener.contact_address)
    here = channel(comm, has_stream(comm))
    got: list[Any] = []
    try:
        await asyncio.wait_for(client(here, got), 20)
    finally:
        here.abort()
        listener.stop()
    return got


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:0", "inproc://"])
def test_what_is_written_arrives_in_order_and_as_tuples(address: str) -> None:
    sent = [BATCH, (2, 1, ((10, "key", 4, b"\x00" * 3_000_000, 12.5),)), (0, 2, ()), "bye"]

    async def talk(here: Channel, got: list[Any]) -> None:
        assert isinstance(here, StreamChannel if "tcp" in address else CommChannel)
        for message in sent:
            here.write(msgpack.packb(message))

        def received(message: Any) -> bool:
            got.append(message)
            return bool(message == "bye")

        await here.listen(received)
        if isinstance(here, StreamChannel):
            nbytes = sum(len(msgpack.packb(message)) for message in sent)
            assert (here.byte_counter.sent, here.byte_counter.received) == (nbytes, nbytes)

    got = asyncio.run(between(address, talk))
    assert got == sent


def test_a_stream_delivers_many_small_messages_and_large_ones_between() -> None:
    sent = [
        (n, 0, ((n, f"key-{n}", b"x" * (700_000 if n % 500 == 0 else 3)),)) for n in range(3000)
    ]

    async def talk(here: Channel, got: list[Any]) -> None:
        for message in sent:
            here.write(msgpack.packb(message))
        here.write(msgpack.packb("bye"))

        def received(message: Any) -> bool:
            got.append(message)
            return bool(message == "bye")

        await here.listen(received)

    got = asyncio.run(between("tcp://127.0.0.1:0", talk))
    assert got[:-1] == sent


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:0", "inproc://"])
def test_a_connection_that_ended_says_so_to_both_sides(address: str) -> None:
    async def talk(here: Channel, got: list[Any]) -> None:
        here.write(msgpack.packb("bye"))  # the other end closes after its echo

        with pytest.raises(CommClosedError):
            await here.listen(got.append)
        with pytest.raises(CommClosedError):
            for _ in range(100):
                here.write(msgpack.packb(BATCH))
                await asyncio.sleep(0.01)
                if isinstance(here, CommChannel) and here._task is not None:
                    await asyncio.wait([here._task])

    assert asyncio.run(between(address, talk)) == ["bye"]
