"""Cases that look at processes instead of the clock: memory, and the scheduler's messages.

The embedded cluster's scheduler runs in the client's process. So the memory of a stock client is
counted together with the memory of its scheduler, which keeps a record of each task too.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dask_ownership.benchmarks import functions
from dask_ownership.benchmarks.engines import Engine

__all__ = [
    "SchedulerTraffic",
    "count_scheduler_traffic",
    "deep_reduction",
    "pending_memory",
    "scheduler_messages",
]


def pending_memory(engine: Engine, n: int) -> dict[str, float]:
    """Submit ``n`` no-ops while every worker is blocked; measure memory and each submit."""
    import psutil

    client = engine.client
    process = psutil.Process()
    clock = time.perf_counter
    with tempfile.TemporaryDirectory(prefix="dask-benchmark-") as directory:
        path = os.path.join(directory, "blocked")
        Path(path).touch()
        try:
            names = [f"{i}" for i in range(engine.slots)]
            workers = engine.workers()
            # One task in each slot, so that none of the no-ops starts.
            blockers = [
                client.submit(
                    functions.wait_for_removal,
                    path,
                    name,
                    pure=False,
                    workers=[workers[i % len(workers)]],
                )
                for i, name in enumerate(names)
            ]
            end = clock() + 30
            while not all(os.path.exists(f"{path}.{name}") for name in names):
                if clock() > end:
                    raise TimeoutError("the workers could not be blocked within 30 s")
                time.sleep(0.01)
            # Caches and buffers of the first tasks must not count.
            for _ in range(100):
                client.submit(functions.noop, 0, pure=False)
            time.sleep(0.5)
            gc.collect()
            before = process.memory_info().rss
            futures: list[Any] = [None] * n
            longest = 0.0
            for i in range(n):
                start = clock()
                futures[i] = client.submit(functions.noop, i, pure=False)
                took = clock() - start
                if took > longest:
                    longest = took
            after = _steady_rss(process)
            futures.clear()
        finally:
            os.unlink(path)
        client.gather(blockers)
    return {"bytes": (after - before) / n, "longest": longest * 1000}


def _steady_rss(process: Any, limit: float = 60.0) -> int:
    """Wait until the process's memory changes by less than 1 %, and return it."""
    end = time.perf_counter() + limit
    rss = process.memory_info().rss
    calm = 0
    while calm < 4 and time.perf_counter() < end:
        time.sleep(0.5)
        now = process.memory_info().rss
        # Four calm looks in a row, because memory may pause while it still grows.
        calm = calm + 1 if abs(now - rss) < rss / 100 else 0
        rss = now
    return int(rss)


CHUNK = 200_000
"""Numbers in one chunk of `deep_reduction`: 1.6 MB."""

WIDTH = 100
"""Chunks side by side in `deep_reduction`."""


def deep_reduction(engine: Engine, n: int) -> dict[str, float]:
    """Sum ``n`` layers of 100 chunks each; return the workers' greatest growth meanwhile, in sum.

    All chunks together are far more than should ever be in memory at once.
    """
    import dask.array as da
    import psutil

    client = engine.client
    workers = [psutil.Process(pid) for pid in client.run(os.getpid).values()]
    before = [worker.memory_info().rss for worker in workers]
    most = list(before)
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            for i, worker in enumerate(workers):
                most[i] = max(most[i], worker.memory_info().rss)

    watcher = threading.Thread(target=watch, name="memory-watch")
    watcher.start()
    try:
        layers = da.ones((n, WIDTH * CHUNK), chunks=(1, CHUNK)) * da.arange(n, chunks=1)[:, None]
        start = time.perf_counter()
        total = engine.compute(layers.sum(axis=0).max())
        seconds = time.perf_counter() - start
    finally:
        over.set()
        watcher.join()
    if total != n * (n - 1) // 2:
        raise AssertionError(f"the sum is {total}")
    grown = sum(after - rss for after, rss in zip(most, before, strict=True))
    return {"seconds": seconds, "grown": max(grown, 1) / 1e6}


@dataclass
class SchedulerTraffic:
    """Messages and bytes of a scheduler's comms, in both directions.

    Attributes
    ----------
    messages, bytes
        The counts.
    """

    messages: int = 0
    bytes: int = 0

    def add(self, message: Any) -> None:
        """Count a message, or each message of a batch."""
        self.messages += len(message) if isinstance(message, list | tuple) else 1


_counting: contextvars.ContextVar[SchedulerTraffic | None] = contextvars.ContextVar(
    "counting", default=None
)


@contextmanager
def count_scheduler_traffic(address: str) -> Iterator[SchedulerTraffic]:
    """Count the messages of the comms that the scheduler in this process has accepted.

    Parameters
    ----------
    address
        The scheduler's address: a comm whose own end has it is the scheduler's.
    """
    from distributed.comm import tcp
    from distributed.comm.tcp import TCP
    from distributed.comm.utils import from_frames

    traffic = SchedulerTraffic()
    read, write = TCP.read, TCP.write

    async def counted_read(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.local_address != address:
            return await read(self, *args, **kwargs)
        token = _counting.set(traffic)
        try:
            message = await read(self, *args, **kwargs)
        finally:
            _counting.reset(token)
        traffic.add(message)
        return message

    async def counted_write(self: Any, message: Any, *args: Any, **kwargs: Any) -> Any:
        n_bytes = await write(self, message, *args, **kwargs)
        if self.local_address == address:
            traffic.add(message)
            traffic.bytes += n_bytes
        return n_bytes

    # Bytes are known only where a message is put together. The context variable tells which read
    # asks for it.
    async def counted_from_frames(frames: Any, *args: Any, **kwargs: Any) -> Any:
        counting = _counting.get()
        if counting is not None:
            counting.bytes += sum(memoryview(frame).nbytes for frame in frames)
        return await from_frames(frames, *args, **kwargs)

    setattr(TCP, "read", counted_read)  # noqa: B010
    setattr(TCP, "write", counted_write)  # noqa: B010
    setattr(tcp, "from_frames", counted_from_frames)  # noqa: B010
    try:
        yield traffic
    finally:
        setattr(TCP, "read", read)  # noqa: B010
        setattr(TCP, "write", write)  # noqa: B010
        setattr(tcp, "from_frames", from_frames)  # noqa: B010


def scheduler_messages(engine: Engine, n: int) -> dict[str, float]:
    """Count the scheduler's messages for ``n`` tasks, less an idle cluster's in the same time."""
    client = engine.client

    def run(size: int) -> None:
        futures = [client.submit(functions.noop, i, pure=False) for i in range(size)]
        client.gather(futures)

    run(200)
    time.sleep(1)
    with count_scheduler_traffic(client.scheduler.address) as traffic:
        # A read that waits when the counting starts is not counted; the next read of its comm is.
        time.sleep(3)
        traffic.messages = traffic.bytes = 0
        start = time.perf_counter()
        run(n)
        # Messages about dropped futures belong to the tasks.
        gc.collect()
        time.sleep(max(0.0, 5 - (time.perf_counter() - start)))
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), client.loop.asyncio_loop).result(60)
        seconds = time.perf_counter() - start
        busy = SchedulerTraffic(traffic.messages, traffic.bytes)
        time.sleep(1)
        traffic.messages = traffic.bytes = 0
        time.sleep(seconds)
        idle = SchedulerTraffic(traffic.messages, traffic.bytes)
    if not idle.messages:
        raise AssertionError("no message of an idle cluster was seen: the counting does not work")
    return {"messages": busy.messages - idle.messages, "bytes": busy.bytes - idle.bytes}
