"""Fetching values from other workers for the tasks of this worker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from time import perf_counter

from distributed.protocol import Serialized

from dask_ownership.core.executor.session import Entry
from dask_ownership.runtime.comm.reach import RoutedPool
from dask_ownership.runtime.comm.request import Backoff, Stalled, silence
from dask_ownership.runtime.comm.transfer import Name, ask, size_of, within_owner
from dask_ownership.runtime.executor.watch import Watch

logger = logging.getLogger("dask_ownership.transfer")

IN_TRANSIT = 100_000_000
"""Bytes that one executor asks for at once, from all workers together."""

TRIES = 3
"""How often an address is asked until it answers."""


class Fetcher:
    """Fetches the missing dependencies of the tasks of one executor.

    All entries of one owner that wait for one address share a request, and the next request there
    leaves when the answer has come: entries that join meanwhile travel together. What is under way
    is kept by entry, by address and by owner: hence the many attributes.

    Parameters
    ----------
    pool : RoutedPool
        A pool that leaves values packed.
    incarnation, token : str
        The incarnation of the owner at this worker, and the proof of that name.
    here : str
        The address of this worker.
    arrived : callable
        ``arrived(entry, packed)``, a coroutine function: takes a value in.
    failed : callable
        ``failed(entry, reason, absent)``; ``reason`` is None when no address gave the value,
        and ``absent`` has the addresses without the value, as they said themselves.
    share : callable
        ``share(entry)`` takes a value of another owner at this very worker; False when the value
        is not here.
    watch : Watch
        Its observer is told of arriving values.

    Attributes
    ----------
    backoff : Backoff
        How long a request may stall, by address.
    in_transit : int
        Bytes that have been asked for and have not arrived.
    received : dict of str to list
        Address of a worker to sums since the start: bytes, requests and seconds.
    gone : set of str
        Addresses without a worker since one left the cluster.
    """

    def __init__(
        self,
        pool: RoutedPool,
        incarnation: str,
        token: str,
        here: str,
        *,
        arrived: Callable[[Entry, Serialized], Awaitable[None]],
        failed: Callable[[Entry, str | None, tuple[str, ...]], None],
        share: Callable[[Entry], bool],
        watch: Watch,
    ) -> None:
        self.pool = pool
        self.incarnation = incarnation
        self.token = token
        self.backoff = Backoff(silence())
        self.here = here
        self.share = share
        self.arrived = arrived
        self.failed = failed
        self.in_transit = 0
        self.received: dict[str, list[float]] = {}
        self._watch = watch
        self.gone: set[str] = set()
        self._waiting: dict[tuple[str, str], list[tuple[Entry, int]]] = {}
        self._asking: set[tuple[str, str]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._absent: dict[Entry, tuple[str, ...]] = {}

    def fetch(self, entries: Iterable[Entry]) -> None:
        """Fetch values for these entries, each from its first address at first."""
        for entry in entries:
            self._ask_at(entry, 0)
        self._start()

    def _ask_at(self, entry: Entry, index: int) -> None:
        """Queue an entry at its address of this index, or fail the fetch when none is left."""
        if index >= len(entry.addresses):
            self.failed(entry, None, self._absent.pop(entry, ()))
            return
        owner, _, _ = entry.value_name
        place = (entry.addresses[index], owner)
        # Another owner may have the value at this worker: one copy serves both.
        if entry.addresses[index] == self.here:
            if not self.share(entry):
                self._absent[entry] = (*self._absent.get(entry, ()), self.here)
                self._ask_at(entry, index + 1)
            return
        self._waiting.setdefault(place, []).append((entry, index))

    def _start(self) -> None:
        """Send a request to each address with waiting entries, as far as `IN_TRANSIT` allows."""
        for place in list(self._waiting):
            if place in self._asking:
                continue
            if self.in_transit > IN_TRANSIT:
                return
            waiting = self._waiting[place]
            batch: list[tuple[Entry, int]] = []
            nbytes = 0
            # Half of the limit for one address, so that two workers send at the same time.
            while waiting and nbytes < IN_TRANSIT / 2:
                item = waiting.pop(0)
                nbytes += item[0].nbytes
                batch.append(item)
            if not waiting:
                del self._waiting[place]
            self._asking.add(place)
            self.in_transit += nbytes
            task = asyncio.ensure_future(self._request(place, batch, nbytes))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _request(
        self, place: tuple[str, str], batch: list[tuple[Entry, int]], nbytes: int
    ) -> None:
        """Ask one address for values of one owner, and have each entry take or miss its value."""
        address, owner = place
        values: dict[Name, Serialized] = {}
        reasons: dict[Name, str] = {}
        answered = False
        took = 0.0
        try:
            for attempt in range(TRIES):
                if address in self.gone:
                    break
                try:
                    names = [within_owner(entry.value_name) for entry, _ in batch]
                    began = perf_counter()
                    values, reasons = await ask(
                        self.pool, address, owner, names,
                        reader=self.incarnation, token=self.token, backoff=self.backoff,
                    )  # fmt: skip
                    answered = True
                    took = perf_counter() - began
                    self._count(address, values.values(), took)
                    break
                except Stalled as error:
                    # Another address may have the values. If none has, the owner of the tasks
                    # decides about the next attempt.
                    logger.info("fetching from %s: %s", address, error)
                    break
                except Exception as error:
                    logger.debug("fetching from %s: %r", address, error)
                    if attempt + 1 < TRIES:
                        await asyncio.sleep(0.05 * 4**attempt)
            for entry, index in batch:
                name = within_owner(entry.value_name)
                if name in values:
                    self._absent.pop(entry, None)
                    if self._watch.observer is not None:
                        self._watch.observer.fetched(entry, took, address)
                    await self.arrived(entry, values[name])
                elif name in reasons:
                    # The value is there and cannot be pickled: no other address is asked.
                    self._absent.pop(entry, None)
                    self.failed(entry, reasons[name], ())
                else:
                    # Only an answer says that a value is absent: silence proves nothing.
                    if answered:
                        self._absent[entry] = (*self._absent.get(entry, ()), address)
                    self._ask_at(entry, index + 1)
        finally:
            self._asking.discard(place)
            self.in_transit -= nbytes
            self._start()

    def _count(self, address: str, values: Iterable[Serialized], seconds: float) -> None:
        """Add an answer to `received`."""
        sums = self.received.setdefault(address, [0, 0, 0.0])
        sums[0] += sum(map(size_of, values))
        sums[1] += 1
        sums[2] += seconds

    def members_changed(self, added: Iterable[str], removed: Iterable[str]) -> None:
        """Take in which addresses joined and left: no worker at an address in `gone` is asked.

        Requests under way to an address that left end at once. An address is usable again when a
        worker joins there.
        """
        for address in removed:
            self.gone.add(address)
            self.received.pop(address, None)
            self.pool.remove(address)
        self.gone.difference_update(added)

    async def close(self) -> None:
        """Cancel all requests, and fetch nothing more."""
        self._waiting.clear()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
