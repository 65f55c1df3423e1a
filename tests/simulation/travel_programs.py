"""Random programs whose futures travel: in arguments, results and from client to client."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

from dask_ownership.core.table import INLINE, STORED
from dask_ownership.testing import travel
from dask_ownership.testing.travel import VirtualFuture
from dask_ownership.testing.virtual import Faults, Task, VirtualCluster, VirtualOwner


@dataclass
class Expected:
    """What a value must be: its number, and what the futures inside it stand for."""

    number: int
    inner: list[Expected] = field(default_factory=list)


def expected(task: Task, inputs: list[Expected], came: list[Expected]) -> Expected:
    """What a sequential program would get."""
    number = task.constant + sum(i.number for i in inputs)
    came = [*came, *(e for i in inputs for e in i.inner)]
    children = [expected(child, [], []) for child in task.children]
    if task.uses == "child" and came:
        children.append(Expected(1 + sum(e.number for e in came)))
    if not task.escape:
        number += sum(child.number for child in children)
    if task.uses == "read":
        number += sum(e.number for e in came)
    inner = [*(children if task.escape else ()), *(came if task.uses == "return" else ())]
    return Expected(number, inner)


@dataclass
class Held:
    """A future that the program has, and what it must be."""

    future: VirtualFuture
    expected: Expected
    opened: list[VirtualFuture] = field(default_factory=list)


class Traveller:
    """The program of one client."""

    def __init__(self, cluster: VirtualCluster, number: int, random: Random) -> None:
        self.cluster = cluster
        self.owner: VirtualOwner = cluster.clients[number]
        self.random = random
        self.number = number
        self.held: list[Held] = []
        self.keys = 0
        self.others: list[Traveller] = []

    def task(self, carries: tuple[VirtualFuture, ...], depth: int = 2) -> Task:
        r = self.random
        children: tuple[Task, ...] = ()
        if depth and r.random() < 0.4:
            children = tuple(self.task((), depth - 1) for _ in range(r.randint(1, 3)))
        return Task(
            constant=r.randint(0, 1000),
            duration=r.choice([1.0, 10.0, 300.0, 5_000.0]),
            large=r.random() < 0.3,
            children=children,
            carries=carries,
            uses=r.choice(["read", "child", "return", "return", "drop"]),
            escape=bool(children) and r.random() < 0.6,
        )

    def sample(self, most: int) -> list[Held]:
        return self.random.sample(self.held, min(len(self.held), self.random.randint(0, most)))

    def submit(self) -> None:
        carried = self.sample(3)
        inputs = self.sample(2)
        task = self.task(tuple(h.future for h in carried))
        self.keys += 1
        key = f"c{self.number}-{self.keys}"
        rows = {h.future.row: h.expected for h in inputs}
        row = self.owner.submit(key, task, list(rows))
        # One future that is carried twice is one object in the pickle.
        came = [h.expected for h in carried]
        self.held.append(
            Held(VirtualFuture(self.owner, row), expected(task, list(rows.values()), came))
        )

    def open(self) -> None:
        """Take the futures inside a value out of it."""
        ready = [h for h in self.held if h.future.row.state in (INLINE, STORED)]
        ready = [h for h in ready if h.expected.inner]
        if not ready:
            return
        held = self.random.choice(ready)
        row = held.future.row
        if row.state == STORED and not self.cluster.copies(self.owner, row):
            assert self.cluster.killed
            return
        futures = self.owner.open(row)
        if len(futures) != len(held.expected.inner):
            assert self.cluster.killed, (row, futures, held.expected)
            return
        for future, inner in zip(futures, held.expected.inner, strict=True):
            self.held.append(Held(future, inner))

    def share(self) -> None:
        """Send a future to another client, and keep it until that one is counted."""
        if not self.held or not self.others:
            return
        held = self.random.choice(self.held)
        other = self.random.choice(self.others)
        data, found = travel.dumps((held.expected.number, (held.future,)))

        def arrive() -> None:
            _, futures = travel.loads(other.owner, data)
            for future in futures:
                other.held.append(Held(future, held.expected))
            kept = list(found)
            found.clear()
            other.owner.core.references.when_counted([f.row for f in futures], kept.clear)

        self.cluster.later(self.cluster.delay(), arrive)

    def release(self) -> None:
        if self.held:
            self.held.pop(self.random.randrange(len(self.held)))

    def run(self) -> None:
        self.cluster.run_for(self.random.choice([10.0, 500.0, 20_000.0]))

    def kill(self) -> None:
        cluster = self.cluster
        if cluster.kills_left <= 0:  # type: ignore[attr-defined]
            return
        cluster.kills_left -= 1  # type: ignore[attr-defined]
        victim = self.random.choice(sorted(cluster.workers))
        if len(cluster.workers) == 1 or self.random.random() < 0.5:
            cluster.add_worker(f"{victim}+", cluster.workers[victim].slots)
        cluster.kill(victim)

    def step(self) -> None:
        weights = {"submit": 8, "open": 6, "share": 2, "release": 5, "run": 4, "kill": 0.7}
        getattr(self, self.random.choices(list(weights), list(weights.values()))[0])()
        self.cluster.dirty.add(self.owner)

    def check(self) -> None:
        for held in self.held:
            got: Any = self.cluster.outcome(self.owner, held.future.row)
            if self.cluster.killed:
                assert got in (held.expected.number, "lost", "error"), (held, got)
            else:
                assert got == held.expected.number, (held, got)


def run_travels(
    seed: int,
    workers: int = 3,
    slots: int = 2,
    clients: int = 2,
    length: int = 40,
    faults: Faults | None = None,
    kills: int = 0,
) -> VirtualCluster:
    """One random program per client, interleaved; everything checked on the way.

    The same arguments give the same run: call it with those of a failure to replay it.
    """
    cluster = VirtualCluster(seed, workers, slots, clients, faults)
    cluster.kills_left = kills  # type: ignore[attr-defined]
    random = Random(seed + 1)
    programs = [Traveller(cluster, i, random) for i in range(clients)]
    for program in programs:
        program.others = [p for p in programs if p is not program]
    for _ in range(length):
        random.choice(programs).step()
    cluster.run()
    for program in programs:
        program.check()
    for program in programs:
        program.held.clear()
    cluster.run()
    cluster.assert_empty()
    return cluster
