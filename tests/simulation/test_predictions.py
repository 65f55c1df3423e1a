"""``dask ownership simulate``: the virtual cluster with costs says what a program would take."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dask_ownership.cli import main
from dask_ownership.testing.prediction import Plan, predict

PLAN = Plan(workers=4, threads=2, tasks=400, length=0.01, seed=7)


def simulate(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["simulate", *arguments])


def test_long_tasks_keep_all_slots_busy() -> None:
    found = predict(PLAN)
    assert PLAN.least == pytest.approx(400 * 0.01 / 8)
    assert PLAN.least < found.makespan < 1.1 * PLAN.least
    assert 0.9 < found.efficiency < 1
    assert found.again == found.failed == found.unfinished == 0
    assert sum(found.rates(10)) * found.makespan / 10 == pytest.approx(400)


def test_short_tasks_are_bound_by_what_they_cost() -> None:
    """One owner feeds 40 workers no faster than it can; four feed them faster."""
    plan = replace(PLAN, workers=40, threads=1, length=0.0, tasks=4000, owner_cost=20e-6)
    one, four = predict(plan), predict(replace(plan, owners=4))
    assert plan.bound == "the owners"
    assert 0.9 / 20e-6 < one.throughput < 1 / 20e-6
    assert four.throughput > 2 * one.throughput
    slow = replace(plan, workers=2, owner_cost=1e-6, worker_cost=100e-6)
    assert slow.bound == "the workers' processes"
    assert 0.5 * 2 / 100e-6 < predict(slow).throughput < 2 / 100e-6


def test_latency_counts_where_tasks_wait_for_each_other() -> None:
    plan = replace(PLAN, tasks=1, depth=3, fan_out=1, length=0.001, latency=0.01)
    assert plan.total == 4
    near = predict(replace(plan, latency=0.0001))
    assert predict(plan).makespan > near.makespan + 3 * 0.01


def test_deaths_cost_time_and_large_values_cost_more() -> None:
    plan = replace(PLAN, tasks=500, length=0.04, kill_every=0.5, restart_after=0.2)
    calm = predict(replace(plan, kill_every=None))
    small, large = predict(plan), predict(replace(plan, stored=True))
    assert len(small.kills) >= 4
    assert calm.makespan < small.makespan < large.makespan
    assert calm.again == small.again == 0  # a task whose worker dies under it did not end
    assert large.again > 0
    assert small.failed == large.failed == 0


def test_the_same_seed_gives_the_same_run() -> None:
    plan = replace(PLAN, tasks=100, depth=2, kill_every=0.2, restart_after=0.1)
    one, again = predict(plan), predict(plan)
    assert one == again
    assert predict(replace(plan, seed=8)).ended != one.ended


def test_workers_that_die_faster_than_they_work() -> None:
    plan = ["--workers", "2", "--tasks", "50", "--task-length", "20ms", "--stored"]
    done = simulate(*plan, "--kill-every", "50ms", "--restart-after", "40ms", "--seed", "1")
    assert done.exit_code == 1
    assert re.fullmatch(r"Error: after .* had not ended, .* had died: .*\n", done.output)


def test_the_command_says_what_it_found(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "rate.png"
    arguments = ["--tasks", "300", "--kill-every", "100ms", "--plot", str(picture)]
    done = simulate(*arguments)
    assert done.exit_code == 0, done.output
    seed = re.search(r"seed (\d+)", done.output)
    assert seed is not None
    for name in ("makespan", "throughput", "least possible", "recovery cost", "tasks run again"):
        assert name in done.output
    assert "█" in done.output and "died" in done.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert simulate(*arguments, "--seed", seed[1]).output == done.output
    assert len(max(done.output.splitlines(), key=len)) <= 80


def test_help_says_what_is_not_modelled() -> None:
    text = " ".join(simulate("--help").output.split())
    for what in ("Not modelled", "size of values", "bandwidth", "memory"):
        assert what in text


def test_a_time_that_is_none() -> None:
    done = simulate("--latency", "5x")
    assert done.exit_code == 2
    assert "'5x' is no time such as 10ms" in done.output
