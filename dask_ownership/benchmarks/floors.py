"""The two floors: the cost of a bare batched loop and of a bare echo, with nothing on top.

Both go through one ``distributed`` comm per worker process, between the same kinds of threads as a
real call: calling thread, event loop, the worker's event loop, a thread there, and back. There are
no tables, dependencies, references or errors here, so the difference between these numbers and an
engine's numbers is the price of the engine's work.

The calling thread pickles the arguments of every call, appends to a deque and wakes its event loop
once per batch. A message is a list of ``(number, function, arguments)``, pickled in the calling
thread, the function once and not for every call. The worker's thread pops a deque, unpickles,
calls, pickles the result and wakes its loop once per batch of replies. The calling thread unpickles
the results.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import subprocess
import sys
import threading
from collections import deque
from queue import SimpleQueue
from typing import Any

from dask_ownership.benchmarks.functions import noop

__all__ = ["FloorClient"]

#: The most calls in one message.
BATCH = 2000
PROTOCOL = pickle.HIGHEST_PROTOCOL
START_TIMEOUT = 60


#: ``(number, pickled function, pickled arguments)``, and in a reply ``(number, pickled result)``.
Message = tuple[Any, ...]


class _Outbox:
    """Messages that wait to be written to one comm: filled by a thread, emptied on the event loop.

    Parameters
    ----------
    comm
        The comm to write to.
    loop
        The event loop of the comm.

    Attributes
    ----------
    comm, loop
        The parameters.
    queue
        The waiting messages.
    put
        Appends a message to the queue.
    awake
        Whether the loop is going to write.
    """

    __slots__ = ("awake", "comm", "loop", "put", "queue")

    def __init__(self, comm: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.comm = comm
        self.loop = loop
        self.queue: deque[Message] = deque()
        self.put = self.queue.append
        self.awake = False

    def wake(self) -> None:
        """Have the loop write the queued messages, unless the loop is going to write anyway."""
        if not self.awake:
            self.awake = True
            self.loop.call_soon_threadsafe(self.flush)

    def flush(self) -> None:
        """Write all queued messages."""
        # First of all: a message that is appended from now on wakes the loop again.
        self.awake = False
        queue = self.queue
        while n := min(len(queue), BATCH):
            step(self.comm.write([queue.popleft() for _ in range(n)]))


def step(coroutine: Any) -> None:
    """Run a coroutine that never waits, without a task of its own; raise if it waits.

    ``TCP.write`` hands its bytes to the stream and returns without waiting.
    """
    try:
        waiting = coroutine.send(None)
    except StopIteration:
        return
    raise RuntimeError(f"a write of a small message waited for {waiting!r}")


class FloorClient:
    """Calls ``noop`` in worker processes through bare comms.

    Parameters
    ----------
    n_workers
        The number of worker processes, each with one thread that runs calls.

    Attributes
    ----------
    n_workers
        The parameter.
    processes
        The worker processes.
    outboxes
        One for each worker process.
    results
        Replies to the calls under way.
    expected
        How many replies these calls have in all.
    function
        ``noop``, pickled.
    done
        A lock that opens when all replies are there.
    loop, thread
        The event loop and its thread.
    """

    def __init__(self, n_workers: int) -> None:
        self.n_workers = n_workers
        self.processes: list[subprocess.Popen[str]] = []
        self.outboxes: list[_Outbox] = []
        self.results: list[Message] = []
        self.expected = 0
        self.function = pickle.dumps(noop, PROTOCOL)
        self.done = threading.Lock()
        self.done.acquire()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, name="floor-loop", daemon=True)

    def __enter__(self) -> FloorClient:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the worker processes and connect to them."""
        self.thread.start()
        try:
            command = [sys.executable, "-m", "dask_ownership.benchmarks.floors"]
            for _ in range(self.n_workers):
                process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
                self.processes.append(process)
            for process in self.processes:
                assert process.stdout is not None
                # A worker process prints its address as its first line.
                address = process.stdout.readline().strip()
                if not address:
                    raise RuntimeError("a worker process of the floor ended at its start")
                connecting = asyncio.run_coroutine_threadsafe(self._connect(address), self.loop)
                self.outboxes.append(connecting.result(START_TIMEOUT))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the worker processes and the event loop."""
        for outbox in self.outboxes:
            self.loop.call_soon_threadsafe(outbox.comm.abort)
        for process in self.processes:
            assert process.stdin is not None and process.stdout is not None
            # A worker process ends when its standard input ends.
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()
        self.processes.clear()
        if self.thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join()
        self.outboxes.clear()

    def map(self, n: int) -> list[Any]:
        """Call ``noop`` with the numbers below ``n``, on each worker in turn."""
        self.results = []
        self.expected = n
        # Local names and inlined checks: this loop is what the engines are compared with.
        outboxes = self.outboxes
        last = len(outboxes) - 1
        turn = 0
        function = self.function
        for i in range(n):
            outbox = outboxes[turn]
            turn = turn + 1 if turn < last else 0
            outbox.put((i, function, pickle.dumps((i,), PROTOCOL)))
            if not outbox.awake:
                outbox.wake()
        self.done.acquire()
        values: list[Any] = [None] * n
        loads = pickle.loads
        for i, data in self.results:
            values[i] = loads(data)
        return values

    def call(self, value: Any) -> Any:
        """Call ``noop(value)`` on the first worker and return the result."""
        self.results = []
        self.expected = 1
        outbox = self.outboxes[0]
        outbox.put((0, self.function, pickle.dumps((value,), PROTOCOL)))
        outbox.wake()
        self.done.acquire()
        return pickle.loads(self.results[0][1])

    def _run(self) -> None:
        """Run the event loop until `close` stops it."""
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
            pending = asyncio.all_tasks(self.loop)
            for task in pending:
                task.cancel()
            self.loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        finally:
            self.loop.close()

    async def _connect(self, address: str) -> _Outbox:
        """Connect to a worker process, and read its replies from then on."""
        from distributed.comm import connect

        comm = await connect(address)
        self._reader = asyncio.ensure_future(self._read(comm))
        return _Outbox(comm, self.loop)

    async def _read(self, comm: Any) -> None:
        """Collect the replies that come through a comm."""
        from distributed.comm import CommClosedError

        with contextlib.suppress(CommClosedError):
            while True:
                batch = await comm.read()
                results = self.results
                results.extend(batch)
                if len(results) == self.expected:
                    self.done.release()


class _Calls:
    """The calls that wait in a worker process, and the one thread that runs them.

    Attributes
    ----------
    queue
        The waiting calls, each with the outbox for its reply.
    waiting
        Whether the thread waits for a call.
    wakeup
        Wakes the thread.
    """

    def __init__(self) -> None:
        self.queue: deque[tuple[_Outbox, Message] | None] = deque()
        self.waiting = False
        self.wakeup: SimpleQueue[None] = SimpleQueue()
        threading.Thread(target=self._run, name="calls", daemon=True).start()

    def put(self, outbox: _Outbox, batch: list[Message]) -> None:
        """Queue a batch that came in through the comm of ``outbox``."""
        self.queue.extend([(outbox, message) for message in batch])
        if self.waiting:
            self.waiting = False
            self.wakeup.put(None)

    def end(self) -> None:
        """End the thread after the queued calls."""
        self.queue.append(None)
        self.wakeup.put(None)

    def _pop(self) -> tuple[_Outbox, Message] | None:
        """Wait for a call, and return it."""
        queue = self.queue
        while True:
            # Set before the second look at the queue: a batch that comes in between wakes this
            # thread once more than needed, and never once less.
            self.waiting = True
            if queue:
                self.waiting = False
                return queue.popleft()
            self.wakeup.get()

    def _run(self) -> None:
        """Run calls until the end."""
        functions: dict[bytes, Any] = {}
        loads, dumps = pickle.loads, pickle.dumps
        queue = self.queue
        while (item := queue.popleft() if queue else self._pop()) is not None:
            outbox, (number, name, data) = item
            function = functions.get(name)
            if function is None:
                function = functions[name] = loads(name)
            outbox.put((number, dumps(function(*loads(data)), PROTOCOL)))
            if not outbox.awake:
                outbox.wake()


async def _serve() -> None:
    """Listen, print the address, and run incoming calls until standard input ends."""
    from distributed.comm import CommClosedError, listen

    loop = asyncio.get_running_loop()
    calls = _Calls()

    async def handle(comm: Any) -> None:
        outbox = _Outbox(comm, loop)
        with contextlib.suppress(CommClosedError):
            while True:
                calls.put(outbox, await comm.read())

    listener = await listen("tcp://127.0.0.1:0", handle)
    print(listener.contact_address, flush=True)
    ended = asyncio.Event()

    def watch() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=watch, name="stdin", daemon=True).start()
    await ended.wait()
    listener.stop()
    calls.end()


if __name__ == "__main__":
    asyncio.run(_serve())
