"""Clients and workers that cannot dial workers: the scheduler relays to these."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import distributed
import outside
import pytest
from distributed import LocalCluster
from live import blob, inc, small_cluster, until, wait_for_members

from dask_ownership import Client
from dask_ownership.errors import NoWorker
from dask_ownership.runtime.comm import reach

RELAY = {"ownership.reach": "relay"}


@pytest.fixture(scope="module")
def relaying() -> Iterator[LocalCluster]:
    with small_cluster(n_workers=2) as cluster:
        yield cluster


@pytest.fixture
def relayed(relaying: LocalCluster) -> Iterator[Client]:
    """A client that reaches all workers by relays."""
    with dask.config.set(RELAY), Client(relaying, set_as_default=False) as client:
        wait_for_members(client, 2)
        yield client


def relays(cluster: LocalCluster) -> Any:
    return cluster.scheduler.extensions["dask-ownership"].relays


def lengths(*values: Any) -> list[int]:
    return list(map(len, values))


def fan(n: int) -> int:
    client = distributed.get_client()
    return sum(client.gather(client.map(inc, range(n), pure=False)))


def use_relays(dask_worker: Any) -> None:
    dask_worker.extensions["dask-ownership"].owner.reach.mode = "relay"


@pytest.mark.skipif(not outside.namespaces_allowed(), reason="no network namespaces here")
@pytest.mark.parametrize("program", ["outside_program.py", "notebook.py"])
def test_from_a_machine_that_reaches_the_scheduler_only(
    relaying: LocalCluster, program: str
) -> None:
    """With no option; the program, or the kernel of the notebook, has no other network."""
    here = Path(__file__).parent
    with Client(relaying, set_as_default=False):  # the first client installs what relays
        before = relays(relaying).opened
    command = [sys.executable, str(here / program)]
    done = subprocess.run(
        [sys.executable, str(here / "outside.py"), relaying.scheduler_address, *command],
        check=False, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert relays(relaying).opened > before
    until(lambda: not relays(relaying).open, 10, "no relay is left")


def test_all_runs_through_relays_as_directly(relayed: Client, relaying: LocalCluster) -> None:
    before = relays(relaying).nbytes
    assert relayed.gather(relayed.map(inc, range(200), pure=False)) == list(range(1, 201))
    values = relayed.gather(relayed.map(blob, [500_000] * 4, pure=False))
    assert list(map(len, values)) == [500_000] * 4
    assert relays(relaying).nbytes - before > 2_000_000
    links = relayed.ownership().links
    assert [link["way"] for link in links.values()] == ["relayed"] * 2


def test_values_and_nested_tasks_between_workers_that_cannot_dial_each_other() -> None:
    with small_cluster(n_workers=2) as cluster, Client(cluster, set_as_default=False) as client:
        workers = wait_for_members(client, 2)
        client.run(use_relays)
        first = client.submit(blob, 400_000, workers=workers[0], pure=False)
        second = client.submit(blob, 400_000, workers=workers[1], pure=False)
        moved = [client.submit(lengths, first, second, workers=w, pure=False) for w in workers]
        assert client.gather(moved) == [[400_000, 400_000]] * 2
        assert client.submit(fan, 20).result(timeout=20) == 210
        assert relays(cluster).opened >= 2


def test_a_worker_dies_behind_a_relay() -> None:
    with (
        dask.config.set(RELAY),
        small_cluster(n_workers=2) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        workers = wait_for_members(client, 2)
        future = client.submit(blob, 300_000, workers=workers[0], allow_other_workers=True)
        assert len(future.result(timeout=20)) == 300_000
        nanny = next(w for w in cluster.workers.values() if w.worker_address == workers[0])
        os.kill(nanny.pid, signal.SIGKILL)
        until(lambda: not any(r.target == workers[0] for r in relays(cluster).open), 20)
        assert len(client.submit(bytes, future).result(timeout=30)) == 300_000


def test_a_relay_breaks_and_nothing_is_lost(relayed: Client, relaying: LocalCluster) -> None:
    futures = relayed.map(inc, range(2000), pure=False)

    def break_them() -> None:
        for relay in list(relays(relaying).open):
            relay.abort()

    for _ in range(3):
        relaying.loop.add_callback(break_them)
        time.sleep(0.05)
    assert relayed.gather(futures) == list(range(1, 2001))


def test_a_worker_that_can_be_dialled_again_is_relayed_to_no_more(
    relaying: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    dial = reach.dial_raw

    async def no_route(address: str, *arguments: Any) -> Any:
        raise OSError(f"no route to {address}")

    monkeypatch.setattr(reach, "dial_raw", no_route)
    monkeypatch.setattr(reach, "TRIED_AGAIN", 0.5)
    with Client(relaying, set_as_default=False) as client:
        workers = wait_for_members(client, 2)
        assert client.gather(client.map(inc, range(20), pure=False)) == list(range(1, 21))
        until(lambda: sorted(client.owner.reach.relayed) == sorted(workers), 10, "both relayed")
        monkeypatch.setattr(reach, "dial_raw", dial)
        until(lambda: not client.owner.reach.relayed, 20, "none is relayed any more")
        assert client.gather(client.map(inc, range(20), pure=False)) == list(range(1, 21))
        until(lambda: not relays(relaying).open, 10, "no relay is left")


def test_requests_on_their_way_end_by_the_relay_that_is_left(
    relaying: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dial that wins for any connection lets all users of relays dial, and breaks none."""
    dial = reach.dial_raw

    async def no_route(address: str, *arguments: Any) -> Any:
        raise OSError(f"no route to {address}")

    monkeypatch.setattr(reach, "dial_raw", no_route)
    with Client(relaying, set_as_default=False) as client:
        workers = wait_for_members(client, 2)
        assert client.gather(client.map(inc, range(20), pure=False)) == list(range(1, 21))
        until(lambda: sorted(client.owner.reach.relayed) == sorted(workers), 10, "both relayed")
        pool = client.owner.pool

        async def leave(worker: str) -> tuple[bool, bool, bool]:
            busy = await pool.connect(worker)
            idle = await pool.connect(worker)
            pool.reuse(worker, idle)
            monkeypatch.setattr(reach, "dial_raw", dial)
            # More than the idle connection: the dial for the next one wins against its relay.
            others = []
            while client.owner.reach.way_to(worker) == "relayed" and len(others) < 20:
                others.append(await pool.connect(worker))
            await asyncio.sleep(0.1)
            during = busy.closed()
            for other in others:
                pool.reuse(worker, other)
            pool.reuse(worker, busy)
            return during, busy.closed(), client.owner.reach.way_to(worker) == "direct"

        assert client.sync(leave, workers[0]) == (False, True, True)
        until(
            lambda: not any(relay.target == workers[0] for relay in relays(relaying).open),
            10, "no relay to the worker is left, not even that of the link",
        )  # fmt: skip
        assert client.gather(client.map(inc, range(20), pure=False)) == list(range(1, 21))


