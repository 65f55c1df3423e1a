"""Recreating a task in the client's process, to run it once more under a debugger.

An owner keeps the task of every failed row, for retries, and of every stored value, as lineage.
Tasks of the central scheduler come from the scheduler, as in Dask.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from inspect import iscoroutine
from typing import Any

import distributed
from dask._expr import LLGExpr
from distributed import Client as StockClient
from distributed.recreate_tasks import ReplayTaskClient

from dask_ownership.core.owner.rows.row import Borrowed, Row
from dask_ownership.core.protocol.names import KEY, NAME
from dask_ownership.core.protocol.states import INLINE
from dask_ownership.errors import NotHere
from dask_ownership.monitoring.lookup import error_cause, find
from dask_ownership.runtime.importing import loads
from dask_ownership.runtime.owner.owner import Owner
from dask_ownership.runtime.serialize import arriving, call, loads_call


class RecreateTasks(ReplayTaskClient):
    """`recreate_task_locally` and `recreate_error_locally` of one client.

    Dask puts its own object into every client when the client is made; this object takes its place.
    """

    client: Any

    def recreate_task_locally(self, future: Any) -> Any:
        """Run the task of a future in this thread, with its inputs brought here.

        See `distributed.Client.recreate_task_locally`. For debuggers:
        ``pdb.runcall(client.recreate_task_locally, future)``. The future stays as it is. The task
        of a small computed value (up to 64 KiB) is kept only with
        ``dask.config.set({"ownership.lineage.inline": True})`` before the client is made.

        Parameters
        ----------
        future : Future or hashable
            A future that ended, or its key.

        Returns
        -------
        object
            The result of the task; for an asynchronous client, a coroutine.

        Raises
        ------
        NotHere
            When the task is not kept here: another process owns it, or it was dropped.
        Exception
            The exception of the task.
        """
        return self._run(self._get_components_from_future, future)

    def recreate_error_locally(self, future: Any) -> Any:
        """Run the task that made a computation fail in this thread, where it raises again.

        See `distributed.Client.recreate_error_locally`. For a future whose input failed, the task
        of that input, and so on.

        Parameters
        ----------
        future : Future, collection or nested list of them
            The first failed future counts.

        Raises
        ------
        ValueError
            When no future failed.
        NotHere
            When another process owns the task.
        Exception
            The exception of the task.
        """
        return self._run(self._blamed, future)

    def _run(self, components: Any, future: Any) -> Any:
        """Fetch the parts of a task on the loop, and call the task in this thread."""
        if self.client.asynchronous:

            async def run() -> Any:
                task, values = await components(future)
                return task(values)

            return run()
        task, values = self.client.sync(components, future)
        return task(values)

    async def _blamed(self, future: Any) -> Any:
        """Return task and inputs for the first error among futures."""
        return await self._get_components_from_future(await self._get_errored_future(future))

    async def _get_task_runspec(self, future: Any) -> Any:
        """Return the task of a future: from the owner's table, or from the scheduler."""
        client = self.client
        row = None
        if isinstance(future, distributed.Future):
            await future._state.wait()
            row = future._row if client._owned(future) else None
            future = future.key
        else:
            client.owner.process()
            row = find(client.owner, future)
        if row is None:
            return await client.scheduler.get_runspec(key=future)
        return local_task(client, row)

    async def _get_components_from_future(self, future: Any) -> Any:
        """Return the task of a future, and the values of its inputs."""
        task = await self._get_task_runspec(future)
        client = self.client
        if isinstance(task, LocalTask):
            # In an empty graph all keys are found in the table.
            futures = client._graph_to_futures({}, task.dependencies)
        else:
            # The stock method, because these are keys of the scheduler, with a graph in the
            # scheduler's form.
            futures = StockClient._graph_to_futures(
                client, LLGExpr({}), task.dependencies, span_metadata={}
            )
        return task, await client._gather(futures)

    async def _get_errored_future(self, future: Any) -> Any:
        """Return the key of the task that raised the error of the first failed future."""
        futures = distributed.futures_of(future)
        for one in futures:
            await one._state.wait()
        failed = [one for one in futures if one.status == "error"]
        if not failed:
            raise ValueError("No errored futures passed")
        if not self.client._owned(failed[0]):
            return await self.client.scheduler.get_error_cause(keys=[failed[0].key])
        return error_cause(failed[0]._row).key


class LocalTask:
    """The task of an owned row, to be called with the values of its dependencies.

    Parameters
    ----------
    client : Client
    row : Row
    function : Function
    payload : bytes
    inputs : iterable of Row
        The rows of the payload's slots, in order.

    Attributes
    ----------
    key : hashable
    dependencies : tuple of hashable
    function : callable
    """

    def __init__(
        self, client: Any, row: Row, function: Any, payload: bytes, inputs: Iterable[Row]
    ) -> None:
        self.key = row.key
        self.dependencies = tuple([needed.key for needed in inputs])
        self._client = client
        self._payload = payload
        self._function = loads(function.pickled)

    @property
    def func(self) -> Any:
        """The function, under the name that Dask's tasks have for it."""
        return self.function

    @property
    def function(self) -> Any:
        """The function of the task; a function with state is in the payload."""
        if self._function is not call:
            return self._function
        # Only the function is wanted: the slots may stand for anything.
        with arriving(self._client):
            args, _ = loads_call(self._payload, [None] * len(self.dependencies))
        return args[0]

    def __call__(self, values: Mapping[Any, Any]) -> Any:
        """Run the task in the calling thread; return or raise as the task does.

        A coroutine function is run to its end, unless a loop runs in this thread.
        """
        with arriving(self._client):
            args, kwargs = loads_call(self._payload, [values[key] for key in self.dependencies])
        result = self._function(*args, **kwargs)
        if iscoroutine(result):
            try:
                # Where a loop runs, the caller awaits the coroutine.
                asyncio.get_running_loop()
            except RuntimeError:
                return asyncio.run(result)
        return result


def local_task(client: Any, row: Row) -> LocalTask:
    """Return the task of a row. Loop thread.

    Raises
    ------
    NotHere
        When another process owns the task, or no process keeps it any more.
    """
    if isinstance(row, Borrowed):
        raise NotHere(
            f"the task of {row.origin[KEY]!r} is with its owner {row.owner_ref[NAME]}, and can be "
            "run locally only there"
        )
    made = row if row.function is not None else row.lineage
    if made is None or made.function is None or made.payload is None:
        raise NotHere(
            f"the task of {row.key!r} cannot be run here: {_why_not(client.owner, row)}; "
            "submit it again"
        )
    return LocalTask(client, row, made.function, made.payload, made.dependencies)


def _why_not(owner: Owner, row: Row) -> str:
    """Return why the task of a row is not kept."""
    if row.state == INLINE and row.worker is not None and not owner.core.traces_inline:
        return (
            "its value travelled to its owner, and how it was made is not kept then, unless "
            'dask.config.set({"ownership.lineage.inline": True}) is there before the client'
        )
    return owner.core.why_not(row)
