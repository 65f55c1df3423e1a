"""Scattering: values that a client puts at workers."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterable, Mapping
from time import time
from typing import Any

from dask_ownership.core.owner.rows.options import NO_OPTIONS, Options
from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.owner.rows.worker_view import WorkerView
from dask_ownership.core.protocol.failure import Failure
from dask_ownership.core.protocol.states import INLINE, STORED, WAITING
from dask_ownership.errors import NoWorker, NoWorkerInTime
from dask_ownership.futures.future import Future
from dask_ownership.futures.keys import check_key, token_of
from dask_ownership.runtime.comm.request import Stalled, request
from dask_ownership.runtime.comm.transfer import seal, size_of
from dask_ownership.runtime.owner.owner import Owner
from dask_ownership.runtime.serialize import dumps

Batches = dict[WorkerView, list[tuple[Row, Any]]]
"""Rows and their values, by the worker that is to hold the values."""


async def scatter(
    client: Any,
    data: Any,
    *,
    workers: Any,
    broadcast: Any,
    hash: bool,
    timeout: float,
    options: Options = NO_OPTIONS,
) -> Any:
    """Put values at workers, and return futures in the structure of the data.

    Parameters
    ----------
    data : object
        A list, tuple, set, frozenset, dict or namedtuple of values, or one value.
    workers : str, list or None
        Addresses, names or hosts.
    broadcast : bool or int
        Put each value at all of these workers, or at so many.
    hash : bool
        Derive the keys from the values.
    timeout : float
        Seconds to wait for a worker.
    options : Options
        Of the rows.

    Raises
    ------
    NoWorker
        When there is no worker in that time.
    NotSerializable
        When a value cannot be pickled.
    """
    values, rebuild = _spread(data, hash)
    owner = client.owner
    targets = Targets(owner, workers, timeout)
    views = await targets.find()
    copies = len(views) if broadcast is True else max(1, min(int(broadcast or 1), len(views)))
    find = owner.find if isinstance(data, dict) else owner.known  # keys of a dict are the user's
    scattering = Scattering(owner, targets, options)
    try:
        # A second round puts values that another call was putting when it was interrupted.
        while values:
            new, elsewhere = scattering.begin(values, find)
            batches: Batches = {}
            for number, one in new:
                # Values go around the workers in turn, and copies of a value to the workers behind.
                for copy in range(copies):
                    batches.setdefault(views[(number + copy) % len(views)], []).append(one)
            await scattering.put(batches)
            values = await scattering.left_behind(elsewhere)
    except BaseException as error:
        scattering.give_up(error)
        raise
    owner.step()
    return rebuild({key: Future(client, row) for key, row in scattering.rows.items()})


class Targets:
    """Finds workers that may hold values.

    Parameters
    ----------
    owner : Owner
    workers : str, list or None
        Addresses, names or hosts.
    timeout : float
        Seconds to wait for a worker.

    Attributes
    ----------
    owner : Owner
    chosen : bool
        Whether the caller named workers.
    """

    def __init__(self, owner: Owner, workers: Any, timeout: float) -> None:
        self.owner = owner
        self.chosen = workers is not None
        one = self.chosen and not isinstance(workers, list | tuple | set)
        self._workers = [workers] if one else workers
        self._timeout = timeout

    async def find(self, tried: Mapping[WorkerView, Any] | None = None) -> list[WorkerView]:
        """Return present workers, in the order in which values go to them.

        The worker of this process comes first when the caller named no workers. ``tried`` maps
        workers that did not take values to the reason; they are left out.

        Raises
        ------
        NoWorkerInTime
        """
        core = self.owner.core
        deadline = time() + self._timeout
        while not (views := [view for view in self._there() if not (tried and view in tried)]):
            if time() > deadline:
                raise NoWorkerInTime("scatter", self._why_none(tried or {}))
            await asyncio.sleep(0.05)
        home = core.home
        if not self.chosen and home is not None:
            views.sort(key=lambda view: view.address != home)
            return views
        # Each call begins at another worker, so that many small calls spread over all workers.
        start = self.owner.task_order.one() % len(views)
        return views[start:] + views[:start]

    def _there(self) -> list[WorkerView]:
        """Return the present workers that accept values and match the caller's names."""
        core = self.owner.core
        views: Iterable[WorkerView] = core.workers.values()
        if self.chosen:
            views = core.workers_named(map(str, self._workers))
        return [view for view in views if view.accepting]

    def _why_none(self, tried: Mapping[WorkerView, Any]) -> str:
        """Return the reasons why no worker was found, for the error."""
        there = ", ".join(self.owner.core.workers) or "none"
        detail = f"workers={self._workers} within {self._timeout} s; there are: {there}"
        for view, problem in tried.items():
            detail += f"; {view.address} was asked: {problem}"
        return detail


