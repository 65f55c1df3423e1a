"""Random programs whose futures travel: in arguments, results and from client to client."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from dask_ownership.core.owner.rows.options import Options
from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.protocol.states import ERROR, INLINE, STORED
from dask_ownership.testing import travel
from dask_ownership.testing.task import ARGUMENTS, VALUE
from dask_ownership.testing.travel import VirtualFuture
from dask_ownership.testing.virtual import Faults, Task, VirtualCluster, VirtualOwner

LONGEST_WAIT = 2_000_000.0
"""Virtual microseconds for which a row may wait in a random program: a hundred times what its
longest task takes, and less than for how long what a dead process owned is kept."""


@dataclass(eq=False)
class Expected:
    """What a value must be: its number, and what the futures inside it stand for.

    Attributes
    ----------
    failed : bool
        There must be an error; ``inner`` is what is inside that.
    sources : list of Expected
        What it is made from.
    spoilt : bool
        Someone cancelled it, or its owner left: there may also be no value.
    scattered : bool
        Nothing can make it again.
    parents : list of Expected
        What the task that submitted it is made from, which may run again for it.
    """

    number: int
    inner: list[Expected] = field(default_factory=list)
    failed: bool = False
    sources: list[Expected] = field(default_factory=list)
    spoilt: bool = False
    scattered: bool = False
    parents: list[Expected] = field(default_factory=list)

    def spoil(self) -> None:
        """It, and what may be reachable through it only, need not have a value any more."""
        stack: list[Expected] = [self]
        while stack:
            one = stack.pop()
            if not one.spoilt:
                one.spoilt = True
                stack.extend(one.inner)

    @property
    def certain(self) -> bool:
        """Whether nothing that it is made from was spoilt."""
        return not any(one.spoilt for one in self.ancestors())

    @property
    def rebuildable(self) -> bool:
        """Whether it is made again for certain when every copy is gone."""
        return not any(one.scattered or one.spoilt for one in self.ancestors(parents=True))

    def ancestors(self, parents: bool = False) -> list[Expected]:
        """It and all that it is made from; with ``parents``, also what may run again for it."""
        seen: dict[int, Expected] = {}
        stack: list[Expected] = [self]
        while stack:
            one = stack.pop()
            if id(one) not in seen:
                seen[id(one)] = one
                stack.extend(one.sources)
                stack.extend(one.parents if parents else ())
        return list(seen.values())


def expected(
    task: Task, inputs: list[Expected], came: list[Expected], above: list[Expected] | None = None
) -> Expected:
    """What a sequential program would get; ``above`` is what led to the task."""
    broken = [i for i in inputs if i.failed]
    sources = [*inputs, *came, *(e for i in inputs for e in i.inner)]
    if broken:
        # Which error it gets is known when there is one only: a call that cannot be packed may
        # be found out before its input has failed.
        inner = broken[0].inner if len(broken) == 1 and not task.unpackable else []
        return Expected(0, inner, True, sources)
    if task.unpackable:
        return Expected(0, [], True, sources)
    number = task.constant + sum(i.number for i in inputs)
    came = [*came, *(e for i in inputs for e in i.inner)]
    above = [*sources, *(above or ())]
    children = [expected(child, [], [], above) for child in task.children]
    for child in children:
        child.parents = above
    if task.uses == "child" and came:
        failed = any(e.failed for e in came)
        total = 0 if failed else 1 + sum(e.number for e in came)
        children.append(Expected(total, [], failed, came, parents=above))
    if task.uses == "delegate" and (came or children):
        other = [*came, *children][0]
        return Expected(other.number, other.inner, other.failed, [*sources, other])
    waited = [*(() if task.escape else children), *(came if task.uses == "read" else ())]
    if any(e.failed for e in waited):
        return Expected(0, [], True, sources)
    came = came if task.uses in ("return", "raise") else []
    inner = [*(children if task.escape else ()), *came]
    if task.uses == "raise":
        return Expected(0, inner, True, sources)
    number += sum(e.number for e in waited)
    return Expected(number, inner, False, sources)


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
        self.mine: list[Expected] = []
        self.used: dict[str, Expected] = {}
        self.sharing: list[Expected] = []
        self.arriving: list[Callable[[], None]] = []
        self.left = False

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
            uses=self.use(),
            escape=bool(children) and r.random() < 0.6,
        )

    def use(self) -> str:
        uses = {"read": 2, "child": 2, "return": 4, "drop": 2, "raise": 1, "delegate": 1.5}
        return self.random.choices(list(uses), list(uses.values()))[0]

    def sample(self, most: int) -> list[Held]:
        return self.random.sample(self.held, min(len(self.held), self.random.randint(0, most)))

    def submit(self) -> None:
        carried = self.sample(3)
        inputs = self.sample(2)
        task = self.task(tuple(h.future for h in carried))
        options = Options()
        if self.random.random() < 0.2:
            options = options._replace(retries=1)
            task = replace(task, fails=self.random.randint(0, 1))
        elif self.random.random() < 0.05:
            what = ARGUMENTS if task.large or self.random.random() < 0.5 else VALUE
            task = replace(task, unpackable=what, uses="drop", escape=False)
        rows = {h.future.row: h.expected for h in inputs}
        row = self.owner.submit(self.key(), task, list(rows), options)
        # One future that is carried twice is one object in the pickle.
        came = [h.expected for h in carried]
        self.hold(row, expected(task, list(rows.values()), came))

    def key(self) -> str:
        """A new key, or one that was used for something else, of which nothing is left here."""
        there = self.owner.core.table.rows
        gone = sorted(key for key, what in self.used.items() if key not in there and what.certain)
        if gone and self.random.random() < 0.4:
            return self.random.choice(gone)
        self.keys += 1
        return f"c{self.number}-{self.keys}"

    def hold(self, row: Row, what: Expected) -> None:
        self.used[row.key] = what
        self.mine.append(what)
        self.held.append(Held(VirtualFuture(self.owner, row), what))

    def scatter(self) -> None:
        """A value with futures inside that goes straight to workers."""
        inside = self.sample(2)
        number = self.random.randint(0, 1000)
        there = sorted(self.owner.pipes)
        if not there:
            return
        places = self.random.sample(there, self.random.randint(1, min(2, len(there))))
        row = self.owner.put(self.key(), (number, tuple(h.future for h in inside)), places)
        came = [h.expected for h in inside]
        self.hold(row, Expected(number, came, sources=came, scattered=True))

    def open(self) -> None:
        """Take the futures inside a value out of it."""
        ready = [h for h in self.held if h.expected.inner and has_value(h.future.row)]
        if not ready:
            return
        held = self.random.choice(ready)
        row = held.future.row
        if row.state == STORED and not self.cluster.copies(self.owner, row):
            moved = row.borrowed and self.cluster.observer.has_moved(row)
            assert moved or self.cluster.record.killed or not held.expected.certain
            return
        futures = self.owner.open(row)
        if len(futures) != len(held.expected.inner):
            assert self.cluster.record.killed or not held.expected.certain, (
                row,
                futures,
                held.expected,
            )
            return
        for future, inner in zip(futures, held.expected.inner, strict=True):
            self.held.append(Held(future, inner))

    def share(self) -> None:
        """Send a future to another client, and keep it until that one is counted."""
        if not self.held or not self.others:
            return
        held = self.random.choice(self.held)
        other = self.random.choice(self.others)
        if other.left:
            return
        what = held.expected
        data, found = travel.dumps((what.number, (held.future,)))
        self.sharing.append(what)

        def counted() -> None:
            if found:  # else it was let go because the other left
                found.clear()
                self.sharing.remove(what)

        def arrive() -> None:
            if other.left:
                counted()
                return
            _, futures = travel.loads(other.owner, data)
            for future in futures:
                other.held.append(Held(future, what))
            other.arriving.append(counted)
            other.owner.core.borrowing.when_acknowledged([f.row for f in futures], counted)

        self.cluster.later(self.cluster.delay(), arrive)

    def cancel(self) -> None:
        if not self.cluster.may_cancel or not self.held:  # type: ignore[attr-defined]
            return
        unfinished = [h for h in self.held if h.future.row.borrowed and not h.future.row.done]
        held = self.random.choice(unfinished or self.held)
        held.expected.spoil()
        self.cluster.record.cancelled = True
        self.owner.core.cancel([held.future.row], "cancelled by the program")

    def retry(self) -> None:
        """What failed fails again."""
        failed = [h for h in self.held if h.future.row.state == ERROR]
        if failed:
            self.owner.core.retry([self.random.choice(failed).future.row])

    def leave(self) -> None:
        """End in the middle: what only this client owned is lost."""
        if not self.cluster.may_leave or not [p for p in self.others if not p.left]:  # type: ignore[attr-defined]
            return
        self.left = self.cluster.record.cancelled = True
        for what in [*self.mine, *self.sharing]:
            what.spoil()
        self.cluster.leave(self.owner)
        self.held.clear()
        for counted in self.arriving:
            counted()  # who sent it keeps it no longer than there is somebody to take it

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
        slots = cluster.workers[victim].slots
        new = self.random.choice(["", "beside", "at the same address"])
        if new == "beside":
            cluster.add_worker(cluster.unused(f"{victim}+"), slots)
        self.random.choice([cluster.kill, cluster.kill, cluster.disown])(victim)
        if new == "at the same address":
            cluster.add_worker(victim, slots)
        if not any(w.core.queue.accepting for w in cluster.workers.values()):
            cluster.add_worker(cluster.unused(f"{victim}!"), slots)

    def retire(self) -> None:
        """A worker leaves in good order: what it owned is taken over, nothing is lost."""
        cluster = self.cluster
        if not cluster.retirements_left:  # type: ignore[attr-defined]
            return
        cluster.retirements_left -= 1  # type: ignore[attr-defined]
        staying = [address for address, w in cluster.workers.items() if w.core.queue.accepting]
        if not staying:
            return
        victim = self.random.choice(sorted(staying))
        if len(staying) == 1 or self.random.random() < 0.3:
            cluster.add_worker(cluster.unused(f"{victim}*"), cluster.workers[victim].slots)
        cluster.retire(victim)

    def freeze(self) -> None:
        """A worker stops for a while, which may be longer than it may be silent."""
        victim = self.random.choice(sorted(self.cluster.workers))
        self.cluster.freeze(victim, self.random.choice([5_000.0, 60_000.0, 500_000.0]))

    def partition(self) -> None:
        """Two processes cannot reach each other for a while, which may be longer than silence."""
        names = [owner.name for owner in self.cluster.owners]
        if len(names) > 1:
            one, other = self.random.sample(names, 2)
            self.cluster.partition(one, other, self.random.choice([5_000.0, 60_000.0, 300_000.0]))

    def step(self) -> None:
        if self.left:
            return
        weights = {
            "submit": 8,
            "scatter": 1,
            "open": 6,
            "share": 2,
            "release": 5,
            "run": 4,
            "kill": 0.7,
            "cancel": 1.5,
            "retry": 0.5,
            "leave": 0.5,
            **({"retire": 1.0} if self.cluster.retires else {}),  # type: ignore[attr-defined]
            **({"partition": 0.7} if self.cluster.partitions else {}),  # type: ignore[attr-defined]
            **({"freeze": 0.7} if self.cluster.freezes else {}),  # type: ignore[attr-defined]
        }
        getattr(self, self.random.choices(list(weights), list(weights.values()))[0])()
        self.cluster.dirty.add(self.owner)

    def look_again(self) -> bool:
        """Have values made again that none of their locations has, as one who reads them does.

        What a task was to fetch counts as there. When the task ends before it has, nobody says so.
        """
        rows = [held.future.row for held in self.held]
        lost = [row for row in rows if row.state == STORED]
        lost = [row for row in lost if not self.cluster.copies(self.owner, row)]
        for row in lost:
            self.owner.look_again(row)
        return bool(lost)

    def check(self) -> None:
        for held in self.held:
            got: Any = self.cluster.outcome(self.owner, held.future.row)
            right = "error" if held.expected.failed else held.expected.number
            if not held.expected.certain:
                assert got in (right, *NO_VALUE), (held, got)
            elif self.cluster.record.killed and not held.expected.rebuildable:
                assert got in (right, "lost", "error"), (held, got)
            else:
                assert got == right, (held, got)


NO_VALUE = ("lost", "error", "cancelled", "closed")
"""Outcomes of what was cancelled, or whose owner left."""


def has_value(row: Row) -> bool:
    """Whether futures can be taken out of it: of a value, or of an error."""
    return row.state in (INLINE, STORED) or (row.state == ERROR and isinstance(row.value, bytes))


def cut_routes(cluster: VirtualCluster, random: Random) -> None:
    """Have processes reach some workers only: itself, and one that reaches all."""
    addresses = sorted(cluster.workers)
    hub = random.choice(addresses)
    for owner in cluster.owners:
        for address in addresses:
            if hub not in (owner.home, address) and address != owner.home and random.random() < 0.5:
                owner.cut_route(address)


def run_travels(
    seed: int,
    workers: int = 3,
    slots: int = 2,
    clients: int = 2,
    length: int = 40,
    faults: Faults | None = None,
    kills: int = 0,
    cancels: bool = False,
    leaves: bool = False,
    retires: int = 0,
    freezes: bool = False,
    partitions: bool = False,
    routes: bool = True,
    restarts: int = 0,
) -> VirtualCluster:
    """One random program per client, interleaved; everything checked on the way.

    Without ``routes`` some processes cannot link to some workers. ``restarts`` says how often
    another scheduler is started.

    The same arguments give the same run: call it with those of a failure to replay it.
    """
    # A way that works is found after some that do not, each of which is waited for longer.
    longest = LONGEST_WAIT * (1 if routes else 4)
    cluster = VirtualCluster(seed, workers, slots, clients, faults, longest_wait=longest)
    cluster.kills_left = kills  # type: ignore[attr-defined]
    cluster.may_cancel = cancels  # type: ignore[attr-defined]
    cluster.may_leave = leaves  # type: ignore[attr-defined]
    cluster.freezes = freezes  # type: ignore[attr-defined]
    cluster.partitions = partitions  # type: ignore[attr-defined]
    cluster.retires = cluster.retirements_left = retires  # type: ignore[attr-defined]
    random = Random(seed + 1)
    programs = [Traveller(cluster, i, random) for i in range(clients)]
    for program in programs:
        program.others = [p for p in programs if p is not program]
    if not routes:
        cut_routes(cluster, random)
    again = sorted(random.randrange(length) for _ in range(restarts))
    for number in range(length):
        if number in again:
            cluster.restart_scheduler([(f"after-{number}-{i}", slots) for i in range(workers)])
        random.choice(programs).step()
    cluster.run()
    while any(program.look_again() for program in programs):
        cluster.run()
    for program in programs:
        program.check()
    for program in programs:
        program.held.clear()
    cluster.run()
    cluster.assert_empty()
    return cluster
