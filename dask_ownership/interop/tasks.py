"""Functions of the bridge, which bring a value from owned to central tasks or back, at a worker.

`bring_owned` is a central task, `bring_central` an owned task. Both run as coroutines and give
their slot up, so that a value that is not there yet blocks no worker.
"""

from __future__ import annotations

import asyncio
from typing import Any

from distributed import Reschedule, get_worker
from distributed.actor import Actor
from distributed.utils import offload
from distributed.utils_comm import gather_from_workers

from dask_ownership.core.protocol.messages import Key, Origin
from dask_ownership.core.protocol.names import KEY, NAME
from dask_ownership.core.protocol.states import STORED
from dask_ownership.errors import FutureCancelledError, NotHere
from dask_ownership.futures.future import Future
from dask_ownership.futures.gather import Gathering
from dask_ownership.runtime.comm.scheduler_ops import WHERE
from dask_ownership.runtime.comm.transfer import LARGE
from dask_ownership.runtime.dask.scheduler import clean_exception
from dask_ownership.runtime.dask.worker import runs_here, secede_coroutine
from dask_ownership.runtime.owner.fetch import fetch
from dask_ownership.runtime.parking import await_without_slot

LOOK = 1.0
"""Seconds between looks at whether the scheduler still wants the central task that waits."""

ASK_AGAIN = (0.05, 1.0)
"""Seconds until the scheduler is asked again for a lost value: at first, and at most."""


async def bring_owned(name: Key, origin: Origin) -> Any:
    """Return the value of an owned object, as the result of the central task ``name``.

    When the scheduler computes the task again, the value is read again, and made again by its
    owner if need be.
    """
    worker = get_worker()
    side = worker.extensions.get("dask-ownership")
    if side is None:
        raise NotHere(
            f"the worker {worker.address} has no dask_ownership plugin and cannot read "
            f"{origin[KEY]!r}, which {origin[NAME]} owns"
        )
    client = side.executor.task_client
    owner = client.owner
    future = Future(client, owner.arrive(origin))
    try:
        if not future.done():
            # The owned task may need the very slot of this task.
            secede_coroutine(worker, name)
            while not await owner.wait_async((future._row,), LOOK):
                if not runs_here(worker, name):
                    raise Reschedule  # the scheduler has released the task here
        error = future._error()
        if error is None:
            return await _read(client, future)
        try:
            raise error
        finally:
            del error
    finally:
        # Not left to the garbage collector: the worker keeps an error with its traceback, whose
        # frames refer to this future.
        future.release()


async def _read(client: Any, future: Future) -> Any:
    """Read the value of an owned future that has ended with a value."""
    gathering = Gathering(client, [future], "raise")
    remaining = gathering.read_here()
    if remaining:
        row = future._row
        fetched = await fetch(client.owner, [row])
        # A large value is unpickled in a thread, because that would hold the worker's loop up.
        if row.state == STORED and row.nbytes > LARGE:
            await offload(gathering.read_fetched, remaining, fetched)
        else:
            gathering.read_fetched(remaining, fetched)
    return gathering.values[future]


async def bring_central(key: Key) -> Any:
    """Return the value of a key of the central scheduler, as the result of an owned task."""
    return await await_without_slot(_bring_central(get_worker(), key))


async def _bring_central(worker: Any, key: Key) -> Any:
    """Read the value of a key here or at another worker, asking the scheduler until it is known.

    Raises
    ------
    FutureCancelledError
        When the scheduler does not know the key.
    """
    pause, longest = ASK_AGAIN
    while True:
        if key in worker.state.actors:
            return _loose(Actor(type(worker.state.actors[key]), worker.address, key, worker))
        # Not `Worker.data`, which shows owned values of the same key as well.
        if key in worker.state.data:
            return worker.state.data[key]
        owner = worker.extensions["dask-ownership"].owner
        (found,) = await getattr(worker.scheduler, WHERE)(
            keys=[key], asker=owner.incarnation, token=owner.token
        )
        if found["who_has"]:
            data, *_ = await gather_from_workers({key: found["who_has"]}, rpc=worker.rpc)
            if key in data:
                return _loose(data[key])
        elif "exception" in found:
            _, error, traceback = clean_exception(found["exception"], found["traceback"])
            raise error.with_traceback(traceback)
        elif found["state"] == "unknown":
            raise FutureCancelledError(
                key, "lost", "the central scheduler does not know it any more"
            )
        # The value was lost, and the scheduler is computing it again.
        await asyncio.sleep(pause)
        pause = min(2 * pause, longest)


def _loose(value: Any) -> Any:
    """Have a handle on an actor not keep the actor: the importing row does."""
    if isinstance(value, Actor):
        value._future = None
    return value
