"""Where values and tasks are: a client's answers in the form of Dask's scheduler.

Owned and borrowed keys are looked up in this process, all other keys at the scheduler, and both
answers are joined in the shapes of Dask's own methods. An inline value is at no worker, and any
worker gets it with the task that needs it. The answer names the worker that made the value: code
that asks wants a worker to send tasks to, and finds one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Hashable, Iterable
from typing import Any
from zlib import crc32

import distributed
from dask.utils import key_split
from distributed.objects import HasWhat, WhoHas

from dask_ownership.client.connection import ClusterConnection
from dask_ownership.core.owner.rows.row import COPY, Borrowed, Row
from dask_ownership.core.protocol.states import DORMANT, FORGOTTEN, INLINE, PUSHED, STORED, WAITING
from dask_ownership.futures.future import Future
from dask_ownership.monitoring.lookup import find, name_of
from dask_ownership.runtime.owner.owner import Owner

ASKED = 5.0
"""Seconds for which a worker may take to answer what its threads do."""


class Queries(ClusterConnection):
    """The part of a `dask_ownership.Client` that answers where things are."""

    def who_has(self, futures: Any = None, **kwargs: Any) -> Any:
        """Return the workers that have each value; see `distributed.Client.who_has`.

        A value of up to 64 KiB is with its owner; the answer names the worker that made the value,
        or another worker when that worker is gone. A future without a value yet is at no worker.

        Parameters
        ----------
        futures : Future, collection or nested list of them, optional
            Everything that this client has futures of, and that the scheduler has, when None.

        Returns
        -------
        distributed.objects.WhoHas
            A dict of key to a tuple of addresses.
        """
        return self.sync(self._who_has, futures, **kwargs)

    async def _who_has(self, futures: Any = None, **kwargs: Any) -> WhoHas:
        rows, others = await self._asked(futures)
        found = WhoHas()
        if futures is None or others:
            found.update(await self.scheduler.who_has(keys=others or None, **kwargs))
        found.update({key: tuple(addresses(self.owner, row)) for key, row in rows.items()})
        return found

    def has_what(self, workers: Any = None, **kwargs: Any) -> Any:
        """Return the keys of the values at each worker; see `distributed.Client.has_what`.

        Owned values are listed if this client has futures of them; see `who_has` for their places.

        Returns
        -------
        distributed.objects.HasWhat
            A dict of address to a tuple of keys.
        """
        return self.sync(self._has_what, listed(workers), **kwargs)

    async def _has_what(self, workers: Any, **kwargs: Any) -> HasWhat:
        answer = await self.scheduler.has_what(workers=workers, **kwargs)
        rows, _ = await self._asked(None)
        mine: dict[str, list[Any]] = {}
        for key, row in rows.items():
            for address in addresses(self.owner, row):
                mine.setdefault(address, []).append(key)
        return HasWhat(merged(answer, mine))

    def processing(self, workers: Any = None) -> Any:
        """Return the tasks that each worker was given; see `distributed.Client.processing`.

        Owned tasks are listed if this client owns them.

        Returns
        -------
        dict of str to tuple
            Address to keys.
        """
        return self.sync(self._processing, listed(workers))

    async def _processing(self, workers: Any) -> dict[str, Any]:
        answer = await self.scheduler.processing(workers=workers)
        self.owner.process()
        views = self.owner.core.workers
        return merged(answer, {a: [name_of(k) for k in v.pushed] for a, v in views.items()})

    def nbytes(self, keys: Any = None, summary: bool = True, **kwargs: Any) -> Any:
        """Return the bytes of each value; see `distributed.Client.nbytes`.

        For inline values the bytes of the pickle. For a key without a value yet -1, as in Dask,
        when the caller names the key.

        Parameters
        ----------
        keys : list of hashable or Future, optional
        summary : bool
            Add up values whose keys begin with the same name.

        Returns
        -------
        dict

        Raises
        ------
        KeyError
            When a key is unknown here and to the scheduler.
        """
        return self.sync(self._nbytes, keys, summary, **kwargs)

    async def _nbytes(self, keys: Any, summary: bool, **kwargs: Any) -> dict[Any, int]:
        rows, others = await self._asked(None if keys is None else keys)
        found: dict[Any, int] = {}
        if keys is None or others:
            found.update(
                await self.scheduler.nbytes(keys=others or None, summary=summary, **kwargs)
            )
        for key, row in rows.items():
            there = row.state in (INLINE, STORED)
            if there or keys is not None:
                name = key_split(key) if summary else key
                found[name] = found.get(name, 0) + (row.nbytes if there else -1)
        return found

    def call_stack(self, futures: Any = None, keys: Any = None) -> Any:
        """Return what the threads that run tasks are doing; see `distributed.Client.call_stack`.

        For a task that waits for other tasks, the running ones among these.

        Parameters
        ----------
        futures : Future, collection or nested list of them, optional
        keys : list of hashable, optional

        Returns
        -------
        dict
            Address to a dict of key and the texts of its frames. Without arguments all threads, of
            every client. Coroutine tasks have no thread.
        """
        return self.sync(self._call_stack, futures, keys)

    async def _call_stack(self, futures: Any, keys: Any) -> dict[str, Any]:
        if futures is None and not keys:
            answer: dict[str, Any] = await self.scheduler.call_stack(keys=None)
            return answer
        rows, others = await self._asked([*(keys or ()), futures])
        found: dict[str, dict[Any, Any]] = {}
        if others:
            found.update(await self.scheduler.call_stack(keys=others))
        running: dict[str, list[Hashable]] = {}
        for row in unfinished(rows.values()):
            if row.state == PUSHED:
                running.setdefault(row.worker.address, []).append(row.key)

        async def ask(address: str, names: list[Hashable]) -> None:
            try:
                stacks = await asyncio.wait_for(
                    self.owner.pool(address).call_stack(keys=names), ASKED
                )
            except (OSError, asyncio.TimeoutError):
                return  # a worker that is gone or frozen has no call stack to tell
            if stacks:
                found.setdefault(address, {}).update(stacks)

        await asyncio.gather(*(ask(*one) for one in running.items()))
        return found

    async def _asked(self, what: Any) -> tuple[dict[Any, Row], list[Any]]:
        """Return rows by the keys that users know, and keys that are neither owned nor borrowed."""
        self._check_open()
        owner = self.owner
        owner.process()
        if what is None:
            # Dormant rows have no value, and rows that make copies are no objects of the user.
            hidden = (DORMANT, FORGOTTEN)
            table = [row for row in owner.core.rows() if not row.roles & COPY]
            rows = {name_of(row.key): row for row in table if row.state not in hidden}
            return rows, []
        rows, others = {}, []
        for one in flat(what):
            row = one._row if isinstance(one, Future) else None
            key = one.key if isinstance(one, distributed.Future) else one
            if row is None and not isinstance(one, distributed.Future):
                row = find(owner, key)
            if row is not None:
                rows[key] = row
            elif key not in others:
                others.append(key)
        return rows, others


def flat(what: Any) -> list[Any]:
    """Return the futures and keys in a nested structure, collections included."""
    if isinstance(what, list | set):
        return [one for item in what for one in flat(item)]
    futures = distributed.futures_of(what)
    if futures or what is None or isinstance(what, dict):
        return list(futures)
    return [] if hasattr(what, "__dask_graph__") else [what]


def listed(workers: Any) -> Any:
    """Return ``workers=`` in the form that the scheduler takes."""
    return workers if workers is None or isinstance(workers, list | tuple | set) else [workers]


def merged(answer: dict[str, Any], mine: dict[str, list[Any]]) -> dict[str, Any]:
    """Return the scheduler's answer for some workers, with the owned keys there added."""
    return {w: (*theirs, *dict.fromkeys(mine.get(w, ()))) for w, theirs in answer.items()}


def addresses(owner: Owner, row: Row) -> Collection[str]:
    """Return the workers where tasks find a value, as the module says. Loop thread."""
    if row.state == STORED:
        return row.addresses if isinstance(row, Borrowed) else [v.address for v in row.locations]
    workers = owner.core.workers
    if row.state != INLINE or not workers:
        return ()
    if row.worker is not None and row.worker.alive:
        return (row.worker.address,)
    # Any worker would do. The hash of the key chooses the same worker each time, and spreads keys.
    return (sorted(workers)[crc32(repr(row.key).encode()) % len(workers)],)


def unfinished(rows: Iterable[Row]) -> list[Row]:
    """Return rows and all unfinished rows that they wait for, without the rows that ended."""
    seen: dict[Row, None] = {}
    stack = list(rows)
    while stack:
        row = stack.pop()
        if WAITING <= row.state <= PUSHED and row not in seen:
            seen[row] = None
            stack.extend(row.dependencies)
    return list(seen)
