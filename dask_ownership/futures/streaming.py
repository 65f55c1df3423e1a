"""`Client.map` with ``buffer_size``: any number of tasks, a limited number at once.

A `Stream` is an iterator of futures, in the order of the items. A stream takes items from its
sources only while fewer than ``buffer_size`` futures are submitted and not handed out. So a source
may be a generator without end, and neither the owner nor the workers hold more results than that.

A stream keeps no future that it handed out: a value is freed when the consumer drops its future.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterable, Callable, Iterable, Iterator
from queue import Queue
from typing import Any, Generic

from dask.utils import funcname

from dask_ownership.core.protocol.order import ordered
from dask_ownership.core.protocol.states import INLINE
from dask_ownership.errors import ClosedOwner
from dask_ownership.futures.future import Future, T_co
from dask_ownership.futures.options import CallOptions, make_options
from dask_ownership.futures.submit import FOREIGN
from dask_ownership.runtime.functions import ManyCalls


class Stream(Iterator[Future[T_co]], Generic[T_co]):
    """Futures of a `map`, submitted as they are consumed; made by `Client.map`.

    Iterate over a stream with ``for``, or with ``async for`` in a coroutine. Each future has ended
    when it is handed out: ``result()`` returns the value at once, or raises the exception of the
    task, which ends no other task.

    An item whose call cannot be made (an argument that cannot be pickled) raises at its place, and
    the next call of ``next`` goes on with the next item. An error of a source comes after all items
    before the error, and ends the stream.

    Parameters
    ----------
    client : Client
    func : callable
    sources : tuple of iterable
        Iterables, iterators or, for ``async for``, asynchronous ones. The shortest ends the stream.
    kwargs : dict
    call : CallOptions or None
        Options of the call; None without options.
    buffer_size : int
        How many futures may be submitted and not handed out.
    key : str or iterable, optional
        A prefix, or a key for each item.
    pure : bool
        As in `Client.map`.

    Attributes
    ----------
    buffer_size : int
        The parameter.

    Notes
    -----
    Nothing is submitted before the first future is asked for. Then the buffer is filled, unless the
    oldest future ends first: a source whose items come late delays finished futures by one item at
    most.

    A source that is a `Stream` itself gives its futures without waiting for their values: the
    futures become dependencies, and both stages run at once.

    One consumer at a time, as with generators.
    """

    def __init__(
        self,
        client: Any,
        func: Callable[..., Any],
        sources: tuple[Any, ...],
        kwargs: dict[str, Any],
        call: CallOptions | None,
        *,
        buffer_size: int,
        key: Any = None,
        pure: bool = True,
    ) -> None:
        if isinstance(buffer_size, bool) or not isinstance(buffer_size, int) or buffer_size < 1:
            raise ValueError(f"buffer_size= takes a whole number above 0, not {buffer_size!r}")
        # Wrong options raise here, where the user wrote them, and not at the first item.
        if call is not None:
            make_options(call, None)
            ordered(0, call.priority)
        self.buffer_size = buffer_size
        self._client = client
        self._func = func
        self._sources = [_iterator(source) for source in sources]
        self._asynchronous = any(not isinstance(source, Iterator) for source in self._sources)
        calls = client.calls
        self._kwargs = calls.share(kwargs) if kwargs else kwargs
        self._keys = iter(key) if key is not None and not isinstance(key, str) else None
        self._pure = pure
        self._function = ManyCalls(client.owner.functions, func, FOREIGN)
        self._made_keys = calls.map_keys(func, self._function.record, key, pure, self._kwargs)
        self._call = call
        self._number = 0
        self._window: deque[Future | Exception] = deque()
        self._failure: Exception | None = None
        self._exhausted = not sources
        with client.owner.lock:
            client.owner.streams.add(self)

    # ---- consuming ----

    def __iter__(self) -> Stream[T_co]:
        return self

    def __next__(self) -> Future[T_co]:
        if self._asynchronous:
            raise TypeError("a source of this stream is asynchronous: use `async for`")
        first = True
        while self._wants_more(first):
            self._pull()
            first = False
        head = self._head()
        if head is None:
            raise StopIteration
        # Waits for any end; the consumer asks the future for its outcome.
        self._client.owner.wait((head._row,))
        self._hand_out(head)
        return head

    def __aiter__(self) -> Stream[T_co]:
        return self

    async def __anext__(self) -> Future[T_co]:
        first = True
        while self._wants_more(first):
            await self._pull_async()
            first = False
        head = self._head()
        if head is None:
            raise StopAsyncIteration
        await self._client.owner.wait_async((head._row,))
        self._hand_out(head)
        return head

    def take(self) -> Any:
        """Return the next future, whether or not it has ended.

        Raises
        ------
        StopIteration
            When there is none.
        """
        if not self._window and not self._exhausted:
            self._pull()
        head = self._head()
        if head is None:
            raise StopIteration
        self._hand_out(head)
        return head

    async def take_async(self) -> Any:
        """Do as `take`, with asynchronous sources.

        Raises
        ------
        StopAsyncIteration
            When there is none.
        """
        if not self._window and not self._exhausted:
            await self._pull_async()
        head = self._head()
        if head is None:
            raise StopAsyncIteration
        self._hand_out(head)
        return head

    # ---- the end ----

    def close(self) -> None:
        """Submit no more tasks, and release the futures that were not handed out.

        Tasks that only this stream needs are cancelled by that. The same happens when the stream is
        dropped, or at the end of ``with stream:``.
        """
        self._exhausted = True
        self._failure = None
        self._sources = []
        self._keys = None
        self._kwargs = {}
        self._window.clear()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "exhausted" if self._exhausted else "open"
        return (
            f"<Stream: {state}, {self._number} submitted, {len(self._window)} of "
            f"{self.buffer_size} not handed out>"
        )

    def told(self) -> dict[str, Any]:
        """Return what the dashboard shows of this stream, as plain data. Any thread."""
        return {
            "name": funcname(self._func),
            "open": not self._exhausted,
            "submitted": self._number,
            "waiting": len(self._window),
            "buffer_size": self.buffer_size,
        }

    # ---- inside ----

    def _wants_more(self, first: bool) -> bool:
        """Return whether to take one more item before the oldest future is handed out.

        ``first`` says that no item was taken yet in this call of ``next``.
        """
        window = self._window
        if self._exhausted or len(window) >= self.buffer_size:
            return False
        if first or not window:
            return True
        head = window[0]
        return isinstance(head, Future) and head._row.state < INLINE

    def _pull(self) -> None:
        """Take one item of each source and submit their call."""
        try:
            # As in `zip`, items of the sources before the exhausted one are lost.
            args = tuple([_next(source) for source in self._sources])
        except StopIteration:
            self._exhausted = True
        except Exception as error:
            self._source_failed(error)
        else:
            self._submit(args)

    async def _pull_async(self) -> None:
        """Do as `_pull`, with asynchronous sources."""
        items = []
        try:
            for source in self._sources:
                items.append(await _next_async(source))
        except StopAsyncIteration:
            self._exhausted = True
        except Exception as error:
            self._source_failed(error)
        else:
            self._submit(tuple(items))

    def _submit(self, args: tuple[Any, ...]) -> None:
        """Submit the call of one item; an error of the call stands at the item's place."""
        client = self._client
        number = self._number
        try:
            if self._keys is not None:
                one = next(self._keys, None)
                if one is None:
                    raise ValueError(f"map got {number} keys for more items")
            else:
                one = self._made_keys.of(number, args)
        except Exception as error:
            self._source_failed(error)
            return
        self._number = number + 1
        try:
            record = self._function.record_for(args, self._kwargs)
            row = client.calls.row(
                self._func, args, self._kwargs, one, self._pure, self._call, function=record
            )
        # No later item could be submitted either.
        except ClosedOwner as error:
            self._source_failed(error)
        except Exception as error:
            # Frames of a traceback would hold this stream.
            self._window.append(error.with_traceback(None))
        else:
            self._window.append(Future(client, row))

    def _source_failed(self, error: Exception) -> None:
        """End the stream with an error, after all items before the error."""
        self._exhausted = True
        self._failure = error

    def _head(self) -> Future | None:
        """Return the oldest future, or None at the end; raise an error that stands at its place."""
        if self._window:
            head = self._window[0]
            if isinstance(head, Future):
                return head
            self._window.popleft()
            try:
                raise head
            finally:
                del head  # the traceback holds this frame
        failure, self._failure = self._failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                del failure
        return None

    def _hand_out(self, head: Future) -> None:
        """Forget a future that is about to be returned to the consumer."""
        if self._window and self._window[0] is head:  # `close` may have run during the wait
            self._window.popleft()


def _iterator(source: Any) -> Any:
    """Return an iterator of a source, or an asynchronous iterator."""
    if isinstance(source, Iterable):
        return iter(source)
    if isinstance(source, AsyncIterable):
        return aiter(source)
    if isinstance(source, Queue):
        raise TypeError("map takes no queues: use iter(queue.get, None), which None ends")
    raise TypeError(f"map takes iterables, not a {type(source).__name__}: {source!r}")


def _next(source: Any) -> Any:
    """Return the next item of a source, or the next future of a stream before the future ends."""
    return source.take() if isinstance(source, Stream) else next(source)


async def _next_async(source: Any) -> Any:
    """Do as `_next`, with a source of any kind; raise StopAsyncIteration at the end."""
    if isinstance(source, Stream):
        return await source.take_async()
    if isinstance(source, Iterator):
        try:
            return next(source)
        except StopIteration:
            raise StopAsyncIteration from None  # a coroutine must not raise StopIteration
    return await anext(source)