def test_the_scheduler_keeps_file_descriptors_for_itself(
    relaying: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relays(relaying), "_most", 0)
    with (
        dask.config.set({**RELAY, "distributed.comm.timeouts.connect": "1s"}),
        Client(relaying, set_as_default=False) as client,
        pytest.raises(NoWorker, match="file descriptors"),
    ):
        client.submit(inc, 1).result(timeout=20)


def test_a_proxy_that_accepts_connections_and_leads_nowhere(
    relaying: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    dial = reach.dial_raw
    with socket.create_server(("127.0.0.1", 0)) as silent:
        nowhere = f"tcp://127.0.0.1:{silent.getsockname()[1]}"

        async def by_the_proxy(address: str, *arguments: Any) -> Any:
            return await dial(nowhere, *arguments)

        monkeypatch.setattr(reach, "dial_raw", by_the_proxy)
        with Client(relaying, set_as_default=False) as client:
            wait_for_members(client, 2)
            began = time.monotonic()
            assert client.gather(client.map(inc, range(20), pure=False)) == list(range(1, 21))
            assert time.monotonic() - began < 5
            ways = {link["way"] for link in client.ownership().links.values()}
            assert ways == {"relayed"}


def test_relays_may_be_switched_off() -> None:
    with (
        dask.config.set({"ownership.relay.enabled": False}),
        small_cluster(n_workers=1) as cluster,
        dask.config.set({**RELAY, "distributed.comm.timeouts.connect": "1s"}),
        Client(cluster, set_as_default=False) as client,
        pytest.raises(NoWorker, match="switched off at the scheduler"),
    ):
        client.submit(inc, 1).result(timeout=20)


def test_all_relays_together_stay_below_a_rate() -> None:
    with (
        dask.config.set({"ownership.relay.max-bandwidth": "4 MB", **RELAY}),
        small_cluster(n_workers=2) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        wait_for_members(client, 2)
        futures = client.map(blob, [2_000_000] * 3, pure=False)
        until(lambda: all(future.done() for future in futures))
        began = time.monotonic()
        assert sum(map(len, client.gather(futures))) == 6_000_000
        assert time.monotonic() - began > 1.0
        # What is small does not wait for what is large.
        values = client.map(blob, [4_000_000] * 2, pure=False)
        until(lambda: all(value.done() for value in values))
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            gathered = thread.submit(client.gather, values)
            time.sleep(0.2)
            began = time.monotonic()
            assert client.submit(inc, 1, pure=False).result(timeout=20) == 2
            assert time.monotonic() - began < 0.5
            assert not gathered.done()
            assert sum(map(len, gathered.result(timeout=30))) == 8_000_000


def test_a_wrong_mode_is_named(relaying: LocalCluster) -> None:
    with (
        dask.config.set({"ownership.reach": "tunnel"}),
        pytest.raises(ValueError, match=r"ownership\.reach .* is one of auto, direct, relay"),
    ):
        Client(relaying, set_as_default=False)


async def ask_for_relay(address: str, **message: Any) -> Any:
    comm = await distributed.comm.connect(address)
    try:
        await comm.write({"op": "ownership_relay", **message})
        return await comm.read()
    finally:
        comm.abort()


def test_only_owners_get_relays_and_only_to_workers(
    relayed: Client, relaying: LocalCluster
) -> None:
    scheduler = relaying.scheduler_address
    owner = relayed.owner
    worker = next(iter(owner.core.workers))
    mine = {"asker": owner.incarnation, "token": owner.token}
    for message, reason in (
        ({"target": worker}, "does not know this owner's token"),
        ({"target": worker, "asker": owner.incarnation, "token": "x"}, "does not know"),
        ({"target": "tcp://127.0.0.1:22", **mine}, "no such worker"),
        ({"target": scheduler, **mine}, "no such worker"),
        ({"target": ["x"], **mine}, "not as expected"),
        ({"target": worker, "more": 1, **mine}, "not as expected"),
    ):
        answer = relayed.sync(ask_for_relay, scheduler, **message)
        assert answer["status"] == "refused" and reason in answer["reason"], message


def test_some_workers_are_dialled_and_others_relayed_to(
    relaying: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    dial = reach.dial_raw
    far = sorted(worker.worker_address for worker in relaying.workers.values())[0]

    async def no_route_to_one(address: str, *arguments: Any) -> Any:
        if address == far:
            raise OSError(f"no route to {address}")
        return await dial(address, *arguments)

    monkeypatch.setattr(reach, "dial_raw", no_route_to_one)
    with Client(relaying, set_as_default=False) as client:
        wait_for_members(client, 2)
        values = client.map(blob, [300_000] * 6, pure=False)
        assert list(map(len, client.gather(values))) == [300_000] * 6
        ways = {address: one["way"] for address, one in client.ownership().links.items()}
        assert ways.pop(far) == "relayed" and set(ways.values()) == {"direct"}


def test_relays_of_a_cluster_that_speaks_tls() -> None:
    security = distributed.Security.temporary()
    with (
        dask.config.set(RELAY),
        small_cluster(protocol="tls", security=security) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        wait_for_members(client, len(cluster.workers))
        assert client.gather(client.map(inc, range(50), pure=False)) == list(range(1, 51))
        assert len(client.submit(blob, 2_000_000).result(timeout=20)) == 2_000_000
        assert relays(cluster).nbytes > 2_000_000


def test_relays_over_web_sockets() -> None:
    with (
        dask.config.set(RELAY),
        small_cluster(protocol="ws", n_workers=1) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        wait_for_members(client, 1)
        assert client.gather(client.map(inc, range(50), pure=False)) == list(range(1, 51))
        assert len(client.submit(blob, 2_000_000).result(timeout=20)) == 2_000_000
        assert relays(cluster).nbytes > 2_000_000
