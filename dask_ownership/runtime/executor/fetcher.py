"""Bringing values here that tasks of this worker need and other workers have."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from time import perf_counter

from distributed.protocol import Serialized

from dask_ownership.core.executor.session import Entry
from dask_ownership.runtime.comm.reach import RoutedPool
from dask_ownership.runtime.comm.request import Backoff, Stalled, silence
from dask_ownership.runtime.comm.transfer import Name, ask, size_of
from dask_ownership.runtime.executor.watch import Watch

logger = logging.getLogger("dask_ownership.transfer")

IN_TRANSIT = 100_000_000
"""Bytes that one executor asks for at once."""

TRIES = 3
"""How often an address that does not answer is asked again."""


class Fetcher:
    """Brings the missing dependencies of one executor's tasks.

    Parameters
    ----------
    pool : RoutedPool
        One that leaves values packed.
    incarnation, token : str
        Of this worker, and its proof.
    here : str
        This worker's address.
    arrived : callable
        ``arrived(entry, packed)``, a coroutine function.
    failed : callable
        ``failed(entry, reason, absent)``; ``reason`` is None when nobody gave the value,
        and ``absent`` has the addresses that said that they do not have it.
    share : callable
        ``share(entry)`` takes a value that is at this very worker; False when it is not.
    watch : Watch
        Who is told of values that arrive.

    Attributes
    ----------
    received : dict of str to list
        By the worker that gave it, since the start: bytes, requests, and seconds that they took.
    gone : set of str
        Addresses at which no worker is any more.
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
        self.patience = Backoff(silence())
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
        """Ask for these, each at its first address; many keys go in one request."""
        for entry in entries:
            self._ask_at(entry, 0)
        self._start()

    def _ask_at(self, entry: Entry, index: int) -> None:
        if index >= len(entry.addresses):
            self.failed(entry, None, self._absent.pop(entry, ()))
            return
        place = (entry.addresses[index], entry.value_name[0])
        if place[0] == self.here:
            if not self.share(entry):
                self._absent[entry] = (*self._absent.get(entry, ()), self.here)
                self._ask_at(entry, index + 1)
            return
        self._waiting.setdefault(place, []).append((entry, index))

    def _start(self) -> None:
        for place in list(self._waiting):
            if place in self._asking:
                continue
            if self.in_transit > IN_TRANSIT:
                return
            waiting = self._waiting[place]
            batch: list[tuple[Entry, int]] = []
            nbytes = 0
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
                    names = [entry.value_name[1:] for entry, _ in batch]
                    began = perf_counter()
                    values, reasons = await ask(
                        self.pool, address, owner, names,
                        reader=self.incarnation, token=self.token, patience=self.patience,
                    )  # fmt: skip
                    answered = True
                    took = perf_counter() - began
                    self._count(address, values.values(), took)
                    break
                except Stalled as error:
                    # Another may have it. If none has, the owner decides what is done next.
                    logger.info("fetching from %s: %s", address, error)
                    break
                except Exception as error:
                    logger.debug("fetching from %s: %r", address, error)
                    if attempt + 1 < TRIES:
                        await asyncio.sleep(0.05 * 4**attempt)
            for entry, index in batch:
                name = entry.value_name[1:]
                if name in values:
                    self._absent.pop(entry, None)
                    if self._watch.observer is not None:
                        self._watch.observer.fetched(entry, took, address)
                    await self.arrived(entry, values[name])
                elif name in reasons:
                    self._absent.pop(entry, None)
                    self.failed(entry, reasons[name], ())
                else:
                    if answered:
                        self._absent[entry] = (*self._absent.get(entry, ()), address)
                    self._ask_at(entry, index + 1)
        finally:
            self._asking.discard(place)
            self.in_transit -= nbytes
            self._start()

    def _count(self, address: str, values: Iterable[Serialized], seconds: float) -> None:
        sums = self.received.setdefault(address, [0, 0, 0.0])
        sums[0] += sum(map(size_of, values))
        sums[1] += 1
        sums[2] += seconds

    def members_changed(self, added: Iterable[str], removed: Iterable[str]) -> None:
        """Workers left the cluster: do not wait for their answers, or ask them again, unless
        another one joined at the address of one of them."""
        for address in removed:
            self.gone.add(address)
            self.received.pop(address, None)
            self.pool.remove(address)
        self.gone.difference_update(added)

    async def close(self) -> None:
        """Stop asking."""
        self._waiting.clear()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
