"""Where values and tasks are, as Dask's own methods tell it."""

from __future__ import annotations

import threading
import time
from typing import Any

import distributed
import pytest
from live import blob, boom, inc, slowinc, total, until, where

from dask_ownership import Client, wait


def test_who_has_names_the_worker_that_stores_or_made_a_value(client: Client, workers: Any) -> None:
    stored = client.submit(blob, key="blob-1", workers=workers[1])
    small = client.submit(where, workers=workers[0], pure=False)
    failed = client.submit(boom)
    wait([stored, small, failed])
    assert client.who_has([stored, [small], failed]) == {
        "blob-1": (workers[1],),
        small.key: (small.result(),),
        failed.key: (),
    }
    assert client.who_has(stored) == {"blob-1": (workers[1],)}
    assert client.who_has()["blob-1"] == (workers[1],)
    assert client.who_has([]) == {}


def test_who_has_before_there_is_a_value(client: Client) -> None:
    slow = client.submit(slowinc, 1, delay=0.3)
    assert client.who_has(slow) == {slow.key: ()}


def test_who_has_asks_the_scheduler_only_for_what_is_not_owned(client: Client) -> None:
    actor = client.submit(list, actor=True)
    mine = client.submit(inc, 1)
    wait([actor, mine])
    before = client.central_calls
    assert len(client.who_has(mine)[mine.key]) == 1
    assert client.central_calls == before
    both = client.who_has([mine, actor])
    assert both.keys() == {mine.key, actor.key}
    assert all(len(where) == 1 for where in both.values())


def test_has_what_is_the_other_side_of_who_has(client: Client, workers: Any) -> None:
    stored = client.submit(blob, key=("blob", 0), workers=workers[0])
    copied = client.submit(blob, key="copied", seed=1)
    small = client.submit(where, workers=workers[1], pure=False)
    wait([stored, copied, small])
    client.replicate(copied)
    has = client.has_what()
    assert set(has) == set(workers)
    assert set(has[workers[0]]) == {("blob", 0), "copied"}
    assert set(has[workers[1]]) == {small.key, "copied"}
    assert set(client.has_what(workers[1])) == {workers[1]}
    assert "blob" in client.has_what()._repr_html_()


def test_nbytes(client: Client) -> None:
    blobs = client.map(blob, [100_000, 200_000], pure=False)
    wait(blobs)
    one, two = (client.nbytes([f.key], summary=False)[f.key] for f in blobs)
    assert one >= 100_000
    assert two >= 200_000
    assert client.nbytes() == {"blob": one + two}
    assert client.nbytes(summary=False) == {blobs[0].key: one, blobs[1].key: two}
    assert client.nbytes([blobs[0]]) == {"blob": one}
    with pytest.raises(KeyError):
        client.nbytes(["nobody knows this"])


def hold(name: str) -> int:
    """Waits for the event of that name."""
    distributed.Event(name).wait()
    return threading.get_ident()


def test_processing_and_call_stacks_of_what_runs(client: Client, workers: Any) -> None:
    event = distributed.Event("look")
    running = client.submit(hold, "look", key="hold-1", workers=workers[0])
    behind = client.submit(total, running, key="behind-1")
    assert client.processing().keys() == set(workers)
    until(lambda: "hold-1" in client.processing()[workers[0]])
    assert client.processing(workers[1]).keys() == {workers[1]}
    until(lambda: "Event(name).wait()" in str(client.call_stack(running)))
    for stacks in (
        client.call_stack(running),
        client.call_stack(behind),
        client.call_stack(keys=["hold-1"]),
        client.call_stack([running, behind]),
    ):
        assert stacks.keys() == {workers[0]}
        assert stacks[workers[0]].keys() == {"hold-1"}
        assert "Event(name).wait()" in "".join(stacks[workers[0]]["hold-1"])
    # Of everybody's tasks: threads of some that were cancelled may wait on.
    everything = client.call_stack()
    assert "Event(name).wait()" in "".join(everything[workers[0]]["hold-1"])
    assert "hold-1" not in everything.get(workers[1], {})
    event.set()
    assert behind.result() == running.result()
    assert client.call_stack(running) == {}
    assert not any(client.processing().values())


