"""Values at workers: what a client puts there, copies and moves."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from queue import Queue as PyQueue
from typing import Any

from dask.typing import no_default

from dask_ownership.client.connection import ClusterConnection
from dask_ownership.client.queries import listed
from dask_ownership.core.owner.rows.options import NO_OPTIONS, Options
from dask_ownership.futures.options import given_in
from dask_ownership.futures.rebalance import rebalance
from dask_ownership.futures.replicate import replicate, wanted_copies
from dask_ownership.futures.scatter import scatter
from dask_ownership.runtime.dask.client import parse_timeout
from dask_ownership.runtime.task import current_entry


class Data(ClusterConnection):
    """What of a `dask_ownership.Client` says at which workers values are."""

    def scatter(
        self,
        data: Any,
        workers: Any = None,
        broadcast: Any = False,
        direct: Any = None,
        hash: bool = True,
        timeout: Any = no_default,
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
        options = given_in(current_entry())
        return self.sync(
            self._scatter,
            data,
            workers=workers,
            broadcast=broadcast,
            direct=direct,
            timeout=timeout,
            hash=hash,
            options=options,
            asynchronous=asynchronous,
        )

    async def _scatter(
        self,
        data: Any,
        workers: Any = None,
        broadcast: Any = False,
        direct: Any = None,
        local_worker: Any = None,
        timeout: Any = no_default,
        hash: bool = True,
        *,
        options: Options = NO_OPTIONS,
    ) -> Any:
        seconds = self._timeout if timeout is no_default else parse_timeout(timeout)
        within = inf if seconds is None else seconds
        return await scatter(
            self,
            data,
            workers=workers,
            broadcast=broadcast,
            hash=hash,
            timeout=within,
            options=options,
        )

    def replicate(
        self, futures: Any, n: int | None = None, workers: Any = None, branching_factor: int = 2,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Keep copies of values, so that no death costs them; see `distributed.Client.replicate`.

        Unlike there it lasts: when a worker with a copy dies or leaves, another copy is made,
        as far as there are workers, for as long as somebody holds the future. So values
        that were scattered survive, and values that were computed are not made again, unless
        all workers that have one die before there is another. Called again with a smaller
        ``n`` it frees what is more.

        Values of up to 64 KiB are with this client already: nothing is done for those, nor
        for futures that end without a value. Each copy needs a slot at its worker for a
        moment.

        Parameters
        ----------
        futures : Future or nested list of Futures
        n : int, optional
            How many copies, the first one included; one at each of the workers that are
            there now when None.
        workers : str, list or None
            Addresses, names or hosts. Copies elsewhere do not count, and only there others
            are made.
        branching_factor : int
            How many copies each copy gives to others at once.

        Raises
        ------
        ValueError
            When it asks for no copies, or names no worker.
        NotSerializable
            When a value cannot be copied.

        Examples
        --------
        >>> client.replicate(client.scatter(table), n=2)  # doctest: +SKIP
        """
        return self.sync(
            self._replicate, futures, n=n, workers=workers, branching_factor=branching_factor,
            **kwargs,
        )  # fmt: skip

    async def _replicate(
        self, futures: Any, n: Any = None, workers: Any = None, branching_factor: Any = 2
    ) -> None:
        self._check_open()
        mine, others = self._split(futures)
        if others:
            await super()._replicate(
                others, n=n, workers=workers, branching_factor=branching_factor
            )
        if mine:
            wanted = wanted_copies(self.owner, n, workers, branching_factor)
            await replicate(self.owner, [future._row for future in mine], wanted)

    def rebalance(self, futures: Any = None, workers: Any = None, **kwargs: Any) -> Any:
        """Move values so that workers have as many bytes; see `distributed.Client.rebalance`.

        Of owned values those that this client stored at workers. They are evened out among
        the workers until the fullest and the emptiest differ by less than a part of the mean
        (``distributed.worker.memory.rebalance.sender-recipient-gap``, a tenth), or no value
        is small enough; each is copied before it is freed. How full the workers' memory is
        otherwise is not looked at.

        Parameters
        ----------
        futures : Future, collection or nested list of them, optional
            Only these may move; all when None.
        workers : str or list, optional
            Addresses, names or hosts of the workers that give and take; all when None.

        Raises
        ------
        KeyError
            For futures that ended without a value, and when ``workers`` names no worker.
        NotSerializable
            When a value cannot be copied; the others are moved all the same.
        """
        return self.sync(self._rebalance, futures, workers, **kwargs)

    async def _rebalance(self, futures: Any = None, workers: Any = None) -> None:
        self._check_open()
        mine, others = (None, None) if futures is None else self._split(futures)
        if futures is None or others:
            await super()._rebalance(others, listed(workers))
        if futures is None or mine:
            rows = None if mine is None else [future._row for future in mine]
            await rebalance(self.owner, rows, workers)
