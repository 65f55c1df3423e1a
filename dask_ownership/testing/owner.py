"""An owner of the virtual cluster: the real core, its links and what surrounds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from dask_ownership.core.messages import Origin
from dask_ownership.core.ownership import Ownership
from dask_ownership.core.placement import WorkerView
from dask_ownership.core.session import Entry
from dask_ownership.core.table import (
    LOST,
    STORED,
    Function,
    Options,
    Row,
)
from dask_ownership.testing import travel
from dask_ownership.testing.network import Pipe
from dask_ownership.testing.task import Task
from dask_ownership.testing.travel import VirtualFuture

if TYPE_CHECKING:
    from dask_ownership.testing.virtual import VirtualCluster

WINDOW = 50_000.0
"""Virtual microseconds for which a dead borrower still counts."""


class VirtualOwner:
    """An owner with its links."""

    def __init__(self, cluster: VirtualCluster, name: str, home: str | None = None) -> None:
        self.cluster = cluster
        self.name = name
        self.process = (name, home or "", name)
        self.core = Ownership(nullcontext(), home, process=self.process)
        self.dropped: list[Row] = []
        self.function = Function(1, b"run", "run")
        # The identity is called for stored values only; inline ones are taken over as they are.
        self.core.identity = self.core.moves.function = Function(2, b"run", "identity")
        self.core.identity_call = travel.dumps(Task(0, large=True, uses="return"))[0]
        self.pipes: dict[str, Pipe] = {}
        self.order = 0
        self.ticking = False
        self.alive = True

    def submit(
        self,
        key: str,
        task: Task,
        dependencies: Sequence[Row] = (),
        options: Options | None = None,
        priority: int = 0,
    ) -> Row:
        """A row with one handle, as `Client.submit` makes it."""
        self.order += 1
        payload, found = travel.dumps(task)
        row = Row(
            key,
            self.function,
            payload,
            tuple(dict.fromkeys(dependencies)),
            self.order - priority * 2**40,
            options or Options(),
        )
        row.contains = tuple(dict.fromkeys(future.row for future in found))
        adopted = self.core.table.adopt(row)
        if adopted is row:
            self.core.submit([row])
        else:
            self.core.lineages.wake(adopted)
        self.cluster.dirty.add(self)
        return adopted

    def step(self) -> None:
        """Schedule, flush the links and wake who waits, as the runtime does after each event."""
        core = self.core
        dropped, self.dropped = self.dropped, []
        core.release(dropped)
        core.schedule(self.cluster.now)
        core.post(acknowledge=True)
        for address in core.unposted:
            self.cluster.later(WINDOW, lambda a=address: self._give_up(a))  # type: ignore[misc]
        if core.posts:
            self.cluster.dirty.add(self.cluster.workers[self.process[1]])
        completed, core.completed = core.completed, []
        for row in completed:
            waiters, row.waiters = row.waiters, None
            for wake in waiters or ():
                wake()
        for pipe in self.pipes.values():
            if pipe.view.outbox:
                messages, pipe.view.outbox = pipe.view.outbox, []
                self.cluster.send(pipe, pipe.here.pack(messages), to_worker=True)
            elif pipe.here.unsaid:
                self.cluster.send(pipe, pipe.here.pack([]), to_worker=True)
        if not self.ticking and len(core.placement.workers) > 1:
            self.ticking = True
            self.cluster.later(5_000.0, self._tick)

    def _tick(self) -> None:
        self.ticking = False
        if self.alive and self.core.tick(self.cluster.now):
            self.cluster.dirty.add(self)

    def put(self, key: str, value: Any, addresses: Sequence[str]) -> Row:
        """A scattered value: it goes to the workers beside the links, as in `scatter`."""
        pickled, found = travel.dumps(value)
        made = Row(key, None, None, (), 0)
        made.contains = tuple(dict.fromkeys(future.row for future in found))
        row = self.core.table.adopt(made)
        if row.state or row.attempt:
            return row
        self.core.attempts += 1
        row.attempt = self.core.attempts
        took: list[WorkerView] = []
        left = len(addresses)

        def arrive(pipe: Pipe) -> None:
            if pipe.worker.leaving or not pipe.worker.alive:
                # It does not take it: another one is asked.
                there = [p for p in self.pipes.values() if p.worker.alive and not p.worker.leaving]
                if there:
                    self.cluster.later(self.cluster.delay(), partial(arrive, there[0]))
                    return
            if pipe.worker.alive and pipe in self.cluster.network.pipes:
                entry = Entry(pipe.session, key, row.attempt)
                pipe.worker.put(entry, pickled)
                pipe.worker.core.keep(entry)
                self.cluster.dirty.add(pipe.worker)
                took.append(pipe.view)
            self.cluster.later(self.cluster.delay(), answer)

        def answer() -> None:
            nonlocal left
            left -= 1
            if not left and self.alive:
                self.core.put(row, took, 100_000)
                if not any(view.address in self.cluster.workers for view in took):
                    self.cluster.lost.add((self.name, key))
                self.cluster.dirty.add(self)

        for address in addresses:
            pipe = self.pipes[address]
            self.cluster.later(self.cluster.delay(), lambda pipe=pipe: arrive(pipe))  # type: ignore[misc]
        return row

    def arrive(self, origin: Origin) -> Row:
        """A future was unpickled here: its row with one handle more."""
        row, new = self.core.references.arrive(origin)
        if new:
            # A thread left it in the inbox; the loop takes it in a little later.
            self.cluster.later(self.cluster.random.random() * 50, lambda: self._take_in(row))
        elif not row.borrowed:
            self.core.lineages.wake(row)
            # Only what a dead process handed on may be freed before it gets here.
            assert row.state != LOST or self.cluster.lax, f"{origin} was freed early"
        return row

    def _give_up(self, address: str) -> None:
        if self.alive and address:
            self.core.unreachable(address)
            self.cluster.dirty.add(self)

    def _take_in(self, row: Row) -> None:
        if self.alive:
            self.core.submit([row])
            self.cluster.dirty.add(self)

    def open(self, row: Row) -> list[VirtualFuture]:
        """The futures inside the value of a row, as `Future.result` gives them."""
        data = self.cluster.copies(self, row)[0] if row.state == STORED else row.value
        _, futures = travel.loads(self, data)
        self.core.references.hold_until_counted(row, [f.row for f in futures])
        return futures

    def look_again(self, row: Row) -> None:
        """No holder of a stored row gave its value when it was read, as in `Owner.fetch`."""
        if row.state == STORED and not row.borrowed:
            if row.lineage is None:
                self.cluster.lost.add((self.name, row.key))
            self.core.missed(row)
            self.cluster.dirty.add(self)

    def when_done(self, row: Row, wake: Callable[[], None]) -> None:
        """Call when the row ends; at once when it has."""
        if row.done:
            wake()
        else:
            row.waiters = [*(row.waiters or ()), wake]
