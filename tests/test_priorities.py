"""In which order tasks run: priorities, generations, nesting, and several owners at one worker."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import numpy
import pytest
from distributed import LocalCluster, futures_of, get_client
from live import assert_nothing_left, small_cluster, until, until_handed_out
from programs import append_line, lines, wait_for_file

from dask_ownership import Client, as_completed


@pytest.fixture(scope="module")
def single() -> Iterator[LocalCluster]:
    """One worker with one thread."""
    with small_cluster(n_workers=1, processes=False) as cluster:
        yield cluster


@pytest.fixture
def owner(single: LocalCluster) -> Iterator[Client]:
    with Client(single, set_as_default=False) as client:
        yield client
        assert_nothing_left(client)


class Held:
    """Keeps the worker busy while what is to be ordered is submitted."""

    def __init__(self, client: Client, folder: Path) -> None:
        self.client = client
        self.go = folder / "go"
        self.mark = str(folder / "mark")

    def __enter__(self) -> Held:
        self.first = self.client.submit(wait_for_file, str(self.go), pure=False)
        until(lambda: self.client.cluster.workers[0].active_threads)
        return self

    def __exit__(self, *args: Any) -> None:
        until_handed_out(self.client)
        self.go.touch()
        self.first.result()

    def graph(self, name: str, number: int) -> list[Any]:
        """So many independent delayed tasks."""
        make = dask.delayed(append_line, pure=False)
        return [make(self.mark, f"{name}{i}") for i in range(number)]


@pytest.mark.parametrize("how", ["submit", "map", "compute", "persist", "annotate"])
def test_higher_priorities_first(owner: Client, tmp_path: Path, how: str) -> None:
    priorities = [-(2**40), -0.5, -0.25, 0, 0.001, True, 1.5, numpy.int64(3), 1e12]
    held = Held(owner, tmp_path)
    futures: list[Any] = []
    with held:
        for priority in priorities:
            name = repr(float(priority))
            if how == "submit":
                futures.append(owner.submit(append_line, held.mark, name, priority=priority))
            elif how == "map":
                futures += owner.map(append_line, [held.mark], [name], priority=priority)
            elif how == "annotate":
                with dask.annotate(priority=priority):
                    futures.append(owner.submit(append_line, held.mark, name))
            else:
                value = dask.delayed(append_line, pure=False)(held.mark, name)
                ask = owner.compute if how == "compute" else owner.persist
                futures.append(ask(value, priority=priority))
    owner.gather(futures_of(futures))
    assert [float(p) for p in lines(held.mark)] == sorted(map(float, priorities), reverse=True)


def test_two_owners_at_one_worker(owner: Client, single: LocalCluster, tmp_path: Path) -> None:
    """What is urgent comes first, whoever wants it; what is equal takes turns."""
    held = Held(owner, tmp_path)
    with Client(single, set_as_default=False) as other:
        with held:
            futures = [owner.map(append_line, [held.mark] * 6, [f"a{i}" for i in range(6)])]
            high = other.map(append_line, [held.mark] * 2, ["high0", "high1"], priority=1)
            usual = other.map(append_line, [held.mark] * 2, ["b0", "b1"])
            low = other.submit(append_line, held.mark, "low", priority=-1)
            until(lambda: len(other.owner.core.placement.workers) == 1)
            until_handed_out(other)
        owner.gather(futures)
        other.gather([high, usual, low])
    found = lines(held.mark)
    assert found[:2] == ["high0", "high1"]
    assert found.index("b1") < found.index("a4")
    assert found.index("low") > found.index("b1")


def test_graphs_of_one_generation_go_on_side_by_side(owner: Client, tmp_path: Path) -> None:
    held = Held(owner, tmp_path)
    with held:
        large = owner.compute(held.graph("large", 30))
        small = owner.compute(held.graph("small", 3))
    owner.gather([large, small])
    found = lines(held.mark)
    assert max(found.index(f"small{i}") for i in range(3)) < 10


def test_without_fifo_timeout_graphs_come_one_after_the_other(
    owner: Client, tmp_path: Path
) -> None:
    held = Held(owner, tmp_path)
    with held:
        first = owner.compute(held.graph("first", 10))
        second = owner.compute(held.graph("second", 3), fifo_timeout=0)
        third = owner.submit(append_line, held.mark, "third", fifo_timeout="0 s")
    owner.gather([first, second, third])
    names = [line.rstrip("0123456789") for line in lines(held.mark)]
    assert names == ["first"] * 10 + ["second"] * 3 + ["third"]
    with pytest.raises((ValueError, KeyError)):
        owner.compute(held.graph("bad", 1), fifo_timeout="soon")


def test_a_submit_right_after_a_graph_goes_on_beside_it(owner: Client, tmp_path: Path) -> None:
    held = Held(owner, tmp_path)
    with held:
        large = owner.compute(held.graph("large", 20))
        soon = owner.submit(append_line, held.mark, "soon", fifo_timeout="10 s")
        time.sleep(0.12)
        late = owner.submit(append_line, held.mark, "late")
    owner.gather([large, soon, late])
    found = lines(held.mark)
    assert found.index("soon") < 5 and found[-1] == "late"


def test_what_goes_on_with_recent_work_comes_next(owner: Client, tmp_path: Path) -> None:
    """Depth first: the values in between need not all be kept."""

    def then(before: int, path: str, line: str) -> int:
        return append_line(path, line)

    held = Held(owner, tmp_path)
    with held:
        xs = [owner.submit(append_line, held.mark, f"x{i}") for i in range(5)]
        ys = [owner.submit(then, x, held.mark, f"y{i}") for i, x in enumerate(xs)]
    owner.gather(ys)
    found = lines(held.mark)
    assert found.index("y0") < found.index("x4")


def branches(path: str, name: str, depth: int) -> int:
    if depth == 0:
        return append_line(path, f"{name} leaf")
    client = get_client()
    names = [f"{name}{i}" for i in range(3)]
    futures = [client.submit(branches, path, n, depth - 1, pure=False) for n in names]
    found = sum(future.result() for future in as_completed(futures))
    append_line(path, f"{name} done")
    return found


def test_nested_tasks_go_deep_first(owner: Client, tmp_path: Path) -> None:
    """What was begun ends before all that could be begun is begun."""
    mark = str(tmp_path / "mark")
    assert owner.submit(branches, mark, "t", 3, pure=False).result() > 0
    found = lines(mark)
    first_done = min(i for i, line in enumerate(found) if line.endswith("done"))
    leaves = [i for i, line in enumerate(found) if line.endswith("leaf")]
    assert len(leaves) == 27 and first_done < leaves[9]
