"""What the scheduler tells of all owners and workers, to those who look."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dask
import distributed
import msgpack
import pytest
from live import blob, boom, inc, kill, slowinc, small_cluster, until, wait_for_members

from dask_ownership import Client, wait
from dask_ownership.errors import LostData, Uncertain
from dask_ownership.monitoring import owner_report as reporting
from dask_ownership.runtime.comm.scheduler_ops import ACTIVITY


def activity(client: Any, **options: Any) -> dict[str, Any]:
    """What `ownership_activity` answers."""

    async def ask() -> Any:
        return await getattr(client.scheduler, ACTIVITY)(**options)

    return client.sync(ask, asynchronous=False)


def mine(client: Client, told: dict[str, Any]) -> dict[str, Any]:
    """The part about this client."""
    (found,) = [o for o in told["owners"] if o["id"] == client.owner.incarnation]
    return found


def settled(client: Client) -> dict[str, Any]:
    """What is told once the last report of this client has arrived."""
    core = client.owner.core

    def arrived() -> Any:
        told = activity(client)
        owner = mine(client, told)
        new = {**core.counts, "attempts": core.lifecycle.numbers, "objects": len(core.table.rows)}
        return owner["complete"] and all(owner[name] == n for name, n in new.items()) and told

    found: dict[str, Any] = until(arrived)
    return found


def watched(client: Client) -> bool:
    """Whether anybody reports."""

    def here(dask_worker: Any) -> bool:
        return bool(dask_worker.extensions["dask-ownership"].reporter.owner_reporter.watching)

    return client._reporter.watching or any(client.run(here).values())


def forget(dask_scheduler: Any) -> None:
    """Nobody looks any more."""
    feed = dask_scheduler.extensions["dask-ownership"].feed
    feed.watchers.until = 0.0


def test_at_rest_the_numbers_are_those_of_the_owner(client: Client, workers: Any) -> None:
    small = client.map(inc, range(50))
    large = [client.submit(blob, key=f"blob-{n}", seed=n, workers=workers[0]) for n in range(3)]
    bad = client.submit(boom)
    wait([*small, *large, bad])
    told = settled(client)
    own = client.ownership()
    owner = mine(client, told)
    assert owner["kind"] == "client" and owner["name"] == client.id and owner["parent"] == ""
    for name in ("submitted", "done", "failed", "attempts"):
        assert owner[name] == own.counts[name]
    assert owner["complete"]
    assert owner["objects"] == sum(own.objects.values()) == 54
    assert {name: n for name, n in owner["states"].items() if n} == {
        "inline": 50,
        "stored": 3,
        "error": 1,
    }
    assert owner["groups"] == {"inc": {"inline": 50}, "blob": {"stored": 3}, "boom": {"error": 1}}
    assert owner["pending"] == owner["running"] == 0
    assert owner["inline_nbytes"] == own.inline_nbytes
    assert owner["lineage_nbytes"] == own.lineage["nbytes"]
    assert owner["stored_nbytes"] == own.stored_nbytes
    assert {k.replace("-", "_"): n for k, n in owner["again"].items()} == own.handed_out_again
    assert {one["key"] for one in owner["largest"][:3]} == {"blob-0", "blob-1", "blob-2"}
    assert owner["largest"][0]["local_refs"] == 1
    assert list(owner["largest"][0]["workers"]) == [workers[0]]
    there = {one["address"]: one for one in told["workers"]}
    assert there.keys() == set(workers)
    assert there[workers[0]]["stored"]["objects"] == 3
    assert there[workers[0]]["stored"]["nbytes"] == own.stored_nbytes[workers[0]]
    assert sum(one["running"] + one["queued"] for one in told["workers"]) == 0
    assert json.dumps(told) and msgpack.packb(told)
    del small, large, bad
    until(lambda: not mine(client, activity(client))["objects"])


def test_what_happens_while_somebody_looks(client: Client, workers: Any) -> None:
    before = activity(client)
    ended = {one["address"]: one["done"] for one in before["workers"]}
    futures = client.map(slowinc, range(60), delay=0.02)
    running = until(lambda: (o := mine(client, activity(client)))["running"] and o)
    assert running["pending"] + running["running"] <= 60
    wait(futures)
    until(lambda: mine(client, activity(client))["states"]["inline"] == 60)
    told = activity(client)
    assert sum(one["done"] - ended[one["address"]] for one in told["workers"]) == 60
    owner = mine(client, told)
    assert owner["rate"] > 1
    assert sum(owner["latency"]["ran"]) >= 1
    assert any(round["rate"] > 0 for round in told["history"])
    ran = [round["ran"][0] for round in told["history"] if round["ran"][0] is not None]
    assert ran and 0.01 < ran[-1] < 0.3
    assert {tuple(pair[:2]) for pair in told["flow"]["tasks"]} >= {
        (client.id, worker) for worker in workers
    }
    times = [round["time"] for round in told["history"]]
    assert times == sorted(times)
    assert "history" not in activity(client, history=False)


def test_bytes_between_workers(client: Client, workers: Any) -> None:
    def received() -> int:
        there = {one["address"]: one for one in activity(client)["workers"]}
        assert there[workers[0]]["sent"].get(workers[1], 0) == there[workers[1]]["received"].get(
            workers[0], 0
        )
        return int(there[workers[1]]["received"].get(workers[0], 0))

    before = received()
    there = client.submit(blob, 300_000, workers=workers[0], pure=False)
    size = client.submit(len, there, workers=workers[1])
    assert size.result() == 300_000
    until(lambda: received() >= before + 300_000)


def exchanged(client: Client, worker: str) -> tuple[int, int]:
    """Bytes that this client sent to a worker and received from it."""
    traffic = client.owner.core.placement.workers[worker].byte_counter

    def told() -> Any:
        sent, received = mine(client, settled(client))["traffic"].get(worker, (0, 0))
        return (sent, received) == (traffic.sent, traffic.received) and (sent, received)

    found: tuple[int, int] = until(told)
    return found


def exchange(client: Client, worker: str, call: Any) -> tuple[int, int]:
    """How many more a call makes them."""
    before = exchanged(client, worker)
    call()
    after = exchanged(client, worker)
    return after[0] - before[0], after[1] - before[1]


def test_bytes_between_a_client_and_a_worker(client: Client, workers: Any) -> None:
    worker = workers[0]
    data = b"x" * 1_000_000
    assert client.submit(inc, 1, workers=worker).result() == 2
    settled(client)
    time.sleep(1.1)  # rates are of rounds, and one has this client
    sent, received = exchange(
        client, worker, lambda: client.submit(len, data, workers=worker, pure=False).result()
    )
    assert sent == pytest.approx(1_000_000, rel=0.02) and received < 5_000

    def call() -> None:
        futures = client.map(blob, [50_000] * 20, workers=worker, pure=False)
        assert client.gather(futures) == [blob(50_000)] * 20

    sent, received = exchange(client, worker, call)
    assert sent < 20_000 and received == pytest.approx(1_000_000, rel=0.02)
    flow = activity(client)["flow"]
    to_worker = {tuple(pair): rate for *pair, rate in flow["sent"]}[client.id, worker]
    to_owner = {tuple(pair): rate for *pair, rate in flow["received"]}[worker, client.id]
    # A million in between one round and all those of five seconds.
    assert 100_000 < to_worker < 3_000_000 and 100_000 < to_owner < 3_000_000

    stored = client.submit(blob, 500_000, workers=worker, pure=False)
    wait(stored)
    sent, received = exchange(client, worker, lambda: client.gather(stored))
    assert sent < 5_000 and received == pytest.approx(500_000, rel=0.02)

    there: list[Any] = []
    sent, received = exchange(
        client, worker, lambda: there.append(client.scatter(data, workers=worker))
    )
    assert sent == pytest.approx(1_000_000, rel=0.02) and received < 5_000


def test_what_was_before_somebody_looks_is_no_flow(client: Client, workers: Any) -> None:
    until(lambda: client.run_on_scheduler(forget) is None and not watched(client))
    client.gather(client.map(inc, range(2000), pure=False))
    told = activity(client)
    for _ in range(5):
        assert all(rate < 200 for *_, rate in told["flow"]["tasks"])
        time.sleep(0.2)
        told = activity(client)
    assert told["flow"]["tasks"]


def test_the_age_of_a_value(client: Client, workers: Any) -> None:
    client.gather(client.map(inc, range(50), pure=False))
    began = time.time()
    old = client.submit(blob, 300_000, key="old")
    wait(old)
    time.sleep(2.5)
    new = client.submit(blob, 200_000, key="new")
    wait(new)
    owner = mine(client, settled(client))
    since = {one["key"]: one["since"] for one in owner["oldest"]}
    assert list(since) == ["old", "new"]
    assert since["old"] == pytest.approx(began, abs=1.1)
    assert since["new"] == pytest.approx(began + 2.5, abs=1.1)
    if find_spec("bokeh") is not None:
        from test_dashboard import page

        shown = client.run_on_scheduler(page, "objects")["oldest_source"]
        ages = dict(zip(shown["key"], shown["age"], strict=True))
        assert ages["old"] in ("0:00:02", "0:00:03", "0:00:04")
        assert ages["new"] in ("0:00:00", "0:00:01")


def parent(number: int) -> int:
    with distributed.worker_client() as client:
        return sum(client.gather(client.map(slowinc, range(number), delay=0.05)))


def test_owners_at_workers_know_who_submits_to_them(client: Client, workers: Any) -> None:
    activity(client)
    future = client.submit(parent, 8, workers=workers[0])

    def nested() -> Any:
        owners = activity(client)["owners"]
        return next((o for o in owners if o["name"] == workers[0] and o["objects"]), None)

    owner = until(nested)
    assert owner["kind"] == "worker"
    assert owner["parent"] == client.id
    assert owner["submitted"] >= 8
    assert future.result() == 36


def test_nothing_is_sent_when_nobody_looks_or_nothing_changes(client: Client) -> None:
    until(lambda: client.run_on_scheduler(forget) is None and not watched(client))
    client.gather(client.map(inc, range(20)))
    assert not watched(client)
    assert not client.owner.inbox.watched
    activity(client)
    assert watched(client)
    sent: list[Any] = []
    send, client._reporter.send = client._reporter.send, lambda report: sent.append(report) or True
    try:
        time.sleep(0.8)  # whatever was new is told by then
        del sent[:]
        time.sleep(0.6)
        assert not sent
        future = client.submit(inc, 1)
        until(lambda: sent)
        time.sleep(0.6)
        assert len(sent) <= 2
        assert future.result() == 2
    finally:
        client._reporter.send = send
    until(lambda: client.run_on_scheduler(forget) is None and not watched(client))
    assert not client.owner.inbox.watched


def test_clients_come_and_go(cluster: Any, client: Client) -> None:
    activity(client)
    with Client(cluster, set_as_default=False) as other:
        future = other.submit(inc, 1)
        wait(future)
        until(
            lambda: any(
                o["id"] == other.owner.incarnation and o["done"] == 1
                for o in activity(client)["owners"]
            )
        )
    # A stock client that asks sees the same.
    with distributed.Client(client.scheduler.address, set_as_default=False) as stock:
        assert client.owner.incarnation in {o["id"] for o in activity(stock)["owners"]}


def test_a_large_table_is_counted_in_slices(client: Client, monkeypatch: Any) -> None:
    monkeypatch.setattr(reporting, "SLICE", 0.0)
    monkeypatch.setattr(reporting, "PAUSE", 0.001)
    futures = client.map(inc, range(3000))
    wait(futures)
    until(lambda: mine(client, activity(client))["done"] >= 3000)
    last = until(lambda: (o := mine(client, activity(client)))["complete"] and o, 10)
    assert last["states"]["inline"] == 3000 and last["groups"] == {"inc": {"inline": 3000}}
    del futures
    until(lambda: mine(client, activity(client))["states"]["inline"] == 0, 10)


def test_what_fails_is_told_with_its_reason() -> None:
    with small_cluster() as cluster, Client(cluster) as client:
        first, second = wait_for_members(client, 2)
        activity(client)
        stored = client.submit(blob, workers=first, allow_other_workers=True, key="lost")
        wait(stored)
        kill(client, first)
        until(lambda: first not in client.owner.core.placement.workers)
        wait(stored)
        # A recovery is counted when it begins, and has a time when the value is there again.
        owner = until(lambda: (o := mine(client, activity(client)))["recoveries"] and o)
        assert owner["again"]["recovered"] == owner["recovered"] == 1
        assert len(owner["recoveries"]) == 1 and owner["recoveries"][0][1] < 30
        told = activity(client)
        assert told["workers_gone"] >= 1
        events = {(event["event"], event["key"]) for event in told["events"]}
        assert {("copy-gone", "lost"), ("recovered", "lost")} <= events
        assert first not in {one["address"] for one in told["workers"]}
        assert second in {one["address"] for one in told["workers"]}
        if find_spec("bokeh") is not None:
            from test_dashboard import page

            shown = client.run_on_scheduler(page, "failures")
            assert list(shown["recoveries_source"]["seconds"]) == [owner["recoveries"][0][1]]
            assert "worker-gone" in shown["events_source"]["event"]


def lost(told: dict[str, Any], who: str) -> dict[str, int]:
    """What deaths cost one process, without what they did not."""
    return {kind: number for kind, number in told["losses"][who].items() if number}


def on_page(client: Client) -> tuple[dict[str, int], dict[str, list[Any]]]:
    """What the page shows of losses: bars that are not empty, and the table."""
    from test_dashboard import page

    shown = client.run_on_scheduler(page, "failures")
    bars = zip(shown["losses_source"]["kind"], shown["losses_source"]["times"], strict=True)
    return {kind: times for kind, times in bars if times}, shown["processes_source"]


def test_a_worker_that_is_killed_is_counted_with_what_it_cost() -> None:
    with small_cluster() as cluster, Client(cluster) as client:
        first, _ = wait_for_members(client, 2)
        activity(client)
        once = client.submit(slowinc, 1, 60, workers=first, at_most_once=True)
        only = client.scatter(b"x" * 1000, workers=first)
        until(lambda: mine(client, activity(client))["links"].get(first, {}).get("pushed"))
        until(lambda: {w["address"]: w for w in activity(client)["workers"]}[first]["running"])
        kill(client, first)
        with pytest.raises(Uncertain):
            once.result(timeout=20)
        with pytest.raises(LostData):
            until(lambda: only.status != "finished", 10)
            only.result(timeout=10)
        told = until(lambda: (a := activity(client)) and lost(a, client.id) and a)
        assert lost(told, client.id) == {"workers-died": 1, "uncertain": 1, "lost-data": 1}
        assert client.ownership().losses["workers_died"] == 1
        if find_spec("bokeh") is not None:
            bars, table = on_page(client)
            assert bars == {
                "losses of workers": 1,
                "tasks: uncertain": 1,
                "values lost": 1,
            }
            assert table["who"] == [client.id]
            assert table["workers-died"] == [1] and table["orphaned"] == [0]


DYING = """
import os, pickle, sys, time
from dask_ownership import Client
from live import slowinc
with Client({address!r}) as client:
    tasks = client.map(time.sleep, [6] * 3, pure=False)
    lent = client.submit(slowinc, 1, 6, key="lent")
    open({path!r}, "wb").write(pickle.dumps(lent))
    print("there", flush=True)
    sys.stdin.readline()
    os.kill(os.getpid(), 9)
