"""`wait` and `as_completed` for owned futures.

The stock functions work on owned futures too. The functions here take constant time per completion,
and give the slot up while they wait inside a task.
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from functools import wraps
from typing import Any

import distributed
from dask.utils import parse_timedelta
from distributed import futures_of
from distributed.client import DoneAndNotDoneFutures, FuturesCancelledError
from distributed.utils import Deadline

from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.protocol.states import INLINE, STORED
from dask_ownership.futures.future import Future
from dask_ownership.runtime.dask.client import complete_by, parse_timeout
from dask_ownership.runtime.owner.pending import late
from dask_ownership.runtime.owner.waiting import Callback, Gate, hang
from dask_ownership.runtime.parking import await_without_slot

ALL_COMPLETED = "ALL_COMPLETED"
FIRST_COMPLETED = "FIRST_COMPLETED"


def wait(fs: Any, timeout: Any = None, return_when: str = ALL_COMPLETED) -> Any:
    """Wait until all futures, or the first future, ended; see `distributed.wait`.

    Returns
    -------
    namedtuple
        ``done`` and ``not_done``, two sets of futures.

    Raises
    ------
    TimeoutError
    FuturesCancelledError
        When a future was cancelled.
    """
    if return_when not in (ALL_COMPLETED, FIRST_COMPLETED):
        raise NotImplementedError(
            "Only return_when='ALL_COMPLETED' and 'FIRST_COMPLETED' are supported"
        )
    if type(fs) in (list, tuple, set) and all(type(f) is Future for f in fs):
        futures = list(fs)  # the usual case, without walking the whole structure
    else:
        futures = futures_of(fs)
        for future in futures:
            future._verify_initialized()
    # Futures of several owners, or of the scheduler as well, are left to the stock function.
    if not futures or any(type(f) is not Future for f in futures):
        return distributed.wait(fs, timeout=timeout, return_when=return_when)
    client = futures[0].client
    owner = client.owner
    if any(f._owner is not owner for f in futures):
        return distributed.wait(fs, timeout=timeout, return_when=return_when)
    rows = [f._row for f in futures]
    if isinstance(timeout, distributed.Future | list | tuple | set):
        raise TypeError(
            "wait takes a list of futures, as in wait([x, y]), and its timeout= is a time, not a "
            f"{type(timeout).__name__}"
        )
    seconds = parse_timeout(timeout)
    first = return_when == FIRST_COMPLETED
    if client.asynchronous:
        return _wait_async(client, futures, rows, seconds, first)
    ended = client.owner.wait(rows, seconds, any_one=first)
    return _outcome(futures, ended, seconds)


async def _wait_async(client: Any, futures: Any, rows: Any, timeout: Any, first: bool) -> Any:
    """Wait in a coroutine."""
    ended = await client.owner.wait_async(rows, timeout, any_one=first)
    return _outcome(futures, ended, timeout)


def _outcome(futures: list[Any], ended: bool, timeout: float | None) -> Any:
    """Return the sets of futures, or raise for a timeout or a cancelled future."""
    if not ended:
        raise asyncio.TimeoutError(late(futures[0]._owner.core, [f._row for f in futures], timeout))
    done = {f for f in futures if f._row.state >= INLINE}
    # As in Dask, a cancelled future raises, and a failed future does not.
    without_value = [f for f in done if f._cleared or f._row.state > STORED]
    cancelled = defaultdict(list)
    for future in without_value:
        if future.cancelled():
            error = future._error()
            cancelled[getattr(error, "reason", "unknown")].append(error)
    if cancelled:
        from distributed.client import CancelledFuturesGroup

        groups = [
            CancelledFuturesGroup(errors=errors, reason=reason)
            for reason, errors in cancelled.items()
        ]
        raise FuturesCancelledError(groups)
    return DoneAndNotDoneFutures(done, set(futures) - done)


def telling_why(stock_wait: Any) -> Any:
    """Return the coroutine function of Dask's `wait`, with a reason when the time runs out."""

    @wraps(stock_wait)
    async def _wait(fs: Any, timeout: Any = None, **options: Any) -> Any:
        try:
            return await stock_wait(fs, timeout=timeout, **options)
        except (TimeoutError, asyncio.TimeoutError):
            owned = [f for f in futures_of(fs) if type(f) is Future]
            if not owned:
                raise
            # Of one owner, of which all of the futures usually are.
            owner = owned[0]._owner
            rows = [f._row for f in owned if f._owner is owner]
            raise asyncio.TimeoutError(late(owner.core, rows, timeout)) from None

    return _wait


