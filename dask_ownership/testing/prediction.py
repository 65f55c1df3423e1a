"""How long a program would take on a cluster of another size: the virtual cluster, with costs.

The decisions are those of the real owners and executors. Time is what is given: tasks take
their length, messages the latency, and each process the time that it spends on a task,
during which it does nothing else, as one interpreter lock would have it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.protocol import messages as m
from dask_ownership.testing.network import Faults, Watcher
from dask_ownership.testing.owner import VirtualOwner
from dask_ownership.testing.pipe import OwnerProcess, WorkerProcess
from dask_ownership.testing.task import Task
from dask_ownership.testing.virtual import VirtualCluster

SECOND = 1e6
"""The virtual clock counts microseconds."""

SLICE = 1_000.0
"""Virtual microseconds between looks at whether all is done."""

PATIENCE = 20
"""How many times as long as it must take a program may take."""

CHUNK = 50
"""Tasks that an owner submits before it looks at answers."""

ENDS = (m.DONE, m.STORED, m.FAILED)
"""Messages that say that a task ended."""


@dataclass(frozen=True)
class Plan:
    """A cluster, a program and what things cost. All times are in seconds.

    Attributes
    ----------
    workers, threads : int
        Processes, and threads of each.
    owners : int
        Clients, which submit the tasks in equal parts.
    tasks : int
        Those that clients submit.
    length : float
        Of each task.
    depth, fan_out : int
        Each task that a client submits is the root of a tree: down to this depth each task
        submits so many, and waits for them.
    stored : bool
        Values stay at the workers that made them, and are lost with those.
    kill_every : float or None
        A worker dies each time this has passed.
    restart_after : float
        Until another takes its place.
    latency : float
        Of a message, on average; exponentially distributed.
    owner_cost, worker_cost : float
        What a task costs the process of its owner, and that of its worker.
    seed : int
    """

    workers: int = 10
    threads: int = 1
    owners: int = 1
    tasks: int = 10_000
    length: float = 0.01
    depth: int = 0
    fan_out: int = 2
    stored: bool = False
    kill_every: float | None = None
    restart_after: float = 3.0
    latency: float = 100e-6
    owner_cost: float = 8e-6
    worker_cost: float = 8e-6
    seed: int = 0

    @property
    def tree(self) -> int:
        """Tasks of one tree."""
        return sum(self.fan_out**level for level in range(self.depth + 1))

    @property
    def total(self) -> int:
        """All tasks."""
        return self.tasks * self.tree

    @property
    def slots(self) -> int:
        """Tasks that can run at once."""
        return self.workers * self.threads

    @property
    def bounds(self) -> dict[str, float]:
        """Seconds for which slots, workers' processes and owners are busy at least."""
        return {
            "the slots": self.total * self.length / self.slots,
            "the workers' processes": self.total * self.worker_cost / self.workers,
            "the owners": -(-self.tasks // self.owners) * self.owner_cost,
        }

    @property
    def least(self) -> float:
        """Seconds below which it cannot end."""
        return max(self.bounds.values())

    @property
    def bound(self) -> str:
        """What is busy all that time."""
        return max(self.bounds, key=lambda name: self.bounds[name])


@dataclass
class Prediction:
    """What came of a plan.

    Attributes
    ----------
    plan : Plan
    makespan : float
        Seconds until the last value was with its owner.
    ended : list of float
        Seconds at which tasks ended, in order; those that ran again count again.
    kills : list of float
        Seconds at which workers died.
    failed : int
        Tasks of clients that have no value: their workers died too often.
    unfinished : int
        Tasks of clients that had not ended when it was given up: what dies takes away as much
        as is done.
    events : int
        What happened in the virtual cluster.
    """

    plan: Plan
    makespan: float = 0.0
    ended: list[float] = field(default_factory=list)
    kills: list[float] = field(default_factory=list)
    failed: int = 0
    unfinished: int = 0
    events: int = 0

    @property
    def succeeded(self) -> int:
        """Tasks of the program that have their value."""
        return (self.plan.tasks - self.failed - self.unfinished) * self.plan.tree

    @property
    def throughput(self) -> float:
        """Tasks of the program per second."""
        return self.succeeded / self.makespan if self.makespan else 0.0

    @property
    def again(self) -> int:
        """How many tasks came to their end once more than the program has them."""
        return max(0, len(self.ended) - self.plan.total)

    @property
    def efficiency(self) -> float:
        """The part of the time of all slots in which tasks of the program ran."""
        busy = self.succeeded * self.plan.length
        return busy / (self.makespan * self.plan.slots) if self.makespan else 0.0

    def rates(self, parts: int) -> list[float]:
        """Tasks that ended per second, in so many equal parts of the makespan."""
        width = self.makespan / parts or 1.0
        counts = [0] * parts
        for when in self.ended:
            counts[min(parts - 1, int(when / width))] += 1
        return [count / width for count in counts]


class _Timed(VirtualCluster, Watcher):
    """A virtual cluster in which work takes time."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        super().__init__(
            plan.seed,
            workers=plan.workers,
            slots=plan.threads,
            clients=plan.owners,
            # Its delays are a fifth of the longest, on average.
            faults=Faults(duplicate=0, disconnect=0, longest_delay=5 * plan.latency * SECOND),
            check=False,
            meshed=plan.depth > 0,
            no_workers_timeout=None,
        )
        self.network.watchers.append(self)

    def worker_took_in(self, worker: WorkerProcess, messages: Sequence[Any]) -> None:
        """Its process is busy with the tasks that were pushed to it."""
        pushed = sum(1 for message in messages if message[0] == m.PUSH)
        self.charge(worker.owner, pushed * self.plan.worker_cost)

    def owner_took_in(self, owner: OwnerProcess, messages: Sequence[Any]) -> None:
        """Its process is busy with the tasks that ended."""
        ended = sum(1 for message in messages if message[0] in ENDS)
        self.charge(owner, ended * self.plan.owner_cost / 2)

    def charge(self, owner: OwnerProcess, seconds: float) -> None:
        """A process is busy for so long: what happens to it meanwhile comes after."""
        if seconds:
            busy = owner.occupy(seconds * SECOND)
            self.later(busy, partial(self._rested, owner))

    def _rested(self, owner: OwnerProcess) -> None:
        """Take in what came meanwhile, until that keeps the process busy again."""
        if owner.frozen or not owner.alive:
            return
        owner.catch_up()
        worker = self.workers.get(owner.home or "")
        if worker is not None:
            worker.wants_step()


class _Client:
    """Submits its part of the program, some tasks at a time, and counts what ended."""

    def __init__(self, cluster: _Timed, owner: VirtualOwner, task: Task, count: int) -> None:
        self.cluster = cluster
        self.owner = owner
        self.task = task
        self.left = self.open = count
        self.ended = 0.0
        self.rows: list[Row] = []

    def go_on(self) -> None:
        """Submit the next."""
        some = min(CHUNK, self.left)
        for _ in range(some):
            row = self.owner.submit(f"task-{self.left}", self.task)
            self.left -= 1
            self.rows.append(row)
            self.owner.when_done(row, self._one_done)
        self.cluster.charge(self.owner, some * self.cluster.plan.owner_cost / 2)
        if self.left:
            self.owner.later(0.0, self.go_on)

    def _one_done(self) -> None:
        self.open -= 1
        self.ended = self.cluster.now


def predict(plan: Plan, progress: Callable[[int], None] | None = None) -> Prediction:
    """Run a plan in the virtual cluster.

    Parameters
    ----------
    plan : Plan
    progress : callable, optional
        Called now and then with how many tasks have ended.
    """
    cluster = _Timed(plan)
    task = Task(1, plan.length * SECOND, large=plan.stored)
    for _ in range(plan.depth):
        task = replace(task, children=(task,) * plan.fan_out)
    shares = [len(range(i, plan.tasks, plan.owners)) for i in range(plan.owners)]
    clients = [
        _Client(cluster, owner, task, share)
        for owner, share in zip(cluster.clients, shares, strict=True)
    ]
    result = Prediction(plan)
    for client in clients:
        cluster.later(0.0, client.go_on)
    if plan.kill_every:
        cluster.later(plan.kill_every * SECOND, partial(_kill, cluster, result, clients))
    most = PATIENCE * (plan.least + plan.restart_after + plan.length) * SECOND
    while any(client.open for client in clients) and cluster.now < most:
        cluster.run_for(SLICE)
        if progress is not None:
            progress(len(cluster.record.ended))
    result.ended = [when / SECOND for when in cluster.record.ended]
    result.unfinished = sum(client.open for client in clients)
    ended = cluster.now if result.unfinished else max(client.ended for client in clients)
    result.makespan = ended / SECOND
    if not result.unfinished:
        result.failed = sum(
            1
            for client in clients
            for row in client.rows
            if not isinstance(cluster.outcome(client.owner, row), int)
        )
    result.events = cluster.clock.number()
    return result


def _kill(cluster: _Timed, result: Prediction, clients: list[_Client]) -> None:
    """A worker dies, and another one comes; and so on until the program has ended."""
    if not any(client.open for client in clients):
        return
    plan = cluster.plan
    victim = cluster.random.choice(sorted(cluster.workers)) if cluster.workers else None
    if victim is not None:
        cluster.kill(victim)
        result.kills.append(cluster.now / SECOND)
        name = f"worker-{plan.workers + len(result.kills)}"

        def replace_it() -> None:
            cluster.add_worker(name, plan.threads)

        cluster.later(plan.restart_after * SECOND, replace_it)
    assert plan.kill_every is not None
    cluster.later(plan.kill_every * SECOND, partial(_kill, cluster, result, clients))