"""


def unended(dask_worker: Any) -> int:
    return int(dask_worker.extensions["dask-ownership"].executor.core.queue.unfinished)


def test_an_owner_that_is_killed_is_counted_with_what_it_cost(tmp_path: Path) -> None:
    short = dask.config.set({"ownership.grace": "100ms"})
    with short, small_cluster() as cluster, Client(cluster) as client:
        wait_for_members(client, 2)
        activity(client)
        path = tmp_path / "future"
        program = DYING.format(address=cluster.scheduler_address, path=str(path))
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None and process.stdout.readline() == "there\n"
            borrowed = pickle.loads(path.read_bytes())
            until(lambda: mine(client, activity(client))["borrowed"] == 1)
            # One of the four may wait with its owner still.
            until(lambda: sum(client.run(unended).values()) >= 3)
            time.sleep(0.3)
            there = {who: n for who, n in client.run(unended).items() if n}
            process.communicate("now\n", timeout=10)
        finally:
            process.kill()
            process.wait()
        with pytest.raises(LostData):
            borrowed.result(timeout=20)
        told = until(
            lambda: (a := activity(client)) and all(lost(a, w) for w in [client.id, *there]) and a,
            10,
        )
        assert lost(told, client.id) == {"owners-gone": 1, "owner-lost": 1}
        assert {who: lost(told, who) for who in there} == {
            who: {"orphaned": n} for who, n in there.items()
        }
        if find_spec("bokeh") is not None:
            bars, table = on_page(client)
            assert bars == {
                "owners gone": 1,
                "borrowed futures lost": 1,
                "tasks orphaned": sum(there.values()),
            }
            assert set(table["who"]) == {client.id, *there}
