"""Half-open, slow and cut connections: right results, nothing twice, nobody hangs."""

from __future__ import annotations

import time
from collections.abc import Iterator

import dask
import pytest
from live import blob, inc, sessions_at_worker, slowinc, total, until
from programs import append_line, lines
from proxy import Behind, Proxy, workers_behind_proxies

from dask_ownership import Client, wait
from dask_ownership.errors import ClosedOwner, NoWorker

pytestmark = pytest.mark.waits  # most of its time nothing runs here


@pytest.fixture(scope="module")
def network() -> Iterator[tuple[str, list[Behind]]]:
    """Two workers, each behind a proxy, and the scheduler's address."""
    with workers_behind_proxies(2) as network:
        yield network


@pytest.fixture
def behind(network) -> Iterator[list[Behind]]:
    """The workers; what a test did to their proxies is undone after it."""
    yield network[1]
    for one in network[1]:
        one.proxy.delay = 0.0
        one.proxy.go_on()


@pytest.fixture(params=["direct", "relay"])
def client(network, behind, request) -> Iterator[Client]:
    """A client that reaches the workers directly, or by relays: through the scheduler."""
    with (
        dask.config.set({"ownership.reach": request.param}),
        Client(network[0], set_as_default=False) as client,
    ):
        two_workers(client)
        yield client


def two_workers(client: Client) -> None:
    until(lambda: len(client.owner.core.placement.workers) == 2, 20, "two workers")


def length(value: bytearray) -> int:
    return len(value)


def test_a_stalled_link_is_dialled_again(client, behind, tmp_path):
    """Two workers are stalled for 10 s, and what they did meanwhile arrives."""
    path = tmp_path / "ran"
    futures = [
        client.submit(append_line, str(path), f"{i}", 0.02, key=f"mark-{i}") for i in range(100)
    ]
    until(lambda: len(lines(path)) > 10)
    for one in behind:
        one.proxy.stall()
    started = time.monotonic()
    time.sleep(10)
    for one in behind:
        one.proxy.go_on()
    wait(futures, timeout=20)
    assert time.monotonic() - started < 20
    assert all(future.status == "finished" for future in futures)
    assert set(lines(path)) == {str(i) for i in range(100)}


def test_one_half_open_connection_costs_seconds_only(client, behind):
    """The worker can be reached, but not over the connection that the link has."""
    one = behind[0]
    client.submit(inc, 1, workers=one.address).result(timeout=10)
    future = client.submit(slowinc, 1, 1.0, workers=one.address, pure=False)
    until(lambda: client.owner.core.placement.workers[one.address].pushed)
    one.proxy.stall_one_after(0)
    started = time.monotonic()
    assert future.result(timeout=20) == 2
    assert one.proxy.stalled_one
    assert time.monotonic() - started < 8
    assert not [e for e in client.owner.core.history.events if e[0] == future.key]


def test_links_that_are_cut_many_times(client, behind, tmp_path):
    path = tmp_path / "ran"
    futures = [
        client.submit(append_line, str(path), f"{i}", 0.005, key=f"cut-{i}") for i in range(400)
    ]
    for _ in range(20):
        time.sleep(0.05)
        for one in behind:
            one.proxy.cut()
    client.gather(futures)
    assert sorted(map(int, lines(path))) == list(range(400))


def test_slow_links(client, behind):
    for one in behind:
        one.proxy.delay = 0.2
    futures = client.map(inc, range(200), pure=False)
    assert client.submit(total, *futures[:50]).result(timeout=30) == sum(range(1, 51))
    assert client.gather(futures) == list(range(1, 201))


def test_a_fetch_between_workers_that_stalls_in_the_middle(client, behind):
    source, reader = behind
    value = client.submit(blob, 30_000_000, 7, workers=source.address, pure=False)
    wait(value, timeout=20)
    source.proxy.stall_one_after(5_000_000)
    started = time.monotonic()
    task = client.submit(length, value, workers=reader.address)
    assert task.result(timeout=30) == 30_000_000
    assert source.proxy.stalled_one
    assert time.monotonic() - started < 15


