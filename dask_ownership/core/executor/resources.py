"""Abstract resources of one executor, and threads of pools: which tasks take them, and when.

A task takes all wanted resources at once when a slot would start the task, or is put aside. At a
real worker ordinary Dask tasks use the resources, too: the runtime leases from the worker's state
machine what put-aside tasks lack (`lend`). A task that is to run in a named pool takes one of the
pool's threads here. Otherwise the task would hold a slot while waiting for a thread, and a task
in the pool may need that slot for tasks that it submits.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any

from dask_ownership.core.executor.session import ASIDE, Entry
from dask_ownership.core.protocol.amounts import Amounts, provides


class Resources:
    """The resources that owned tasks of one worker take.

    Parameters
    ----------
    totals : dict
        How much of each resource the worker has. The runtime, which gives the dict, may change
        the dict, and calls `ExecutorCore.resources_changed` then.
    leases : bool
        Whether the runtime leases resources, as `ExecutorCore` has it.
    threads : callable
        Returns the number of threads of a pool, by the pool's name.

    Attributes
    ----------
    totals, threads
        As above.
    available : dict
        How much of each resource owned tasks may take now: at first all, or nothing when the
        runtime leases resources.
    yielding : set of str
        Resources of which owned tasks take no more, because ordinary tasks have waited for long.
    aside : list of Entry
        Tasks that lack nothing but resources, in the order in which they get resources.
    """

    def __init__(self, totals: Amounts, leases: bool, threads: Callable[[str], int]) -> None:
        self.totals = totals
        self.available = {} if leases else dict(totals)
        self.yielding: Set[str] = frozenset()
        self.threads = threads
        self.aside: list[Entry] = []
        # Resources and pools that a put-aside task waits for: no later task takes any of these.
        self._claimed: set[Any] = set()
        self._in_pools: dict[str, int] = {}

    def possible(self, options: dict[str, Any] | None) -> bool:
        """Return whether the worker has enough for a task with these options when all is free."""
        wanted = options.get("resources") if options else None
        return not wanted or provides(self.totals, wanted)

    def acquire(self, entry: Entry) -> bool:
        """Take the resources of a task, or put the task aside until the resources are there.

        A later task does not overtake a task that was put aside: else a task that needs much
        would wait for as long as there are tasks that need less.

        Returns
        -------
        bool
            False when the task was put aside.
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
        """Take back the resources of a task; return whether the task had any."""
        wanted, pool = wanted_by(entry)
        for name, amount in wanted.items():
            self.available[name] = self.available.get(name, 0) + amount
        if pool is not None:
            self._in_pools[pool] -= 1
        return bool(wanted) or pool is not None

    def reconsider(self) -> list[Entry]:
        """Return the tasks that were put aside, in order; each may try again."""
        # The tasks claim again in the same order, as far as they still lack resources.
        self._claimed.clear()
        aside, self.aside = self.aside, []
        return [entry for entry in aside if entry.state == ASIDE]

    def lend(self, borrow: Callable[[Amounts], bool], room: int) -> bool:
        """Lease what put-aside tasks lack, for up to ``room`` tasks, in order.

        Parameters
        ----------
        borrow : callable
            Leases all amounts that a task lacks and returns True, or nothing and returns False.
        room : int

        Returns
        -------
        bool
            Whether any task can try again.
        """
        # Copies of the amounts: what each task in front will take is subtracted from them, and the
        # real amounts change when those tasks start.
        left = dict(self.available)
        in_pools = dict(self._in_pools)
        claimed: set[Any] = set(self.yielding)
        lent = False
        for entry in self.aside:
            # Leased resources without a slot would lie idle, and ordinary tasks would lack them.
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
            # No later task may get the resources that this task waits for.
            claimed.update(names)
        return lent


def wanted_by(entry: Entry) -> tuple[Amounts, str | None]:
    """Return the resources that a task takes while it runs, and the name of its pool, if any."""
    options = entry.options or {}
    return options.get("resources") or {}, options.get("executor")


def _names(wanted: Amounts, pool: str | None) -> set[Any]:
    # The pool as a tuple: a resource may have the same name.
    return {*wanted} if pool is None else {*wanted, (pool,)}
