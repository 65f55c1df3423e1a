"""Workers that die and links that break: everyone hears of it, and nobody hangs."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import dask
import distributed
import pytest
from live import (
    blob,
    deaths_under,
    inc,
    kill,
    pid_of,
    sessions_at_worker,
    slowinc,
    small_cluster,
    total,
    until,
    wait_for_members,
    where,
)
from processes import Cluster

from dask_ownership import Client, wait
from dask_ownership.errors import KilledWorker, LostData, NoWorker


@pytest.fixture(scope="module")
def own_cluster():
    """Nannies start workers again; each test waits until two are there."""
    with small_cluster() as cluster:
        yield cluster


@pytest.fixture
def client(own_cluster):
    with Client(own_cluster, set_as_default=False) as client:
        until(lambda: len(client.owner.core.placement.workers) == 2, 20, "two workers")
        yield client
        assert client.submit(inc, 1, pure=False).result(timeout=20) == 2


def die() -> None:
    os._exit(1)


def die_once(path: str) -> str:
    """Kills its worker the first time."""
    marker = Path(path)
    if not marker.exists():
        marker.touch()
        os._exit(1)
    return "survived"


def length(value: bytearray, delay: float = 0.0) -> int:
    time.sleep(delay)
    return len(value)


def parent_of(path: str, count: int) -> int:
    """Submits children, and writes down which process it runs in."""
    client = distributed.get_client()
    children = client.map(slowinc, range(count), delay=0.01, pure=False)
    Path(path).write_text(str(os.getpid()))
    return sum(client.gather(children))


def parent_of_death() -> str:
    """Asks a child that kills its worker and may run on no other one."""
    client = distributed.get_client()
    here = distributed.get_worker().address
    others = [w for w in client.scheduler_info(n_workers=-1)["workers"] if w != here]
    try:
        with dask.config.set({"distributed.scheduler.no-workers-timeout": "100ms"}):
            client.submit(die, workers=others, pure=False, key="deadly-child").result(timeout=30)
    except Exception as error:
        return type(error).__name__
    return "no error"


def test_pushed_tasks_are_tried_elsewhere(client):
    futures = client.map(slowinc, range(300), delay=0.002, pure=False)
    kill(client, wait_for_members(client, 2)[0])
    assert client.gather(futures) == list(range(1, 301))


def test_chains_are_tried_elsewhere(client):
    last = client.submit(slowinc, 0, pure=False)
    for _ in range(100):
        last = client.submit(slowinc, last, 0.002, pure=False)
    views = client.owner.core.placement.workers
    busy = until(lambda: [view.address for view in list(views.values()) if view.pushed])
    kill(client, busy[0])
    assert last.result(timeout=30) == 101


def test_lost_value(client):
    """A scattered one cannot be made again: it says which, where it was, and so do tasks."""
    victim, other = wait_for_members(client, 2)
    value = client.scatter({"only-copy": blob(200_000)}, workers=[victim])["only-copy"]
    assert value._row.locations[0].address == victim
    blocker = client.submit(slowinc, 1, 0.5, workers=other, pure=False)
    waiting = client.submit(length, value, 5, workers=victim, allow_other_workers=True)
    small = client.submit(inc, 10, pure=False)
    assert small.result() == 11
    kill(client, victim)
    with pytest.raises(LostData, match="'only-copy'") as info:
        value.result(timeout=20)
    assert victim in str(info.value)
    assert value.status == "lost"
    with pytest.raises(LostData, match="'only-copy'"):
        waiting.result(timeout=20)
    with pytest.raises(LostData, match="'only-copy'"):
        client.submit(length, value).result(timeout=20)
    with pytest.raises(LostData, match="'only-copy'"):
        client.gather([small, value])
    assert client.gather([small, value], errors="skip") == [11]
    assert blocker.result() == 2


def test_value_with_a_second_copy_is_not_lost(client):
    victim, other = wait_for_members(client, 2)
    value = client.submit(blob, key="two-copies", workers=victim)
    assert client.submit(length, value, workers=other).result() == 200_000
    kill(client, victim)
    until(lambda: victim not in client.owner.core.placement.workers, 20)
    assert len(value.result(timeout=20)) == 200_000
    assert client.submit(length, value, pure=False).result(timeout=20) == 200_000


def test_gather_while_the_worker_dies(client):
    victim = wait_for_members(client, 2)[0]
    values = [client.submit(blob, 3_000_000, i, workers=victim) for i in range(5)]
    others = client.map(blob, [3_000_000] * 5, pure=False)
    wait([values, others])
    os.kill(pid_of(client, victim), signal.SIGKILL)
    assert [len(value) for value in client.gather(others)] == [3_000_000] * 5
    with (
        dask.config.set({"distributed.scheduler.no-workers-timeout": "100ms"}),
        pytest.raises(NoWorker, match="blob-"),
    ):  # they may be made again at the victim only
        client.gather(values)


def test_task_that_kills_its_worker_each_time(client):
    """It is given up; what ran beside it is not."""
    innocent = client.map(slowinc, range(40), delay=0.01, pure=False)
    deadly = client.submit(die, key="deadly")
    more = client.map(slowinc, range(40), delay=0.01, pure=False)
    with pytest.raises(KilledWorker, match="'deadly'") as info:
        deadly.result(timeout=50)
    assert "tcp://" in str(info.value)
    assert "4 workers died while it ran there" in str(info.value)
    assert str(info.value).count("left the cluster (unexpectedly") == 4
    assert "memory when last heard of" in str(info.value)
    assert "allowed-failures" in str(info.value)
    assert isinstance(info.value, distributed.KilledWorker)
    # The nanny of the last one may not have said so yet.
    assert str(info.value).count("and its process exited with status 1") >= 2
    assert client.gather(innocent) == client.gather(more) == list(range(1, 41))


def test_task_that_kills_its_worker_once(client, tmp_path):
    assert client.submit(die_once, str(tmp_path / "marker")).result(timeout=30) == "survived"


def test_worker_of_a_nested_parent_dies(client, tmp_path):
    """The parent runs again elsewhere, with its children."""
    marker = tmp_path / "pid"
    parent = client.submit(parent_of, str(marker), 60, key="parent")
    pid = int(until(lambda: marker.exists() and marker.read_text()))
    marker.unlink()
    os.kill(pid, signal.SIGKILL)
    assert parent.result(timeout=30) == sum(range(1, 61))
    assert int(marker.read_text()) != pid


def test_child_dies_far_from_its_parent(client):
    assert client.submit(parent_of_death, pure=False).result(timeout=50) == "NoWorker"


def test_worker_with_two_owners_dies(client, own_cluster):
    with Client(own_cluster, set_as_default=False) as other:
        futures = [c.map(slowinc, range(50), delay=0.005, pure=False) for c in (client, other)]
        kill(client, wait_for_members(client, 2)[1])
        assert client.gather(futures[0]) == list(range(1, 51))
        assert other.gather(futures[1]) == list(range(1, 51))


def test_broken_links_are_dialled_again(client):
    """Tasks run once, answers arrive, values stay."""
    value = client.submit(blob, key="stays")
    wait(value)
    futures = client.map(slowinc, range(200), delay=0.003, pure=False)
    views = list(client.owner.core.placement.workers.values())
    links = [until(lambda view=view: view.link) for view in views]

    async def break_links() -> None:
        for link in links:
            if link._channel is not None:
                link._channel.abort()

    def ran() -> int:
        counts = client.run(lambda dask_worker: count_of(dask_worker))
        return sum(counts.values())

    before = ran()
    for _ in range(5):
        client.sync(break_links)
        time.sleep(0.05)
    assert client.gather(futures) == list(range(1, 201))
    assert ran() - before <= 200
    assert [view.link for view in views] == links
    assert all(view.alive for view in views)
    assert len(value.result(timeout=10)) == 200_000
    assert client.submit(total, [inc(1)] * 2 and 2, 3, pure=False).result(timeout=10) == 5


def count_of(dask_worker) -> int:
    return dask_worker.extensions["dask-ownership"].executor.endings.counts["run"]


def test_links_broken_at_the_workers_end(client):
    futures = client.map(slowinc, range(100), delay=0.003, pure=False)
    for _ in range(3):
        client.run(abort_links)
        time.sleep(0.03)
    assert client.gather(futures) == list(range(1, 101))


def abort_links(dask_worker) -> None:
    for link in dask_worker.extensions["dask-ownership"].executor.links.values():
        if link.channel is not None:
            link.channel.abort()


def test_client_that_dies_is_forgotten(client, own_cluster):
    """A process that is killed leaves nothing at the workers."""
    import subprocess
    import sys

    program = (
        "import os, sys; from dask_ownership import Client; from live import blob, slowinc\n"
        f"c = Client({own_cluster.scheduler_address!r})\n"
        "f = c.map(blob, [100000] * 4, pure=False)\n"
        "c.gather(f); g = c.map(slowinc, range(1000), delay=0.01)\n"
        "print(c.owner.incarnation, flush=True); os.kill(os.getpid(), 9)"
    )
    with dask.config.set({"ownership.grace": "100ms"}):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=30)
        dead = done.stdout.decode().strip()
        assert len(dead) == 32, done.stderr
        until(
            lambda: not any(dead in s for s in client.run(sessions_at_worker).values()),
            10,
            "the dead client's values are dropped",
        )


def test_without_nannies():
    """Workers that die stay dead; the last one's death leaves tasks waiting for a new one."""
    with (
        distributed.LocalCluster(
            n_workers=0, threads_per_worker=1, dashboard_address=":0"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        cluster.scale(1)
        only = until(lambda: list(client.owner.core.placement.workers), 20)[0]
        value = client.submit(blob, key="gone-with-it")
        wait(value)
        cluster.scale(0)
        until(lambda: not client.owner.core.placement.workers, 20)
        with pytest.raises(TimeoutError):
            value.result(timeout=0.2)
        future = client.submit(where, pure=False)
        with pytest.raises(TimeoutError):
            future.result(timeout=0.2)
        cluster.scale(1)
        assert future.result(timeout=20) != only
        assert len(value.result(timeout=20)) == 200_000  # made again


@pytest.mark.parametrize("way", ["direct", "relay"])
def test_a_worker_that_comes_back_on_its_address(tmp_path, way):
    """Another process answers there: it has no values, and links and relays lead to it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    options = ("--host", "127.0.0.1", "--worker-port", str(port))
    cluster = Cluster(tmp_path)
    try:
        with dask.config.set({"ownership.reach": way}), cluster.connect() as client:
            workers = client.owner.core.placement.workers
            before = cluster.start_worker(*options)
            until(lambda: address in workers, 20, "the third worker")
            stored = client.submit(blob, 300_000, workers=address, allow_other_workers=True)
            wait(stored, timeout=20)
            for _ in range(2):
                before.kill()
                before.wait()
                after = cluster.start_worker(*options)
                # Submitted while the old process is dead and the new one has not registered yet.
                there = client.submit(os.getpid, workers=address, pure=False)
                size = client.submit(length, stored, workers=address, pure=False)
                assert there.result(timeout=30) == after.pid
                assert size.result(timeout=30) == 300_000
                assert len(stored.result(timeout=20)) == 300_000
                before = after
    finally:
        cluster.end()


def test_what_runs_beside_a_deadly_task_is_not_blamed():
    """Threads of one process die together; only the task that dies alone is given up."""
    with (
        small_cluster(threads_per_worker=3, silence_logs=50) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        wait_for_members(client, 2)
        beside = client.map(slowinc, range(30), delay=0.2, pure=False)
        deadly = client.submit(die, pure=False, key="deadly", priority=1)
        with pytest.raises(KilledWorker, match="'deadly'") as info:
            deadly.result(timeout=50)
        assert "3 of them while nothing else of any owner ran there" in str(info.value)
        assert client.gather(beside) == list(range(1, 31))
        assert all(deaths_under(client, future, alone=True) <= 1 for future in beside)


def test_what_another_owner_has_beside_a_deadly_task_is_not_blamed():
    """Also what it submitted itself, at the very worker: and that ends, too."""
    with (
        small_cluster(n_workers=1, threads_per_worker=2, silence_logs=50) as cluster,
        Client(cluster, set_as_default=False) as client,
        Client(cluster, set_as_default=False) as other,
    ):
        wait_for_members(client, 1)
        beside = other.map(slowinc, range(8), delay=0.3, pure=False)
        deadly = client.submit(die, pure=False, key="deadly")
        parent = client.submit(parent_of_killer, pure=False, key="parent")
        for future in (deadly, parent):
            with pytest.raises(KilledWorker, match=repr(future.key)):
                future.result(timeout=50)
        assert other.gather(beside) == list(range(1, 9))


def parent_of_killer() -> int:
    return int(distributed.get_client().submit(die, pure=False).result())
