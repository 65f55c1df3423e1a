"""Predictions of how long a program takes on a larger cluster: the virtual cluster, with costs.

Real owners and executors decide. Times are given: a task takes its length, a message the latency,
and each process is busy for a while with each of its tasks. A busy process does nothing else, as
under one interpreter lock.
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
"""Virtual microseconds in a second of a plan. Those of the core are shorter (`testing.clock`)."""

SLICE = 1_000.0
"""Virtual microseconds between looks at whether the program has ended."""

PATIENCE = 20
"""A program is given up after this many times its least time."""

CHUNK = 50
"""Tasks that an owner submits before it looks at answers."""

ENDS = (m.DONE, m.STORED, m.FAILED)
"""Messages by which a worker tells the end of a task."""


@dataclass(frozen=True)
class Plan:
    """A cluster, a program and the costs of its tasks. All times are in seconds.

    Attributes
    ----------
    workers, threads : int
        Number of worker processes, and of threads in each.
    owners : int
        Number of clients, which submit the tasks in equal parts.
    tasks : int
        Number of tasks that clients submit.
    length : float
        How long each task runs.
    depth, fan_out : int
        Each task of a client is the root of a tree: down to this depth each task submits so many
        tasks, and waits for them.
    stored : bool
        Values stay at their workers, and are lost when these die.
    kill_every : float or None
        A worker dies each time after so long.
    restart_after : float
        How long after a death another worker comes.
    latency : float
        The mean of how long messages take, which is exponentially distributed.
    owner_cost, worker_cost : float
        How long the process of the owner, and that of the worker, is busy with one task.
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
        """Number of tasks in one tree."""
        return sum(self.fan_out**level for level in range(self.depth + 1))

    @property
    def total(self) -> int:
        """Number of all tasks."""
        return self.tasks * self.tree

    @property
    def slots(self) -> int:
        """Number of tasks that can run at once."""
        return self.workers * self.threads

    @property
    def bounds(self) -> dict[str, float]:
        """Seconds for which slots, workers' processes and owners are busy at least."""
        return {
            "the slots": self.total * self.length / self.slots,
            "the workers' processes": self.total * self.worker_cost / self.workers,
            # One client may have a task more than the others: the division is rounded up.
            "the owners": -(-self.tasks // self.owners) * self.owner_cost,
        }

    @property
    def least(self) -> float:
        """Seconds below which the program cannot end."""
        return max(self.bounds.values())

    @property
    def bound(self) -> str:
        """The part of the cluster that is busy for the least time, and so bounds the program."""
        return max(self.bounds, key=lambda name: self.bounds[name])


@dataclass
class Prediction:
    """The outcome of a plan.

    Attributes
    ----------
    plan : Plan
    makespan : float
        Seconds until the last value was with its owner.
    ended : list of float
        Seconds at which tasks ended, in order; a task that ran again counts again.
    kills : list of float
        Seconds at which workers died.
    failed : int
        Number of tasks of clients without a value: workers died under them too often.
    unfinished : int
        Number of tasks of clients that had not ended when the program was given up: deaths
        destroy as much work as is done.
    events : int
        Number of events in the virtual cluster.
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
        """Number of tasks of the program that have their value."""
        return (self.plan.tasks - self.failed - self.unfinished) * self.plan.tree

    @property
    def throughput(self) -> float:
        """Tasks of the program per second."""
        return self.succeeded / self.makespan if self.makespan else 0.0

    @property
    def again(self) -> int:
        """How many ends of tasks there were beyond one for each task of the program."""
        return max(0, len(self.ended) - self.plan.total)

    @property
    def efficiency(self) -> float:
        """The part of the time of all slots in which tasks of the program ran."""
        busy = self.succeeded * self.plan.length
        return busy / (self.makespan * self.plan.slots) if self.makespan else 0.0

    def rates(self, parts: int) -> list[float]:
        """Return ends of tasks per second, in so many equal parts of the makespan."""
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
            # The mean of the delays is a fifth of ``longest_delay``.
            faults=Faults(duplicate=0, disconnect=0, longest_delay=5 * plan.latency * SECOND),
            check=False,  # checks would take most of the time, and are there for tests
            meshed=plan.depth > 0,
            no_workers_timeout=None,
        )
        self.network.watchers.append(self)

    def worker_took_in(self, worker: WorkerProcess, messages: Sequence[Any]) -> None:
        """Have the process of a worker be busy with the tasks that were pushed to it.

        With one thread the cost of each task is a part of its time: answers leave one by one.
        """
        if self.plan.threads == 1:
            return
        pushed = sum(1 for message in messages if message[m.KIND] == m.PUSH)
        self.charge(worker.owner, pushed * self.plan.worker_cost)

    def owner_took_in(self, owner: OwnerProcess, messages: Sequence[Any]) -> None:
        """Have the process of an owner be busy with the tasks that ended: half of their cost.

        The other half is due when the tasks are submitted.
        """
        ended = sum(1 for message in messages if message[m.KIND] in ENDS)
        self.charge(owner, ended * self.plan.owner_cost / 2)

    def charge(self, owner: OwnerProcess, seconds: float) -> None:
        """Have a process be busy for so long: events for it that come meanwhile wait."""
        if seconds:
            busy = owner.occupy(seconds * SECOND)
            self.later(busy, partial(self._rested, owner))

    def _rested(self, owner: OwnerProcess) -> None:
        """Have a process take in the events that waited, until they make it busy again."""
        # More work may have come since this was planned: the end of that has its own event.
        if owner.frozen or not owner.alive:
            return
        owner.catch_up()
        worker = self.workers.get(owner.home or "")
        if worker is not None:
            worker.wants_step()


class _Client:
    """Submits one part of the program, some tasks at a time, and counts the tasks that ended."""

    def __init__(self, cluster: _Timed, owner: VirtualOwner, task: Task, count: int) -> None:
        self.cluster = cluster
        self.owner = owner
        self.task = task
        self.left = self.open = count
        self.ended = 0.0
        self.rows: list[Row] = []

    def go_on(self) -> None:
        """Submit the next `CHUNK` of tasks."""
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
        Called now and then with the number of tasks that have ended.

    Returns
    -------
    Prediction
    """
    cluster = _Timed(plan)
    cost = plan.worker_cost if plan.threads == 1 else 0.0
    task = Task(1, (plan.length + cost) * SECOND, large=plan.stored)
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
    # Where deaths destroy as much work as is done, a program would never end.
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
    """Kill a worker, which is replaced later; and so on until the program has ended."""
    if not any(client.open for client in clients):
        return
    plan = cluster.plan
    victim = cluster.random.choice(sorted(cluster.workers)) if cluster.workers else None
    if victim is not None:
        cluster.kill(victim)
        result.kills.append(cluster.now / SECOND)
        # A new address, so that all links are new as well.
        name = f"worker-{plan.workers + len(result.kills)}"

        def replace_it() -> None:
            cluster.add_worker(name, plan.threads)

        cluster.later(plan.restart_after * SECOND, replace_it)
    assert plan.kill_every is not None
    cluster.later(plan.kill_every * SECOND, partial(_kill, cluster, result, clients))
