"""The experiments of the paper: what they measure is written, kept and printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dask_ownership.benchmarks.cli import main
from dask_ownership.benchmarks.paper import leases, prediction
from dask_ownership.benchmarks.paper.experiments import System


def test_measured_points_are_kept_and_printed_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "measured.json"
    other = {"points": [{"system": "ray", "ms": 1.0}], "machine": "another"}
    file.write_text(json.dumps({"experiments": {"latency": other, "video": other}}))
    command = ["paper", "latency", "--engines", "synchronous", "--quick", "--json", str(file)]
    assert main(command) == 0
    measured = json.loads(file.read_text())["experiments"]
    assert measured["video"] == other
    assert measured["latency"]["points"][0] == other["points"][0]
    points = measured["latency"]["points"][1:]
    kinds = {(p["passed"], p["place"], p["mode"]) for p in points}
    assert len(kinds) == len(points) == 6
    assert all(p["system"] == "synchronous" and p["ms"] > 0 for p in points)
    assert "cores" in measured["latency"]["machine"]
    printed = capsys.readouterr().out

    assert main(["paper", "latency", "--redraw", "--json", str(file)]) == 0
    assert capsys.readouterr().out == printed


def test_a_lease_that_is_over_before_a_worker_goes_on_has_its_task_run_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pause of a worker holds its task up; with a shorter lease the task runs elsewhere."""
    for name, value in (("TIMEOUTS", (0, 0.3)), ("PAUSE", 1.0), ("BEFORE", 0.5), ("AFTER", 0.5)):
        monkeypatch.setattr(leases, name, value)
    monkeypatch.setattr(leases, "LENGTH", 0.2)  # so long that one task runs at any time
    monkeypatch.setattr(leases, "EVERY", 0.12)
    points = list(leases.leases(System("ownership", "ownership"), 1))
    found = {(point["event"], point["lease_s"]): point for point in points}
    assert len(found) == 4
    assert all(len(point["all_ms"]) == point["tasks"] for point in points)
    assert found["pause", 0]["again"] == 0
    assert max(found["pause", 0]["all_ms"]) > 900
    assert all(found[case]["again"] for case in (("death", 0), ("death", 0.3), ("pause", 0.3)))


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (["latencies"], "unknown experiment latencies"),
        (["--engines", "spark"], "unknown engine spark"),
        (["--redraw"], "--redraw needs --json"),
    ],
)
def test_wrong_arguments_are_named(
    wrong: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["paper", *wrong])
    assert exit.value.code == 2
    assert expected in capsys.readouterr().err


def test_predictions_stay_below_their_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction, "WORKERS", (1, 4))
    monkeypatch.setattr(prediction, "OWNERS", (1, 10))
    monkeypatch.setattr(prediction, "NESTED", (1, 2))
    monkeypatch.setattr(prediction, "RECOVERY", (2,))
    measured = prediction.Measured(50_000.0, 2e-5, 2e-5)
    monkeypatch.setattr(prediction, "measure", lambda system, workers, length, n: measured)
    points = list(prediction.prediction(System("ownership", "ownership", calls=100), 0.1))
    bounds = {
        (p["owners"], p["workers"], p["length"]): p["rate"] for p in points if p["kind"] == "bound"
    }
    predicted = [p for p in points if p["kind"] == "predicted"]
    assert len(predicted) == len(bounds) == 6
    for point in predicted:
        bound = bounds[point["owners"], point["workers"], point["length"]]
        assert 0.2 * bound < point["rate"] <= bound * 1.001
    assert [p["deaths"] for p in points if p["kind"] == "recovery"] == [1]
    assert {p["workers"] for p in points if p["kind"] == "nested"} == {1, 2}
    assert {p["workers"] for p in predicted if "error" in p} == {1, 4}


def test_bars_are_told_with_both_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "measured.json"
    video = [
        {"system": system, "failure": "none", "videos": n, "sustained": n <= most, "all_ms": late}
        for system, most, late in (
            ("ownership", 8, [20.0, 40.0]),
            ("distributed", 1, [90.0, 400.0]),
        )
        for n in (1, 2, 8)
    ]
    record = {"experiments": {"video": {"points": video, "machine": "here"}}}
    file.write_text(json.dumps(record))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- video: begin -->\nold\n<!-- video: end -->\nafter\n")
    arguments = ["--redraw", "--json", str(file), "--page", str(page)]
    assert main(["paper", "video", *arguments]) == 0
    written = page.read_text().splitlines()
    assert written[0] == "before" and written[-1] == "after" and "old" not in written
    assert "| distributed, 2 videos | 400 | 400 | 400 |" in written
    lines = capsys.readouterr().out.splitlines()[-3:]
    assert lines == [
        "reached: videos sustained, times stock Dask's: 8x, wanted at least 5x",
        "reached: p99 of 1 videos, stock Dask's highest load, stock over ours: 10x, wanted at "
        "least 5x",
        "reached: most late of 8 videos, our highest load: 40 ms, wanted at most 250 ms",
    ]
