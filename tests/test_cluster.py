"""Life cycle, membership and security on real clusters."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import threading

import dask
import distributed
import pytest
from distributed.comm import connect
from live import (
    assert_nothing_left,
    blob,
    inc,
    sessions_at_worker,
    slowinc,
    small_cluster,
    threads_of_this_process,
    until,
    wait_for_members,
    where,
)
from processes import Cluster
from programs import fib

from dask_ownership import Client, wait
from dask_ownership.errors import FutureCancelledError, NoWorker, PluginMissing
from dask_ownership.runtime.comm.link import PROTOCOL


@pytest.fixture(scope="module")
def local():
    """A cluster in this process, whose scheduler and workers tests can look into."""
    with small_cluster(processes=False) as cluster:
        yield cluster


def side_of(worker):
    return worker.extensions["dask-ownership"]


# ---- who installs what ----


def test_plugin_is_installed_once(local):
    """Two clients that start at the same time, and a third one later."""
    found = []

    def start():
        found.append(Client(local.scheduler_address, set_as_default=False))

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    third = Client(local, set_as_default=False)
    clients = [*found, third]
    assert len(clients) == 3
    # Each has a token of its own, which is no use to others.
    assert len({client.owner.token for client in clients} - {""}) == 3
    plugins = [p for p in local.scheduler.plugins if "ownership" in p]
    assert plugins == ["dask-ownership"]
    # And it is the one that knows the owners, not another client's that did nothing.
    assert local.scheduler.plugins["dask-ownership"] is local.scheduler.extensions["dask-ownership"]
    sides = {worker: side_of(worker) for worker in local.workers.values()}
    futures = [client.map(inc, range(20)) for client in clients]
    for client, own in zip(clients, futures, strict=True):
        assert client.gather(own) == list(range(1, 21))
    assert sides == {worker: side_of(worker) for worker in local.workers.values()}
    for client in clients:
        client.close()


def test_clients_do_not_free_each_others_values(local):
    with Client(local, set_as_default=False) as one, Client(local, set_as_default=False) as two:
        values = [client.submit(blob, key="the-same-key") for client in (one, two)]
        wait(values[0])
        wait(values[1])
        values[0].release()
        assert_nothing_left_of(one)
        assert len(values[1].result()) == 200_000
        one.close()
        assert len(values[1].result()) == 200_000


def assert_nothing_left_of(client):
    until(lambda: not client.owner.core.table.rows)


def test_closing_frees_everything_at_once(local):
    client = Client(local, set_as_default=False)
    values = [client.submit(blob, i) for i in range(4)]
    slow = client.map(slowinc, range(100), delay=0.01, pure=False)
    wait(values)
    mine = client.owner.incarnation
    assert any(mine in side_of(w).executor.core.sessions for w in local.workers.values())
    client.close()
    assert slow[0].done()
    for worker in local.workers.values():
        until(lambda w=worker: mine not in side_of(w).executor.core.sessions)
        until(lambda w=worker: not side_of(w).executor.store.sizes)
        until(lambda w=worker: not side_of(w).executor.core.queue.busy)


def test_workers_that_join_and_leave(local):
    with Client(local, set_as_default=False) as client:
        before = set(wait_for_members(client, 2))
        local.scale(3)
        added = set(wait_for_members(client, 3)) - before
        assert len(added) == 1
        [new] = added
        assert client.submit(where, workers=new, pure=False).result() == new
        local.scale(2)
        wait_for_members(client, 2)
        assert client.gather(client.map(inc, range(50), pure=False)) == list(range(1, 51))
        assert_nothing_left(client)


def test_restart_cancels_and_the_client_goes_on():
    with small_cluster() as cluster, Client(cluster, set_as_default=False) as client:
        value = client.submit(blob, key="before")
        wait(value)
        slow = client.submit(slowinc, 1, 30, key="slow-before")
        client.restart()
        for future in (value, slow):
            with pytest.raises(FutureCancelledError, match="restarted"):
                future.result(timeout=5)
        del value, future, slow
        assert client.submit(inc, 1, key="after").result(timeout=20) == 2


# ---- ways to connect ----


BLOCKED = ["register_scheduler_plugin"]


def test_cluster_without_the_plugin_and_no_right_to_install_it():
    before = threads_of_this_process()
    with (
        dask.config.set({"distributed.scheduler.blocked-handlers": BLOCKED}),
        small_cluster(n_workers=0) as cluster,
    ):
        during = threads_of_this_process()
        with pytest.raises(PluginMissing, match=r"--preload dask_ownership\.preload") as info:
            Client(cluster.scheduler_address, set_as_default=False)
        assert cluster.scheduler_address in str(info.value)
        until(lambda: threads_of_this_process() <= during, 5, f"{threads_of_this_process()}")
        with distributed.Client(cluster, set_as_default=False) as stock:
            assert stock.scheduler_info()["workers"] == {}
    assert {t for t in threads_of_this_process() - before if "Ownership" in t} == set()


@pytest.mark.parametrize("how", ["cluster", "address"])
def test_ways_to_connect(local, how):
    target = local if how == "cluster" else local.scheduler_address
    with Client(target, set_as_default=False) as client:
        assert client.submit(inc, 1).result() == 2


def test_embedded_cluster_leaves_nothing():
    with Client(n_workers=1, threads_per_worker=1, dashboard_address=":0") as client:
        assert client.gather(client.map(inc, range(10))) == list(range(1, 11))
        pids = list(client.run(os.getpid).values())
    until(lambda: not [p for p in pids if alive(p)], 5)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# ---- who is let in ----


def ask_plainly(address, operation, **connection_args):
    """Dial a worker like a stranger; what it answers."""

    async def ask():
        comm = await connect(address, timeout=3, **connection_args)
        try:
            await comm.write(operation)
            return await asyncio.wait_for(comm.read(), 3)
        finally:
            comm.abort()

    return asyncio.run(ask())


OPERATIONS = [
    {"op": "ownership_link", "owner": "stranger", "received": 0},
    {"op": "ownership_get", "owner": "stranger", "names": [("secret", 1)], "reader": "stranger"},
    {"op": "ownership_put", "owner": "stranger", "data": []},
]


@pytest.mark.parametrize("token", [None, "", "guess"])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda o: o["op"])
def test_strangers_are_not_let_in(operation, token, cluster):
    with Client(cluster, set_as_default=False) as client:
        address = wait_for_members(client, 2)[0]
        message = {**operation, "token": token}
        if operation["op"] == "ownership_link":
            message["protocol"] = PROTOCOL
        answer = ask_plainly(address, message)
        assert answer["status"] == "refused"
        assert "token" in answer["reason"]
        assert "stranger" not in client.run(sessions_at_worker)[address]


def test_other_protocol_versions_are_refused(cluster):
    with Client(cluster, set_as_default=False) as client:
        address = wait_for_members(client, 2)[0]
        answer = ask_plainly(
            address, {**OPERATIONS[0], "protocol": PROTOCOL + 1, "token": client.owner.token}
        )
        assert answer["status"] == "refused"
        assert f"version {PROTOCOL}" in answer["reason"]
        assert "install the same dask_ownership" in answer["reason"]


# ---- workers that cannot take part ----


def remove_handlers(dask_worker):
    for name in ("ownership_link", "ownership_get", "ownership_put"):
        dask_worker.handlers.pop(name, None)


def change_protocol(dask_worker):
    server = dask_worker.extensions["dask-ownership"].server
    server._refuse = lambda owner, token, protocol, greeting: (
        f"the worker {dask_worker.address} speaks version 99 of the ownership protocol and the "
        f"owner version {protocol}: install the same dask_ownership in both places"
    )


@pytest.mark.parametrize(
    ("spoil", "text"),
    [(remove_handlers, "does not know dask_ownership"), (change_protocol, "version 99")],
)
def test_workers_that_cannot_take_part(spoil, text, caplog):
    """Others do the work; what may run nowhere else fails and says why."""
    with small_cluster(processes=False) as cluster, Client(cluster, set_as_default=False) as client:
        bad, good = wait_for_members(client, 2)
        client.run(spoil, workers=[bad])
        assert client.gather(client.map(inc, range(50), pure=False)) == list(range(1, 51))
        pinned = client.submit(where, workers=bad, pure=False, key="pinned")
        with pytest.raises(NoWorker, match="'pinned'") as info:
            pinned.result(timeout=10)
        assert bad in str(info.value)
        assert text in str(info.value)
        assert client.submit(where, pure=False).result() == good
        assert text in caplog.text
        client.run(spoil, workers=[good])
        with Client(cluster, set_as_default=False) as other:
            with pytest.raises(NoWorker, match=text):
                other.submit(inc, 1, pure=False).result(timeout=10)
            with pytest.raises(NoWorker, match=text):
                other.submit(inc, 1, pure=False).result(timeout=10)


def test_a_worker_that_hears_of_the_plugin_after_its_owners_heard_of_it():
    """The scheduler tells owners of a worker before it answers the worker's registration."""
    with small_cluster(processes=False, n_workers=1) as cluster, Client(cluster) as client:
        only = wait_for_members(client, 1)[0]

        def delay_handlers(dask_worker):
            names = [name for name in dask_worker.handlers if name.startswith("ownership")]
            taken = {name: dask_worker.handlers.pop(name) for name in names}
            dask_worker.loop.call_later(1, dask_worker.handlers.update, taken)

        client.run(delay_handlers)
        with Client(cluster, set_as_default=False) as late:
            assert late.submit(where, pure=False).result(timeout=10) == only


