"""Scattering: values that a client puts at workers."""

from __future__ import annotations

import asyncio
import uuid
from time import time
from typing import Any

from dask_ownership.core.placement import WorkerView
from dask_ownership.core.row import INLINE, NO_OPTIONS, STORED, WAITING, Failure, Options, Row
from dask_ownership.errors import NoWorker, NoWorkerInTime
from dask_ownership.future import Future
from dask_ownership.runtime.keys import check_key, token_of
from dask_ownership.runtime.request import Stalled, request
from dask_ownership.runtime.serialize import dumps
from dask_ownership.runtime.transfer import seal, size_of


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
    find = owner.find if isinstance(data, dict) else owner.known  # who gives names chooses them
    rows: dict[Any, Row] = {}
    made: list[Row] = []
    placed: dict[Row, list[tuple[WorkerView, int]]] = {}
    perhaps: dict[Row, list[WorkerView]] = {}

    def put() -> None:
        for row in dict.fromkeys([*placed, *perhaps]):
            took = placed.get(row, [])
            holders = dict.fromkeys([*(view for view, _ in took), *perhaps.get(row, ())])
            owner.core.put(row, holders, took[0][1] if took else 0)

    try:
        while values:
            elsewhere: dict[Any, Any] = {}
            batches: dict[WorkerView, list[Any]] = {}
            for number, (key, value) in enumerate(values.items()):
                known = find(key)
                if known is not None:
                    rows[key] = known
                    if known.state == WAITING and known.function is None and not known.borrowed:
                        elsewhere[key] = value
                    continue
                row = rows[key] = owner.core.table.adopt(Row(key, None, None, (), 0, options))
                made.append(row)
                row.type_name = _type_of(value)
                owner.core.lifecycle.numbers += 1
                row.attempt = owner.core.lifecycle.numbers
                for copy in range(copies):
                    view = views[(number + copy) % len(views)]
                    batches.setdefault(view, []).append((row, value))
            tried: dict[WorkerView, Any] = {}
            while batches:
                outcomes = await asyncio.gather(
                    *(_put(owner, view, batch, placed, perhaps) for view, batch in batches.items()),
                    return_exceptions=True,
                )
                refused: dict[WorkerView, list[Any]] = {}
                for (view, batch), outcome in zip(batches.items(), outcomes, strict=True):
                    if isinstance(outcome, OSError) or outcome is False:
                        # It leaves, or it left, or does not answer: another one is asked, if
                        # there is one.
                        if not isinstance(outcome, Stalled) or workers is None:
                            tried[view] = outcome or "it leaves"
                        others = await _places(client, workers, timeout, tried)
                        refused.setdefault(others[0], []).extend(batch)
                    elif isinstance(outcome, BaseException):
                        raise outcome
                batches = refused
            put()
            # Another call puts these, or is being interrupted: then they are put here.
            values = {}
            for key, value in elsewhere.items():
                await owner.wait_async((rows[key],))
                if rows[key].state > STORED:
                    owner.drop(rows.pop(key))
                    values[key] = value
            if values:
                owner.process()
                await asyncio.sleep(0)
    except BaseException as error:
        put()  # so that dropping them frees what was taken
        for row in made:
            if row.state < INLINE:
                detail = f"the scatter that was to put it at a worker ended with {error!r}"
                owner.core.settle(row, Failure("cancelled", row.key, detail))
        owner.drop_all(rows.values())
        owner.process()
        raise
    owner.step()
    return rebuild({key: Future(client, row) for key, row in rows.items()})


async def _put(
    owner: Any,
    view: WorkerView,
    batch: list[Any],
    placed: dict[Row, list[tuple[WorkerView, int]]],
    perhaps: dict[Row, list[WorkerView]],
) -> bool:
    """Put values at one worker; False when it is about to leave and does not take them."""
    executor = owner.executor
    if executor is not None and view.address == executor.worker.address:
        sizes = [
            executor.hold(owner.incarnation, row.key, row.attempt, value) for row, value in batch
        ]
    else:
        data = [(row.key, row.attempt, seal(value, view.address)) for row, value in batch]
        try:
            answer = await request(
                owner.pool, view.address, owner.patience, "ownership_put",
                owner=owner.incarnation, data=data, token=owner.token,
            )  # fmt: skip
        except Stalled:
            # It may have them, or find them when it wakes up: it is told when they are freed.
            for row, _ in batch:
                perhaps.setdefault(row, []).append(view)
            raise
        if isinstance(answer, dict) and answer.get("status") == "leaving":
            return False
        if not isinstance(answer, dict) or answer.get("status") != "OK":
            raise NoWorker(batch[0][0].key, f"{view.address} did not take it: {answer!r}")
        view.traffic.sent += sum(size_of(sealed.data) for _, _, sealed in data)
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
            raise NoWorkerInTime("scatter", detail)
        await asyncio.sleep(0.05)
    home = owner.core.placement.home
    if workers is None and home is not None:
        views.sort(key=lambda view: view.address != home)
        return views
    start = owner.places.one() % len(views)
    return views[start:] + views[:start]


def _spread(data: Any, hash: bool) -> tuple[dict[Any, Any], Any]:
    """Values by key, and what makes the user's structure of futures by key."""
    if isinstance(data, range):
        data = list(data)
    kind = type(data)
    if kind is dict:
        return {check_key(key): value for key, value in data.items()}, lambda futures: futures
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
    token = token_of(value) if hash else uuid.uuid4().hex
    return f"{type(value).__name__}-{token}"


def _type_of(value: Any) -> bytes | None:
    try:
        return dumps(type(value))
    except Exception:
        return None
