"""The benchmark at tiny sizes: that it runs, judges and cleans up; never how fast anything is."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from pathlib import Path

import pytest

from dask_ownership.benchmarks import recovery_cases
from dask_ownership.benchmarks.bars import BARS, judge
from dask_ownership.benchmarks.cases import CASES, case_named
from dask_ownership.benchmarks.cli import main
from dask_ownership.benchmarks.engine_process import measure, summary, supports
from dask_ownership.benchmarks.engines import ENGINES, make_engine
from dask_ownership.benchmarks.floors import FloorClient
from dask_ownership.benchmarks.parent import MARK, EngineRun, Options, run_cases
from dask_ownership.benchmarks.report import as_json, render

psutil = pytest.importorskip("psutil")

TINY = {
    "fib": 3,
    "array sum": 16,
    "transpose add": 200,
    "dataframe": 2,
    "nested": 3,
    "deep reduction": 2,
}
OWN_PROCESS = {"memory", "scheduler messages", "recovery", "recovery large"}


OWN_CLUSTER = ("relay", "direct")


def run_all(engine_name, cases=CASES):
    """Run every case that an engine can run, once, and return what was measured."""
    engine = make_engine(engine_name)
    measured = {}
    try:
        engine.start()
        for case in cases:
            if supports(engine, case) and case.name not in OWN_PROCESS:
                size = TINY.get(case.name, 5)
                cold = dataclasses.replace(case, warm_up=0)
                measured[case.name] = measure(engine, cold, size, 1, 5.0, lambda **_: None)
    finally:
        engine.close()
    return measured


@pytest.fixture
def no_process_left():
    """Check that every process that the benchmark marked has gone."""
    yield
    marked = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.ppid() == os.getpid() and MARK in process.environ():
                marked.append(process)
    assert not marked


@pytest.mark.parametrize("own_cluster", ["", *OWN_CLUSTER])
def test_every_task_and_collection_case_runs_on_distributed(own_cluster):
    """All those that share a cluster, and one by one those that start their own."""
    alone = {own_cluster} if own_cluster else {case.name for case in CASES} - {*OWN_CLUSTER}
    cases = [case for case in CASES if case.name in alone]
    measured = run_all("distributed", cases)
    wanted = {case.name for case in cases if case.needs != "travel"} - OWN_PROCESS
    assert set(measured) == wanted
    for case in cases:
        if case.name in measured:
            assert set(measured[case.name]) == {metric.name for metric in case.metrics}
            assert all(value > 0 for values in measured[case.name].values() for value in values)


def test_futures_travel_on_ownership():
    engine = make_engine("ownership")
    try:
        engine.start()
        for name in ("borrow", "many futures"):
            case = case_named(name)
            numbers = case.run(engine, 50)
            assert set(numbers) == {metric.name for metric in case.metrics}
            assert all(value > 0 for value in numbers.values())
    finally:
        engine.close()


@pytest.mark.alone
@pytest.mark.parametrize("name", ["ownership", "distributed"])
def test_a_worker_dies(name, monkeypatch):
    monkeypatch.setattr(recovery_cases, "DURATIONS", (10,))
    begun_again = {"ownership": {"recovery": 5}}.get(name, {})
    engine = make_engine(name)
    try:
        engine.start()
        for case in ("recovery", "recovery large"):
            numbers = case_named(case).run(engine, 1)
            wanted = {metric.name for metric in case_named(case).metrics}
            assert set(numbers) == {m for m in wanted if m.endswith("10")}
            # What a death costs depends on where the values are.
            assert 100 <= numbers["steps10"] <= 100 + begun_again.get(case, 100)
            assert numbers["ratio10"] == numbers["with10"] / numbers["without10"]
    finally:
        engine.close()


def test_every_collection_case_runs_on_threads():
    measured = run_all("threads")
    assert set(measured) == {case.name for case in CASES if case.needs == "collections"}


def test_floors_return_what_was_called():
    with FloorClient(2) as floor:
        assert floor.map(5000) == list(range(5000))
        assert [floor.call(i) for i in range(20)] == list(range(20))
        processes = list(floor.processes)
    assert [process.returncode for process in processes] == [0, 0]


@pytest.mark.usefixtures("no_process_left")
def test_command_line_writes_tables_and_json(tmp_path, capsys):
    path = tmp_path / "out.json"
    arguments = ["--quick", "--engines", "threads,floor", "--repeat", "2", "--markdown"]
    arguments += ["--cases", "delayed-tree,round_trip", "--json", str(path)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "| delayed: tree of 512 leaves | s |" in printed
    record = json.loads(Path(path).read_text())
    assert record["machine"]["cores"] >= 1
    assert len(record["engines"]["threads"]["results"]["delayed tree"]["seconds"]["values"]) == 2
    assert record["engines"]["floor"]["results"]["round trip"]["p50"]["median"] > 0


@pytest.mark.usefixtures("no_process_left")
def test_silent_engine_is_given_up():
    options = Options(quick=True, case_timeout=0.01)
    run = run_cases("threads", [case_named("bag")], options)
    assert "no answer within" in run.unavailable + "".join(run.failed.values())
    assert not run.results


@pytest.mark.usefixtures("no_process_left")
def test_failing_case_is_named_and_the_rest_goes_on(tmp_path, monkeypatch):
    # A module of that name that cannot be imported makes one case fail in the engine's process.
    package = tmp_path / "pandas"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('no pandas today')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    cases = [case_named("dataframe"), case_named("delayed tree")]
    run = run_cases("threads", cases, Options(quick=True, repeat=1))
    assert list(run.failed) == ["dataframe"]
    assert "no pandas today" in run.failed["dataframe"]
    assert list(run.results) == ["delayed tree"]


def numbers(value):
    """Make the results of an engine that reached the same number everywhere."""
    return {
        case.name: {"size": 1, **{metric.name: summary([value]) for metric in case.metrics}}
        for case in CASES
    }


def test_bars_tell_reached_from_short_and_unmeasured():
    runs = {
        "ownership": EngineRun("ownership", results=numbers(0.2)),
        "distributed": EngineRun("distributed", results=numbers(0.1)),
        "floor": EngineRun("floor", results=numbers(0.2)),
    }
    outcomes = judge(runs)
    assert len(outcomes) == len(BARS) + 2
    verdicts = {(o.what, o.wanted): o.verdict for o in outcomes}
    assert verdicts["round trip, median", "≤ 0.5 ms"] == "ok"
    assert verdicts["submit loop", "≥ 0.35x floor"] == "ok"
    assert verdicts["submit loop", "≥ 70.0x distributed"] == "short"
    assert verdicts["submit loop", "≥ 35.0x tuned"] == "not measured"
    assert verdicts["every case", "> 1x distributed"] == "short"
    assert verdicts["every case", "> 1x tuned"] == "not measured"
    assert verdicts["borrow, every point", "≥ 10.0x ray"] == "not measured"


def test_a_bar_for_every_point_is_held_against_the_worst():
    own, ray = numbers(50.0), numbers(1.0)
    own["borrow"]["b4"] = summary([9.0])
    own["borrow"]["b8"] = summary([20.0])
    runs = {
        "ownership": EngineRun("ownership", results=own),
        "ray": EngineRun("ray", results=ray),
    }
    outcomes = judge(runs, ["borrow"])
    assert (outcomes[0].reached, outcomes[0].verdict) == ("9.00x (b = 4)", "short")
    own["borrow"]["b4"] = summary([90.0])
    assert judge(runs, ["borrow"])[0].reached == "20.0x (b = 8)"


@pytest.mark.usefixtures("no_process_left")
def test_a_size_takes_the_place_of_the_cases_own():
    run = run_cases("threads", [case_named("delayed tree")], Options(repeat=1, size=16))
    assert run.results["delayed tree"]["size"] == 16


def test_report_says_what_failed():
    runs = {
        "ray": EngineRun("ray", unavailable="ray is not installed here"),
        "threads": EngineRun("threads", failed={"bag": "ValueError: no"}),
    }
    machine = {"cpu": "", "cores": 1, "memory_bytes": 0, "system": "", "python": ""}
    options = {"workers": 2, "threads_per_worker": 1, "repeat": 1, "quick": False}
    cases = [case_named("bag")]
    record = as_json(runs, cases, options, machine, "command")
    for markdown in (False, True):
        text = render(runs, cases, record, markdown)
        assert "ray: not measured: ray is not installed here" in text
        assert "threads: bag: ValueError: no" in text


@pytest.mark.parametrize(
    "arguments", [["--peers", "spark"], ["--cases", "nothing"], ["--workers", "0"], ["--size", "0"]]
)
def test_unknown_names_are_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert "error: " in capsys.readouterr().err


def test_engines_can_all_be_made():
    assert [make_engine(name).name for name in ENGINES] == list(ENGINES)
    with pytest.raises(ValueError, match="no engine is named"):
        make_engine("spark")
