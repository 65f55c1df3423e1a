"""The scheduler dies: what is here can be read, and every other wait ends with an error."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import distributed
import pytest
from distributed.client import FutureCancelledError, FuturesCancelledError
from live import blob, inc, sessions_at_worker, until
from processes import Cluster

from dask_ownership import Client, ClosedOwner, SchedulerGone, as_completed, wait

pytestmark = pytest.mark.waits  # most of its time nothing runs here

SECONDS = 5
"""Within which everything is to end."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    try:
        yield cluster
    finally:
        cluster.end()


def hold(path: str, seconds: float = 60) -> None:
    Path(path).touch()
    time.sleep(seconds)


def wait_for_child(path: str) -> Any:
    """Waits for a task that does not end, and writes down how that wait ended."""
    client = distributed.get_client()
    child = client.submit(time.sleep, 60, pure=False)
    Path(path).touch()
    try:
        child.result()
    except BaseException as error:
        Path(f"{path}.error").write_text(f"{type(error).__name__}: {error}")
        raise


class Waits:
    """Calls that wait, each in a thread, and how they ended."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []
        self.ended: dict[str, BaseException | None] = {}

    def start(self, name: str, call: Callable[[], Any]) -> None:
        def run() -> None:
            try:
                call()
                self.ended[name] = None
            except BaseException as error:
                self.ended[name] = error

        self.threads.append(threading.Thread(target=run, daemon=True))
        self.threads[-1].start()

    def join(self, seconds: float) -> dict[str, BaseException | None]:
        end = time.monotonic() + seconds
        for thread in self.threads:
            thread.join(max(0.0, end - time.monotonic()))
        return self.ended


def test_every_wait_ends_and_what_is_here_can_be_read(cluster, tmp_path):
    with cluster.connect() as client:
        here = client.submit(inc, 1, key="here")
        failed = client.submit(divmod, 1, 0, key="failed")
        there = client.submit(blob, key="there")
        wait([here, failed, there])
        running = client.submit(hold, str(tmp_path / "running"), key="running")
        after = client.submit(inc, running, key="after")
        parent = client.submit(wait_for_child, str(tmp_path / "parent"), key="parent")
        until(lambda: all((tmp_path / n).exists() for n in ("running", "parent")), 10)

        waits = Waits()
        waits.start("result", running.result)
        waits.start("result of what depends on it", after.result)
        waits.start("result with a timeout", lambda: running.result(timeout=50))
        waits.start("exception", lambda: _raise(running.exception()))
        waits.start("gather", lambda: client.gather([here, running]))
        waits.start("wait", lambda: wait([running, after]))
        waits.start("stock wait", lambda: distributed.wait([running, after]))
        waits.start("as_completed", lambda: [f.result() for f in as_completed([running])])
        waits.start("stock", lambda: [f.result() for f in distributed.as_completed([parent])])
        waits.start("get", lambda: client.get({"x": (hold, str(tmp_path / "get"))}, "x"))

        cluster.scheduler.kill()
        ended = waits.join(SECONDS)
        assert len(ended) == len(waits.threads), f"only these waits ended: {ended}"
        for name, error in ended.items():
            assert isinstance(error, SchedulerGone | FuturesCancelledError), (name, error)
            assert "the scheduler tcp://" in str(error) and "is gone" in str(error), (name, error)

        until(lambda: client.status == "closed")
        assert here.result() == 2 and here.status == "finished"
        assert client.gather([here, here]) == [2, 2]
        assert wait([here]).done == {here}
        assert client.gather([here, there], errors="skip") == [2]
        with pytest.raises(ZeroDivisionError):
            failed.result()
        assert there.status == "cancelled"
        with pytest.raises(SchedulerGone, match=r"'there'.*is gone") as told:
            there.result()
        assert "1 value and 1 error are here, and can still be read, with future" in str(told.value)
        assert client.gather([here, failed, there, running], errors="skip") == [2]
        with pytest.raises(SchedulerGone, match="is gone"):
            client.submit(inc, 2)
        with pytest.raises(SchedulerGone):
            client.ownership()
    assert here.result() == 2  # also when the client's block ended


def _raise(error: BaseException | None) -> None:
    if error is not None:
        raise error


def test_workers_go_too_and_their_tasks_hear_why(cluster, tmp_path):
    with cluster.connect() as client:
        parent = client.submit(wait_for_child, str(tmp_path / "parent"), key="parent")
        until((tmp_path / "parent").exists, 10)
        cluster.scheduler.kill()
        until((tmp_path / "parent.error").exists, SECONDS)
        told = (tmp_path / "parent.error").read_text()
        assert told.startswith("SchedulerGone: ") and "worker tcp://" in told
        with pytest.raises(SchedulerGone):
            parent.result(timeout=SECONDS)


def test_coroutines_hear_of_it(cluster, tmp_path):
    async def run() -> None:
        async with Client(
            scheduler_file=cluster.file, asynchronous=True, set_as_default=False
        ) as client:
            here = client.submit(inc, 1)
            assert await here == 2
            running = client.submit(hold, str(tmp_path / "running"))
            after = client.submit(inc, running)

            async def each() -> None:
                async for future in as_completed([after]):
                    await future

            waits = [
                asyncio.ensure_future(wait)
                for wait in (
                    _await(running),
                    running.result(),
                    client.gather([after]),
                    wait([running]),
                    each(),
                    client.compute(dask.delayed(hold)(str(tmp_path / "graph"))).result(),
                )
            ]
            while not (tmp_path / "running").exists():
                await asyncio.sleep(0.01)
            cluster.scheduler.kill()
            ended = await asyncio.wait_for(asyncio.gather(*waits, return_exceptions=True), SECONDS)
            for error in ended:
                assert isinstance(error, SchedulerGone | FuturesCancelledError), ended
            assert await here == 2
            assert await client.gather([here]) == [2]

    until(lambda: os.path.exists(cluster.file), 20)
    asyncio.run(run())


async def _await(future: Any) -> Any:
    return await future


def test_a_scheduler_that_closes_in_good_order(cluster, tmp_path):
    with cluster.connect() as client:
        here = client.submit(inc, 1)
        running = client.submit(hold, str(tmp_path / "running"))
        assert here.result() == 2
        until((tmp_path / "running").exists, 10)
        cluster.scheduler.send_signal(signal.SIGTERM)
        cluster.scheduler.wait(20)
        with pytest.raises(SchedulerGone):
            running.result(timeout=SECONDS)
        assert here.result() == 2


class Partition:
    """Stands between a client and its scheduler, and can let nothing through."""

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        self.cut = False
        self.sockets: list[socket.socket] = []
        self.server = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self.server.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = self.server.accept()
                self.sockets.append(here)
                if not self.cut:
                    there = socket.create_connection(self.target)
                    self.sockets.append(there)
                    for ends in ((here, there), (there, here)):
                        threading.Thread(target=self.carry, args=ends, daemon=True).start()

    @staticmethod
    def carry(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def drop(self) -> None:
        """Break all connections."""
        sockets, self.sockets = self.sockets, []
        for end in sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def begin(self) -> None:
        self.cut = True
        self.drop()

    def heal(self) -> None:
        self.cut = False
        self.drop()

    def close(self) -> None:
        self.server.close()
        self.drop()


def test_a_partition_ends_nothing(cluster, tmp_path):
    """The scheduler does not answer for a while, and a worker dies meanwhile."""
    with cluster.connect(set_as_default=False) as direct:
        host, port = direct.scheduler.address.removeprefix("tcp://").split(":")
    partition = Partition(host, int(port))
    try:
        with Client(partition.address, timeout=20) as client:
            workers = client.owner.core.placement.workers
            until(lambda: len(workers) == 2, 20)
            long = client.submit(hold, str(tmp_path / "long"), 1, key="long")
            until((tmp_path / "long").exists, 10)
            place = client.ownership(long).worker
            pid = client.run(os.getpid, workers=[place])[place]
            partition.begin()
            until(lambda: client.status == "connecting", 10)
            # Owned tasks need no scheduler.
            assert client.submit(inc, 1).result(timeout=SECONDS) == 2
            os.kill(pid, signal.SIGKILL)
            time.sleep(2)  # longer than a scheduler may refuse
            assert client.status == "connecting" and not long.done()
            partition.heal()
            until(lambda: client.status == "running", 10)
            assert long.result(timeout=20) is None  # at the other worker
            # It may have been recalled before it began, for a worker that was idle longer.
            assert "worker-gone" in [what for _, what, *_ in client.story(long)]
            assert place not in workers
    finally:
        partition.close()


def test_a_partition_that_outlasts_the_grace(tmp_path, monkeypatch):
    """The scheduler has given the client up when it comes back: its waits end."""
    monkeypatch.setenv("DASK_OWNERSHIP__GRACE", "500ms")
    cluster = Cluster(tmp_path)
    with contextlib.ExitStack() as stack:
        stack.callback(cluster.end)
        with cluster.connect(set_as_default=False) as direct:
            host, port = direct.scheduler.address.removeprefix("tcp://").split(":")
            partition = Partition(host, int(port))
            stack.callback(partition.close)
            client = stack.enter_context(Client(partition.address, timeout=20))
            until(lambda: len(client.owner.core.placement.workers) == 2, 20)
            here = client.submit(inc, 1)
            running = client.submit(hold, str(tmp_path / "running"))
            assert here.result() == 2
            until((tmp_path / "running").exists, 10)
            partition.begin()
            until(lambda: client.status == "connecting", 10)
            until(lambda: not any(direct.run(sessions_at_worker).values()), 10)
            partition.heal()
            with pytest.raises(SchedulerGone, match=r"ownership\.grace"):
                running.result(timeout=SECONDS)
            assert here.result() == 2


@pytest.mark.parametrize("way", ["direct", "relay"])
def test_a_scheduler_that_is_started_again_in_time(cluster, tmp_path, way):
    """Tasks are handed to the new scheduler's workers, when the client may wait for it."""
    waits_long = {"ownership.scheduler-timeout": "30s", "ownership.reach": way}
    with dask.config.set(waits_long), cluster.connect() as client:
        here = client.submit(inc, 1)
        there = client.submit(blob, 70_000, key="there")
        running = client.submit(hold, str(tmp_path / "running"), 2, key="running")
        wait([here, there])
        until((tmp_path / "running").exists, 10)
        port = client.scheduler.address.rpartition(":")[2]
        cluster.scheduler.kill()
        cluster.scheduler.wait()
        for worker in cluster.started[1:]:
            worker.wait(20)
        common = ["--scheduler-file", cluster.file, "--no-dashboard"]
        cluster.start("scheduler", "--host", "127.0.0.1", "--port", port, *common)
        cluster.start_worker()
        assert running.result(timeout=30) is None
        assert here.result() == 2
        assert len(there.result(timeout=20)) == 70_000


def test_it_is_an_error_that_existing_code_catches():
    error = SchedulerGone("x", "the scheduler is gone")
    assert isinstance(error, ClosedOwner) and isinstance(error, FutureCancelledError)
    assert error.reason == "scheduler-connection-lost"  # as of Dask's futures
    again = distributed.protocol.pickle.loads(distributed.protocol.pickle.dumps(error))
    assert (type(again), str(again), again.key) == (SchedulerGone, str(error), "x")