class Scattering:
    """The rows of one scatter, and the workers with their values.

    Parameters
    ----------
    owner : Owner
    targets : Targets
        Finds another worker when a worker does not take its values.
    options : Options
        Of the rows.

    Attributes
    ----------
    owner : Owner
    rows : dict
        Key to its row, each with a local reference.
    """

    def __init__(self, owner: Owner, targets: Targets, options: Options) -> None:
        self.owner = owner
        self.rows: dict[Any, Row] = {}
        self._targets = targets
        self._options = options
        self._made: list[Row] = []
        self._placed: dict[Row, list[tuple[WorkerView, int]]] = {}
        self._perhaps: dict[Row, list[WorkerView]] = {}

    def begin(
        self, values: dict[Any, Any], find: Callable[[Any], Row | None]
    ) -> tuple[list[tuple[int, tuple[Row, Any]]], dict[Any, Any]]:
        """Make rows for values.

        Returns
        -------
        tuple
            Numbers of values with their new rows; and by key the values that another call is
            putting at workers.
        """
        new: list[tuple[int, tuple[Row, Any]]] = []
        elsewhere: dict[Any, Any] = {}
        core = self.owner.core
        for number, (key, value) in enumerate(values.items()):
            known = find(key)
            if known is not None:
                self.rows[key] = known
                # A waiting row without a function is the row of another scatter.
                if known.state == WAITING and known.function is None and not known.borrowed:
                    elsewhere[key] = value
                continue
            row = self.rows[key] = core.expect(key, self._options)
            self._made.append(row)
            row.type_name = _type_of(value)
            new.append((number, (row, value)))
        return new, elsewhere

    async def put(self, batches: Batches) -> None:
        """Put values at workers; values that a worker does not take go to another worker.

        Raises
        ------
        NoWorker
            When no worker takes the values.
        NotSerializable
            When a value cannot be pickled.
        """
        tried: dict[WorkerView, Any] = {}
        while batches:
            outcomes = await asyncio.gather(
                *(self._put_at(view, batch) for view, batch in batches.items()),
                return_exceptions=True,
            )
            refused: Batches = {}
            for (view, batch), outcome in zip(batches.items(), outcomes, strict=True):
                if isinstance(outcome, OSError) or outcome is False:
                    # The worker leaves, has left, or does not answer: another worker is asked, if
                    # there is one. A frozen worker that the caller named is asked again.
                    if not isinstance(outcome, Stalled) or not self._targets.chosen:
                        tried[view] = outcome or "it leaves"
                    others = await self._targets.find(tried)
                    refused.setdefault(others[0], []).extend(batch)
                elif isinstance(outcome, BaseException):
                    raise outcome
            batches = refused
        self._say_where()

    async def _put_at(self, view: WorkerView, batch: list[tuple[Row, Any]]) -> bool:
        """Put values at one worker; return False when the worker is leaving and takes none."""
        owner = self.owner
        executor = owner.executor
        if executor is not None and view.address == executor.worker.address:
            # The worker of this process keeps the very objects, which need no pickling.
            hold = executor.hold
            sizes = [hold(owner.incarnation, row.key, row.attempt, value) for row, value in batch]
        else:
            data = [(row.key, row.attempt, seal(value, view.address)) for row, value in batch]
            try:
                answer = await request(
                    owner.pool, view.address, owner.backoff, "ownership_put",
                    owner=owner.incarnation, data=data, token=owner.token,
                )  # fmt: skip
            except Stalled:
                # The worker may have the values, or find the request when it wakes up. As a
                # possible location it is told when the values are freed.
                for row, _ in batch:
                    self._perhaps.setdefault(row, []).append(view)
                raise
            if isinstance(answer, dict) and answer.get("status") == "leaving":
                return False
            if not isinstance(answer, dict) or answer.get("status") != "OK":
                [(refused, *_), *_] = batch
                raise NoWorker(refused.key, f"{view.address} did not take it: {answer!r}")
            view.byte_counter.sent += sum(size_of(sealed.data) for _, _, sealed in data)
            sizes = answer["nbytes"]
        for (row, _), nbytes in zip(batch, sizes, strict=True):
            self._placed.setdefault(row, []).append((view, nbytes))
        return True

    def _say_where(self) -> None:
        """Tell the core the locations of each value."""
        for row in dict.fromkeys([*self._placed, *self._perhaps]):
            took = self._placed.get(row, [])
            locations = dict.fromkeys([*(view for view, _ in took), *self._perhaps.get(row, ())])
            self.owner.core.put(row, locations, took[0][1] if took else 0)

    async def left_behind(self, elsewhere: dict[Any, Any]) -> dict[Any, Any]:
        """Return, by key, the values that another, interrupted call did not put at workers."""
        owner = self.owner
        values = {}
        for key, value in elsewhere.items():
            row = self.rows[key]
            await owner.wait_async((row,))
            if row.state > STORED:
                owner.drop(self.rows.pop(key))
                values[key] = value
        if values:
            # The row without a value has to leave the table before its key gets a new row.
            owner.process()
            await asyncio.sleep(0)
        return values

    def give_up(self, error: BaseException) -> None:
        """End the rows without a value, and drop the local references of all rows."""
        owner = self.owner
        self._say_where()  # so that dropping the rows frees the values at workers
        for row in self._made:
            if row.state < INLINE:
                detail = f"the scatter that was to put it at a worker ended with {error!r}"
                owner.core.settle(row, Failure("cancelled", row.key, detail))
        owner.drop_all(self.rows.values())
        owner.process()


def _spread(data: Any, hash: bool) -> tuple[dict[Any, Any], Any]:
    """Return values by key, and a function from futures by key to the structure of the data."""
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
    """Return the key of a value."""
    token = token_of(value) if hash else uuid.uuid4().hex
    return f"{type(value).__name__}-{token}"


def _type_of(value: Any) -> bytes | None:
    """Return the pickled type of a value, or None for a type that cannot be pickled."""
    try:
        return dumps(type(value))
    except Exception:
        return None
