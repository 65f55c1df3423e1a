"""Random programs that put futures somewhere and leave; others take them out later."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

from dask_ownership.core.owner.references.detached import LineageSpec
from dask_ownership.core.owner.rows.row import Function, Row
from dask_ownership.core.protocol.messages import Origin
from dask_ownership.core.protocol.names import held_at
from dask_ownership.core.protocol.states import INLINE
from dask_ownership.testing.travel import VirtualFuture
from dask_ownership.testing.virtual import Faults, Task, VirtualCluster, VirtualOwner


@dataclass(eq=False)
class Value:
    """What a future must be.

    Attributes
    ----------
    frail : bool
        Made from what nothing can make again.
    """

    number: int
    frail: bool


@dataclass(eq=False)
class Item:
    """Something that lies in a queue or a dataset; ``rows`` are the holder's."""

    name: Origin
    value: Value
    rows: list[Row]
    stays: bool


class Shelf:
    """The holder, and what lies there."""

    def __init__(self, cluster: VirtualCluster) -> None:
        self.cluster = cluster
        self.owner = VirtualOwner(cluster.world, "holder")
        self.owner.core.detached.holds = True
        cluster.clients.append(self.owner)
        for worker in cluster.workers.values():
            self.owner.meet(worker)
        self.items: list[Item] = []

    def functions(self, theirs: list[Function]) -> list[Function]:
        mine = {"run": self.owner.function, "identity": self.owner.core.functions.identity}
        return [mine[function.name] for function in theirs]  # type: ignore[misc]

    def let_go(self, rows: list[Row]) -> None:
        self.owner.dropped.extend(rows)
        self.cluster.dirty.add(self.owner)


class Giver:
    """The program of one client."""

    def __init__(self, cluster: VirtualCluster, number: int, random: Random, shelf: Shelf) -> None:
        self.cluster = cluster
        self.owner: VirtualOwner = cluster.clients[number]
        self.random = random
        self.number = number
        self.shelf = shelf
        self.held: list[tuple[VirtualFuture, Value]] = []
        self.taking: list[list[Row]] = []
        self.keys = 0
        self.left = False

    def key(self) -> str:
        self.keys += 1
        return f"c{self.number}-{self.keys}"

    def submit(self) -> None:
        r = self.random
        inputs = r.sample(self.held, min(len(self.held), r.randint(0, 2)))
        children = tuple(Task(r.randint(0, 9), 10.0) for _ in range(r.choice([0, 0, 1])))
        task = Task(
            constant=r.randint(0, 1000),
            duration=r.choice([1.0, 300.0, 5_000.0, 50_000.0]),
            large=r.random() < 0.5,
            children=children,
        )
        rows = list(dict.fromkeys(future.row for future, _ in inputs))
        values = {future.row: value for future, value in inputs}
        row = self.owner.submit(self.key(), task, rows)
        number = task.constant + sum(v.number for v in values.values())
        number += sum(child.constant for child in children)
        value = Value(number, any(v.frail for v in values.values()))
        self.held.append((VirtualFuture(self.owner, row), value))

    def scatter(self) -> None:
        number = self.random.randint(0, 1000)
        places = self.random.sample(sorted(self.owner.pipes), 1)
        row = self.owner.put(self.key(), (number, ()), places)
        self.held.append((VirtualFuture(self.owner, row), Value(number, True)))

    def put(self) -> None:
        """As `envelopes.put`: the giver keeps what it gives until the answer has come."""
        if not self.held:
            return
        future, value = self.random.choice(self.held)
        if future.row.function is None and future.row.state < INLINE and not future.row.borrowed:
            return  # it is still being scattered: nobody has a future of that yet
        core, shelf = self.owner.core, self.shelf
        functions, tasks, also = core.detached.describe([future.row])
        origin = core.table.origin_of(future.row)
        stays = self.random.random() < 0.4
        keeps = [future]
        spec = LineageSpec(self.owner.process, shelf.functions(functions), tasks)

        def arrive() -> None:
            rows = shelf.owner.core.detached.hold([origin, *also], spec)
            self.cluster.dirty.add(shelf.owner)
            item = Item(held_at(origin, shelf.owner.process), value, rows, stays)
            look(item)

        def look(item: Item) -> None:
            """Answer when its owner may go."""
            if self.left:
                shelf.let_go(item.rows)  # the answer has nowhere to go: it was not put
            elif all(map(shelf.owner.core.detached.settled, item.rows)):
                shelf.items.append(item)
                self.cluster.later(self.cluster.delay(), keeps.clear)
            else:
                self.cluster.later(500.0, lambda: look(item))

        self.cluster.later(self.cluster.delay(), arrive)

    def take(self) -> None:
        """Take something out: who takes it is counted before it is let go of."""
        shelf = self.shelf
        if not shelf.items:
            return
        item = self.random.choice(shelf.items)
        if not item.stays:
            shelf.items.remove(item)
        else:
            with shelf.owner.core.table.lock:
                for row in item.rows:
                    row.local_refs += 1

        def arrive() -> None:
            if self.left:
                shelf.let_go(item.rows)
                return
            row = self.owner.arrive(item.name)
            self.held.append((VirtualFuture(self.owner, row), item.value))
            self.taking.append(item.rows)
            self.owner.core.borrowing.when_acknowledged([row], lambda: self.taken(item.rows))

        self.cluster.later(self.cluster.delay(), arrive)

    def taken(self, rows: list[Row]) -> None:
        """It is counted, or has left meanwhile."""
        if rows in self.taking:
            self.taking.remove(rows)
            self.cluster.later(self.cluster.delay(), lambda: self.shelf.let_go(rows))

    def release(self) -> None:
        if self.held:
            self.held.pop(self.random.randrange(len(self.held)))

    def leave(self, others: list[Giver]) -> None:
        if not any(not other.left for other in others):
            return
        self.left = self.cluster.record.cancelled = True
        self.cluster.leave(self.owner)
        self.held.clear()
        for rows in list(self.taking):
            self.taken(rows)

    def check(self) -> None:
        for future, value in self.held:
            check(self.cluster, self.owner, future.row, value)


