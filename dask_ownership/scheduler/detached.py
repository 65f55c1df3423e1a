"""What lies in queues, variables and datasets, held by the scheduler's process.

These things live at the scheduler, and so does what they refer to: there is an owner in its
process, like that of a client which never leaves. It takes over what is put somewhere
(`references.detached`) and lets go of it when the item was taken out and the taker is counted,
the variable was set anew or deleted, the queue closed, the dataset unpublished. Values stay
at the workers; nobody unpickles anything here.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Container, Sequence
from functools import wraps
from typing import Any

from dask_ownership.core.owner.references.detached import LineageSpec
from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.protocol.messages import is_origin
from dask_ownership.runtime.comm.scheduler_ops import HOLD, RELEASE_HOLD
from dask_ownership.runtime.owner.owner import Owner

logger = logging.getLogger("dask_ownership.scheduler")

MARK = "dask-ownership-hold"
"""In a queue or variable: the hold of what the item refers to, beside the `ENVELOPE`."""

ENVELOPE = "envelope"

SETTLING = 5.0
"""Seconds for which the answer to `HOLD` waits for values to be taken over."""


class Hold:
    """Rows that are held for one item.

    Attributes
    ----------
    count : int
        The place where it lies, and those who are taking it out.
    """

    __slots__ = ("count", "rows")

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.count = 1


class Holding:
    """The holder of one cluster.

    Parameters
    ----------
    scheduler : distributed.Scheduler
    secret : str
        The cluster's, see `comm.secret`.
    operation : callable
        Makes a handler that lets in only owners that joined.
    owners : container of str
        Incarnations of those.
    who_is_there : callable
        The answer to `JOIN`.

    Attributes
    ----------
    owner : Owner
    holds : dict
        Id to `Hold`.
    taking : dict
        Incarnation of an owner to the holds of what it is taking out.
    variables, datasets : dict
        Name to the hold of what is there.
    """

    def __init__(
        self,
        scheduler: Any,
        secret: str,
        operation: Callable[..., Callable[..., Any]],
        owners: Container[str],
        who_is_there: Callable[[], dict[str, Any]],
    ) -> None:
        self.scheduler = scheduler
        self._operation = operation
        self._owners = owners
        args = scheduler.security.get_connection_args("scheduler")

        async def ask() -> dict[str, Any]:
            return who_is_there()

        self.owner = Owner(args, f"the scheduler {scheduler.address}", ask, secret=secret)
        self.owner.core.hold_for_cluster()
        self.holds: dict[str, Hold] = {}
        self.taking: dict[str, Counter[str]] = {}
        self.variables: dict[str, str] = {}
        self.datasets: dict[Any, str] = {}

    async def start(self) -> None:
        """Begin, and look at what the scheduler's extensions are asked."""
        await self.owner.start()
        await self.owner.members.join()
        handlers = self.scheduler.handlers
        streams = self.scheduler.stream_handlers
        handlers[HOLD] = self._operation(self.hold, "asker")
        streams[RELEASE_HOLD] = self.taken
        for name, around in (
            ("queue_get", self._queue_get),
            ("variable_set", self._variable_set),
            ("variable_get", self._variable_get),
            ("publish_put", self._publish_put),
            ("publish_get", self._publish_get),
            ("publish_delete", self._publish_delete),
        ):
            if name in handlers:  # a scheduler can be without queues, or all extensions
                handlers[name] = _around(handlers[name], around)
        if "queue_release" in streams:
            streams["queue_release"] = self._queue_release(streams["queue_release"])
        if "variable_delete" in streams:
            streams["variable_delete"] = _around(streams["variable_delete"], self._variable_delete)

    async def close(self) -> None:
        await self.owner.close()

    # ---- holds ----

    async def hold(
        self,
        hold: str,
        asker: str,
        owner: Sequence[Any],
        origins: Sequence[Any] = (),
        functions: Sequence[Any] = (),
        tasks: Sequence[Any] = (),
    ) -> bool:
        """Handler of `HOLD`: hold objects under an id, in addition to what it has.

        Whether they are counted, so that who asked may let go of them.
        """
        if not all(map(is_origin, origins)):
            return False
        mine = self.owner.functions
        identity = self.owner.core.functions.identity
        known = [
            identity if pickled == identity.pickled else mine.by_value(pickled, name, kind)
            for name, pickled, kind in functions
        ]
        there = self.holds.get(hold)
        if there is None:
            there = self.holds[hold] = Hold()
        rows = self.owner.hold(origins, LineageSpec(tuple(owner), known, tasks))
        there.rows.extend(rows)
        if not self.scheduler.workers:
            return False  # what they say to each other goes through a worker
        try:
            await asyncio.wait_for(self.owner.held(rows), SETTLING)
        except (TimeoutError, asyncio.TimeoutError):
            logger.warning("%d values are not taken over yet after %g s", len(rows), SETTLING)
            return False
        return True

    def let_go(self, hold: str | None) -> None:
        """One place or taker less has to do with a hold."""
        there = self.holds.get(hold) if hold is not None else None
        if there is None:
            return
        there.count -= 1
        if not there.count:
            del self.holds[hold]  # type: ignore[arg-type]
            for row in there.rows:
                self.owner.drop(row)

    def taken(self, hold: Any = "", owner: Any = "", **kwargs: Any) -> None:
        """Stream handler of `RELEASE_HOLD`: a taker is counted; or nothing was put, without an
        owner."""
        if type(hold) is not str or type(owner) is not str:
            return
        if owner:
            taking = self.taking.get(owner)
            if taking is None or not taking[hold]:
                return
            taking[hold] -= 1
            if not taking[hold]:
                del taking[hold]
        self.let_go(hold)

    def _give(self, hold: str, owner: str) -> None:
        """An owner takes something out."""
        self.holds[hold].count += 1
        self.taking.setdefault(owner, Counter())[hold] += 1

    def gone(self, owner: str) -> None:
        """An owner is gone: it takes nothing any more."""
        for hold, count in self.taking.pop(owner, Counter()).items():
            for _ in range(count):
                self.let_go(hold)
        self.owner.members.process_gone(owner)

    def restart(self) -> None:
        """All that there is was dropped by the workers."""
        self.owner.cancel(self.owner.core.rows(), "the cluster restarted")

    # ---- around the scheduler's extensions ----

    def _extension(self, name: str) -> Any:
        return self.scheduler.extensions[name]

    def _shown(self, record: Any, owner: str) -> Any:
        """An item as its taker gets it: one that is no owner gets what it can unpickle."""
        hold = _hold_of(record)
        if hold is None or hold not in self.holds:
            return record
        if type(owner) is str and owner in self._owners:
            self._give(hold, owner)
            return record
        return {**record, "value": record["value"][ENVELOPE]}

    async def _queue_get(self, stock: Any, owner: str = "", **kwargs: Any) -> Any:
        got = await stock(**kwargs)
        records = got if isinstance(got, list) else [got]
        shown = [self._shown(record, owner) for record in records]
        for record in records:
            self.let_go(_hold_of(record))  # it lies there no more
        return shown if isinstance(got, list) else shown[0]

    def _queue_release(self, stock: Any) -> Callable[..., None]:
        @wraps(stock)
        def queue_release(name: Any = None, **kwargs: Any) -> None:
            queues = self._extension("queues").queues
            queue = queues.get(name)
            stock(name=name, **kwargs)
            if queue is not None and name not in queues:
                for record in queue._queue:
                    self.let_go(_hold_of(record))

        return queue_release

    async def _variable_set(self, stock: Any, name: Any = None, **kwargs: Any) -> None:
        await stock(name=name, **kwargs)
        hold = _hold_of(self._extension("variables").variables.get(name))
        self._now_at(self.variables, name, hold)

    async def _variable_get(self, stock: Any, owner: str = "", **kwargs: Any) -> Any:
        return self._shown(await stock(**kwargs), owner)

    async def _variable_delete(self, stock: Any, name: Any = None, **kwargs: Any) -> None:
        await stock(name=name, **kwargs)
        self._now_at(self.variables, name, None)

    async def _publish_put(
        self, stock: Any, names: Any = (), data: Any = (), holds: Any = (), **kwargs: Any
    ) -> None:
        try:
            await stock(names=names, data=data, **kwargs)
        finally:
            datasets = self._extension("publish").datasets
            for name, packed, hold in zip(names, data, holds or [None] * len(names), strict=True):
                there = datasets.get(name)
                if there is not None and there["data"] is packed:
                    self._now_at(self.datasets, name, hold)
                else:
                    self.let_go(hold)

    async def _publish_get(
        self, stock: Any, names: Any = (), owner: str = "", **kwargs: Any
    ) -> list[Any]:
        shown = []
        for name, found in zip(names, stock(names=names, **kwargs), strict=True):
            hold = self.datasets.get(name)
            joined = type(owner) is str and owner in self._owners
            if joined and hold is not None and found is not None:
                self._give(hold, owner)
                found = {**found, "hold": hold}
            shown.append(found)
        return shown

    async def _publish_delete(self, stock: Any, names: Any = (), **kwargs: Any) -> None:
        await stock(names=names, **kwargs)
        for name in names:
            if name not in self._extension("publish").datasets:
                self._now_at(self.datasets, name, None)

    def _now_at(self, places: dict[Any, str], name: Any, hold: str | None) -> None:
        """Something else lies at a place from now on."""
        before = places.pop(name, None)
        if hold is not None:
            places[name] = hold
        self.let_go(before)


def _hold_of(record: Any) -> str | None:
    value = record.get("value") if isinstance(record, dict) else None
    hold = value.get(MARK) if isinstance(value, dict) else None
    return hold if isinstance(hold, str) else None


def _around(stock: Any, around: Any) -> Any:
    """A handler that calls another one with the stock one before its arguments."""

    @wraps(stock)
    async def handler(**kwargs: Any) -> Any:
        return await around(stock, **kwargs)

    return handler
