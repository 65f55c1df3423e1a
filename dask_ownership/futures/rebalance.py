"""Evening out the bytes of a client's stored values over the workers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from time import perf_counter
from typing import Any

import dask

from dask_ownership.core.owner.recovery.rebalance import moves
from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.owner.rows.worker_view import WorkerView
from dask_ownership.core.protocol.states import INLINE, STORED
from dask_ownership.futures.options import named_workers
from dask_ownership.runtime.comm.link import OwnerLink
from dask_ownership.runtime.owner.owner import Owner
from dask_ownership.runtime.parking import await_without_slot
from dask_ownership.runtime.serialize import loads_error

TOLD_WITHIN = 1.0
"""Seconds to wait until workers hear which values they may free."""


async def _told(views: Iterable[WorkerView]) -> None:
    """Wait until workers received all that was sent to them, for at most `TOLD_WITHIN` seconds."""
    links = [view.link for view in views if isinstance(view.link, OwnerLink)]
    waiting = [(link.state, link.state.sent) for link in links]
    deadline = perf_counter() + TOLD_WITHIN
    while any(state.acknowledged < sent for state, sent in waiting) and perf_counter() < deadline:
        await asyncio.sleep(0.005)


async def rebalance(owner: Owner, rows: Iterable[Row] | None, workers: Any = None) -> None:
    """Move the values of rows, or of all rows, and wait for the end of the moves. Loop thread.

    Raises
    ------
    KeyError
        For rows that ended without a value, and when ``workers`` names no worker.
    NotSerializable
        When a value cannot be copied.
    """
    core = owner.core
    if rows is not None:
        rows = list(dict.fromkeys(rows))
        await owner.wait_async(rows)
        missing = [row.key for row in rows if row.state not in (INLINE, STORED)]
        if missing:
            raise KeyError(f"Could not rebalance keys, which have no value: {missing}")
    owner.process()
    if workers is not None and not workers:
        return
    names = named_workers(workers)
    places = {view.address: view for view in core.copy_targets()}
    if names is not None:
        places = {a: v for a, v in places.items() if any(v.answers_to(name) for name in names)}
        if not places:
            there = ", ".join(core.workers) or "none"
            raise KeyError(f"workers={workers!r} names no worker; there are: {there}")
    # All bytes of this owner at a worker count, also bytes of values that are not to be moved.
    stored = dict.fromkeys(places, 0)
    movable: list[Row] = []
    wanted = None if rows is None else set(rows)
    for row in core.rows():
        if row.state != STORED or row.borrowed:
            continue
        for view in row.locations:
            if view.address in stored:
                stored[view.address] += row.nbytes
        # Copies at workers that the user named by `replicate` stay where they are.
        chosen = row.options.replicas is not None and row.options.replicas.workers is not None
        if (wanted is None or row in wanted) and not core.is_copied(row) and not chosen:
            movable.append(row)
    movable.sort(key=lambda row: row.order)
    # The same setting as for Dask's own rebalance.
    gap = float(dask.config.get("distributed.worker.memory.rebalance.sender-recipient-gap"))
    values = [(row.nbytes, [v.address for v in row.locations]) for row in movable]
    todo = moves(stored, values, gap)
    if not todo:
        return
    left = len(todo)
    errors: list[bytes] = []
    settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def one_settled(task: Row) -> None:
        nonlocal left
        left -= 1
        # A move is a task of its own; a value of bytes in a state beyond `STORED` is its pickled
        # error.
        if isinstance(task.value, bytes) and task.state > STORED:
            errors.append(task.value)
        if not left and not settled.done():
            settled.set_result(None)

    for number, source, target in todo:
        core.move(movable[number], places[source], places[target], one_settled)
    owner.step()
    await await_without_slot(settled)
    owner.step()
    # A caller that looks at the workers' memory right after this call expects the bytes to be gone.
    await _told([places[source] for source in {source for _, source, _ in todo}])
    owner.check_open()
    if errors:
        raise loads_error(errors[0])
