"""Leases of slots and abstract resources, which a worker's state machine leaves to owned tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from time import time
from typing import Any

from distributed.core import Status
from distributed.worker_state_machine import UnpauseEvent


class SlotLease:
    """Slots that the worker's state machine leaves to owned tasks. Loop thread only.

    The state machine runs ``nthreads`` tasks at once. While the state machine looks whether to
    start a task, ``nthreads`` is lower by the leased slots. So the worker never runs more tasks of
    both kinds together than it has threads, and a task that asks for the threads of its worker
    still reads the full number.

    Attributes
    ----------
    worker : distributed.Worker
    leased : int
        Slots that owned tasks may use now.
    """

    FAIR_TURN = 0.05
    """Seconds for which owned or ordinary tasks may keep a slot while the other kind waits."""

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self.leased = 0
        self._taken_at = 0.0
        self._given_at = 0.0
        self._reserved = 0
        self._stock: type | None = None

    def start(self) -> None:
        """Have the state machine start tasks on the slots only that are not leased."""
        lease = self
        stock = self._stock = type(self.worker.state)

        class LeasingState(stock):  # type: ignore[misc, valid-type]
            __slots__ = ()

            def _ensure_computing(self) -> Any:
                state: Any = self
                nthreads = state.nthreads
                # For this call only: all other readers of ``nthreads`` find the full number.
                state.nthreads = lease.left
                try:
                    return super()._ensure_computing()
                finally:
                    state.nthreads = nthreads

        LeasingState.__name__ = LeasingState.__qualname__ = stock.__name__
        # The same object, of another class: all that is in the state stays, and references to it.
        self.worker.state.__class__ = LeasingState

    def close(self) -> None:
        """Undo `start`, and return all leased slots."""
        self.release(self.leased)
        if self._stock is not None:
            self.worker.state.__class__ = self._stock
            self._stock = None

    @property
    def nthreads(self) -> int:
        """All slots of the worker, leased or not."""
        return int(self.worker.state.nthreads)

    @property
    def left(self) -> int:
        """Slots on which the state machine may run tasks: not leased, and not reserved."""
        return self.nthreads - self.leased - self._reserved

    @property
    def reserved(self) -> bool:
        """Whether the next slot that becomes free is kept for `acquire`."""
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
        """Lease up to ``wanted`` more slots, as far as they are free.

        When no slot is free and none is leased, the next one to become free is reserved, and
        leased by a later call. But no slot is reserved in the turn of ordinary tasks, which lasts
        for `FAIR_TURN` after overdue slots were returned.

        Returns
        -------
        int
            How many slots were leased now.
        """
        free = self.nthreads - self.leased - len(self.worker.state.executing)
        got = max(0, min(wanted, free))
        self._reserved = 0
        self.leased += got
        if got:
            self._taken_at = time()
        # While ordinary tasks are queued no slot is ever found free: without a reservation owned
        # tasks would wait until all ordinary tasks have ended.
        elif (
            wanted
            and self.nthreads > 0
            and self.leased == 0
            and time() - self._given_at > self.FAIR_TURN
        ):
            self._reserved = 1
        return got

    def release(self, count: int) -> None:
        """Return leased slots, and end a reservation; waiting ordinary tasks may start at once."""
        if self.overdue:
            self._given_at = time()
        count = min(count, self.leased) + self._reserved
        self.leased -= count - self._reserved
        self._reserved = 0
        if count and self.running and self.stock_waits:
            # The event has the state machine look for tasks to start. It would set a paused worker
            # going again, which therefore never gets it.
            self.worker.handle_stimulus(UnpauseEvent(stimulus_id=f"ownership-{time()}"))

    @property
    def overdue(self) -> bool:
        """Whether ordinary tasks have waited for a leased slot long enough."""
        return self.leased > 0 and self.stock_waits and time() - self._taken_at > self.FAIR_TURN


class _Totals(dict[str, float]):
    """A worker's resources, of which the state machine does not count the leased part.

    Parameters
    ----------
    amounts : dict
    leased : dict
        The leased part of the amounts; the giver changes the dict.
    """

    def __init__(self, amounts: Mapping[str, float], leased: Mapping[str, float]) -> None:
        super().__init__(amounts)
        self._leased = leased

    def copy(self) -> dict[str, float]:
        """Return the resources that are not leased.

        The state machine compares a copy with the free resources and those of its own tasks.
        """
        return {name: amount - self._leased.get(name, 0.0) for name, amount in self.items()}


class ResourceLease:
    """Abstract resources that the worker's state machine leaves to owned tasks. Loop thread only.

    Leased resources are taken out of ``available_resources`` of the state machine, so that tasks of
    both kinds together never take more than the worker has.

    Attributes
    ----------
    worker : distributed.Worker
    leased : dict
        How much of each resource owned tasks have, or may take.
    """

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self.leased: dict[str, float] = {}
        self._reserved: dict[str, float] = {}
        self._taken_at = 0.0
        state = worker.state
        state.total_resources = _Totals(state.total_resources, self.leased)

    @property
    def totals(self) -> dict[str, float]:
        """All resources of the worker, leased or not; ``set_resources`` changes this dict."""
        totals: dict[str, float] = self.worker.state.total_resources
        return totals

    @property
    def reserved(self) -> bool:
        """Whether resources are kept for `acquire` until enough of them is free."""
        return bool(self._reserved)

    @property
    def stock_waits_for(self) -> frozenset[str]:
        """Names of leased resources for which the next ordinary Dask task waits."""
        constrained = self.worker.state.constrained
        if not constrained or not self.leased:
            return frozenset()
        return frozenset(self.leased.keys() & constrained.peek().resource_restrictions.keys())

    @property
    def overdue(self) -> frozenset[str]:
        """Names of leased resources for which an ordinary task has waited for `FAIR_TURN`."""
        waits_for = self.stock_waits_for
        if waits_for and time() - self._taken_at > SlotLease.FAIR_TURN:
            return waits_for
        return frozenset()

    def acquire(self, wanted: dict[str, float]) -> bool:
        """Lease all of the wanted amounts, or none of them.

        Amounts that are not free are reserved: ordinary tasks get none of these resources before
        `acquire` has leased them or `unreserve` was called. Nothing is reserved while a part of
        one of the resources is leased.

        Returns
        -------
        bool
            Whether the amounts were leased.
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
        # A reservation takes the free amount below zero, which the validation of the state machine
        # (for tests) refuses.
        if not self.worker.state.validate and self.leased.keys().isdisjoint(wanted):
            for name, amount in wanted.items():
                if name in free:
                    free[name] -= amount
                    self._reserved[name] = amount
        return False

    def unreserve(self, names: Iterable[str] | None = None) -> None:
        """End the reservation of these resources, or of all resources."""
        for name in list(self._reserved if names is None else names):
            if name in self._reserved:
                self.worker.state.available_resources[name] += self._reserved.pop(name)

    def release(self, amounts: dict[str, float], done: bool) -> None:
        """Return leased amounts, and have the state machine look for tasks to start.

        Parameters
        ----------
        amounts : dict
        done : bool
            Whether no owned task waits for resources: then no resource stays reserved.
        """
        if done:
            self.unreserve()
        free = self.worker.state.available_resources
        for name, amount in amounts.items():
            amount = min(amount, self.leased.get(name, 0.0))  # all may have been returned before
            free[name] += amount
            # Amounts are floats: a rest of a sum that is this small is none.
            left = self.leased.get(name, 0.0) - amount
            if left > 1e-9:
                self.leased[name] = left
            else:
                self.leased.pop(name, None)
        state = self.worker.state
        if state.constrained and self.worker.status == Status.running:
            self.worker.handle_stimulus(UnpauseEvent(stimulus_id=f"ownership-{time()}"))