def test_a_gather_that_stalls_in_the_middle(client, behind):
    source = behind[0]
    value = client.submit(blob, 30_000_000, 7, workers=source.address, pure=False)
    wait(value, timeout=20)
    source.proxy.stall_one_after(5_000_000)
    started = time.monotonic()
    assert len(value.result(timeout=30)) == 30_000_000
    assert source.proxy.stalled_one
    assert time.monotonic() - started < 15


def test_a_scatter_to_a_worker_that_is_stalled(client, behind):
    source = behind[0]
    source.proxy.stall()
    source.proxy._loop.call_soon_threadsafe(
        source.proxy._loop.call_later, 8, source.proxy._passing.set
    )
    value = client.scatter(blob(30_000_000), workers=[source.address])
    assert len(value.result(timeout=30)) == 30_000_000


def test_a_worker_that_cannot_be_reached_for_a_while_keeps_its_values(client, behind):
    """A partition between the client and one worker, and between the workers."""
    source = behind[0]
    scattered = client.scatter({"scattered": blob(300_000)}, workers=[source.address])["scattered"]
    made = client.submit(blob, 300_000, 3, workers=source.address, allow_other_workers=True)
    wait(made, timeout=20)
    source.proxy.stall()
    tasks = client.map(slowinc, range(100), delay=0.01, pure=False)
    started = time.monotonic()
    assert client.gather(tasks) == list(range(1, 101))
    assert time.monotonic() - started < 14
    reading = client.submit(length, scattered, pure=False)
    assert client.submit(length, made, pure=False).result(timeout=30) == 300_000  # made again
    with pytest.raises(TimeoutError):
        reading.result(timeout=0.1)
    source.proxy.go_on()
    assert reading.result(timeout=30) == 300_000
    assert len(scattered.result(timeout=20)) == 300_000


# ---- the client and the scheduler ----


def test_a_client_that_lost_the_scheduler_goes_on(network, behind, tmp_path):
    """Within the grace it is back: what it had is there, and nothing ran twice."""
    path = tmp_path / "ran"
    proxy = Proxy(int(network[0].rpartition(":")[2]))
    try:
        with Client(proxy.address, set_as_default=False) as client:
            two_workers(client)
            small = client.submit(append_line, str(path), "small", key="small")
            stored = client.submit(blob, 300_000, 5, key="stored", pure=False)
            wait([small, stored], timeout=20)
            running = [
                client.submit(append_line, str(path), f"{i}", 0.05, key=f"run-{i}")
                for i in range(60)
            ]
            comm = client.scheduler_comm
            for _ in range(3):
                proxy.cut()
                until(lambda c=comm: client.scheduler_comm not in (None, c), 10, "connected again")
                until(lambda: client.status == "running", 10)
                comm = client.scheduler_comm
            assert client.gather(running)
            assert client.submit(inc, 1, pure=False).result(timeout=10) == 2
            time.sleep(11)  # longer than the grace
            assert len(stored.result(timeout=10)) == 300_000
            assert client.submit(length, stored).result(timeout=10) == 300_000
            assert small.result() == 1
            expected = ["small", *map(str, range(60))]
            assert sorted(lines(path)) == sorted(expected)
    finally:
        proxy.close()


def test_relays_stall_and_break_as_the_way_to_the_scheduler_does(network, behind, tmp_path):
    """A client that reaches the scheduler only, and sometimes not even that."""
    path = tmp_path / "ran"
    proxy = Proxy(int(network[0].rpartition(":")[2]))
    try:
        with (
            dask.config.set({"ownership.reach": "relay"}),
            Client(proxy.address, set_as_default=False) as client,
        ):
            two_workers(client)
            stored = client.submit(blob, 300_000, 5, pure=False)
            wait(stored, timeout=20)
            running = [
                client.submit(append_line, str(path), f"{i}", 0.02, key=f"relayed-{i}")
                for i in range(200)
            ]
            proxy.stall()
            time.sleep(3)
            proxy.go_on()
            comm = client.scheduler_comm
            for _ in range(3):
                proxy.cut()
                until(lambda c=comm: client.scheduler_comm not in (None, c), 10, "connected again")
                comm = client.scheduler_comm
            assert client.gather(running)
            assert sorted(map(int, lines(path))) == list(range(200))
            assert len(stored.result(timeout=10)) == 300_000
            assert client.submit(length, stored).result(timeout=10) == 300_000
    finally:
        proxy.close()


