"""What owners count for those who look."""

from __future__ import annotations

import threading
from typing import Any

from dask_ownership.core.owner.ownership import OwnerCore
from dask_ownership.core.owner.rows.options import Options
from dask_ownership.core.owner.rows.row import Function, Row
from dask_ownership.core.protocol.states import INLINE, STORED, WAITING
from dask_ownership.monitoring import census
from dask_ownership.monitoring.census import Census, Events, Histogram, percentile


def owner_of(rows: list[Row]) -> OwnerCore:
    core = OwnerCore(threading.Lock())
    for row in rows:
        core.table.adopt(row)
    return core


def make(key: Any, state: int = WAITING, nbytes: int = 0, parent: Any = None) -> Row:
    options = Options(parent=parent)
    row = Row(key, Function(1, b"", "f"), b"", (), 0, options)
    row.state = state
    row.nbytes = nbytes
    row.attempt = nbytes
    return row


def name(key: Any) -> str:
    return str(key).partition("-")[0]


def counted(core: OwnerCore, calls: int = 1 << 30) -> dict[str, Any]:
    """A census that stops after each so many shards."""
    counting = Census(core, name)
    seen = [0]

    def over() -> bool:
        seen[0] += 1
        return seen[0] % calls == 0

    while not counting.advance(over):
        pass
    return counting.result()


def test_a_census_in_slices_is_one_in_one_go() -> None:
    rows = [make(f"a-{n}", INLINE, n) for n in range(300)]
    rows += [make(f"b-{n}", parent=("other", "key", 1)) for n in range(200)]
    core = owner_of(rows)
    whole = counted(core)
    assert whole == counted(core, 1) == counted(core, 7)
    assert whole["states"]["inline"] == 300 and whole["states"]["waiting"] == 200
    assert whole["groups"] == {"a": {"inline": 300}, "b": {"waiting": 200}}
    assert whole["parents"] == {"other": 200}
    assert [one["nbytes"] for one in whole["largest"]] == list(range(299, 287, -1))
    assert [one["key"] for one in whole["oldest"]] == [f"a-{n}" for n in range(1, 13)]


def test_more_names_than_are_told_apart() -> None:
    core = owner_of([make(f"{n}-x", STORED) for n in range(census.GROUPS + 50)])
    groups = counted(core)["groups"]
    assert len(groups) == census.GROUPS + 1
    assert groups[census.OTHERS] == {"stored": 50}


def test_events_are_told_once_and_not_too_many() -> None:
    core = owner_of([])
    row = make("a-1")
    core.history.log(row, "before", "")
    events = Events(core)
    assert events.new() == []
    for n in range(3):
        core.history.log(row, "happened", str(n))
    assert [event[2] for event in events.new()] == ["0", "1", "2"]
    assert events.new() == []
    for n in range(100):
        core.history.log(row, "happened", str(n))
    assert [event[2] for event in events.new()] == [str(n) for n in range(70, 100)]


def test_percentiles_of_a_histogram() -> None:
    histogram = Histogram()
    assert percentile(histogram.counts, 0.5) is None
    for microseconds in (0.2, 100, 100, 100, 1e30):
        histogram.add(microseconds)
    assert histogram.counts[0] == 1 and histogram.counts[7] == 3
    assert histogram.counts[-1] == 1
    middle = percentile(histogram.counts, 0.5)
    assert middle is not None and 64 <= middle <= 128
    largest = percentile(histogram.counts, 1.0)
    assert largest is not None and largest >= 1 << (census.BUCKETS - 2)


def test_how_long_a_recovery_took() -> None:
    now = [10.0]
    core = OwnerCore(threading.Lock(), clock=lambda: now[0])
    row = make("a-1", STORED)
    core.table.adopt(row)
    core.lineages.keep(row, ())
    assert core.lineages.recover(row)
    now[0] = 12.5
    core.lifecycle.finish_stored(row, 10, None, ())
    assert list(core.lineages.recoveries) == [(12.5, 2.5)]
    assert not core.lineages._since
    core.lineages.drop(row)