def test_a_worker_without_the_plugin_refuses_its_owners_in_words(caplog):
    """An owner dials again when its link ends, and may not know yet that the worker closes."""
    with small_cluster(processes=False, n_workers=1) as cluster, Client(cluster) as client:
        only = wait_for_members(client, 1)[0]
        client.run(lambda dask_worker: dask_worker.extensions["dask-ownership"].server.close())
        token = client.owner.token
        answer = ask_plainly(only, {**OPERATIONS[0], "protocol": PROTOCOL, "token": token})
        assert answer["status"] == "refused" and "the plugin was taken away" in answer["reason"]
    assert "No handler" not in caplog.text


def test_many_clients_leave_no_threads(local):
    Client(local.scheduler_address, set_as_default=False).close()
    before = threading.active_count()
    for _ in range(5):
        with Client(local.scheduler_address, set_as_default=False) as client:
            assert client.submit(inc, 1).result() == 2
    until(lambda: threading.active_count() <= before + 1)


def test_idle_timeout_spares_a_cluster_with_owned_tasks():
    with (
        dask.config.set({"distributed.scheduler.idle-timeout": "3s"}),
        small_cluster(n_workers=1) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        assert client.submit(slowinc, 1, delay=5).result(timeout=10) == 2
        assert cluster.scheduler.status.name == "running"


def test_a_scheduler_without_extensions() -> None:
    """It has no queues, variables, events and so on; tasks it need not know of."""
    with (
        small_cluster(
            n_workers=1, processes=False, scheduler_kwargs={"extensions": {}}, extensions={}
        ) as cluster,
        Client(cluster) as client,
    ):
        assert client.submit(inc, 1).result() == 2
        assert client.submit(fib, 5).result() == 5


@pytest.mark.parametrize(
    ("preload", "reason"),
    [
        (
            "import sys; sys.modules['dask_ownership'] = None",
            "cannot import dask_ownership .*: ins",
        ),
        ("import dask; dask.config.set({'ownership.reach': 'relais'})", "not be set up .*'relais'"),
    ],
)
def test_workers_where_the_plugin_cannot_be_set_up(tmp_path, preload, reason):
    """They run the scheduler's tasks as before, and owned tasks go to the others."""
    bare = tmp_path / "bare.py"
    bare.write_text(preload)
    port = unused_port()
    address = f"tcp://127.0.0.1:{port}"
    cluster = Cluster(tmp_path)
    try:
        until(lambda: os.path.exists(cluster.file), 20)
        start = ("--preload", str(bare), "--host", "127.0.0.1", "--worker-port")
        log = tmp_path / "log"
        with log.open("w") as file:
            cluster.start_worker(*start, str(port), stderr=file)
            with distributed.Client(scheduler_file=cluster.file, set_as_default=False) as stock:
                stock.wait_for_workers(3, timeout=20)
                with Client(scheduler_file=cluster.file, set_as_default=False) as client:
                    assert client.gather(client.map(inc, range(50))) == list(range(1, 51))
                    pinned = client.submit(where, workers=address, pure=False)
                    with pytest.raises(NoWorker, match=reason):
                        pinned.result(timeout=20)
                    told = client.sync(client.scheduler.ownership_activity)
                    assert address not in [worker["address"] for worker in told["workers"]]
                    # Also one that comes when the plugin is there already.
                    cluster.start_worker(*start, str(unused_port()))
                    stock.wait_for_workers(4, timeout=20)
                    assert stock.submit(sum, [1, 2], workers=address).result(20) == 3
        assert re.search(reason, log.read_text())
        assert "No handler" not in log.read_text() and "KeyError" not in log.read_text()
    finally:
        cluster.end()


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])
