"""A TCP proxy that a test can stall, slow down and cut: the network between two processes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from socket import socket

import distributed

CHUNK = 1 << 16


class Proxy:
    """Passes connections on to another port of this machine.

    A stalled connection stays open and carries nothing: a half-open link, as when a machine
    or a cable between two hosts is gone. Connections that are made meanwhile stall too.

    Parameters
    ----------
    target : int
        The port behind it.

    Attributes
    ----------
    port : int
    address : str
        What others dial.
    accepted : int
        How many connections were made.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.accepted = 0
        self.delay = 0.0
        self._pairs: list[_Pair] = []
        self._break_after: int | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._run(self._start())

    def _run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _start(self) -> None:
        self._passing = asyncio.Event()
        self._passing.set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self.port}"

    # ---- what a test does to it ----

    def stall(self) -> None:
        """Forward nothing from now on, in either direction."""
        self._loop.call_soon_threadsafe(self._passing.clear)

    def go_on(self) -> None:
        """Forward what came meanwhile, and go on."""
        self._loop.call_soon_threadsafe(self._passing.set)

    def stall_one_after(self, nbytes: int) -> None:
        """Stall for ever the first connection that brings so many bytes more from the target."""
        for pair in list(self._pairs):
            pair.brought = 0
        self._break_after = nbytes

    @property
    def stalled_one(self) -> bool:
        """Whether the connection of `stall_one_after` was found."""
        return self._break_after is None

    def cut(self) -> None:
        """Break every connection; new ones are taken."""

        async def cut() -> None:
            for pair in list(self._pairs):
                pair.abort()

        self._run(cut())

    def close(self) -> None:
        async def close() -> None:
            self._server.close()
            for pair in list(self._pairs):
                pair.abort()
            tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self._run(close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # ---- inside ----

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            there = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        pair = _Pair(writer, there[1])
        self._pairs.append(pair)
        try:
            await asyncio.gather(
                self._forward(pair, reader, there[1], False),
                self._forward(pair, there[0], writer, True),
            )
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            pair.abort()
            self._pairs.remove(pair)

    async def _forward(
        self,
        pair: _Pair,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        from_target: bool,
    ) -> None:
        while data := await reader.read(CHUNK):
            if from_target:
                pair.brought += len(data)
                if self._break_after is not None and pair.brought > self._break_after:
                    self._break_after = None
                    pair.passing.clear()
            if self.delay:
                await asyncio.sleep(self.delay)
            await self._passing.wait()
            await pair.passing.wait()
            writer.write(data)
            await writer.drain()
        await self._passing.wait()
        await pair.passing.wait()
        raise ConnectionResetError


class _Pair:
    """Both ends of one connection."""

    def __init__(self, *writers: asyncio.StreamWriter) -> None:
        self.writers = writers
        self.brought = 0
        self.passing = asyncio.Event()
        self.passing.set()

    def abort(self) -> None:
        for writer in self.writers:
            with suppress(OSError):
                writer.transport.abort()


def free_port() -> int:
    with socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Behind:
    """A worker process whom everyone but the scheduler reaches through a proxy."""

    def __init__(self, scheduler: str, nthreads: int = 1) -> None:
        port = free_port()
        self.proxy = Proxy(port)
        self.address = self.proxy.address
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "distributed.cli.dask_worker", scheduler,
                "--no-nanny", "--no-dashboard", "--nthreads", str(nthreads),
                "--listen-address", f"tcp://127.0.0.1:{port}",
                "--contact-address", self.address,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.pid = self.process.pid

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.proxy.close()


@contextmanager
def workers_behind_proxies(count: int = 2) -> Iterator[tuple[str, list[Behind]]]:
    """A scheduler and so many workers, each behind a proxy; the scheduler's address."""
    with ExitStack() as stack:
        cluster = stack.enter_context(
            distributed.LocalCluster(n_workers=0, dashboard_address=":0", processes=True)
        )
        made = []
        for _ in range(count):
            behind = Behind(cluster.scheduler_address)
            stack.callback(behind.close)
            made.append(behind)
        yield cluster.scheduler_address, made
