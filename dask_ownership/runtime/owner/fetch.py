"""Reading values: an owner asks the locations of its rows."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Iterable
from typing import Any

from dask_ownership.core.owner.rows.row import Borrowed, Row
from dask_ownership.core.protocol.names import NAME
from dask_ownership.core.protocol.states import INLINE, STORED
from dask_ownership.errors import LostData, NotSerializable, OwnershipError
from dask_ownership.runtime.comm.transfer import ask, size_of, unpack, within_owner
from dask_ownership.runtime.importing import unpickle
from dask_ownership.runtime.owner.owner import Owner
from dask_ownership.runtime.serialize import loads_value

ROUNDS = 6
"""Rounds in which all locations of a value are asked, at most. Between two rounds the owner finds
the locations anew."""

GATHER_BATCH = 500
"""Number of values in one request, at most."""


async def fetch(owner: Owner, rows: Iterable[Row]) -> dict[Row, Any]:
    """Bring the values of rows to this process, still packed.

    Returns
    -------
    dict of Row to object
        The packed value of each row: bytes for an inline value, `Serialized` for a stored value; or
        an exception saying why there is none, see `unpacked`. A row that ended without a value
        meanwhile is left out.
    """
    result: dict[Row, Any] = {}
    # How many locations of a row were asked in this round.
    tried: dict[Row, int] = {}
    # Locations that have answered, in this round, that they do not have the value.
    absent: dict[Row, set[str]] = {}
    # How many rounds ended with such answers.
    rounds: dict[Row, int] = {}
    todo = [row for row in rows if row.state <= STORED]
    while todo:
        # A value that was lost meanwhile is being made again.
        await owner.wait_async(todo)
        result.update((row, row.value) for row in todo if row.state == INLINE)
        places: dict[tuple[str, str], list[Row]] = {}
        again: list[Row] = []
        for row in todo:
            index = tried.get(row, 0)
            if row.state < INLINE:
                again.append(row)  # its value was lost while others were waited for
            # Inline values were read above, and rows without a value are left out.
            if row.state != STORED:
                continue
            incarnation, _, _ = owner.core.table.value_name(row)
            addresses = _addresses(row)
            # After all locations, the first location is asked once more.
            if index > len(addresses):
                tried[row] = 0
                said = absent.pop(row, None)
                if said is None:
                    # No location answered. Only membership says whether these workers are gone.
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
                    f"none of its locations gave it, which were looked up {found_anew} times, last "
                    f"{', '.join(addresses)}; it was owned by {_owner_of(owner, row)}"
                )
                result[row] = LostData(row.key, detail)
                continue
            # Rows of one owner at one worker share requests.
            place = (addresses[index % len(addresses)], incarnation)
            places.setdefault(place, []).append(row)
            tried[row] = index + 1
        todo = again
        requests = [
            _fetch_from(owner, place, group[start : start + GATHER_BATCH], result, absent)
            for place, group in places.items()
            for start in range(0, len(group), GATHER_BATCH)
        ]
        # Rows without a value so far are tried again, at their next locations.
        for missing in await asyncio.gather(*requests):
            todo.extend(missing)
    return result


def _owner_of(owner: Owner, row: Row) -> str:
    """Return the name of the owner of a row, for error messages."""
    return row.owner_ref[NAME] if isinstance(row, Borrowed) else owner.name


def _addresses(row: Row) -> list[str]:
    """Return the addresses of the locations of a stored value."""
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
    """Ask one worker for values of one owner.

    Parameters
    ----------
    owner : Owner
        The owner in this process.
    place : tuple
        The address of the worker, and the incarnation of the owner of the rows.
    rows : list of Row
    result : dict
        Values and errors are put here.
    absent : dict
        The address is put here for rows of which the worker does not have the value.

    Returns
    -------
    list of Row
        The rows without a value or an error so far.
    """
    address, incarnation = place
    # Workers know a value by the key at its owner and the attempt that made it.
    by_name = {within_owner(owner.core.table.value_name(row)): row for row in rows}
    try:
        values, reasons = await ask(
            owner.pool,
            address,
            incarnation,
            list(by_name),
            reader=owner.incarnation,
            token=owner.token,
            backoff=owner.backoff,
        )
    except OSError:
        # The worker may be gone: membership will say so, and the locations of the rows change then.
        await asyncio.sleep(0.1)
        return rows
    view = owner.core.placement.workers.get(address)
    if view is not None:
        view.byte_counter.received += sum(map(size_of, values.values()))
    for name, value in values.items():
        row = by_name.pop(name)
        result[row] = value
        if isinstance(row, Borrowed):
            row.misses = 0  # a worker had the value: misses count in a row only
    for name, reason in reasons.items():
        key, _attempt = name
        result[by_name.pop(name)] = NotSerializable(
            f"the value of {key!r} is at worker {address} and cannot be sent: {reason}"
        )
    for row in by_name.values():
        absent.setdefault(row, set()).add(address)
    return list(by_name.values())


def unpacked(key: Hashable, value: Any) -> Any:
    """Unpack the value of a row that `fetch` brought.

    Raises
    ------
    OwnershipError
        The error that `fetch` brought in place of a value, or `NotSerializable` when the value
        cannot be unpickled in this process.
    """
    if isinstance(value, Exception):
        raise value
    if isinstance(value, bytes):
        return loads_value(key, value)
    try:
        return unpickle(unpack, value)
    except OwnershipError as error:
        raise NotSerializable(f"{key!r}: {error}") from error
