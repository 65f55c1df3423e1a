"""Reading values: an owner asks the workers that have them."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Iterable
from typing import Any

from dask_ownership.core.owner.rows.row import Borrowed, Row
from dask_ownership.core.protocol.states import INLINE, STORED
from dask_ownership.errors import LostData, NotSerializable, OwnershipError
from dask_ownership.runtime.comm.transfer import ask, size_of, unpack
from dask_ownership.runtime.importing import unpickle
from dask_ownership.runtime.owner.owner import Owner
from dask_ownership.runtime.serialize import loads_value

ROUNDS = 6
"""How often all holders of a value are asked, being found anew when none of them has it."""

GATHER_BATCH = 500
"""Values asked for in one request when gathering."""


async def fetch(owner: Owner, rows: Iterable[Row]) -> dict[Row, Any]:
    """Bring values here, still packed; for each row the value or why not.

    A row that ended without a value meanwhile is left out.
    """
    result: dict[Row, Any] = {}
    tried: dict[Row, int] = {}
    absent: dict[Row, set[str]] = {}
    rounds: dict[Row, int] = {}
    todo = [row for row in rows if row.state <= STORED]
    while todo:
        # One that was lost meanwhile is being made again.
        await owner.wait_async(todo)
        result.update((row, row.value) for row in todo if row.state == INLINE)
        places: dict[tuple[str, str], list[Row]] = {}
        again: list[Row] = []
        for row in todo:
            index = tried.get(row, 0)
            if row.state != STORED:
                continue
            incarnation = owner.core.table.value_name(row)[0]
            addresses = _addresses(row)
            if index > len(addresses):
                tried[row] = 0
                said = absent.pop(row, None)
                if said is None:
                    # Nobody answered: whether they are dead is for membership to say.
                    owner.core.suspensions.unanswered(row)
                    owner.step()
                    again.append(row)
                    continue
                found_anew = rounds[row] = rounds.get(row, 0) + 1
                if found_anew < ROUNDS:
                    owner.core.missed(row, said)
                    owner.step()
                    again.append(row)
                    continue
                detail = (
                    f"none of its holders gave it, which were looked up {found_anew} times, last "
                    f"{', '.join(addresses)}; it was owned by {_owner_of(owner, row)}"
                )
                result[row] = LostData(row.key, detail)
                continue
            place = (addresses[index % len(addresses)], incarnation)
            places.setdefault(place, []).append(row)
            tried[row] = index + 1
        todo = again
        requests = [
            _fetch_from(owner, place, group[start : start + GATHER_BATCH], result, absent)
            for place, group in places.items()
            for start in range(0, len(group), GATHER_BATCH)
        ]
        for missing in await asyncio.gather(*requests):
            todo.extend(missing)
    return result


def _owner_of(owner: Owner, row: Row) -> str:
    return row.owner_ref[2] if isinstance(row, Borrowed) else owner.name


def _addresses(row: Row) -> list[str]:
    """Workers that have a stored value."""
    if isinstance(row, Borrowed):
        return list(row.addresses)
    return [view.address for view in row.locations]


async def _fetch_from(
    owner: Owner,
    place: tuple[str, str],
    rows: list[Row],
    result: dict[Row, Any],
    absent: dict[Row, set[str]],
) -> list[Row]:
    """Ask one worker for values of one owner; the rows that it did not give."""
    address, incarnation = place
    by_name = {owner.core.table.value_name(row)[1:]: row for row in rows}
    try:
        values, reasons = await ask(
            owner.pool,
            address,
            incarnation,
            list(by_name),
            reader=owner.incarnation,
            token=owner.token,
            patience=owner.patience,
        )
    except OSError:
        # It may be dead: membership will say so, and then the rows change.
        await asyncio.sleep(0.1)
        return rows
    view = owner.core.placement.workers.get(address)
    if view is not None:
        view.traffic.received += sum(map(size_of, values.values()))
    for name, value in values.items():
        row = by_name.pop(name)
        result[row] = value
        if isinstance(row, Borrowed):
            row.misses = 0
    for name, reason in reasons.items():
        result[by_name.pop(name)] = NotSerializable(
            f"the value of {name[0]!r} is at worker {address} and cannot be sent: {reason}"
        )
    for row in by_name.values():
        absent.setdefault(row, set()).add(address)
    return list(by_name.values())


def unpacked(key: Hashable, value: Any) -> Any:
    """The value that `fetch` brought.

    Raises
    ------
    OwnershipError
        What `fetch` found instead, or that it cannot be unpickled here.
    """
    if isinstance(value, Exception):
        raise value
    if isinstance(value, bytes):
        return loads_value(key, value)
    try:
        return unpickle(unpack, value)
    except OwnershipError as error:
        raise NotSerializable(f"{key!r}: {error}") from error
