"""Each path on which a task is started again, for tasks that run at most once and for others."""

from __future__ import annotations

import ast
from contextlib import nullcontext
from pathlib import Path

import pytest

from dask_ownership import core
from dask_ownership.core.owner.ownership import OwnerCore
from dask_ownership.core.owner.rows import restarts
from dask_ownership.core.owner.rows.options import Options
from dask_ownership.core.owner.rows.row import Function, Row
from dask_ownership.core.owner.rows.worker_view import WorkerView
from dask_ownership.core.protocol import messages as m
from dask_ownership.core.protocol.states import PUSHED
from dask_ownership.testing.invariants import check_ownership


class Bench:
    """An owner with two workers, and one task, whose pushes are counted."""

    def __init__(self, *, once: bool, retries: int = 0) -> None:
        self.core = OwnerCore(nullcontext(), process=("me", "", "me"))
        self.function = Function(1, b"f", "f")
        self.views = [WorkerView(address) for address in "ab"]
        for view in self.views:
            self.core.add_worker(view)
        self.options = Options(at_most_once=once, retries=retries)
        self.pushes = 0

    def submit(self, key: str, *needed: Row, options: Options | None = None) -> Row:
        row = Row(key, self.function, b"call", needed, 0, options or self.options)
        self.core.table.adopt(row)
        self.core.submit([row])
        self.step()
        return row

    def step(self) -> None:
        self.core.schedule(0.0)
        check_ownership(self.core)
        for view in self.core.placement.workers.values():
            self.pushes += sum(one[:2] == (m.PUSH, "task") for one in view.outbox)
            view.outbox.clear()

    def says(self, row: Row, kind: int, *rest: object) -> None:
        self.core.receive(row.worker, [(kind, row.key, row.attempt, *rest)], 0.0)
        self.step()

    def stored(self, row: Row) -> None:
        self.says(row, m.STORED, 1000, None, 1.0)

    def dies(self, view: WorkerView) -> None:
        self.core.remove_worker(view, "died")
        self.step()

    def silent(self, view: WorkerView) -> None:
        self.core.suspensions.silent([(view, 1.0)])
        self.step()


def worker_died(bench: Bench) -> None:
    bench.dies(bench.submit("task").worker)


def never_sent(bench: Bench) -> None:
    row = Row("task", bench.function, b"call", (), 0, bench.options)
    bench.core.table.adopt(row)
    bench.core.submit([row])
    bench.core.schedule(0.0)  # it stays in the outbox
    bench.pushes += 1
    bench.dies(row.worker)


def silent(bench: Bench) -> None:
    bench.silent(bench.submit("task").worker)


def input_elsewhere(bench: Bench) -> None:
    """An input at the silent worker is made again for another task."""
    data = bench.submit("data", options=Options(workers=("a",), loose=True))
    bench.stored(data)
    task = bench.submit("task", data)
    assert task.worker.address == "a"
    bench.core.attempts.change(task).patience = 100.0  # so that silence alone does not move it
    bench.silent(task.worker)
    bench.core.missed(data, ["a"])
    bench.step()
    assert data.state == PUSHED
    bench.silent(bench.views[0])
    bench.stored(data)


def failed(bench: Bench) -> None:
    bench.says(bench.submit("task"), m.FAILED, b"error", 1.0)


def rescheduled(bench: Bench) -> None:
    bench.says(bench.submit("task"), m.GIVEN_BACK, m.RESCHEDULED, ())


def recalled(bench: Bench) -> None:
    bench.says(bench.submit("task"), m.GIVEN_BACK, m.RECALLED, ())


def returned(bench: Bench) -> None:
    bench.says(bench.submit("task"), m.GIVEN_BACK, m.UNKNOWN_FUNCTION, ())


def recovered(bench: Bench) -> None:
    task = bench.submit("task")
    bench.stored(task)
    bench.dies(task.locations[0])


