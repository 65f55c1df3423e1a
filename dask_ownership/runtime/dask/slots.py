"""Leases of what a worker's state machine has: its slots and its abstract resources."""

from __future__ import annotations

from collections.abc import Iterable
from time import time
from typing import Any

from distributed.core import Status
from distributed.worker_state_machine import UnpauseEvent


class SlotLease:
    """Slots that the worker's state machine leaves to owned tasks.

    The state machine runs ``nthreads`` tasks at once. While it looks whether to start
    one, that number is lower by what is leased, so that the worker never runs more than it has
    threads for, whoever sent the work. Tasks that ask how many threads their worker has
    find all of them. Loop thread only.

    Attributes
    ----------
    leased : int
        Slots that owned tasks may use now.
    """

    FAIR_TURN = 0.05
    """Seconds for which either side may go on to use a slot while the other waits for one."""

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self.leased = 0
        self._taken_at = 0.0
        self._given_at = 0.0
        self._reserved = 0
        self._stock: type | None = None

    def start(self) -> None:
        """Have the state machine start no more than what is left to it."""
        lease = self
        stock = self._stock = type(self.worker.state)

        class LeasingState(stock):  # type: ignore[misc, valid-type]
            __slots__ = ()

            def _ensure_computing(self) -> Any:
                state: Any = self
                nthreads = state.nthreads
                state.nthreads = lease.left
                try:
                    return super()._ensure_computing()
                finally:
                    state.nthreads = nthreads

        LeasingState.__name__ = LeasingState.__qualname__ = stock.__name__
        self.worker.state.__class__ = LeasingState

    def close(self) -> None:
        """Undo `start`, and return what is leased."""
        self.release(self.leased)
        if self._stock is not None:
            self.worker.state.__class__ = self._stock
            self._stock = None

    @property
    def nthreads(self) -> int:
        """All slots of the worker, leased and not."""
        return int(self.worker.state.nthreads)

    @property
    def left(self) -> int:
        """Slots of the state machine."""
        return self.nthreads - self.leased - self._reserved

    @property
    def reserved(self) -> bool:
        """Whether a slot that is not free yet is kept for `acquire`."""
        return self._reserved > 0

    @property
    def stock_waits(self) -> bool:
        """Whether ordinary Dask tasks could start if they had a slot."""
        state = self.worker.state
        return bool(
            state.ready
            or (
                state.constrained
                and state._resource_restrictions_satisfied(state.constrained.peek())
            )
        )

    @property
    def running(self) -> bool:
        """Whether the worker takes new tasks at all."""
        return bool(self.worker.status == Status.running)

    def acquire(self, wanted: int) -> int:
        """Take up to ``wanted`` more slots; how many were had now.

        What cannot be had now is reserved: it comes free when an ordinary task
        ends, and `acquire` gets it when it is called again. But not while it is the turn of
        ordinary tasks.
        """
        free = self.nthreads - self.leased - len(self.worker.state.executing)
        got = max(0, min(wanted, free))
        self._reserved = 0
        self.leased += got
        if got:
            self._taken_at = time()
        elif (
            wanted
            and self.nthreads > 0
            and self.leased == 0
            and time() - self._given_at > self.FAIR_TURN
        ):
            self._reserved = 1
        return got

    def release(self, count: int) -> None:
        """Return slots, and let the state machine use them if the worker runs."""
        if self.overdue:
            self._given_at = time()
        count = min(count, self.leased) + self._reserved
        self.leased -= count - self._reserved
        self._reserved = 0
        if count and self.running and self.stock_waits:
            # Never sent to a paused worker, which it would set going again.
            self.worker.handle_stimulus(UnpauseEvent(stimulus_id=f"ownership-{time()}"))

    @property
    def overdue(self) -> bool:
        """Whether ordinary tasks have waited for a leased slot long enough."""
        return self.leased > 0 and self.stock_waits and time() - self._taken_at > self.FAIR_TURN


class _Totals(dict[str, float]):
    """A worker's resources, of which its state machine does not count what is leased."""

    leased: dict[str, float]

    def copy(self) -> dict[str, float]:
        """What the state machine compares with what is free and what its own tasks have."""
        return {name: amount - self.leased.get(name, 0.0) for name, amount in self.items()}


class ResourceLease:
    """Abstract resources that the worker's state machine leaves to owned tasks.

    What is leased is not in its ``available_resources``, so that tasks of both kinds together
    never take more than there is. Loop thread only.

    Attributes
    ----------
    leased : dict
        How much of each owned tasks have, or may take.
    """

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self.leased: dict[str, float] = {}
        self._reserved: dict[str, float] = {}
        self._taken_at = 0.0
        state = worker.state
        state.total_resources = _Totals(state.total_resources)
        state.total_resources.leased = self.leased

    @property
    def totals(self) -> dict[str, float]:
        """All that the worker has, leased and not; ``set_resources`` changes it."""
        totals: dict[str, float] = self.worker.state.total_resources
        return totals

    @property
    def reserved(self) -> bool:
        """Whether some that are not free yet are kept for `acquire`."""
        return bool(self._reserved)

    @property
    def stock_waits_for(self) -> frozenset[str]:
        """What is leased and an ordinary Dask task waits for."""
        constrained = self.worker.state.constrained
        if not constrained or not self.leased:
            return frozenset()
        return frozenset(self.leased.keys() & constrained.peek().resource_restrictions.keys())

    @property
    def overdue(self) -> frozenset[str]:
        """What is leased and an ordinary task has waited for long enough."""
        waits_for = self.stock_waits_for
        if waits_for and time() - self._taken_at > SlotLease.FAIR_TURN:
            return waits_for
        return frozenset()

    def acquire(self, wanted: dict[str, float]) -> bool:
        """Take all of what is wanted, or nothing and return False.

        What cannot be had now is reserved: ordinary tasks get none of it until `acquire` did,
        or `unreserve` is called.
        """
        self.unreserve(wanted)
        free = self.worker.state.available_resources
        if all(free.get(name, 0) >= amount for name, amount in wanted.items()):
            for name, amount in wanted.items():
                free[name] -= amount
                if not self.leased:
                    self._taken_at = time()
                self.leased[name] = self.leased.get(name, 0.0) + amount
            return True
        # The validation of the state machine, which is for tests, takes no number below zero.
        if not self.worker.state.validate and self.leased.keys().isdisjoint(wanted):
            for name, amount in wanted.items():
                if name in free:
                    free[name] -= amount
                    self._reserved[name] = amount
        return False

    def unreserve(self, names: Iterable[str] | None = None) -> None:
        """Reserve no more of these, or of any."""
        for name in list(self._reserved if names is None else names):
            if name in self._reserved:
                self.worker.state.available_resources[name] += self._reserved.pop(name)

    def release(self, amounts: dict[str, float], done: bool) -> None:
        """Return what was acquired, and let the state machine use it if the worker runs.

        ``done`` when no owned task waits for more: then nothing stays reserved.
        """
        if done:
            self.unreserve()
        free = self.worker.state.available_resources
        for name, amount in amounts.items():
            amount = min(amount, self.leased.get(name, 0.0))  # all may have been returned before
            free[name] += amount
            left = self.leased.get(name, 0.0) - amount
            if left > 1e-9:
                self.leased[name] = left
            else:
                self.leased.pop(name, None)
        state = self.worker.state
        if state.constrained and self.worker.status == Status.running:
            self.worker.handle_stimulus(UnpauseEvent(stimulus_id=f"ownership-{time()}"))
