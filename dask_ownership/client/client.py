"""The client: a `distributed.Client` that owns the tasks it submits.

Methods that are overridden here go to this process's `Owner`. Inherited operations that are not
owned (actors, queues, variables, datasets, cluster administration) go to the scheduler as in Dask.
`Client.central_calls` counts the operations that went to the scheduler.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Coroutine, Generator, Iterable, Iterator
from functools import partial
from numbers import Number
from queue import Queue as PyQueue
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, overload

import distributed
from dask.optimization import cull
from dask.utils import shorten_traceback
from distributed.utils import sync

from dask_ownership.client.data import Data
from dask_ownership.client.inspection import Inspection
from dask_ownership.client.queries import Queries
from dask_ownership.client.requests import Requests
from dask_ownership.errors import NotHere, OwnershipError
from dask_ownership.futures.future import Future
from dask_ownership.futures.gather import Gathered, Gathering, values_of
from dask_ownership.futures.graph import Graph, graph_futures, persisting
from dask_ownership.futures.options import (
    FIFO_TIMEOUT,
    PLAIN_CALL,
    CallOptions,
    named,
    take_limits,
)
from dask_ownership.futures.replicate import wanted_copies
from dask_ownership.futures.streaming import Stream
from dask_ownership.futures.structures import SKIPPED, collect, repack
from dask_ownership.interop.bridge import promoted_graph
from dask_ownership.runtime.dask.client import keep
from dask_ownership.runtime.owner.fetch import fetch
from dask_ownership.scheduler.plugin import OwnershipSchedulerPlugin

P = ParamSpec("P")
T = TypeVar("T")

if TYPE_CHECKING:
    from typing_extensions import Self


def asked_for_actors(actors: Any) -> bool:
    """Return whether ``actors=`` names any; a Dask collection has no truth value."""
    if actors is None or isinstance(actors, bool | list | tuple | set | dict):
        return bool(actors)
    return True


class Client(Inspection, Queries, Data, Requests):
    """A `distributed.Client` whose tasks are owned by this process.

    Takes the arguments of `distributed.Client`, and works on any Dask cluster where dask_ownership
    is installed: the first client installs the plugins. Most of the many methods are those of
    `distributed.Client`.

    Attributes
    ----------
    owner : dask_ownership.runtime.owner.owner.Owner
        The ownership table and the links of this client.
    calls : dask_ownership.futures.submit.Calls
        Makes the rows of this client's calls.
    imports : dask_ownership.interop.bridge.Imports
        Takes in futures of other clients.
    central_calls : int
        How many operations went to the central scheduler because they are not owned.

    Raises
    ------
    PluginMissing
        When the cluster has no plugin and does not let this client install it.
    """

    def _scheduler_plugin(self) -> OwnershipSchedulerPlugin:
        # The base class, because workers may be unable to import a class that a user derived.
        return OwnershipSchedulerPlugin(Client.for_worker)

    def _inc_ref(self, key: Any) -> None:
        """Refuse a stock future of an owned key: it would wait for the scheduler for ever."""
        if self.owner.core.row(key) is not None:
            raise NotHere(
                f"{key!r} is owned by this client; distributed.Future(key, client) makes futures "
                "of the central scheduler. Keep the future that submit gave, or submit it again"
            )
        super()._inc_ref(key)

    if TYPE_CHECKING:  # Dask does not say so

        def __enter__(self) -> Self: ...
        async def __aenter__(self) -> Self: ...
        def __await__(self) -> Generator[Any, None, Self]: ...

    # ---- submitting ----

    # A checker takes the first that fits. Arguments are checked by nobody: a future may be in the
    # place of any value, at any depth, which no type says.
    @overload
    def submit(
        self, func: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]: ...
    @overload
    def submit(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]: ...
    @overload
    def submit(
        self, func: Callable[..., Any], *args: Any, actor: Literal[True], **options: Any
    ) -> Any: ...
    @overload
    def submit(
        self, func: Callable[..., Any], *args: Any, actors: Literal[True], **options: Any
    ) -> Any: ...
    @overload
    def submit(
        self, func: Callable[..., Coroutine[Any, Any, T]], *args: Any, **options: Any
    ) -> Future[T]: ...
    @overload
    def submit(self, func: Callable[..., T], *args: Any, **options: Any) -> Future[T]: ...
    def submit(  # type: ignore[misc]  # a function's own arguments may have an option's name
        self,
        func: Callable[..., Any],
        *args: Any,
        key: Any = None,
        workers: Any = None,
        resources: Any = None,
        retries: Any = None,
        priority: Any = 0,
        fifo_timeout: Any = "100 ms",
        allow_other_workers: Any = False,
        actor: bool = False,
        actors: bool = False,
        pure: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Run a function on the cluster; see `distributed.Client.submit`.

        Two more options are for the task unless the function takes an argument of that name itself:
        when its signature has the name, or ``**kwargs``, or cannot be read, the argument goes to
        the function, as in Dask. With ``dask.annotate(timeout="30s")`` the options are for the task
        in any case.

        Parameters
        ----------
        timeout : float, str or timedelta, optional
            Seconds, or a text such as ``"30s"``, for which the task may run at a worker, from when
            it got a slot, including its waits; each attempt anew. After that time the task fails
            with `TaskTimeout`, unless there are ``retries`` left, and is cancelled: `cancelled` is
            true there, a coroutine gets `asyncio.CancelledError`, and tasks that it submitted are
            cancelled. A function in a thread keeps its slot until it returns.
        at_most_once : bool, optional
            Never start the task a second time. When its worker is gone and the task may have
            started there, the task fails with `Uncertain`; a large value that is lost with its
            worker is `LostData`. The task starts at free slots only. Only `retry` runs it again. A
            task that submits such a task should be run at most once as well, because it submits
            anew when it runs again itself. With ``pure=True``, equal calls share one task while its
            future lives, as for other tasks.

        Raises
        ------
        NotSerializable
            When the function or an argument cannot be pickled.
        TypeError, ValueError
            When an option has a wrong value, or a task that runs at most once has ``retries``.
        """
        if actor or actors:
            return super().submit(
                func, *args, key=key, workers=workers, resources=resources, retries=retries,
                priority=priority, fifo_timeout=fifo_timeout,
                allow_other_workers=allow_other_workers, actor=True, pure=pure, **kwargs,
            )  # fmt: skip
        if not callable(func):
            raise TypeError(
                f"First input to submit must be a callable function, not {func!r:.100}; its "
                "arguments come after it, as in submit(function, argument)"
            )
        if allow_other_workers not in (True, False, None):
            raise TypeError("allow_other_workers= must be True or False")
        if allow_other_workers and workers is None:
            raise ValueError("Only use allow_other_workers= if using workers=")
        # Looked at here because a call of `_check_open` for each task costs time.
        if self.status in ("closed", "closing"):
            self._check_open()
        limits = take_limits(func, kwargs) if kwargs else None
        # Most calls have no options, and make no `CallOptions`.
        call = None
        if (
            workers is not None
            or resources
            or retries
            or priority
            or limits is not None
            or fifo_timeout != FIFO_TIMEOUT
        ):
            call = CallOptions(
                workers=None if workers is None else named(workers),
                resources=resources,
                retries=retries,
                priority=priority,
                allow_other_workers=allow_other_workers,
                limits=limits,
                fifo_timeout=fifo_timeout,
            )
        return Future(self, self.calls.row(func, args, kwargs, key, pure, call))

    @overload
    def map(
        self,
        func: Callable[..., Coroutine[Any, Any, T]],
        *iterables: Any,
        buffer_size: int,
        **options: Any,
    ) -> Stream[T]: ...
    @overload
    def map(
        self, func: Callable[..., T], *iterables: Any, buffer_size: int, **options: Any
    ) -> Stream[T]: ...
    @overload
    def map(
        self, func: Callable[..., Any], *iterables: Any, actor: Literal[True], **options: Any
    ) -> list[Any]: ...
    @overload
    def map(
        self, func: Callable[..., Any], *iterables: Any, actors: Literal[True], **options: Any
    ) -> list[Any]: ...
    @overload
    def map(
        self,
        func: Callable[..., Coroutine[Any, Any, T]],
        *iterables: Any,
        buffer_size: None = None,
        **options: Any,
    ) -> list[Future[T]]: ...
    @overload
    def map(
        self, func: Callable[..., T], *iterables: Any, buffer_size: None = None, **options: Any
    ) -> list[Future[T]]: ...
    @overload
    def map(self, func: Callable[..., Any], *iterables: Any, **options: Any) -> Any: ...
    def map(
        self,
        func: Callable[..., Any],
        *iterables: Iterable[Any] | AsyncIterable[Any],
        key: Any = None,
        workers: Any = None,
        retries: Any = None,
        resources: Any = None,
        priority: Any = 0,
        allow_other_workers: bool = False,
        fifo_timeout: Any = "100 ms",
        actor: bool = False,
        actors: bool = False,
        pure: bool = True,
        batch_size: int | None = None,
        buffer_size: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run a function on each item; see `distributed.Client.map`.

        ``batch_size`` is accepted and changes nothing: tasks leave in batches anyway. ``timeout``
        and ``at_most_once`` are the options of `submit`, for each task.

        With ``buffer_size`` the items may come from iterators and generators of any length. The
        result is then no list but an iterator of futures in their order, a
        `dask_ownership.futures.streaming.Stream`, which submits at most that many tasks beyond the
        consumed ones.

        Examples
        --------
        >>> for future in client.map(parse, walk(), buffer_size=100):  # doctest: +SKIP
        ...     use(future.result())
        """
        if actor or actors:
            if buffer_size is not None:
                raise ValueError("buffer_size= is not for actors, which the scheduler runs")
            return super().map(
                func, *iterables, key=key, workers=workers, retries=retries, resources=resources,
                priority=priority, allow_other_workers=allow_other_workers,
                fifo_timeout=fifo_timeout, actor=True, pure=pure, batch_size=batch_size, **kwargs,
            )  # fmt: skip
        if not callable(func):
            raise TypeError("First input to map must be a callable function")
        if buffer_size is None and (
            all(isinstance(it, PyQueue) for it in iterables)
            or all(isinstance(it, Iterator) for it in iterables)
        ):
            raise TypeError(
                "Dask no longer supports mapping over Iterators or Queues. "
                "Consider buffer_size=, or a normal for loop and Client.submit"
            )
        if allow_other_workers and workers is None:
            raise ValueError("Only use allow_other_workers= if using workers=")
        if workers is not None and not isinstance(workers, str | Number | list | tuple | set):
            raise TypeError("Workers must be a list or set of workers or None")
        self._check_open()
        call: CallOptions | None = CallOptions(
            workers=named(workers),
            resources=resources,
            retries=retries,
            priority=priority,
            allow_other_workers=allow_other_workers,
            limits=take_limits(func, kwargs) if kwargs else None,
            fifo_timeout=fifo_timeout,
        )
        if call == PLAIN_CALL:
            call = None
        if buffer_size is not None:
            return Stream(
                self, func, iterables, kwargs, call, buffer_size=buffer_size, key=key, pure=pure
            )
        return self.calls.map_futures(func, iterables, kwargs, key, pure, call)

    def _graph_to_futures(
        self,
        expr: Any,
        keys: Any,
        span_metadata: Any = None,
        workers: Any = None,
        allow_other_workers: Any = None,
        internal_priority: Any = None,
        user_priority: Any = 0,
        resources: Any = None,
        retries: Any = None,
        fifo_timeout: Any = 0,
        actors: Any = None,
    ) -> dict[Any, Any]:
        """Submit a graph; `get`, `compute` and `persist` of Dask all end here."""
        if allow_other_workers not in (True, False, None):
            raise TypeError("allow_other_workers= must be True, False, or None")
        self._check_open()
        graph = Graph(expr)
        call = {
            "workers": workers,
            "allow_other_workers": allow_other_workers,
            "resources": resources,
            "retries": retries,
            "priority": user_priority,
        }
        # Keys that need a P2P shuffle, and graphs with actors, go to the central scheduler; all
        # other keys are owned.
        central = set(keys) if asked_for_actors(actors) else graph.central(keys)
        futures: dict[Any, Any] = {}
        if len(central) < len(set(keys)):
            owned = set(keys) - central
            futures = graph_futures(self, graph, owned, internal_priority, call, fifo_timeout)
        if central:
            self.central_calls += 1
            part, inputs = promoted_graph(self, graph, central, partial(self._input, graph))
            # A graph that is central as a whole, without owned inputs, goes to the scheduler
            # unchanged.
            if inputs or len(central) < len(set(keys)):
                expr = part
            made = super()._graph_to_futures(
                expr, central, span_metadata, workers=workers,
                allow_other_workers=allow_other_workers, internal_priority=internal_priority,
                user_priority=user_priority, resources=resources, retries=retries,
                fifo_timeout=fifo_timeout, actors=actors,
            )  # fmt: skip
            # The scheduler reads the owned inputs while these futures live.
            keep(inputs, made)
            futures.update(made)
        return futures

    def _input(self, graph: Graph, key: Any) -> Any:
        """Return the owned future of a key in a graph for the central scheduler, or None."""
        future = graph.futures().get(key)
        if future is None and (row := self.owner.find(key)) is not None:
            future = Future(self, row)
        return future

    def _optimize_insert_futures(self, dsk: Any, keys: Any) -> Any:
        """Put this client's futures into a graph, for `normalize_collection`."""
        find = self.owner.find
        here = {
            key: distributed.Future(key, self) if row is None else Future(self, row)
            for key in list(dsk)
            if (row := find(key)) is not None or key in self.futures
        }
        return cull({**dsk, **here}, keys)[0] if here else dsk

    def get(
        self,
        dsk: Any,
        keys: Any,
        workers: Any = None,
        allow_other_workers: Any = None,
        resources: Any = None,
        sync: bool = True,
        asynchronous: bool | None = None,
        direct: Any = None,
        retries: Any = None,
        priority: Any = 0,
        fifo_timeout: Any = "60s",
        actors: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Compute a graph; see `distributed.Client.get`.

        Inside an owned task the wait gives the slot up by itself.
        """
        packed = super().get(
            dsk, keys, workers=workers, allow_other_workers=allow_other_workers,
            resources=resources, sync=False, retries=retries, priority=priority,
            fifo_timeout=fifo_timeout, actors=actors, **kwargs,
        )  # fmt: skip
        return self.gather(packed, direct=direct, asynchronous=asynchronous) if sync else packed

    def persist(
        self,
        collections: Any,
        optimize_graph: bool = True,
        workers: Any = None,
        allow_other_workers: Any = None,
        resources: Any = None,
        retries: Any = None,
        priority: Any = 0,
        fifo_timeout: Any = "60s",
        actors: Any = None,
        *,
        replicas: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Compute collections and keep the values; see `distributed.Client.persist`.

        Parameters
        ----------
        replicas : int, optional
            Keep so many copies of each value, as `replicate` does, from when the value is there.
        """
        wanted = None if replicas is None else wanted_copies(self.owner, replicas)
        # A context variable, because Dask's `persist` calls `_graph_to_futures` without saying why.
        before = persisting.set(True)
        try:
            persisted = super().persist(
                collections, optimize_graph=optimize_graph, workers=workers,
                allow_other_workers=allow_other_workers, resources=resources, retries=retries,
                priority=priority, fifo_timeout=fifo_timeout, actors=actors, **kwargs,
            )  # fmt: skip
        finally:
            persisting.reset(before)
        if wanted is None:
            return persisted
        # Futures of the central scheduler have no owner that could keep copies.
        for future in self._split(persisted)[0]:
            self.owner.call(self.owner.core.keep_copies, future._row, wanted)
        return persisted

    # ---- results ----

    # In a coroutine the result is awaited: hence `Gathered`, which is a list for both kinds of
    # clients.
    @overload
    def gather(
        self, futures: list[Future[T]], errors: str = "raise", direct: Any = None,
        asynchronous: bool | None = None,
    ) -> Gathered[T]: ...  # fmt: skip
    @overload
    def gather(
        self, futures: Any, errors: str = "raise", direct: Any = None,
        asynchronous: bool | None = None,
    ) -> Any: ...  # fmt: skip
    def gather(
        self,
        futures: Any,
        errors: str = "raise",
        direct: Any = None,
        asynchronous: bool | None = None,
    ) -> Any:
        """Bring values to this process; see `distributed.Client.gather`."""
        if isinstance(futures, PyQueue):
            raise TypeError(
                "Dask no longer supports gathering over Iterators and Queues. "
                "Consider using a normal for loop and Client.submit/gather"
            )
        if isinstance(futures, Iterator):
            return (self.gather(f, errors=errors, direct=direct) for f in futures)
        if not self.owner.lost:  # values that are here stay readable after the scheduler is lost
            self._check_open()
        if errors not in ("raise", "skip"):
            raise ValueError(f"Bad value, `errors={errors}`; it is 'raise' or 'skip'")
        if self.asynchronous if asynchronous is None else asynchronous:
            return self._gather(futures, errors, direct)
        found: dict[Any, Any] = {}
        collect(futures, found)
        # The fast path, without a coroutine, is for futures of this client only.
        if not all(map(self._owned, found)):
            return self.sync(self._gather, futures, errors, direct, asynchronous=False)
        gathering = Gathering(self, found, errors)
        self.owner.wait(gathering.rows, stop_at_error=errors == "raise")
        with shorten_traceback():
            remaining = gathering.read_here()
            if remaining:
                fetched = sync(self.loop, fetch, self.owner, [f._row for f in remaining])
                gathering.read_fetched(remaining, fetched)
        return repack(futures, gathering.values, errors)

    async def _gather(
        self,
        futures: Any,
        errors: str = "raise",
        direct: Any = None,
        local_worker: Any = None,
    ) -> Any:
        """Gather in a coroutine, also futures of the scheduler and of other clients."""
        found: dict[Any, Any] = {}
        collect(futures, found)
        owned = [f for f in found if isinstance(f, Future)]
        central = [f for f in found if not isinstance(f, Future)]
        for future in central:
            if isinstance(future, distributed.Future):
                # Raises for a future that was unpickled without a client.
                future._verify_initialized()
        if not owned and central:
            return await super()._gather(futures, errors, direct, local_worker)
        mine = self._as_mine(owned, errors)
        with shorten_traceback():
            got = await values_of(self, list(mine.values()), errors)
        values = {future: got[mine[future]] if future in mine else SKIPPED for future in owned}
        for future in central:
            # One by one: with ``errors="skip"`` Dask leaves failed futures out of the list of
            # values.
            one = await super()._gather([future], errors, direct, local_worker)
            values[future] = one[0] if one else SKIPPED
        return repack(futures, values, errors)

    def _as_mine(self, futures: Iterable[Any], errors: str) -> dict[Any, Any]:
        """Return owned futures with the futures of this client that stand for them.

        Futures of other clients are borrowed.
        """
        found: dict[Any, Any] = {}
        for future in futures:
            try:
                found[future] = future if self._owned(future) else self.imports.future(future)
            except (OwnershipError, distributed.CancelledError):
                # The future is of another cluster, or its owner is closed, or it was released.
                if errors == "raise":
                    raise
        return found

    def _send_to_scheduler(self, msg: dict[str, Any]) -> None:
        """Send a message to the scheduler, except for `fire_and_forget` of owned keys."""
        # This is all that the stock `fire_and_forget` does. The owner keeps such rows until they
        # end.
        if msg.get("client") == "fire-and-forget" and msg.get("op") == "client-desires-keys":
            rows = [self.owner.core.row(key) for key in msg["keys"]]
            owned = [row for row in rows if row is not None]
            if owned:
                self.owner.call(self.owner.core.desire, owned)
                return
        super()._send_to_scheduler(msg)
