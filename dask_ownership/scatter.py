"""Scattering: values that a client puts at workers."""

from __future__ import annotations

import asyncio
import uuid
from time import time
from typing import Any

from dask.tokenize import tokenize

from dask_ownership.core.placement import WorkerView
from dask_ownership.core.table import NO_OPTIONS, Options, Row
from dask_ownership.errors import NoWorker
from dask_ownership.future import Future
from dask_ownership.runtime.keys import check_key
from dask_ownership.runtime.serialize import dumps
from dask_ownership.runtime.transfer import seal


async def scatter(
    client: Any,
    data: Any,
    workers: Any,
    broadcast: Any,
    hash: bool,
    timeout: float,
    options: Options = NO_OPTIONS,
) -> Any:
    """Put values at workers; futures in the shape of the data.

    Parameters
    ----------
    data : object
        A list, tuple, set, frozenset, dict or namedtuple of values, or one value.
    workers : str, list or None
        Addresses, names or hosts.
    broadcast : bool or int
        Put each value at all those workers, or at so many.
    hash : bool
        Derive the keys from the values.
    timeout : float
        Seconds to wait for a worker.
    options : Options
        Of the rows.

    Raises
    ------
    NoWorker
        When there is none in that time.
    NotSerializable
        When a value cannot be pickled.
    """
    values, rebuild = _spread(data, hash)
    views = await _places(client, workers, timeout)
    copies = len(views) if broadcast is True else max(1, min(int(broadcast or 1), len(views)))
    owner = client.owner
    rows: dict[Any, Row] = {}
    batches: dict[WorkerView, list[Any]] = {}
    for number, (key, value) in enumerate(values.items()):
        known = owner.known(key)
        if known is not None:
            rows[key] = known
            continue
        made = Row(key, None, None, (), 0, options)
        row = rows[key] = owner.core.table.adopt(made)
        row.type_name = _type_of(value)
        owner.core.attempts += 1
        row.attempt = owner.core.attempts
        for copy in range(copies):
            view = views[(number + copy) % len(views)]
            batches.setdefault(view, []).append((row, value))
    placed: dict[Row, list[tuple[WorkerView, int]]] = {}
    try:
        tried: dict[WorkerView, Any] = {}
        while batches:
            outcomes = await asyncio.gather(
                *(_put(owner, view, batch, placed) for view, batch in batches.items()),
                return_exceptions=True,
            )
            refused: dict[WorkerView, list[Any]] = {}
            for (view, batch), outcome in zip(batches.items(), outcomes, strict=True):
                if isinstance(outcome, OSError) or outcome is False:
                    # It leaves, or it left: another one is asked, if there is one.
                    tried[view] = outcome or "it leaves"
                    others = await _places(client, workers, timeout, tried)
                    refused.setdefault(others[0], []).extend(batch)
                elif isinstance(outcome, BaseException):
                    raise outcome
            batches = refused
    except BaseException:
        for row, holders in placed.items():  # so that dropping them frees what was taken
            owner.core.put(row, [view for view, _ in holders], holders[0][1])
        for row in rows.values():
            owner.drop(row)
        raise
    for row, holders in placed.items():
        owner.core.put(row, [view for view, _ in holders], holders[0][1])
    owner._step()
    return rebuild({key: Future(client, row) for key, row in rows.items()})


async def _put(
    owner: Any, view: WorkerView, batch: list[Any], placed: dict[Row, list[tuple[WorkerView, int]]]
) -> bool:
    """Put values at one worker; False when it is about to leave and does not take them."""
    executor = owner.executor
    if executor is not None and view.address == executor.worker.address:
        sizes = [
            executor.hold(owner.incarnation, row.key, row.attempt, value) for row, value in batch
        ]
    else:
        data = [(row.key, row.attempt, seal(value)) for row, value in batch]
        answer = await owner.pool(view.address).ownership_put(
            owner=owner.incarnation, data=data, token=owner.token
        )
        if isinstance(answer, dict) and answer.get("status") == "leaving":
            return False
        if not isinstance(answer, dict) or answer.get("status") != "OK":
            raise NoWorker(batch[0][0].key, f"{view.address} did not take it: {answer!r}")
        sizes = answer["nbytes"]
    for (row, _), nbytes in zip(batch, sizes, strict=True):
        placed.setdefault(row, []).append((view, nbytes))
    return True


async def _places(
    client: Any, workers: Any, timeout: float, tried: dict[WorkerView, Any] | None = None
) -> list[WorkerView]:
    """Workers that may hold the values; this process's own first.

    ``tried`` are those that were asked already, with why they did not take them.
    """
    owner = client.owner
    if workers is not None and not isinstance(workers, list | tuple | set):
        workers = [workers]
    deadline = time() + timeout
    while True:
        views = list(owner.core.placement.workers.values())
        if workers is not None:
            views = owner.core.placement.matching(map(str, workers))
        views = [view for view in views if view.accepting and not (tried and view in tried)]
        if views:
            break
        if time() > deadline:
            there = ", ".join(owner.core.placement.workers) or "none"
            detail = f"workers={workers} within {timeout} s; there are: {there}"
            for view, problem in (tried or {}).items():
                detail += f"; {view.address} was asked: {problem}"
            raise NoWorker("scatter", detail)
        await asyncio.sleep(0.05)
    home = owner.core.placement.home
    if workers is None and home is not None:
        views.sort(key=lambda view: view.address != home)
        return views
    start = owner.next_order() % len(views)
    return views[start:] + views[:start]


def _spread(data: Any, hash: bool) -> tuple[dict[Any, Any], Any]:
    """Values by key, and what makes the user's structure of futures by key."""
    if isinstance(data, range):
        data = list(data)
    kind = type(data)
    if kind is dict:
        for key in data:
            check_key(key)
        return dict(data), lambda futures: futures
    named = isinstance(data, tuple) and hasattr(data, "_fields")
    if kind in (list, tuple, set, frozenset) or named:
        items = list(data)
        names = [_name(value, hash) for value in items]

        def rebuild(futures: dict[Any, Any]) -> Any:
            made = [futures[name] for name in names]
            return kind(*made) if named else kind(made)

        return dict(zip(names, items, strict=True)), rebuild
    name = _name(data, hash)
    return {name: data}, lambda futures: futures[name]


def _name(value: Any, hash: bool) -> str:
    token = tokenize(value) if hash else uuid.uuid4().hex
    return f"{type(value).__name__}-{token}"


def _type_of(value: Any) -> bytes | None:
    try:
        return dumps(type(value))
    except Exception:
        return None
