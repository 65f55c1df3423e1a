"""Progress bars of owned work.

``progress(futures)`` and the bars behind it are Dask's own. A stock bar asks the scheduler for the
progress of tasks; the scheduler knows nothing of owned tasks, so the bar would wait for ever. With
this module imported, bars count the owned tasks here, and ask the scheduler for all other tasks.

One waiter hangs on all rows of a bar and is told of each row that ends, like any waiter for
results; the bar reads the counts of the waiter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterable
from typing import Any

import distributed
from dask.utils import key_split, parse_timedelta
from distributed import CancelledError, progress
from distributed.core import error_message

from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.protocol.failure import Failure
from dask_ownership.core.protocol.states import INLINE, STORED
from dask_ownership.errors import FutureCancelledError, from_failure
from dask_ownership.futures.future import Future, owned_clients
from dask_ownership.monitoring.lookup import find, name_of
from dask_ownership.runtime.dask.client import scheduler_address
from dask_ownership.runtime.dask.progress import let_bars_follow
from dask_ownership.runtime.owner.waiting import Waiter, hang, unhang
from dask_ownership.runtime.parking import caller_without_slot
from dask_ownership.runtime.serialize import loads_error

__all__ = ["progress"]

SPAN = ("default", "default")
"""Group of owned tasks in bars that are grouped by spans, which owned tasks have not."""


class Part:
    """The owned rows of one client in a bar.

    Attributes
    ----------
    owner : Owner
    scheduler : str
        Address.
    rows : list of Row
    futures : list of Future
        Futures that the bar was given; they keep the rows of the bar until the bar ends.
    """

    def __init__(self, client: Any) -> None:
        self.owner = client.owner
        self.scheduler = scheduler_address(client)
        self.rows: list[Row] = []
        self.futures: list[Future] = []


class Tracker(Waiter):
    """Counts the rows of a bar that have no value yet, by group.

    Parameters
    ----------
    group_of : callable
        Key to the name of its group.
    changed : callable
        Called on any thread when all rows have values, or a row ended without a value.

    Attributes
    ----------
    all : dict
        Group to its number of rows.
    pending : dict
        Group to its rows without a value.
    failed : Row or None
        The first row that ended without a value.
    """

    __slots__ = ("_changed", "_group_of", "all", "failed", "pending")

    def __init__(
        self, group_of: Callable[[Hashable], Hashable], changed: Callable[[], None]
    ) -> None:
        self._group_of = group_of
        self._changed = changed
        self.all: dict[Hashable, int] = {}
        self.pending: dict[Hashable, set[Row]] = {}
        self.failed: Row | None = None

    def _group(self, row: Row) -> Hashable:
        """Return the name of the group of a row."""
        return self._group_of(name_of(row.key))

    def follow(self, part: Part, complete: bool) -> None:
        """Count the rows of one client, and the rows they need that are still in the table."""
        rows = needed(part.rows, complete)
        for row in rows:
            group = self._group(row)
            self.all[group] = self.all.get(group, 0) + 1
            self.pending.setdefault(group, set()).add(row)
        hang(self, rows, part.owner.lock)

    def leave(self, part: Part) -> None:
        """Wait no more for the rows of one client."""
        rows = [row for pending in self.pending.values() for row in list(pending)]
        unhang(self, rows, part.owner.lock)

    def row_done(self, row: Row) -> None:
        """Count a row that ended."""
        if row.state in (INLINE, STORED):
            self.pending[self._group(row)].discard(row)
            if not any(self.pending.values()):
                self._changed()
        elif self.failed is None:
            self.failed = row
            self._changed()

    def response(self) -> dict[str, Any]:
        """Return the counts in the form of the scheduler's answer for a bar with several groups."""
        answer: dict[str, Any] = {
            "all": dict(self.all),
            "remaining": {group: len(rows) for group, rows in self.pending.items()},
            "status": None if any(self.pending.values()) else "finished",
        }
        if self.failed is not None:
            answer["status"] = "error"
            error = error_of(self.failed)
            # The scheduler's answer has no more about a cancelled task.
            if not isinstance(error, CancelledError):
                answer.update(key=name_of(self.failed.key), exception=pickled(error))
        return answer


def needed(rows: Iterable[Row], complete: bool) -> list[Row]:
    """Return rows and their unfinished dependencies; with ``complete`` the finished ones, too."""
    seen: dict[Row, None] = dict.fromkeys(rows)
    stack = list(seen)
    while stack:
        row = stack.pop()
        for other in row.dependencies:
            if other not in seen and (complete or other.state not in (INLINE, STORED)):
                seen[other] = None
                stack.append(other)
    return list(seen)


def pickled(error: BaseException) -> bytes:
    """Return an exception in the form that the scheduler sends to a bar."""
    shown: bytes = error_message(error)["exception"].data
    return shown


