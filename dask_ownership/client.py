"""The client: a `distributed.Client` that owns what it submits.

What is overridden here goes to this process's `Owner`; what is inherited and not
owned (actors, queues, variables, datasets, cluster administration) goes to the
scheduler as in Dask. `Client.central_calls` counts the operations that went there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, Callable, Iterable, Iterator
from numbers import Number
from queue import Queue as PyQueue
from typing import Any

import distributed
from distributed.core import PooledRPCCall
from distributed.utils import _parse_timedelta as parse_timeout
from distributed.utils import sync

from dask_ownership import config
from dask_ownership.calls import Calls, given_in
from dask_ownership.cluster.scheduler_plugin import NAME, OwnershipSchedulerPlugin
from dask_ownership.errors import ClosedOwner, NotHere, PluginMissing
from dask_ownership.future import Future, owned_clients
from dask_ownership.gathering import SKIPPED, Gathering, collect, repack
from dask_ownership.graph import Graph, graph_rows
from dask_ownership.guard import GuardedScheduler
from dask_ownership.runtime.link import PROTOCOL
from dask_ownership.runtime.membership import BACKLOG, DIAL, JOIN, MEMBERS, OWNER_GONE
from dask_ownership.runtime.owner import Owner
from dask_ownership.runtime.reading import fetch
from dask_ownership.runtime.runner import current_entry
from dask_ownership.scatter import scatter
from dask_ownership.snapshot import find, history, look, present, take
from dask_ownership.streaming import Stream

logger = logging.getLogger("dask_ownership.client")


class Client(distributed.Client):
    """A `distributed.Client` whose tasks are owned by this process.

    Takes what `distributed.Client` takes, and works on any Dask cluster where
    dask_ownership is installed: the first client installs the plugins.

    Attributes
    ----------
    owner : dask_ownership.runtime.owner.Owner
        The ownership table and the links of this client.
    central_calls : int
        How many operations went to the central scheduler because they are not owned.

    Raises
    ------
    PluginMissing
        When the cluster has no plugin and does not let this client install it.
    """

    owner: Owner
    scheduler: Any

    def __init__(self, *args: Any, _worker_side: Any = None, **kwargs: Any) -> None:
        self._worker_side = _worker_side
        self._joined_comm: Any = None
        self.central_calls = 0
        self._counted_open = False
        super().__init__(*args, **kwargs)

    @classmethod
    def for_worker(cls, side: Any, timeout: Any = None) -> Client:
        """The client that tasks of a worker get: on the worker's loop and owner."""
        worker = side.worker
        try:
            on_loop = asyncio.get_running_loop() is worker.loop.asyncio_loop
        except RuntimeError:
            on_loop = False
        return cls(
            worker.scheduler.address,
            loop=worker.loop,
            security=worker.security,
            set_as_default=False,
            asynchronous=on_loop,
            direct_to_workers=True,
            name="worker",
            _worker_side=side,
            **({} if timeout is None else {"timeout": timeout}),
        )

    # ---- life ----

    def start(self, **kwargs: Any) -> None:
        """Start the loop when it is this client's own, and connect."""
        if self.status == "newly-created":
            if self._worker_side is not None:
                self.owner = self._worker_side.owner
            else:
                self.owner = Owner(self.connection_args, self.id)
                self._stream_handlers[MEMBERS] = self.owner.members_changed
                self._stream_handlers[OWNER_GONE] = self.owner.process_gone
                self._stream_handlers[DIAL] = self.owner.dial
                self.owner.on_backlog = self._tell_backlog
            self.calls = Calls(self.owner)
            owned_clients[self.owner.incarnation] = self
            # The clients of workers are among those: tasks shuffle too.
            config.client_opened()
            self._counted_open = True
        super().start(**kwargs)

    async def _start(self, *args: Any, **kwargs: Any) -> Any:
        if self._worker_side is None:
            await self.owner.start()
        return await super()._start(*args, **kwargs)

    async def _ensure_connected(self, timeout: Any = None) -> None:
        if isinstance(self.scheduler, PooledRPCCall):
            self.scheduler = GuardedScheduler(self.scheduler, self)
        await super()._ensure_connected(timeout)
        if self.status != "running" or self._joined_comm is self.scheduler_comm:
            return
        self._joined_comm = self.scheduler_comm
        try:
            if self._worker_side is not None:
                await self._worker_side.join()
            else:
                await self._join()
        except PluginMissing:
            await self._close()
            raise

    async def _join(self) -> None:
        """Install the plugins if nobody has, and learn who is in the cluster."""
        problem: Any = None
        try:
            await self._register_scheduler_plugin(
                OwnershipSchedulerPlugin(), name=NAME, idempotent=True
            )
        except Exception as error:
            problem = error
        answer = None
        try:
            answer = await getattr(self.scheduler, JOIN)(
                owner=self.owner.incarnation, client=self.id, protocol=PROTOCOL
            )
        except Exception as error:
            problem = problem or error
        if not isinstance(answer, dict) or answer.get("status") != "OK":
            reason = answer.get("reason") if isinstance(answer, dict) else repr(problem)
            raise PluginMissing(
                f"the scheduler {self._rpc_address()} does not take owners, and this client may "
                f"not install the plugin there ({reason}). Start the scheduler with "
                "`--preload dask_ownership.preload`, with dask_ownership installed on the "
                "scheduler and the workers"
            )
        self.owner.token = answer["token"]
        self.owner.members_changed(answer["members"], [])

    def _tell_backlog(self, tasks: int) -> None:
        """For adaptive scaling; a few times while there is much to do, not per task."""
        if self.status == "running":
            self._send_to_scheduler({"op": BACKLOG, "tasks": tasks})

    def sync(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        """Run a coroutine function on the loop and wait for it; inside a task without a slot."""
        executor = self.owner.executor if hasattr(self, "owner") else None
        if executor is None:
            return super().sync(func, *args, **kwargs)
        with executor.parking.without_slot():
            return super().sync(func, *args, **kwargs)

    def _rpc_address(self) -> str:
        return str(getattr(self.scheduler, "address", "of this client"))

    async def _close(self, fast: bool = False) -> None:
        if self.status == "closed":
            return
        if self._worker_side is None and hasattr(self, "owner"):
            await self.owner.close()
        if self._counted_open:
            self._counted_open = False
            config.client_closed()
        await super()._close(fast=fast)

    def _handle_restart(self) -> None:
        super()._handle_restart()
        self.owner.cancel(self.owner.core.table.all(), "the cluster restarted")

    def _check_open(self) -> None:
        if self.status in ("closed", "closing"):
            raise ClosedOwner(f"{self.id} is closed")

    def _inc_ref(self, key: Any) -> None:
        """Stock futures of owned keys are refused: they would wait for the scheduler for ever."""
        if key in self.owner.core.table.rows:
            raise NotHere(
                f"{key!r} is owned by this client; distributed.Future(key, client) makes futures "
                "of the central scheduler. Keep the future that submit gave, or submit it again"
            )
        super()._inc_ref(key)

    # ---- submitting ----

    def submit(
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

        Raises
        ------
        NotSerializable
            When the function or an argument cannot be pickled.
        """
        if actor or actors:
            self._refuse_owned((args, kwargs), "an actor")
            self.central_calls += 1
            return super().submit(
                func, *args, key=key, workers=workers, resources=resources, retries=retries,
                priority=priority, fifo_timeout=fifo_timeout,
                allow_other_workers=allow_other_workers, actor=True, pure=pure, **kwargs,
            )  # fmt: skip
        if not callable(func):
            raise TypeError("First input to submit must be a callable function")
        if allow_other_workers not in (True, False, None):
            raise TypeError("allow_other_workers= must be True or False")
        if allow_other_workers and workers is None:
            raise ValueError("Only use allow_other_workers= if using workers=")
        if self.status in ("closed", "closing"):
            self._check_open()
        calls = self.calls
        row = calls.row(
            func, args, kwargs, key, pure, workers, resources, retries, priority,
            allow_other_workers,
        )  # fmt: skip
        return Future(self, row)

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

        ``batch_size`` is taken and changes nothing: tasks leave in batches anyway.

        With ``buffer_size`` the items may come from iterators and generators of any length,
        and instead of a list comes an iterator of futures in their order, a
        `dask_ownership.streaming.Stream`, which submits at most that many tasks beyond
        those that were consumed.

        Examples
        --------
        >>> for future in client.map(parse, walk(), buffer_size=100):  # doctest: +SKIP
        ...     use(future.result())
        """
        if actor or actors:
            if buffer_size is not None:
                raise ValueError("buffer_size= is not for actors, which the scheduler runs")
            self._refuse_owned((iterables, kwargs), "an actor")
            self.central_calls += 1
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
        if buffer_size is not None:
            return Stream(
                self, func, iterables, kwargs, buffer_size, key, pure, workers, resources, retries,
                priority, allow_other_workers,
            )  # fmt: skip
        rows = self.calls.map_rows(
            func, iterables, kwargs, key, pure, workers, resources, retries, priority,
            allow_other_workers,
        )  # fmt: skip
        return [Future(self, row) for row in rows]

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
        """Where `get`, `compute` and `persist` come together: rows of a graph."""
        if allow_other_workers not in (True, False, None):
            raise TypeError("allow_other_workers= must be True, False, or None")
        self._check_open()
        graph = Graph(expr)
        if actors or self._needs_scheduler(graph):
            self.central_calls += 1
            return super()._graph_to_futures(
                expr, keys, span_metadata, workers=workers,
                allow_other_workers=allow_other_workers, internal_priority=internal_priority,
                user_priority=user_priority, resources=resources, retries=retries,
                fifo_timeout=fifo_timeout, actors=actors,
            )  # fmt: skip
        call = {
            "workers": workers,
            "allow_other_workers": allow_other_workers,
            "resources": resources,
            "retries": retries,
            "priority": user_priority,
        }
        rows = graph_rows(self.calls, graph, set(keys), internal_priority, call)
        return {key: Future(self, row) for key, row in rows.items()}

    def _needs_scheduler(self, graph: Graph) -> bool:
        """Whether only the central scheduler can run a graph.

        Raises
        ------
        NotImplementedError
            When it also needs owned futures, which the scheduler does not know.
        """
        outside = graph.outside()
        rows = self.owner.core.table.rows
        central = [key for key in outside if key in self.futures and key not in rows]
        if not graph.central and not central:
            return False
        owned = [key for key in outside if key in rows]
        if owned:
            why = (
                f"it needs {central[0]!r}, which the scheduler computed"
                if central
                else "it holds a P2P shuffle"
            )
            raise NotImplementedError(
                f"the graph must be run by the central scheduler ({why}) and needs the owned "
                f"future {owned[0]!r}, which the scheduler cannot see: use "
                'dask.config.set({"dataframe.shuffle.method": "tasks", '
                '"array.rechunk.method": "tasks"}) from the start'
            )
        return True

    def get(self, dsk: Any, keys: Any, **kwargs: Any) -> Any:
        """Compute a graph; see `distributed.Client.get`.

        Inside an owned task the slot is given up by itself while it waits.
        """
        wait = kwargs.pop("sync", True)
        asynchronous = kwargs.pop("asynchronous", None)
        direct = kwargs.pop("direct", None)
        packed = super().get(dsk, keys, sync=False, **kwargs)
        if not wait:
            return packed
        return self.gather(packed, direct=direct, asynchronous=asynchronous)

    # ---- results ----

    def _owned(self, future: Any) -> bool:
        return isinstance(future, Future) and future._owner is self.owner

    def _refuse_owned(self, structure: Any, what: str) -> None:
        for future in distributed.futures_of(structure):
            if isinstance(future, Future):
                raise NotImplementedError(
                    f"{what} is run by the central scheduler, which cannot take the owned future "
                    f"{future.key!r} as an argument: pass its value (future.result())"
                )

    def gather(
        self,
        futures: Any,
        errors: str = "raise",
        direct: Any = None,
        asynchronous: bool | None = None,
    ) -> Any:
        """Bring values here; see `distributed.Client.gather`."""
        if isinstance(futures, PyQueue):
            raise TypeError(
                "Dask no longer supports gathering over Iterators and Queues. "
                "Consider using a normal for loop and Client.submit/gather"
            )
        if isinstance(futures, Iterator):
            return (self.gather(f, errors=errors, direct=direct) for f in futures)
        self._check_open()
        if errors not in ("raise", "skip"):
            raise ValueError(f"Bad value, `errors={errors}`")
        if self.asynchronous if asynchronous is None else asynchronous:
            return self._gather(futures, errors, direct)
        found: dict[Any, Any] = {}
        collect(futures, found)
        if any(type(future) is not Future for future in found):
            return sync(self.loop, self._gather, futures, errors, direct)
        self._check_mine(found)
        gathering = Gathering(self, found, errors)
        self.owner.wait(gathering.rows, stop_at_error=errors == "raise")
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
        found: dict[Any, Any] = {}
        collect(futures, found)
        owned = [f for f in found if isinstance(f, Future)]
        central = [f for f in found if not isinstance(f, Future)]
        for future in central:
            if isinstance(future, distributed.Future):
                future._verify_initialized()
        if not owned and central:
            return await super()._gather(futures, errors, direct, local_worker)
        self._check_mine(owned)
        values = await self._values(owned, errors)
        for future in central:
            one = await super()._gather([future], errors, direct, local_worker)
            values[future] = one[0] if one else SKIPPED
        return repack(futures, values, errors)

    async def _values(self, futures: list[Any], errors: str = "raise") -> dict[Any, Any]:
        """Values of owned futures, once they are there."""
        gathering = Gathering(self, futures, errors)
        await self.owner.wait_async(gathering.rows, stop_at_error=errors == "raise")
        remaining = gathering.read_here()
        if remaining:
            fetched = await fetch(self.owner, [f._row for f in remaining])
            gathering.read_fetched(remaining, fetched)
        return gathering.values

    def _value_of(self, future: Any, timeout: Any) -> Any:
        """The value of one owned future that ended, as `Future.result` needs it."""
        error = future._error()
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback holds this frame, and so the future
        seconds = parse_timeout(timeout)
        return sync(self.loop, self._values, [future], callback_timeout=seconds)[future]

    def _check_mine(self, futures: Iterable[Any]) -> None:
        others = [f for f in futures if not self._owned(f)]
        if others:
            raise ValueError(
                "Cannot gather Futures created by another client. "
                f"These are the {len(others)} mismatched Futures and their client IDs (this "
                f"client is {self.id}): { {f.key: f.client.id for f in others} }"
            )

    # ---- data ----

    def scatter(
        self,
        data: Any,
        workers: Any = None,
        broadcast: Any = False,
        direct: Any = None,
        hash: bool = True,
        timeout: Any = None,
        asynchronous: bool | None = None,
    ) -> Any:
        """Put values at workers; see `distributed.Client.scatter`.

        They have no lineage: a value whose every holder is gone is lost.
        """
        if isinstance(data, PyQueue | Iterator):
            raise TypeError(
                "Dask no longer supports mapping over Iterators or Queues. "
                "Consider using a normal for loop and Client.submit"
            )
        self._check_open()
        if not isinstance(timeout, int | float | str | None):
            timeout = None
        seconds = parse_timeout(timeout) or self._timeout
        options = given_in(current_entry())
        return self.sync(
            scatter, self, data, workers, broadcast, hash, seconds, options,
            asynchronous=asynchronous,
        )  # fmt: skip

    # ---- requests about futures ----

    async def _cancel(
        self, futures: Any, reason: Any = None, msg: Any = None, force: bool = False
    ) -> None:
        self._check_open()
        mine, others = self._split(futures)
        if mine:
            detail = str(msg or reason or "cancelled by its client")
            self.owner.cancel([f._row for f in mine], detail)
        if others:
            self.central_calls += 1
            await super()._cancel(others, reason=reason, msg=msg, force=force)

    async def _retry(self, futures: Any) -> None:
        self._check_open()
        mine, others = self._split(futures)
        if mine:
            self.owner.retry([f._row for f in mine])
        if others:
            await super()._retry(others)

    def _split(self, futures: Any) -> tuple[list[Any], list[Any]]:
        found = distributed.futures_of(futures)
        mine = [f for f in found if self._owned(f)]
        return mine, [f for f in found if not self._owned(f)]

    # ---- looking ----

    def ownership(self, key: Any = None, *, asynchronous: bool | None = None) -> Any:
        """What this process owns, borrows and lends now; or all about one object.

        Inside a task this is about the worker's process. It asks nobody, and copies what it
        finds: nothing is kept alive by it. Its time grows with the number of objects (about
        a second for a million), during which the event loop does nothing else.

        Parameters
        ----------
        key : hashable or Future, optional
            One object, owned or borrowed.
        asynchronous : bool, optional
            Whether to return a coroutine, as for other methods of a client.

        Returns
        -------
        dask_ownership.snapshot.Snapshot
            Or, for one object, `dask_ownership.snapshot.ObjectSnapshot`. Both are readable
            in a terminal and a notebook, have plain attributes, and ``to_dict()``.

        Raises
        ------
        KeyError
            When nothing with this key is owned or borrowed here.
        ClosedOwner

        Examples
        --------
        >>> client.ownership().objects["inline"]  # doctest: +SKIP
        3
        >>> client.ownership(future).holders  # doctest: +SKIP
        ['tcp://127.0.0.1:40331']
        """
        self._check_open()
        return self.sync(self._ownership, key, asynchronous=asynchronous)

    async def _ownership(self, key: Any = None) -> Any:
        self._check_open()
        self.owner._process()
        if key is None:
            return take(self.owner, self.central_calls)
        row = key._row if self._owned(key) else None
        if isinstance(key, distributed.Future):
            key = key.key
        else:
            row = find(self.owner, key)
        if row is None:
            raise KeyError(
                f"{key!r} is neither owned nor borrowed by {self.owner.name}: it never was, or "
                "nobody here holds its future any more"
            )
        return look(self.owner, row)

    def story(self, *keys_or_futures: Any, on_error: str = "raise") -> Any:
        """What happened to some keys, as far as it was unusual.

        Owned tasks leave no trace while all goes well: writing it would cost more than
        running them. Remembered are, for the latest 10 000 events of this process:
        ``returned`` and ``recalled`` by a worker, ``retried``, ``worker-gone`` (under it),
        ``copy-gone`` (the last one), ``withdrawn`` (from borrowers), ``recovered``,
        ``evicted`` (its lineage), ``handed-over`` (by a worker that leaves) and ``adopted``
        (from one), ``error``, ``cancelled`` and ``lost``. The last entry of each key is its
        present state, if it is still there. The cluster is not asked.

        Keys that are not owned or borrowed here go to the scheduler and the workers, see
        `distributed.Client.story`.

        Parameters
        ----------
        *keys_or_futures : hashable or Future
            Or, for what is not owned, ids of stimuli.
        on_error : {"raise", "ignore"}
            What to do when the scheduler or a worker cannot be asked.

        Returns
        -------
        list of tuple
            ``(key, event, detail, time)``, oldest first; then the present states; then what
            Dask says of the others, in its own format.
        """
        return self.sync(self._story, *keys_or_futures, on_error=on_error)

    async def _story(self, *keys_or_futures: Any, on_error: str = "raise") -> list[Any]:
        if on_error not in ("raise", "ignore"):
            raise ValueError(f"on_error= must be 'raise' or 'ignore', not {on_error!r}")
        self._check_open()
        owner = self.owner
        owner._process()
        mine: dict[Any, Any] = {}
        others = []
        for what in keys_or_futures:
            known = isinstance(what, distributed.Future)
            key = what.key if known else what
            row = what._row if self._owned(what) else None if known else find(owner, key)
            if row is not None or (not known and history(owner, {key})):
                mine[key] = row
            else:
                others.append(key)
        story: list[Any] = list(history(owner, mine.keys()))
        story += [present(owner, row) for row in mine.values() if row is not None]
        if others or not keys_or_futures:
            story += await super()._story(*others, on_error=on_error)
        return story

    def _send_to_scheduler(self, msg: dict[str, Any]) -> None:
        if msg.get("client") == "fire-and-forget" and msg.get("op") == "client-desires-keys":
            rows = [self.owner.core.table.rows.get(key) for key in msg["keys"]]
            owned = [row for row in rows if row is not None]
            if owned:
                self.owner.call(self.owner.core.desire, owned)
                return
        super()._send_to_scheduler(msg)
