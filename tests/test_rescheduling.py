"""``raise Reschedule()``: a task says that it is to run again, possibly elsewhere."""

from __future__ import annotations

import asyncio
from typing import Any

from distributed import Reschedule, get_client, get_worker
from programs import inc

from dask_ownership import Client


def only_at(address: str, children: int = 0, *futures: Any) -> str:
    here = get_worker().address
    if children:
        get_client().gather(get_client().map(inc, range(children)))
    if here != address:
        raise Reschedule
    return here


async def coroutine_only_at(address: str) -> str:
    await asyncio.sleep(0)
    if get_worker().address != address:
        raise Reschedule
    return get_worker().address


def test_it_runs_again_until_it_is_where_it_wants_to_be(client: Client, workers: list[str]) -> None:
    for address in workers:
        futures = [client.submit(only_at, address, pure=False) for _ in range(4)]
        futures += [client.submit(coroutine_only_at, address, pure=False) for _ in range(4)]
        assert set(client.gather(futures)) == {address}
    story = [event for f in futures for _, event, detail, _ in client.story(f) if "Resch" in detail]
    assert set(story) <= {"returned"}
    assert client.ownership().handed_out_again["returned"] > 0
    assert client.central_calls == 0


def test_with_tasks_of_its_own_and_futures_inside(client: Client, workers: list[str]) -> None:
    """What such an attempt submitted and borrowed is let go of."""
    values = client.map(inc, range(3))
    futures = [
        client.submit(only_at, address, 3, {"inside": [values]}, pure=False, retries=0)
        for address in workers
        for _ in range(3)
    ]
    assert set(client.gather(futures)) == set(workers)
