"""Detached objects: objects referred to by queues, variables and datasets, owned at the scheduler.

Queues, variables and datasets live at the scheduler, and so do the rows of the objects inside: the
scheduler's process has an owner, the *holder*, like that of a client which never leaves. The holder
takes over an object when an item that refers to it is put somewhere (`references.detached`). The
holder lets go of the object when the item was taken out and the taker is counted, when the variable
was set anew or deleted, the queue closed, or the dataset unpublished. Values stay at the workers,
and the scheduler unpickles no value.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

from dask_ownership.core.owner.references.detached import LineageSpec
from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.protocol.messages import is_origin
from dask_ownership.core.protocol.states import STATE_NAMES
from dask_ownership.runtime.comm.scheduler_ops import HOLD, RELEASE_HOLD
from dask_ownership.runtime.owner.owner import Owner
from dask_ownership.runtime.serialize import identity

logger = logging.getLogger("dask_ownership.scheduler")

MARK = "dask-ownership-hold"
"""Item of a record in a queue or variable: the id of its hold, beside the `ENVELOPE`."""

ENVELOPE = "envelope"

SETTLING = 5.0
"""Seconds for which the answer to `HOLD` waits until the holder has taken values over."""


@dataclass(slots=True, eq=False, repr=False)
class Hold:
    """Rows that the holder keeps for one item."""

    #: Incarnation of the owner that puts the item somewhere.
    putter: str
    #: Rows of the objects inside the item.
    rows: list[Row] = field(default_factory=list, init=False)
    #: One for the place of the item, and one for each owner that is taking the item out.
    count: int = field(default=1, init=False)


class Holding:
    """The holder of one cluster, and the holds of all items.

    Parameters
    ----------
    scheduler : distributed.Scheduler
    secret : str
        The secret of the cluster, see `comm.secret`.
    operation : callable
        Wraps a handler for owners that joined, and refuses all other callers.
    owners : container of str
        Incarnations of the owners that joined.
    who_is_there : callable
        Gives the answer to `JOIN`, for the holder itself.

    Attributes
    ----------
    scheduler : distributed.Scheduler
    owner : Owner
        The owner in the scheduler's process.
    holds : dict
        Id to `Hold`.
    taking : dict
        Incarnation of an owner to the ids of holds of items that the owner is taking out.
    variables, datasets : dict
        Name to the id of the hold of the item there. Items of queues have the id in themselves.
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
        """Start the owner, and wrap the handlers of the scheduler's extensions."""
        await self.owner.start()
        await self.owner.members.join()
        handlers = self.scheduler.handlers
        streams = self.scheduler.stream_handlers
        handlers[HOLD] = self._operation(self.hold, "asker")
        release = self._operation(self.release, "owner")

        async def released(client: Any = None, worker: Any = None, **message: Any) -> None:
            """Drop what the scheduler adds to messages of a stream: the token names the sender."""
            await release(**message)

        streams[RELEASE_HOLD] = released
        for name, around in (
            ("queue_get", self._queue_get),
            ("variable_set", self._variable_set),
            ("variable_get", self._variable_get),
            ("publish_put", self._publish_put),
            ("publish_get", self._publish_get),
            ("publish_delete", self._publish_delete),
        ):
            if name in handlers:  # a scheduler may run without queues or other extensions
                handlers[name] = _around(handlers[name], around)
        if "queue_release" in streams:
            streams["queue_release"] = self._queue_release(streams["queue_release"])
        if "variable_delete" in streams:
            streams["variable_delete"] = _around(streams["variable_delete"], self._variable_delete)

    async def close(self) -> None:
        """Close the holder."""
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
        """Handle `HOLD`: hold objects under an id, in addition to objects that it has.

        Parameters
        ----------
        hold : str
            The id.
        asker : str
            The incarnation of the owner that asks. The operation has checked it.
        owner : sequence
            The `Process` of the owner of the objects.
        origins : sequence of Origin
            The objects.
        functions : sequence of tuple
            Name, pickle and kind of each function that ``tasks`` call.
        tasks : sequence of Task
            How to make the objects again, see `LineageSpec`.

        Returns
        -------
        bool
            Whether the holder is counted and has the values that exist by now, so that the owner
            may let go of the objects. False means that the owner has to keep them.
        """
        # Origins come from outside: one of another shape must not reach the core.
        if not all(map(is_origin, origins)):
            return False
        # The holder has its own record of the identity, which it tells apart by the object.
        mine = self.owner.functions
        alias = mine.get(identity)
        known = [
            alias if pickled == alias.pickled else mine.by_value(pickled, name, kind)
            for name, pickled, kind in functions
        ]
        there = self.holds.get(hold)
        if there is None:
            there = self.holds[hold] = Hold(asker)
        rows = self.owner.hold(origins, LineageSpec(tuple(owner), known, tasks))
        there.rows.extend(rows)
        if not self.scheduler.workers:
            return False  # the posts between the owner and the holder go through a worker
        try:
            await asyncio.wait_for(self.owner.held(rows), SETTLING)
        except (TimeoutError, asyncio.TimeoutError):
            logger.warning("%d values are not taken over yet after %g s", len(rows), SETTLING)
            return False
        return True

    def let_go(self, hold: str | None) -> None:
        """Count a hold down by one place or taker; at zero its rows are dropped."""
        there = self.holds.get(hold) if hold is not None else None
        if there is None:
            return
        there.count -= 1
        if not there.count:
            del self.holds[hold]  # type: ignore[arg-type]
            for row in there.rows:
                self.owner.drop(row)

    def release(self, hold: str, owner: str, taken: bool) -> None:
        """Handle the stream message `RELEASE_HOLD`: let go of a hold that an owner needs no more.

        Parameters
        ----------
        hold : str
        owner : str
            The incarnation of the owner. The operation has checked it.
        taken : bool
            Whether the owner has taken the item out and is counted as a borrower. Else the owner
            could not put the item anywhere.
        """
        if taken:
            # Each owner can count a hold down only as often as it has taken the item out.
            taking = self.taking.get(owner)
            if taking is None or not taking[hold]:
                return
            taking[hold] -= 1
            if not taking[hold]:
                del taking[hold]
        elif hold not in self.holds or self.holds[hold].putter != owner:
            return
        self.let_go(hold)

    def _give(self, hold: str, owner: str) -> None:
        """Count an owner that begins to take an item out, until `release` or `gone`."""
        self.holds[hold].count += 1
        self.taking.setdefault(owner, Counter())[hold] += 1

    def gone(self, owner: str) -> None:
        """Let go of all holds that an owner was taking out, because the owner is gone."""
        for hold, count in self.taking.pop(owner, Counter()).items():
            for _ in range(count):
                self.let_go(hold)
        self.owner.members.process_gone(owner)

    def told(self) -> list[dict[str, Any]]:
        """Return what is held for each item, as plain values."""
        extensions = self.scheduler.extensions
        queues = extensions["queues"].queues if "queues" in extensions else {}
        places = [
            *(("dataset", name, hold) for name, hold in self.datasets.items()),
            *(("variable", name, hold) for name, hold in self.variables.items()),
            *(
                ("queue", name, _hold_of(record))
                for name, queue in queues.items()
                for record in queue._queue
            ),
        ]
        return [
            {
                "kind": kind,
                "name": str(name),
                "objects": len(rows),
                "nbytes": sum(row.nbytes for row in rows),
                "states": sorted({STATE_NAMES[row.state] for row in rows}),
                "workers": sorted({view.address for row in rows for view in row.locations}),
            }
            for kind, name, hold in places
            if hold in self.holds
            for rows in (self.holds[hold].rows,)
        ]

    def restart(self) -> None:
        """Cancel all rows, because a restart of the cluster has dropped all values."""
        self.owner.cancel(self.owner.core.rows(), "the cluster restarted")

    # ---- around the scheduler's extensions ----

    def _extension(self, name: str) -> Any:
        return self.scheduler.extensions[name]

    def _shown(self, record: Any, owner: str) -> Any:
        """Return the record of an item as its taker gets it, and count the taker.

        A taker without an owner gets the plain envelope, which any client can unpickle.
        """
        hold = _hold_of(record)
        if hold is None or hold not in self.holds:
            return record
        if type(owner) is str and owner in self._owners:
            self._give(hold, owner)
            return record
        return {**record, "value": record["value"][ENVELOPE]}

    async def _queue_get(self, stock: Any, owner: str = "", **kwargs: Any) -> Any:
        """Take items out of a queue."""
        got = await stock(**kwargs)
        records = got if isinstance(got, list) else [got]
        # The taker is counted before the place is not, so no hold is ever at zero in between.
        shown = [self._shown(record, owner) for record in records]
        for record in records:
            self.let_go(_hold_of(record))
        return shown if isinstance(got, list) else shown[0]

    def _queue_release(self, stock: Any) -> Callable[..., None]:
        """Wrap the handler by which clients release a queue, which the last of them closes."""

        @wraps(stock)
        def queue_release(name: Any = None, **kwargs: Any) -> None:
            queues = self._extension("queues").queues
            queue = queues.get(name)
            stock(name=name, **kwargs)
            # The queue is closed, and the items still inside are gone with it.
            if queue is not None and name not in queues:
                for record in queue._queue:
                    self.let_go(_hold_of(record))

        return queue_release

    async def _variable_set(self, stock: Any, name: Any = None, **kwargs: Any) -> None:
        """Set a variable, and let go of the hold of its last item."""
        await stock(name=name, **kwargs)
        hold = _hold_of(self._extension("variables").variables.get(name))
        self._now_at(self.variables, name, hold)

    async def _variable_get(self, stock: Any, owner: str = "", **kwargs: Any) -> Any:
        """Read a variable, which keeps its item."""
        return self._shown(await stock(**kwargs), owner)

    async def _variable_delete(self, stock: Any, name: Any = None, **kwargs: Any) -> None:
        """Delete a variable, and let go of the hold of its item."""
        await stock(name=name, **kwargs)
        self._now_at(self.variables, name, None)

    async def _publish_put(
        self, stock: Any, names: Any = (), data: Any = (), holds: Any = (), **kwargs: Any
    ) -> None:
        """Publish datasets, each with its hold or None."""
        try:
            await stock(names=names, data=data, **kwargs)
        finally:
            datasets = self._extension("publish").datasets
            for name, packed, hold in zip(names, data, holds or [None] * len(names), strict=True):
                there = datasets.get(name)
                # The stock handler stops at the first name that is taken: the rest is not there.
                if there is not None and there["data"] is packed:
                    self._now_at(self.datasets, name, hold)
                else:
                    self.let_go(hold)

    async def _publish_get(
        self, stock: Any, names: Any = (), owner: str = "", **kwargs: Any
    ) -> list[Any]:
        """Read published datasets, each with its hold when an owner asks."""
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
        """Unpublish datasets, and let go of their holds."""
        await stock(names=names, **kwargs)
        for name in names:
            if name not in self._extension("publish").datasets:
                self._now_at(self.datasets, name, None)

    def _now_at(self, places: dict[Any, str], name: Any, hold: str | None) -> None:
        """Record the hold of the item at a place, and let go of the hold of the item before."""
        before = places.pop(name, None)
        if hold is not None:
            places[name] = hold
        self.let_go(before)


def _hold_of(record: Any) -> str | None:
    """Return the id of the hold of an item, or None; a client may have put any record there."""
    value = record.get("value") if isinstance(record, dict) else None
    hold = value.get(MARK) if isinstance(value, dict) else None
    return hold if isinstance(hold, str) else None


def _around(stock: Any, around: Any) -> Any:
    """Make a handler that calls ``around`` with the stock handler and the arguments."""

    @wraps(stock)
    async def handler(**kwargs: Any) -> Any:
        return await around(stock, **kwargs)

    return handler