class _Rows:
    """The rows of futures that have not come out, listed only when they are needed.

    A worker with many parked tasks reads them, to start the tasks that parked tasks wait for. Other
    waits cost no list.
    """

    __slots__ = ("_waits",)

    def __init__(self, waits: as_completed) -> None:
        self._waits = waits

    def __iter__(self) -> Iterator[Row]:
        return (future._row for future in list(self._waits.futures))


class as_completed(distributed.as_completed):
    """Futures in the order in which they end; see `distributed.as_completed`.

    Takes owned futures only. For other futures use the stock class; an instance of the stock class
    becomes one of this class when its first futures are all owned.

    Attributes
    ----------
    futures : dict
        Each future that has not come out, with the number of times it was added.
    lock : threading.Lock
        Covers the futures.
    with_results, raise_errors : bool
        As in Dask.
    """

    _was_stock = False

    def __init__(
        self,
        futures: Any = None,
        loop: Any = None,
        with_results: bool = False,
        raise_errors: bool = True,
        *,
        timeout: Any = None,
    ) -> None:
        self.futures: Any = defaultdict(int)
        self.lock = threading.Lock()
        self.with_results = with_results
        self.raise_errors = raise_errors
        self._deadline = Deadline.after(parse_timedelta(timeout))
        self._begin()
        if futures:
            self.update(futures)

    def _begin(self) -> None:
        """Set up the attributes that the stock class does not have."""
        self._ended: deque[Any] = deque()
        self._gate: Any = None
        self._owner: Any = None
        self._client: Any = None
        self._async_loop: asyncio.AbstractEventLoop | None = None
        self._notifying: asyncio.Task[None] | None = None
        self._condition_of_ends = asyncio.Condition()

    def update(self, futures: Iterable[Any]) -> None:
        """Add futures, which come out when they end; see `distributed.as_completed.update`."""
        added: dict[Row, list[Any]] = defaultdict(list)
        owners: dict[Any, list[Row]] = {}
        futures = list(futures)
        for future in futures:
            if type(future) is not Future:
                if self._was_stock:
                    self._be_stock(futures)
                    return
                raise TypeError(
                    f"Input must be a future of dask_ownership, got {future!r}; for others use "
                    "distributed.as_completed"
                )
            if self._owner is None:
                self._client = future.client
                self._owner = future._owner
            group = added[future._row]
            if not group:
                owners.setdefault(future._owner, []).append(future._row)
            group.append(future)
        with self.lock:
            for group in added.values():
                for future in group:
                    self.futures[future] += 1

        notify = self._notify_soon

        # One callback hangs on all rows of a call, so that a completion costs the same for any
        # number of futures.
        def ended(row: Row) -> None:
            with self.lock:
                self._ended.extend(added.pop(row, ()))
                gate, self._gate = self._gate, None
            if gate is not None:
                gate.open()
            if self._async_loop is not None:
                self._async_loop.call_soon_threadsafe(notify)

        for owner, rows in owners.items():
            hang(Callback(rows, ended), rows, owner.lock)

    def _be_stock(self, futures: list[Any]) -> None:
        """Become an instance of the stock class, because a future was added that is not owned."""
        with self.lock:
            there = [future for future, times in self.futures.items() for _ in range(times)]
            self.futures.clear()
            self._ended.clear()
            gate, self._gate = self._gate, None
        notify = self._notify_soon
        self.__class__ = distributed.as_completed
        distributed.as_completed.update(self, [*there, *futures])
        if gate is not None:
            gate.open()  # a waiting thread goes on in the stock class
        if self._async_loop is not None:
            self._async_loop.call_soon_threadsafe(notify)

    @property
    def condition(self) -> asyncio.Condition:
        """Notified when futures end, once a coroutine has begun to iterate."""
        return self._condition_of_ends

    def _notify_soon(self) -> None:
        """Notify the coroutines that wait, once for all calls until then. Loop of the iteration."""
        if self._notifying is None:
            self._notifying = asyncio.ensure_future(as_completed._notify(self))

    async def _notify(self) -> None:
        async with self._condition_of_ends:
            self._notifying = None  # what ends from now on is for the next notification
            self._condition_of_ends.notify_all()

    def add(self, future: Any) -> None:
        """Add one future; see `distributed.as_completed.add`."""
        self.update((future,))

    def count(self) -> int:
        """Return how many futures have not come out yet."""
        with self.lock:
            return sum(self.futures.values())

    def is_empty(self) -> bool:
        """Return whether no future is left, ended or not."""
        return not self.count()

    def has_ready(self) -> bool:
        """Return whether an ended future is there that has not come out."""
        with self.lock:
            self._skip_cleared()
            return bool(self._ended)

    def clear(self) -> None:
        """Forget all futures."""
        with self.lock:
            self.futures.clear()
            self._ended.clear()

    def __repr__(self) -> str:
        return f"<as_completed: waiting={self.count()} done={len(self._ended)}>"

    def _skip_cleared(self) -> None:
        """Drop ended futures that were forgotten by `clear`. The lock is held."""
        while self._ended and self._ended[0] not in self.futures:
            self._ended.popleft()

    def _take(self) -> Any:
        """Return the next future that ended, or None. The lock is held."""
        self._skip_cleared()
        if not self._ended:
            return None
        future = self._ended.popleft()
        # A future that was added several times comes out as often.
        self.futures[future] -= 1
        if not self.futures[future]:
            del self.futures[future]
        return future

    def _with_result(self, future: Any) -> Any:
        """Return a future, with its result or error if the caller wants results."""
        if not self.with_results:
            return future
        error = future._error()
        if error is not None:
            if self.raise_errors and future.status == "error":
                try:
                    raise error
                finally:
                    del error  # the traceback holds this frame, and so the future
            return future, (
                (type(error), error, error.__traceback__) if future.status == "error" else error
            )
        return future, future.result()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        while True:
            if not isinstance(self, as_completed):
                return next(self)  # `update` got other futures meanwhile, see `_be_stock`
            with self.lock:
                future = self._take()
                if future is None:
                    if not self.futures:
                        raise StopIteration
                    # Made under the lock, so that a future that ends from now on opens it.
                    gate = self._gate = self._gate or Gate()
            if future is not None:
                return self._with_result(future)
            left = self._deadline.remaining if self._deadline.expires else None
            if left is not None and left <= 0:
                raise self._late()
            self._owner.wait_at(gate, left, _Rows(self))

    next = __next__

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> Any:
        if not self._deadline.expires:
            return await self._anext()
        try:
            return await asyncio.wait_for(self._anext(), self._deadline.remaining)
        except (TimeoutError, asyncio.TimeoutError):
            if self._deadline.remaining:
                raise  # a task raised the error
            raise self._late() from None

    def _late(self) -> asyncio.TimeoutError:
        """Return the error when the time of all waits together is up."""
        rows = list(_Rows(self))
        text = late(self._owner.core, rows, self._deadline.duration)
        return asyncio.TimeoutError(text)

    async def _anext(self) -> Any:
        """Return the next future in a coroutine, or raise StopAsyncIteration."""
        self._async_loop = asyncio.get_running_loop()
        while True:
            if not isinstance(self, as_completed):
                return await anext(self)
            with self.lock:
                future = self._take()
                empty = not self.futures
            if future is not None:
                if not self.with_results:
                    return future
                # As in Dask, a cancelled future comes out with its error, and raises nothing.
                raiseit = self.raise_errors and future.status == "error"
                return future, await future._result(raiseit=raiseit)
            if empty:
                raise StopAsyncIteration
            if self._owner.executor is not None:
                await self._owner.executor.parking.wait_async(self._wait(), _Rows(self))
            else:
                await await_without_slot(self._wait())

    async def _wait(self) -> None:
        """Wait until a future ends, or no future is left."""
        condition = self._condition_of_ends
        async with condition:
            # Notifications take the condition first: none is missed between this look and the wait.
            if isinstance(self, as_completed) and not self._ended and self.futures:
                await condition.wait()

    def next_batch(self, block: bool = True) -> list[Any]:
        """Return all ended futures that have not come out; with ``block`` at least one future."""
        batch = [next(self)] if block else []
        while True:
            with self.lock:
                future = self._take()
            if future is None:
                return batch
            batch.append(self._with_result(future))


def _takes(waits: Any, futures: list[Any]) -> bool:
    """Turn an empty `distributed.as_completed` into one for owned futures, if all are owned."""
    if not futures or any(type(future) is not Future for future in futures):
        return False
    waits.__class__ = as_completed
    waits._was_stock = True
    waits._begin()
    waits.update(futures)
    return True


complete_by(_takes)

__all__ = ["ALL_COMPLETED", "FIRST_COMPLETED", "as_completed", "wait"]
