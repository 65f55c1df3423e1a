"""Values at workers: putting them there, copying and moving them."""

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
    """The part of a `dask_ownership.Client` that decides at which workers values are."""

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

        Scattered values have no lineage: a value is lost when all workers with a copy are gone.
        """
        if isinstance(data, PyQueue | Iterator):
            raise TypeError(
                "Dask no longer supports mapping over Iterators or Queues. "
                "Consider using a normal for loop and Client.submit"
            )
        self._check_open()
        # Read in the calling thread: the loop does not know which task called.
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
        # As in Dask: the client's timeout by default, and no limit for None.
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
        """Keep copies of values, so that deaths cost none; see `distributed.Client.replicate`.

        Unlike in Dask the copies last: when a worker dies or leaves, another copy is made, as far
        as there are workers, for as long as a process holds the future. So scattered values
        survive, and computed values are not made again, unless all workers with a copy die before
        there is another. A second call with a smaller ``n`` frees surplus copies.

        Values of up to 64 KiB are with this client already: they need no copies, nor do futures
        that end without a value. Each copy needs a slot at its worker for a moment.

        Parameters
        ----------
        futures : Future or nested list of Futures
        n : int, optional
            How many copies, the first one included; one at each present worker when None.
        workers : str, list or None
            Addresses, names or hosts. Only copies there count, and new copies are made only there.
        branching_factor : int
            How many copies each copy gives to other workers at once.

        Raises
        ------
        ValueError
            When ``n`` is less than one, or ``workers`` names no worker.
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

        Of owned values only the values that this client stored at workers are moved. They are
        evened out among the workers until the fullest and the emptiest differ by less than a part
        of the mean (``distributed.worker.memory.rebalance.sender-recipient-gap``, a tenth), or no
        value is small enough; each value is copied before it is freed. Other contents of the
        workers' memory do not count.

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
            When a value cannot be copied; all other values are moved nevertheless.
        """
        return self.sync(self._rebalance, futures, workers, **kwargs)

    async def _rebalance(self, futures: Any = None, workers: Any = None) -> None:
        self._check_open()
        mine, others = (None, None) if futures is None else self._split(futures)
        # Without futures the values of the scheduler are moved as well.
        if futures is None or others:
            await super()._rebalance(others, listed(workers))
        if futures is None or mine:
            rows = None if mine is None else [future._row for future in mine]
            await rebalance(self.owner, rows, workers)