def test_threads_that_fall_asleep_do_not_disturb_call_stacks(client: Client) -> None:
    futures = client.map(slowinc, range(300), delay=0.001)
    while not all(f.done() for f in futures):
        client.call_stack()


def later_size(data: Any, number: int) -> int:
    time.sleep(0.01)
    return len(data)


def test_rebalance(client: Client, workers: Any) -> None:
    blobs = [client.submit(blob, 100_000, n, workers=workers[0]) for n in range(10)]
    wait(blobs)
    client.rebalance()
    held = client.has_what()
    here, there = (sum(b.key in held[w] for b in blobs) for w in workers)
    assert (here, there) == (5, 5)
    assert [f.result() for f in blobs] == [bytes([n]) * 100_000 for n in range(10)]
    client.rebalance()
    assert client.has_what() == held


def test_rebalance_while_tasks_use_the_values(client: Client, workers: Any) -> None:
    blobs = [client.submit(blob, 100_000, n, workers=workers[0]) for n in range(6)]
    wait(blobs)
    sizes = [client.submit(later_size, f, n) for n, f in enumerate(blobs * 3)]
    client.rebalance()
    assert client.gather(sizes) == [100_000] * 18
    wait(blobs)
    assert client.submit(total, *map(len, client.gather(blobs))).result() == 600_000


def test_rebalance_of_some(client: Client, workers: Any) -> None:
    blobs = [client.submit(blob, 100_000, n, workers=workers[0]) for n in range(4)]
    wait(blobs)
    client.rebalance(blobs[:1])
    assert client.who_has(blobs[0]) == {blobs[0].key: (workers[1],)}
    assert {w for f in blobs[1:] for w in client.who_has(f)[f.key]} == {workers[0]}
    client.rebalance(blobs, workers=[workers[0]])
    assert client.who_has(blobs[0]) == {blobs[0].key: (workers[1],)}
    with pytest.raises(KeyError, match="boom"):
        client.rebalance([client.submit(boom)])
    with pytest.raises(KeyError, match="names no worker"):
        client.rebalance(blobs, workers="nowhere")
    held = client.has_what()
    client.rebalance(workers=[])
    client.rebalance([])
    assert client.has_what() == held


def test_values_are_where_they_were_said_to_be_when_a_worker_died() -> None:
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        first, second = list(cluster.scheduler.workers)
        small = client.submit(inc, 1, workers=first)
        wait(small)
        assert client.who_has(small) == {small.key: (first,)}
        client.retire_workers([first])
        until(lambda: first not in client.owner.core.placement.workers)
        assert client.who_has(small) == {small.key: (second,)}
        assert small.result() == 2


def test_asked_from_asyncio(cluster: distributed.LocalCluster) -> None:
    async def ask() -> None:
        async with Client(cluster.scheduler_address, asynchronous=True) as client:
            future = client.submit(inc, 1)
            await wait(future)
            (where,) = (await client.who_has(future))[future.key]
            assert future.key in (await client.has_what())[where]
            assert (await client.nbytes())["inc"] > 0
            assert await client.call_stack(future) == {}
            assert (await client.processing())[where] == ()
            await client.rebalance()

    import asyncio

    asyncio.run(ask())


def test_asked_in_a_task(client: Client) -> None:
    def look() -> Any:
        here = distributed.get_client()
        child = here.submit(inc, 1)
        child.result()
        return child.key, here.who_has(child), here.nbytes([child.key])

    key, who, nbytes = client.submit(look).result()
    assert len(who[key]) == 1
    assert nbytes["inc"] > 0