def error_of(row: Row) -> BaseException:
    """Return the reason why a row has no value."""
    key = name_of(row.key)
    value = row.value
    if isinstance(value, Failure):
        return from_failure(key, value)
    if isinstance(value, bytes):
        return loads_error(value)
    return FutureCancelledError(key, "released", "nobody holds its future any more")


def parts_of(keys: list[Any], scheduler: str | None) -> tuple[list[Part], list[Any]]:
    """Split futures and keys into those owned by clients of a scheduler, and all others.

    Returns
    -------
    tuple
        A list of `Part`, and the futures and keys for the scheduler.
    """
    parts: dict[Any, Part] = {}
    others = []
    for one in keys:
        if isinstance(one, Future):
            client, row = one.client, one._row
        else:
            client, row = None, None
            # A stock future belongs to the scheduler, even if an owned object has the same key.
            if not isinstance(one, distributed.Future):
                client, row = _known(one, scheduler)
        if row is None:
            others.append(one)
        else:
            part = parts.setdefault(id(client), Part(client))
            part.rows.append(row)
            if isinstance(one, Future):
                part.futures.append(one)
    return list(parts.values()), others


def _known(key: Any, scheduler: str | None) -> tuple[Any, Row | None]:
    """Return the client with a row for a key, and the row; or None twice."""
    for client in list(owned_clients.values()):
        if scheduler in (None, scheduler_address(client)):
            row = find(client.owner, key)
            if row is not None:
                return client, row
    return None, None


async def listen(
    bar: Any, parts: list[Part], central: tuple[Any, Awaitable[None]] | None, group_by: Any
) -> None:
    """Draw a bar until all tasks ended or a task failed.

    Parameters
    ----------
    bar : distributed.diagnostics.progressbar.ProgressBar
    parts : list of Part
    central : tuple or None
        A bar for the tasks of the scheduler, which keeps the last answer as ``_last_response``, and
        the coroutine that runs the bar.
    group_by : callable, str or None
        None for a bar with one number.
    """
    loop = asyncio.get_running_loop()
    changed = asyncio.Event()

    # Rows end on the loop of their owner, which may run in another thread than the bar.
    def wake() -> None:
        try:
            loop.call_soon_threadsafe(changed.set)
        except RuntimeError:
            pass  # the loop of the bar was closed meanwhile

    by_key = {None: lambda key: None, "prefix": key_split, "spans": lambda key: SPAN}
    tracker = Tracker(group_by if callable(group_by) else by_key[group_by], wake)
    other: Any = None
    listening: asyncio.Future[None] | None = None
    if central is not None:
        other, coroutine = central
        listening = asyncio.ensure_future(coroutine)
        listening.add_done_callback(lambda future: changed.set())
    try:
        for part in parts:
            tracker.follow(part, bar.complete)
        while True:
            response = tracker.response()
            if other is not None:
                response = both(response, getattr(other, "_last_response", None), group_by)
            if group_by is None:
                # A plain bar of Dask has one number for all tasks.
                response["all"] = sum(response["all"].values())
                response["remaining"] = sum(response["remaining"].values())
            bar._last_response = response
            bar.status = response["status"]
            bar._draw_bar(**response)
            if response["status"] is not None:
                bar._draw_stop(**response)
                return
            if listening is not None and listening.done():
                listening.result()  # raises if the bar of the scheduler failed
            changed.clear()
            try:
                await asyncio.wait_for(changed.wait(), parse_timedelta(bar.interval))
            except (TimeoutError, asyncio.TimeoutError):
                pass
    finally:
        for part in parts:
            tracker.leave(part)
            # The bar lives on after it ended, and must not keep the futures.
            part.futures.clear()
        if listening is not None:
            listening.cancel()


def both(mine: dict[str, Any], theirs: dict[str, Any] | None, group_by: Any) -> dict[str, Any]:
    """Combine the answers about owned tasks and about the scheduler's tasks.

    ``theirs`` is None while the scheduler has not answered yet.
    """
    if theirs is None:
        return mine if mine["status"] == "error" else {**mine, "status": None}
    # The answer with the error wins, because its key and exception are to be displayed.
    answer = {**theirs, **mine} if mine["status"] == "error" else {**mine, **theirs}
    for what in ("all", "remaining"):
        counts = dict(mine[what])
        more = theirs[what] if group_by is not None else {None: theirs[what]}
        for group, count in more.items():
            counts[group] = counts.get(group, 0) + count
        answer[what] = counts
    if "error" not in (mine["status"], theirs["status"]):
        ended = mine["status"] is not None and theirs["status"] is not None
        answer["status"] = "finished" if ended else None
    return answer


let_bars_follow(parts_of, listen, caller_without_slot)
