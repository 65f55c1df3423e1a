"""Links: one ordered, numbered stream of batches between an owner and an executor.

The owner dials with a replied, versioned operation on the worker's own listening
address, so security, ports and protocols are those of the cluster. The
connection may break; the link lives on and is dialled again until membership
says that the worker is gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from distributed.comm import Comm, CommClosedError, connect

from dask_ownership.core.link import LinkState
from dask_ownership.core.messages import Message
from dask_ownership.core.session import Session
from dask_ownership.runtime.channel import Channel, channel, has_stream

logger = logging.getLogger("dask_ownership.link")

PROTOCOL = 2
"""Version of the messages; both ends must have the same."""

BYE = "bye"
"""Sent instead of a batch by an owner that closes."""

UNSAID_BATCHES = 16
"""Batches after which an acknowledgement is sent of its own."""


class LinkRefused(Exception):
    """The worker answered, and does not take this link."""


class OwnerLink:
    """The owner's end.

    Parameters
    ----------
    address : str
        The worker's.
    hello : dict
        Who dials: ``owner``, ``client``, ``token``.
    received : callable
        ``received(messages)`` on the event loop.
    refused : callable
        ``refused(reason)``, once, when the worker will not take the link.
    """

    def __init__(
        self,
        address: str,
        hello: dict[str, Any],
        connection_args: dict[str, Any],
        received: Callable[[Any], None],
        refused: Callable[[str], None],
    ) -> None:
        self.address = address
        self.hello = hello
        self.connection_args = connection_args
        self.received = received
        self.refused = refused
        self.state = LinkState()
        self.closed = False
        self._channel: Channel | None = None
        self._incarnation: str | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        return self._channel is not None

    def start(self) -> None:
        """Dial, and keep dialling while the link is wanted."""
        if self._task is None and not self.closed:
            self._task = asyncio.ensure_future(self._run())

    def send(self, messages: list[Message]) -> None:
        """Number a batch and send it, now or when the connection is there."""
        batch = self.state.pack(messages)
        if self._channel is not None:
            try:
                self._channel.write(batch)
            except CommClosedError:
                self._channel = None
        elif self._task is None:
            self.start()

    async def _run(self) -> None:
        pause = 0.02
        while not self.closed:
            comm = None
            try:
                comm = await connect(self.address, **self.connection_args)
                comm.name = "Owner->Executor"
                greeted = await self._greet(comm)
                pause = 0.02
                await greeted.listen(self._arrived)
            except LinkRefused as error:
                self.closed = True
                self.refused(str(error))
            except Exception as error:
                logger.debug("link to %s: %r", self.address, error)
            finally:
                self._channel = None
                if comm is not None:
                    comm.abort()
            if not self.closed:
                await asyncio.sleep(pause)
                pause = min(pause * 2, 1.0)

    async def _greet(self, comm: Comm) -> Channel:
        await comm.write(
            {
                "op": "ownership_link",
                "protocol": PROTOCOL,
                "received": self.state.received,
                "stream": has_stream(comm),
                **self.hello,
            }
        )
        answer = await comm.read()
        if not isinstance(answer, dict):
            raise LinkRefused(
                f"the worker {self.address} does not know dask_ownership: install the package "
                "there, and start it again so that the worker plugin is set up"
            )
        if answer.get("status") != "OK":
            raise LinkRefused(answer.get("reason") or f"the worker answered {answer!r}")
        if self._incarnation not in (None, answer["incarnation"]):
            raise LinkRefused(f"another worker answers at {self.address} now")
        self._incarnation = answer["incarnation"]
        # No await in between: a batch that is numbered meanwhile would be in neither.
        made = channel(comm, answer.get("stream", False))
        for batch in self.state.resume(answer["received"]):
            made.write(batch)
        self._channel = made
        return made

    def _arrived(self, batch: Any) -> None:
        messages = self.state.receive(batch)
        if messages:
            try:
                self.received(messages)
            except Exception:
                # The link goes on: the next batches are numbered after this one.
                logger.exception("answers of %s were not taken in", self.address)

    async def close(self, say_bye: bool = True) -> None:
        """End the link; the worker drops what the owner had there."""
        self.closed = True
        channel, self._channel = self._channel, None
        if say_bye and channel is not None:
            try:
                channel.write(BYE)
                await channel.close()
            except (OSError, CommClosedError):
                pass
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
            try:
                await self._task
            except asyncio.CancelledError:
                pass


class LocalLink:
    """The owner's end of a link to the executor in the same process: no connection."""

    connected = True
    closed = False

    def __init__(self, deliver: Callable[[Any], None]) -> None:
        self.state = LinkState()
        self._deliver = deliver

    def start(self) -> None:
        pass

    def send(self, messages: list[Message]) -> None:
        self._deliver(self.state.pack(messages))

    async def close(self, say_bye: bool = True) -> None:
        self.closed = True
        if say_bye:
            self._deliver(BYE)


class ExecutorLink:
    """The executor's end of a link."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.state = LinkState()
        self.channel: Channel | None = None
        self.local: Any = None

    @property
    def waits_for_first(self) -> bool:
        """Whether the owner never spoke here: nothing makes it connect but to ask for it."""
        return self.channel is None and self.local is None and not self.state.received

    def send(self, messages: list[Any]) -> int:
        """Number a batch and send it when there is a connection; its number."""
        batch = self.state.pack(messages)
        if self.local is not None:
            self.local(batch)
        elif self.channel is not None:
            try:
                self.channel.write(batch)
            except CommClosedError:
                self.channel = None
        return batch[0]