def check(cluster: VirtualCluster, owner: VirtualOwner, row: Row, value: Value) -> None:
    got: Any = cluster.outcome(owner, row)
    if value.frail and cluster.record.killed:
        assert got in (value.number, "lost", "error"), (owner.name, row, got, value)
    else:
        assert got == value.number, (owner.name, row, got, value)


def run_held(
    seed: int,
    workers: int = 2,
    slots: int = 2,
    clients: int = 3,
    length: int = 60,
    faults: Faults | None = None,
    kills: int = 0,
    retires: int = 0,
) -> VirtualCluster:
    """Programs of several clients, interleaved; all that lies somewhere stays what it is."""
    cluster = VirtualCluster(seed, workers, slots, clients, faults)
    shelf = Shelf(cluster)
    random = Random(seed + 1)
    givers = [Giver(cluster, i, random, shelf) for i in range(clients)]
    weights = {"submit": 6, "put": 4, "take": 4, "release": 4, "run": 4, "scatter": 1, "leave": 0.6}
    if kills:
        weights["kill"] = 0.8
    if retires:
        weights["retire"] = 0.8
    for _ in range(length):
        giver = random.choice(givers)
        step = random.choices(list(weights), list(weights.values()))[0]
        if step == "run":
            cluster.run_for(random.choice([10.0, 500.0, 20_000.0]))
        elif step in ("kill", "retire"):
            victim = random.choice(sorted(cluster.workers))
            accepting = [w for w in cluster.workers.values() if w.core.queue.accepting]
            if step == "kill" and kills:
                kills -= 1
                cluster.add_worker(cluster.unused(f"{victim}+"), slots)
                cluster.kill(victim)
            elif step == "retire" and retires and cluster.workers[victim] in accepting:
                retires -= 1
                cluster.add_worker(cluster.unused(f"{victim}*"), slots)
                cluster.retire(victim)
        elif giver.left:
            continue
        elif step == "leave":
            giver.leave([other for other in givers if other is not giver])
        else:
            getattr(giver, step)()
            cluster.dirty.add(giver.owner)
    cluster.run()
    for giver in givers:
        giver.check()
    for item in shelf.items:
        check(cluster, shelf.owner, item.rows[0], item.value)
    for giver in givers:
        giver.held.clear()
    for item in shelf.items:
        shelf.let_go(item.rows)
    cluster.run()
    cluster.assert_empty()
    return cluster
