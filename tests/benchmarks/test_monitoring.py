"""What it costs to look at a cluster."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from dask_ownership.benchmarks import monitoring


@pytest.mark.skipif(find_spec("bokeh") is None, reason="bokeh is not installed")
def test_it_is_told_for_each_kind_of_looking(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--workers", "1", "--rounds", "1", "--seconds", "0.5", "--long", "2"]
    assert monitoring.main([*words, "--pages", "ownership"]) == 0
    _, *kinds, last = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].strip() for line in kinds] == list(monitoring.KINDS)
    for line in kinds:
        assert float(line.split(":")[1].split()[0]) > 0  # microseconds
        assert "scheduler" in line
    assert last.startswith("pages open for 2 s") and "ms late" in last