def repeated(bench: Bench) -> None:
    """What it submitted is asked for by a borrower whose owner is gone."""
    task = bench.submit("task")
    bench.core.retention.keep(task)
    bench.says(task, m.DONE, b"value", 1.0)
    bench.core.reconstruction.ask(("adopted", "gone", "child", 1), ("task", "child"))
    bench.step()
    for view in bench.core.placement.workers.values():
        bench.pushes += sum(row.options.repeats == "task" for row in view.pushed.values())


SCENARIOS = {
    restarts.WORKER_DIED: worker_died,
    restarts.NEVER_SENT: never_sent,
    restarts.SILENT: silent,
    restarts.INPUT_ELSEWHERE: input_elsewhere,
    restarts.FAILED: failed,
    restarts.RESCHEDULED: rescheduled,
    restarts.RECALLED: recalled,
    restarts.GIVEN_BACK: returned,
    restarts.RECOVERED: recovered,
    restarts.REPEATED: repeated,
}


@pytest.mark.parametrize("path", restarts.PATHS, ids=lambda path: path.name)
def test_a_task_runs_once_where_it_may_have_run(path):
    bench = Bench(once=True)
    if path is restarts.FAILED:
        bench.options = bench.options._replace(retries=1)  # which `submit` refuses for such a task
    SCENARIOS[path](bench)
    assert bench.pushes == (1 if path.ran else 2)


@pytest.mark.parametrize("path", restarts.PATHS, ids=lambda path: path.name)
def test_any_other_task_runs_again(path):
    bench = Bench(once=False, retries=1)
    SCENARIOS[path](bench)
    assert bench.pushes == 2
    assert bench.core.history.again[path.event] >= 1


AGAIN = {"become", "restore", "retry", "try_again", "wait_for_owner", "withdraw"}
"""Methods of `Lifecycle` after which a row that was handed out may be handed out once more."""


def test_nothing_else_in_the_core_starts_a_task_again():
    """Rows go back to waiting in few places; each of them asks, or is a new value."""
    found = set()
    for file in sorted(Path(core.__file__).parent.rglob("*.py")):
        for function in ast.walk(ast.parse(file.read_text())):
            if not isinstance(function, ast.FunctionDef):
                continue
            for node in ast.walk(function):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Attribute)
                    and node.func.attr in AGAIN
                    and ast.unparse(node.func.value).endswith(("lifecycle", "self"))
                ):
                    found.add(f"{file.stem}.{function.name}: {node.func.attr}")
    assert found == {
        "delegation.on_delegated: become",  # an alias, which runs nothing
        "results._failed: try_again",  # asks
        "results._given_back: try_again",
        "detached.instead: become",  # REPEATED, by `DetachedObjects._source`
        "detached.recover: become",  # an alias
        "detached.recover: withdraw",
        "reconstruction.recover: withdraw",  # becomes a question
        "lifecycle.retry: withdraw",  # the user asked
        "lineage.recover: restore",  # RECOVERED, by `Lineages.keep`
        "lineage.recover: withdraw",
        "departures.remove: try_again",
        "ownership.__init__: retry",  # a borrower asked
        "retries.revive: retry",  # the user asked
        "borrowing._ask_heir: wait_for_owner",  # borrowed: runs nothing here
        "borrowing._take_in: wait_for_owner",
        "borrowing._told: wait_for_owner",
        "borrowing.missed: wait_for_owner",
        "suspension._move: try_again",
    }


def test_a_task_that_came_to_its_end_is_no_suspect_when_its_value_is_made_again():
    bench = Bench(once=False)
    row = bench.submit("task")
    bench.dies(row.worker)
    assert bench.core.attempts.of(row).died
    bench.says(row, m.ALONE, False)
    bench.stored(row)
    bench.core.missed(row, [row.locations[0].address])
    bench.step()
    assert row.state == PUSHED
    assert not bench.core.attempts.of(row).died
