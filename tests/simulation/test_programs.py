"""Random programs on the virtual cluster, against a sequential oracle."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from dask_ownership.core.table import Options, Row
from dask_ownership.testing.virtual import Faults, Task, VirtualCluster


@dataclass
class Program:
    """A program that one client runs: what it did, and what it must get."""

    cluster: VirtualCluster
    client: int
    random: Random
    rows: list[Row] = field(default_factory=list)
    expected: dict[int, set[object]] = field(default_factory=dict)
    inputs: dict[int, list[int]] = field(default_factory=dict)
    released: set[int] = field(default_factory=set)

    @property
    def owner(self):
        return self.cluster.clients[self.client]

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
        )

    def submit(self) -> None:
        r = self.random
        task = self.task()
        live = [i for i in range(len(self.rows)) if i not in self.released]
        chosen = r.sample(live, k=min(len(live), r.choice([0, 0, 1, 1, 2, 5])))
        retries = 0
        if r.random() < 0.15 and not task.children:
            fails = r.randint(1, 3)
            retries = r.randint(0, 3)
            task = Task(task.constant, task.duration, task.large, fails)
        options = Options(retries=retries) if retries else None
        number = len(self.rows)
        row = self.owner.submit(
            f"c{self.client}-{number}", task, [self.rows[i] for i in chosen], options
        )
        self.rows.append(row)
        inputs = [self.expected[i] for i in chosen]
        self.inputs[number] = chosen
        allowed: set[object] = {v for one in inputs for v in one if isinstance(v, str)}
        numbers = [v for one in inputs for v in one if isinstance(v, int)]
        if len(numbers) == len(chosen):
            allowed.add("error" if task.fails > retries else task.value(numbers))
        self.expected[number] = allowed

    def release(self) -> None:
        live = [i for i in range(len(self.rows)) if i not in self.released]
        if live:
            number = self.random.choice(live)
            self.released.add(number)
            self.owner.core.release([self.rows[number]])
            self.cluster.dirty.add(self.owner)

    def cancel(self) -> None:
        live = [i for i in range(len(self.rows)) if i not in self.released]
        if live:
            number = self.random.choice(live)
            row = self.rows[number]
            self.owner.core.cancel([row], "the test cancels it")
            self.cluster.dirty.add(self.owner)
            # What depends on it is cancelled with it, unless it had ended before.
            self.expected[number] = {"cancelled"}
            touched = {number}
            for i in range(number + 1, len(self.rows)):
                if touched.intersection(self.inputs[i]):
                    touched.add(i)
                    self.expected[i].add("cancelled")

    def step(self) -> None:
        r = self.random
        action = r.choices(["submit", "release", "cancel", "run"], [10, 3, 0.5, 4])[0]
        if action == "run":
            self.cluster.run_for(r.choice([10.0, 500.0, 20_000.0]))
        else:
            getattr(self, action)()

    def check(self) -> None:
        for number, row in enumerate(self.rows):
            if number in self.released:
                continue
            got = self.cluster.outcome(self.owner, row)
            assert got in self.expected[number], (row, got, self.expected[number])


def run_program(
    seed: int, workers: int, slots: int, clients: int, length: int, faults: Faults
) -> VirtualCluster:
    """One random program per client, interleaved; everything checked on the way."""
    cluster = VirtualCluster(seed, workers, slots, clients, faults)
    random = Random(seed + 1)
    programs = [Program(cluster, i, random) for i in range(clients)]
    for _ in range(length):
        random.choice(programs).step()
    cluster.run()
    for program in programs:
        program.check()
        live = [r for i, r in enumerate(program.rows) if i not in program.released]
        program.owner.core.release(live)
        cluster.dirty.add(program.owner)
    cluster.run()
    cluster.assert_empty()
    return cluster


@settings(
    max_examples=250, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)
@given(
    seed=st.integers(0, 2**32),
    workers=st.integers(1, 4),
    slots=st.integers(1, 3),
    clients=st.integers(1, 2),
    length=st.integers(1, 40),
    duplicate=st.sampled_from([0.0, 0.2]),
    disconnect=st.sampled_from([0.0, 0.1]),
)
def test_random_programs_get_what_a_sequential_program_gets(
    seed, workers, slots, clients, length, duplicate, disconnect
):
    note(f"seed {seed}")
    run_program(seed, workers, slots, clients, length, Faults(duplicate, disconnect))


@pytest.mark.parametrize("seed", range(20))
def test_a_seed_gives_the_same_run_again(seed):
    first = run_program(seed, 3, 2, 2, 30, Faults())
    second = run_program(seed, 3, 2, 2, 30, Faults())
    assert (first.now, first.steps) == (second.now, second.steps)
