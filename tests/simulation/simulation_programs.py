"""Random programs on the virtual cluster, and what a sequential program would get."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random

from travel_programs import LONGEST_WAIT

from dask_ownership.core.owner.rows.options import Options, Replication
from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.protocol.states import ERROR, STORED
from dask_ownership.testing.virtual import Faults, Task, VirtualCluster, VirtualOwner

SLOW = 200_000.0


@dataclass
class Call:
    """One row of a program, with what may become of it."""

    row: Row
    task: Task
    inputs: list[int]
    value: int
    """What it is when nothing goes wrong."""
    must_fail: bool = False
    may: set[str] = field(default_factory=set)
    """How else it may end: ``error``, ``cancelled``, ``no-worker``."""
    released: bool = False


@dataclass
class Program:
    """A program that one client runs: what it did, and what it must get."""

    cluster: VirtualCluster
    client: int
    random: Random
    weights: dict[str, float]
    calls: list[Call] = field(default_factory=list)
    keys: int = 0

    @property
    def owner(self) -> VirtualOwner:
        return self.cluster.clients[self.client]

    def live(self) -> list[int]:
        return [i for i, call in enumerate(self.calls) if not call.released]

    def task(self, depth: int = 2) -> Task:
        r = self.random
        children: tuple[Task, ...] = ()
        if depth and r.random() < 0.3:
            children = tuple(self.task(depth - 1) for _ in range(r.randint(1, 4)))
        return Task(
            constant=r.randint(0, 1000),
            duration=r.choice([1.0, 10.0, 300.0, 20_000.0]),
            large=r.random() < 0.3,
            children=children,
            steps=r.randint(1, 5) if r.random() < 0.15 else 0,
        )

    def key(self) -> str:
        self.keys += 1
        return f"c{self.client}-{self.keys}"

    def add(self, key: str, task: Task, chosen: list[int], **kwargs) -> None:
        r = self.random
        may: set[str] = set()
        for i in chosen:
            may |= self.calls[i].may
        row = self.owner.submit(
            key,
            task,
            [self.calls[i].row for i in chosen],
            priority=r.choice([0, 0, 0, -1, 2]),
            **kwargs,
        )
        value = task.value(list({self.calls[i].row: self.calls[i].value for i in chosen}.values()))
        self.calls.append(Call(row, task, chosen, value, may=may))

    # ---- actions ----

    def submit(self) -> None:
        r = self.random
        task = self.task()
        live = self.live()
        chosen = r.sample(live, k=min(len(live), r.choice([0, 0, 1, 1, 2, 5])))
        retries = 0
        if r.random() < 0.15 and not task.children:
            retries = r.randint(0, 3)
            task = replace(task, fails=r.randint(1, 3))
        options = Options(retries=retries)
        # What fails and what has no worker depends on what is alive: said below.
        where = r.random()
        if where < 0.1:
            workers = (r.choice(sorted(self.cluster.workers)),)
            options = options._replace(workers=workers, loose=r.random() < 0.5)
        elif where < 0.2 and any(
            w.core.queue.resources.totals for w in self.cluster.workers.values()
        ):
            options = options._replace(resources={"gpu": 1.0})
        self.add(self.key(), task, chosen, options=options)
        call = self.calls[-1]
        if options.workers and not options.loose:
            call.may.add("no-worker")
        if task.fails > retries:
            # Attempts that a death or a cancel ended may have counted, too.
            call.may.add("error")
            repeats = bool({"kill", "freeze", "partition"} & set(self.weights))
            call.must_fail = not self.cluster.record.killed and not repeats
        elif task.fails:
            call.may |= {"error"} if "kill" in self.weights else set()
        call.must_fail |= any(self.calls[i].must_fail for i in chosen)

    def put(self) -> None:
        r = self.random
        there = sorted(self.owner.pipes)
        if not there:
            return
        places = r.sample(there, k=r.randint(1, len(there)))
        value = r.randint(0, 1000)
        row = self.owner.put(self.key(), value, places)
        self.calls.append(Call(row, Task(value, large=True), [], value))

    def again(self) -> None:
        """The same key once more: the same call while it lives, any other when it is gone."""
        if not self.calls:
            return
        old = self.calls[self.random.choice(self.live() or [0])]
        if self.random.random() < 0.6:
            # Of the last, what is left at workers may still be on its way to be freed.
            old = self.random.choice(self.calls[-5:])
        if old.row.key in self.owner.core.table.rows:
            row = self.owner.core.table.find(old.row.key)
            assert row is not None
            self.owner.core.lifecycle.wake(row)
            if row is old.row:
                self.calls.append(
                    Call(row, old.task, old.inputs, old.value, old.must_fail, old.may)
                )
            else:
                self.owner.core.release([row])
        else:
            chosen = [i for i in old.inputs if not self.calls[i].released]
            self.add(old.row.key, self.task(), chosen)
            self.calls[-1].must_fail = any(self.calls[i].must_fail for i in chosen)

    def release(self) -> None:
        live = self.live()
        if live:
            call = self.calls[self.random.choice(live)]
            call.released = True
            self.owner.core.release([call.row])

    def desire(self) -> None:
        live = self.live()
        if live:
            self.owner.core.desire([self.calls[self.random.choice(live)].row])

    def replicate(self) -> None:
        """Keep several copies of a value, or fewer than before."""
        live = self.live()
        if live:
            row = self.calls[self.random.choice(live)].row
            names = None
            if self.random.random() < 0.2:
                names = tuple(sorted(self.cluster.workers)[:2])
            wanted = Replication(self.random.randint(1, 3), names)
            self.owner.core.replicas.want(row, wanted)
            self.cluster.observer.note_loss(self.owner, row)  # it kept one that is dead

    def cancel(self) -> None:
        live = self.live()
        if live:
            number = self.random.choice(live)
            row = self.calls[number].row
            self.owner.core.cancel([row], "the test cancels it")
            for call in self.with_dependents(number):
                call.may.add("cancelled")

    def retry(self) -> None:
        failed = [i for i in self.live() if self.calls[i].row.state == ERROR]
        if failed:
            number = self.random.choice(failed)
            self.owner.core.retry([self.calls[number].row])
            stack = [number]
            while stack:
                one = stack.pop()
                stack.extend(self.calls[one].inputs)
                for call in self.with_dependents(one):
                    if call.must_fail:
                        call.must_fail = False
                        call.may.add("error")

    def with_dependents(self, number: int) -> list[Call]:
        touched = {number}
        rows = {self.calls[number].row}
        for i, call in enumerate(self.calls):
            if call.row in rows or touched.intersection(call.inputs):
                touched.add(i)
                rows.add(call.row)
        return [self.calls[i] for i in touched]

    def pause(self) -> None:
        worker = self.cluster.workers[self.random.choice(sorted(self.cluster.workers))]
        worker.accept(not worker.core.queue.accepting)

    def forget_functions(self) -> None:
        self.cluster.workers[self.random.choice(sorted(self.cluster.workers))].forget_functions()

    def kill(self) -> None:
        cluster = self.cluster
        if cluster.kills_left <= 0:  # type: ignore[attr-defined]
            return
        cluster.kills_left -= 1  # type: ignore[attr-defined]
        victim = self.random.choice(sorted(cluster.workers))
        slots, resources = (
            cluster.workers[victim].slots,
            cluster.workers[victim].core.queue.resources.totals,
        )
        new = self.random.choice(["", "beside", "at the same address"])
        if len(cluster.workers) == 1 and not new:
            new = "beside"
        if new == "beside":
            cluster.add_worker(cluster.unused(f"{victim}+"), slots, resources)
        self.random.choice([cluster.kill, cluster.kill, cluster.disown])(victim)
        if new == "at the same address":
            cluster.add_worker(victim, slots, resources)
        if not any(w.core.queue.resources.totals for w in cluster.workers.values()):
            cluster.add_worker(cluster.unused(f"{victim}!"), slots, {"gpu": 1.0})

    def partition(self) -> None:
        names = [owner.name for owner in self.cluster.owners]
        one, other = self.random.sample(names, 2)
        self.cluster.partition(one, other, self.random.choice([5_000.0, 60_000.0, 300_000.0]))

    def freeze(self) -> None:
        """A worker stops for a while, which may be longer than it may be silent."""
        victim = self.random.choice(sorted(self.cluster.workers))
        self.cluster.freeze(victim, self.random.choice([5_000.0, 60_000.0, 500_000.0]))

    def retire(self) -> None:
        cluster = self.cluster
        there = {a: w for a, w in cluster.workers.items() if w.core.queue.accepting}
        plain = sorted(a for a, w in there.items() if not w.core.queue.resources.totals)
        if plain and len(there) > 1:
            cluster.retire(plain[0])

    def run(self) -> None:
        self.cluster.run_for(self.random.choice([10.0, 500.0, 20_000.0]))

    def step(self) -> None:
        names = list(self.weights)
        action = self.random.choices(names, list(self.weights.values()))[0]
        getattr(self, action)()
        self.cluster.dirty.add(self.owner)

    # ---- the end ----

    def touched_by_loss(self) -> set[Row]:
        """Rows that may be without a value because the only copy of one was lost."""
        touched: set[Row] = set()
        for call in self.calls:
            if (self.owner.name, call.row.key) in self.cluster.record.lost or any(
                self.calls[i].row in touched for i in call.inputs
            ):
                touched.add(call.row)
        return touched

    def check(self) -> None:
        for call in self.calls:
            row = call.row
            stored = not call.released and row.state == STORED
            if stored and not self.cluster.copies(self.owner, row):
                assert self.cluster.record.killed, row
                self.owner.look_again(row)
        self.cluster.run()
        touched = self.touched_by_loss()
        for call in self.calls:
            if call.released:
                continue
            got = self.cluster.outcome(self.owner, call.row)
            inherited = {s for i in call.inputs for s in self.calls[i].may}
            allowed: set[object] = {*call.may, *inherited}
            if call.must_fail:
                allowed.add("error")
            else:
                allowed.add(call.value)
            if call.row in touched:
                allowed |= {"lost", "error"}
            assert got in allowed, (call.row, got, allowed)


USUAL = {
    "submit": 10.0,
    "put": 1.0,
    "again": 3.0,
    "release": 3.0,
    "desire": 0.5,
    "cancel": 0.7,
    "replicate": 1.0,
    "retry": 0.7,
    "pause": 0.5,
    "forget_functions": 0.3,
    "retire": 0.3,
    "run": 4.0,
}
KILLS = {**USUAL, "kill": 0.7}


FREEZES = {"freeze": 0.7}
PARTITIONS = {"partition": 0.7}


def run_program(
    seed: int,
    workers: int = 3,
    slots: int = 2,
    clients: int = 2,
    length: int = 40,
    faults: Faults | None = None,
    kills: int = 0,
    freezes: bool = False,
    partitions: bool = False,
) -> VirtualCluster:
    """One random program per client, interleaved; everything checked on the way.

    The same arguments give the same run: call it with those of a failure to replay it.
    """
    resources = [{"gpu": 1.0}]
    cluster = VirtualCluster(
        seed, workers, slots, clients, faults, resources=resources, longest_wait=LONGEST_WAIT
    )
    cluster.kills_left = kills  # type: ignore[attr-defined]
    random = Random(seed + 1)
    weights = {**(KILLS if kills else USUAL), **(FREEZES if freezes else {})}
    weights.update(PARTITIONS if partitions else {})
    programs = [Program(cluster, i, random, weights) for i in range(clients)]
    for _ in range(length):
        random.choice(programs).step()
    for worker in list(cluster.workers.values()):
        worker.accept(True)
    cluster.run()
    for program in programs:
        program.check()
        live = [call.row for call in program.calls if not call.released]
        program.owner.core.release(live)
        cluster.dirty.add(program.owner)
    cluster.run()
    cluster.assert_empty()
    return cluster