def forget_the_next_that_joins(dask_scheduler=None):
    """As when the end of an old connection is noted after the new one registered."""
    join = dask_scheduler.handlers["ownership_join"]

    def forgetting(**kwargs):
        dask_scheduler.handlers["ownership_join"] = join
        dask_scheduler.remove_client(client=kwargs["client"])
        return join(**kwargs)

    dask_scheduler.handlers["ownership_join"] = forgetting


def test_a_client_that_the_scheduler_forgot_while_it_joined(network):
    """It registers once more, and goes on."""
    with Client(network[0], set_as_default=False) as client:
        two_workers(client)
        value = client.submit(inc, 1)
        assert value.result(timeout=10) == 2
        client.run_on_scheduler(forget_the_next_that_joins)
        comm = client.scheduler_comm
        client.loop.add_callback(comm.comm.abort)
        until(lambda: client.scheduler_comm not in (None, comm), 10, "connected again")
        until(lambda: not client.owner.members.cut_off and client.status == "running", 10)
        assert client.submit(inc, value).result(timeout=10) == 3
        assert client.run_on_scheduler(knows, client.id)


def knows(client, dask_scheduler=None):
    return client in dask_scheduler.clients


def test_a_worker_that_died_while_the_client_had_no_scheduler(tmp_path):
    """What the scheduler could not say is found out when the client is back."""
    with workers_behind_proxies(2) as (scheduler, behind):
        proxy = Proxy(int(scheduler.rpartition(":")[2]))
        try:
            with Client(proxy.address, set_as_default=False) as client:
                two_workers(client)
                victim = behind[0]
                value = client.submit(
                    blob, 300_000, 5, workers=victim.address, allow_other_workers=True
                )
                wait(value, timeout=20)
                proxy.stall()
                proxy.cut()
                victim.process.kill()
                victim.process.wait()
                time.sleep(1)
                proxy.go_on()
                assert client.submit(length, value).result(timeout=20) == 300_000
                assert victim.address not in client.owner.core.placement.workers
        finally:
            proxy.close()


def test_work_goes_on_while_the_scheduler_does_not_answer(network, behind):
    proxy = Proxy(int(network[0].rpartition(":")[2]))
    try:
        with Client(proxy.address, set_as_default=False) as client:
            two_workers(client)
            stored = client.submit(blob, 300_000, 5, pure=False)
            wait(stored, timeout=20)
            proxy.stall()
            for _ in range(3):
                futures = client.map(slowinc, range(100), delay=0.01, pure=False)
                assert client.gather(futures) == list(range(1, 101))
            assert len(stored.result(timeout=5)) == 300_000
            proxy.go_on()
            assert len(client.scheduler_info(n_workers=-1)["workers"]) == 2
    finally:
        proxy.close()


def test_a_client_that_was_away_for_too_long_hears_so(network, behind, tmp_path):
    """It is not half alive: what it asks for ends with an error, and nothing of it is left."""
    proxy = Proxy(int(network[0].rpartition(":")[2]))
    short = dask.config.set({"ownership.grace": "200ms"})
    with short, Client(network[0], set_as_default=False) as witness:
        try:
            with Client(proxy.address, set_as_default=False) as client:
                two_workers(client)
                value = client.submit(blob, 300_000, 5, pure=False)
                wait(value, timeout=20)
                incarnation = client.owner.incarnation
                proxy.stall()
                proxy.cut()
                until(
                    lambda: (
                        not any(incarnation in s for s in witness.run(sessions_at_worker).values())
                    ),
                    10,
                    "it is given up",
                )
                late = client.submit(slowinc, 1, pure=False)
                proxy.go_on()
                with pytest.raises((ClosedOwner, NoWorker), match=r"gone|ownership\.grace"):
                    late.result(timeout=30)
                until(lambda: client.status == "closed", 10, "it knows")
                with pytest.raises(ClosedOwner):
                    client.submit(inc, 1)
        finally:
            proxy.close()
