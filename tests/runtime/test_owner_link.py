"""Links over real connections that break."""

from __future__ import annotations

import asyncio
from typing import Any

from distributed.comm import CommClosedError, listen

from dask_ownership.core.protocol.stream import NumberedStream
from dask_ownership.runtime.comm.link import OwnerLink
from dask_ownership.runtime.comm.packing import unpack


class Peer:
    """An executor's end that breaks the connection after some batches."""

    def __init__(self, break_after: list[int], pause: float = 0.0) -> None:
        self.state = NumberedStream()
        self.break_after = break_after
        self.pause = pause
        self.messages: list[Any] = []
        self.connections = 0

    async def serve(self, comm: Any) -> None:
        self.connections += 1
        left = self.break_after.pop(0) if self.break_after else 1 << 30
        try:
            hello = await comm.read()
            assert hello["op"] == "ownership_link"
            await asyncio.sleep(self.pause)
            await comm.write(
                {"status": "OK", "incarnation": "peer", "received": self.state.received}
            )
            while left:
                left -= 1
                batch = unpack(await comm.read())
                self.messages.extend(self.state.receive(batch))
        except CommClosedError:
            pass
        finally:
            comm.abort()


async def deliver(peer: Peer, batches: int, gap: float) -> None:
    """Send batches one by one over a link to the peer, and wait until all are there."""
    listener = await listen("tcp://127.0.0.1:0", peer.serve)
    refused: list[str] = []
    link = OwnerLink(
        listener.contact_address,
        {"owner": "me"},
        {},
        received=print,
        refused=refused.append,
        unreachable=refused.append,
    )
    try:
        for number in range(batches):
            link.send([(number,)])
            await asyncio.sleep(gap)
        deadline = asyncio.get_running_loop().time() + 10
        while len(peer.messages) < batches:
            assert asyncio.get_running_loop().time() < deadline, peer.messages
            await asyncio.sleep(0.01)
    finally:
        await link.close(say_bye=False)
        listener.stop()
    assert not refused


def test_batches_that_are_numbered_while_a_link_resumes_arrive() -> None:
    """In order, once each, however often the connection breaks."""
    peer = Peer(break_after=[1, 3, 0, 2], pause=0.05)
    asyncio.run(deliver(peer, 40, 0.01))
    assert peer.messages == [(number,) for number in range(40)]
    assert peer.connections >= 5


def test_batches_wait_for_the_first_connection() -> None:
    peer = Peer(break_after=[], pause=0.2)
    asyncio.run(deliver(peer, 5, 0.0))
    assert peer.messages == [(number,) for number in range(5)]
    assert peer.connections == 1


def test_closing_as_a_dial_ends_ends_the_link() -> None:
    """At every step of the dial: also where a wait loses the cancellation."""

    async def close_after(steps: int) -> bool:
        """Whether the link was still dialling after so many steps of the event loop."""
        peer = Peer(break_after=[])
        listener = await listen("inproc://", peer.serve)
        link = OwnerLink(
            listener.contact_address,
            {"owner": "me"},
            {},
            received=print,
            refused=print,
            unreachable=print,
        )
        link.start()
        try:
            for _ in range(steps):
                await asyncio.sleep(0)
            dialling = not link.connected
            began = asyncio.get_running_loop().time()
            await asyncio.wait_for(link.close(), 10)
            assert asyncio.get_running_loop().time() - began < 2
            return dialling
        finally:
            listener.stop()

    async def close_at_every_step() -> None:
        steps = 0
        while await close_after(steps):
            steps += 1
        assert steps > 3

    asyncio.run(close_at_every_step())
