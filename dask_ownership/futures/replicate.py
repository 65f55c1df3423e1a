"""Values of which an owner keeps several copies."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from dask_ownership.core.owner.rows.options import Replication
from dask_ownership.core.owner.rows.row import Row
from dask_ownership.futures.options import named_workers
from dask_ownership.runtime.owner.owner import Owner
from dask_ownership.runtime.parking import await_without_slot
from dask_ownership.runtime.serialize import loads_error


def wanted_copies(
    owner: Owner, n: Any = None, workers: Any = None, branching_factor: Any = 2
) -> Replication:
    """Return the copies that the user asked for, after checks.

    Raises
    ------
    TypeError, ValueError
        When a number makes no sense, or ``workers`` names no worker.
    """
    for what, value in (("n", n), ("branching_factor", branching_factor)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise TypeError(f"{what}= takes a whole number, not {value!r}")
    if branching_factor < 1:
        raise ValueError(f"branching_factor= must be at least 1, not {branching_factor}")
    names = named_workers(workers)
    places = owner.core.copy_targets()
    if names is not None:
        places = [view for view in places if any(view.answers_to(name) for name in names)]
        if not places:
            there = ", ".join(owner.core.workers) or "none"
            raise ValueError(
                f"workers={workers!r} names no worker that takes copies; there are: {there}"
            )
    number = len(places) if n is None else n
    if number < 1:
        raise ValueError(
            "Can not use replicate to delete data: at least one copy is kept, not "
            f"{number}{'' if n is not None else ', as many as there are workers'}"
        )
    return Replication(number, names, branching_factor)


async def replicate(owner: Owner, rows: Iterable[Row], wanted: Replication) -> None:
    """Keep so many copies of the values of rows, and wait until the copies are there. Loop thread.

    Rows that end without a value, and values that travelled to their owner, need no copies.

    Raises
    ------
    NotImplementedError
        For a row that another process owns.
    NotSerializable
        When a value cannot be copied; all other values are copied nevertheless.
    """
    rows = list(dict.fromkeys(rows))
    for row in rows:
        if row.borrowed:
            raise NotImplementedError(
                f"{row.key!r} is owned by another process, and copies of its value are kept by "
                "its owner: call replicate there"
            )
    await owner.wait_async(rows)
    # `keep_copies` may call `one_settled` at once for a row that needs no copies.
    left = set(rows)
    errors: list[bytes] = []
    settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def one_settled(row: Row, error: bytes | None) -> None:
        left.discard(row)
        if error is not None:
            errors.append(error)
        if not left and not settled.done():
            settled.set_result(None)

    for row in rows:
        owner.core.keep_copies(row, wanted, one_settled)
    owner.step()
    if left:
        await await_without_slot(settled)
    owner.check_open()
    if errors:
        raise loads_error(errors[0])
