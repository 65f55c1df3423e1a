"""Abstract resources of one executor, and threads of pools: who takes them, in which order.

A task takes all that it wants at once when a slot would start it, or is put aside. Where
others use resources too, the runtime lends what `available` has (`lend`). A task that is to run
in a pool by name takes one of its threads: it would wait for that with a slot, and the slots
are for what has the threads to go on with.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any

from dask_ownership.core.executor.session import ASIDE, Entry
from dask_ownership.core.protocol.amounts import Amounts, provides


class Resources:
    """The resources of a worker, as far as tasks of owners go.

    Parameters
    ----------
    totals : dict
        How much of each the worker has. Whoever gave it may change it, and calls
        `Executor.resources_changed` then.

    Attributes
    ----------
    available : dict
        How much of each may be taken now: at first all of it.
    yielding : set of str
        Those of which nothing more is taken, because others have waited long enough.
    threads : callable
        Gives the number of threads of the pool of a name.
    aside : list of Entry
        Tasks that could start but for resources, in the order in which they get them.
    """

    def __init__(self, totals: Amounts) -> None:
        self.totals = totals
        self.available = dict(totals)
        self.yielding: Set[str] = frozenset()
        self.threads: Callable[[str], int] = lambda name: 1
        self.aside: list[Entry] = []
        self._claimed: set[Any] = set()
        self._in_pools: dict[str, int] = {}

    def possible(self, options: dict[str, Any] | None) -> bool:
        """Whether the worker has enough for a task with these options, in the end."""
        wanted = options.get("resources") if options else None
        return not wanted or provides(self.totals, wanted)

    def acquire(self, entry: Entry) -> bool:
        """Take the task's resources, or put it aside until they are there.

        What comes after one that was put aside does not overtake it: a task that needs much
        would wait for as long as there are others that need less.
        """
        wanted, pool = wanted_by(entry)
        if not wanted and pool is None:
            return True
        if (
            not self.yielding.isdisjoint(wanted)
            or not self._claimed.isdisjoint(_names(wanted, pool))
            or any(self.available.get(k, 0) < v for k, v in wanted.items())
            or (pool is not None and self._in_pools.get(pool, 0) >= self.threads(pool))
        ):
            entry.state = ASIDE
            self.aside.append(entry)
            self._claimed.update(_names(wanted, pool))
            return False
        for name, amount in wanted.items():
            self.available[name] = self.available.get(name, 0) - amount
        if pool is not None:
            self._in_pools[pool] = self._in_pools.get(pool, 0) + 1
        return True

    def release(self, entry: Entry) -> bool:
        """Take back what a task had; whether it had any."""
        wanted, pool = wanted_by(entry)
        for name, amount in wanted.items():
            self.available[name] = self.available.get(name, 0) + amount
        if pool is not None:
            self._in_pools[pool] -= 1
        return bool(wanted) or pool is not None

    def reconsider(self) -> list[Entry]:
        """Those that were put aside, which may try again."""
        self._claimed.clear()
        aside, self.aside = self.aside, []
        return [entry for entry in aside if entry.state == ASIDE]

    def lend(self, borrow: Callable[[Amounts], bool], room: int) -> bool:
        """Have up to ``room`` tasks that were put aside get what they want, in order.

        ``borrow`` gets all of what one of them lacks, or nothing and returns False.

        Returns
        -------
        bool
            Whether any can try again.
        """
        left = dict(self.available)
        in_pools = dict(self._in_pools)
        claimed: set[Any] = set(self.yielding)
        lent = False
        for entry in self.aside:
            if room <= 0:
                break
            if entry.state != ASIDE:
                continue
            wanted, pool = wanted_by(entry)
            names = _names(wanted, pool)
            if claimed.isdisjoint(names) and (
                pool is None or in_pools.get(pool, 0) < self.threads(pool)
            ):
                lacking = {k: v - left.get(k, 0) for k, v in wanted.items() if left.get(k, 0) < v}
                if not lacking or borrow(lacking):
                    for name, amount in lacking.items():
                        self.available[name] = self.available.get(name, 0) + amount
                        left[name] = left.get(name, 0) + amount
                    for name, amount in wanted.items():
                        left[name] = left.get(name, 0) - amount
                    if pool is not None:
                        in_pools[pool] = in_pools.get(pool, 0) + 1
                    room -= 1
                    lent = True
                    continue
            claimed.update(names)
        return lent


def wanted_by(entry: Entry) -> tuple[Amounts, str | None]:
    """Resources that a task takes while it runs, and the pool of which it takes a thread."""
    options = entry.options or {}
    return options.get("resources") or {}, options.get("executor")


def _names(wanted: Amounts, pool: str | None) -> set[Any]:
    return {*wanted} if pool is None else {*wanted, (pool,)}
