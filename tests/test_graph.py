"""Graphs: ``get``, ``compute`` and ``persist`` of whatever shape they have."""

from __future__ import annotations

from operator import add
from pathlib import Path
from typing import Any

import dask
import pytest
from dask import delayed
from dask._task_spec import Alias, DataNode, List, Task, TaskRef
from distributed import CancelledError, LocalCluster
from live import until
from programs import (
    Oops,
    append_line,
    double,
    fails_at_first,
    inc,
    inc_later,
    keywords,
    lines,
    ones,
    oops,
    same,
    slowly,
    total,
    wait_for_file,
    where,
)

from dask_ownership import Client, Future
from dask_ownership.core.protocol.states import PUSHED

# ---- get ----


def test_legacy_graph(client: Client) -> None:
    dsk = {
        "a": 1,
        "b": (inc, "a"),
        "c": (add, "a", "b"),
        "d": (sum, ["a", "b", "c"]),
        "e": "d",
        ("f", 0): (inc, (double, "e")),
    }
    assert client.get(dsk, "a") == 1
    assert client.get(dsk, "e") == 6
    assert client.get(dsk, ["b", "c", ("f", 0)]) == [2, 3, 13]
    assert client.central_calls == 0


def test_nested_keys(client: Client) -> None:
    dsk = {("x", i): (inc, i) for i in range(4)}
    assert client.get(dsk, [[("x", 0), ("x", 1)], [[("x", 2)], ("x", 3)]]) == [[1, 2], [[3], 4]]
    assert client.get(dsk, []) == []


def test_task_spec(client: Client) -> None:
    dsk = {
        "data": DataNode("data", [1, 2]),
        "sum": Task("sum", sum, TaskRef("data")),
        "alias": Alias("alias", "sum"),
        "again": Alias("again", "alias"),
        "list": Task("list", sum, List(TaskRef("sum"), TaskRef("again"), 10)),
        "nested": Task("nested", add, Task(None, inc, TaskRef("sum")), 1),
        "keywords": Task("keywords", keywords, a=TaskRef("sum"), b=List(TaskRef("alias"))),
    }
    assert client.get(dsk, list(dsk)) == [[1, 2], 3, 3, 3, 16, 5, {"a": 3, "b": [3]}]


def test_get_without_waiting(client: Client) -> None:
    futures = client.get({"x": (inc, 1), "y": (inc, "x")}, ["x", "y"], sync=False)
    assert all(isinstance(f, Future) for f in futures)
    assert client.gather(futures) == [2, 3]


def test_only_what_is_asked_for_runs(client: Client, tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")
    dsk = {"x": (inc, 1), "y": (append_line, mark)}
    assert client.get(dsk, "x") == 2
    assert lines(mark) == []


def test_key_that_the_graph_lacks(client: Client) -> None:
    with pytest.raises((KeyError, CancelledError), match="nowhere"):
        client.get({"x": (inc, 1)}, "nowhere")
    assert client.get({"x": (inc, 1)}, "x") == 2


def test_error_in_a_graph(client: Client) -> None:
    with pytest.raises(Oops, match="it broke"):
        client.get({"x": (oops,), "y": (inc, "x")}, "y")


def test_results_between_are_let_go(client: Client) -> None:
    n = 50
    dsk: dict[Any, Any] = {("x", 0): (ones, 20_000)}
    for i in range(1, n):
        dsk[("x", i)] = (inc, ("x", i - 1))
    assert client.get(dsk, ("x", n - 1))[0] == n


def test_wide_and_deep(client: Client) -> None:
    dsk: dict[Any, Any] = {("leaf", i): (inc, i) for i in range(256)}
    level, name = [("leaf", i) for i in range(256)], 0
    while len(level) > 1:
        above = []
        for i in range(0, len(level), 4):
            key = (f"node-{name}", i)
            dsk[key] = (total, *level[i : i + 4])
            above.append(key)
        level, name = above, name + 1
    assert client.get(dsk, level[0]) == sum(range(1, 257))


# ---- delayed ----


def test_compute(client: Client) -> None:
    x = delayed(inc)(1)
    y = delayed(add)(x, delayed(double)(x))
    assert y.compute() == 6
    assert client.compute(y).result() == 6
    assert client.compute(y, sync=True) == 6
    assert dask.compute(x, y) == (2, 6)
    assert client.central_calls == 0


def test_compute_several(client: Client) -> None:
    values = [delayed(inc)(i) for i in range(5)]
    futures = client.compute(values)
    assert isinstance(futures, list)
    assert client.gather(futures) == [1, 2, 3, 4, 5]
    mixed = client.compute([values[0], 10, "text"])
    assert mixed[1:] == [10, "text"]
    assert mixed[0].result() == 1


def test_compute_nested_structure(client: Client) -> None:
    a, b = delayed(inc)(1), delayed(inc)(2)
    assert dask.compute({"a": a, "b": [b, {"c": a}]}, 5) == ({"a": 2, "b": [3, {"c": 2}]}, 5)
    assert delayed(same)({"a": [a, (b,)]}).compute() == {"a": [2, (3,)]}


def test_delayed_is_pure_where_it_says_so(client: Client, tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")
    a = client.compute(delayed(append_line, pure=True)(mark))
    b = client.compute(delayed(append_line, pure=True)(mark))
    assert a.key == b.key
    assert a.result() == b.result() == 1


def test_what_is_alive_is_not_computed_again(client: Client, tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")
    x = delayed(append_line)(mark)
    held = client.compute(x)
    held.result()
    assert delayed(inc)(x).compute() == 2
    assert lines(mark) == ["x"]


def test_persist(client: Client, tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")
    x = delayed(append_line)(mark).persist()
    assert delayed(inc)(x).compute() == 2
    assert delayed(double)(x).compute() == 2
    assert lines(mark) == ["x"]
    (y,) = dask.persist(delayed(inc)(5))
    assert y.compute() == 6


def test_persist_several(client: Client) -> None:
    xs = client.persist([delayed(inc)(i) for i in range(3)])
    assert dask.compute(*xs) == (1, 2, 3)


def test_futures_inside_graphs(client: Client) -> None:
    future = client.submit(inc, 1)
    assert delayed(add)(future, 10).compute() == 12
    assert delayed(sum)([future, future, 3]).compute() == 7
    assert delayed(same)({"a": [future]}).compute() == {"a": [2]}
    assert client.get({"x": (inc, future), "y": (inc, "x")}, "y") == 4


def test_future_that_only_the_graph_holds(client: Client, tmp_path: Path) -> None:
    go = tmp_path / "go"
    value = delayed(add)(client.submit(slowly, 1, pure=False), 10)
    gate = delayed(wait_for_file)(str(go))
    future = client.compute(delayed(lambda x, _: x)(value, gate))
    del value
    go.touch()
    assert future.result() == 11


def test_from_submit_to_graph_and_back(client: Client) -> None:
    x = client.compute(delayed(ones)(20_000))
    assert client.submit(lambda a: float(a.sum()), x).result() == 20_000


def test_large_literal(client: Client) -> None:
    import numpy as np

    data = delayed(np.arange(50_000))
    parts = [delayed(lambda a, i: int(a[i]))(data, i) for i in range(20)]
    assert dask.compute(*parts) == tuple(range(20))


def test_error_and_retry(client: Client, tmp_path: Path) -> None:
    value = delayed(inc)(delayed(fails_at_first)(str(tmp_path / "mark")))
    future = client.compute(value)
    with pytest.raises(Oops):
        future.result()
    future.retry()
    assert future.result() == 3


def test_coroutine_function_in_a_graph(client: Client) -> None:
    assert delayed(inc_later)(1).compute() == 2
    assert delayed(inc)(delayed(inc_later)(1)).compute() == 3


def test_method_and_attribute(client: Client) -> None:
    text = delayed(str)(delayed(inc)(41))
    assert text.zfill(5).compute() == "00042"
    assert delayed(complex)(1, 2).imag.compute() == 2
    assert (delayed(inc)(1) + delayed(inc)(2)).compute() == 5


def test_tree(client: Client) -> None:
    values = [delayed(inc)(i) for i in range(200)]
    while len(values) > 1:
        values = [delayed(total)(*values[i : i + 8]) for i in range(0, len(values), 8)]
    assert values[0].compute() == sum(range(1, 201))


# ---- options and annotations ----


def test_annotated_workers(client: Client, workers: list[str]) -> None:
    with dask.annotate(workers=workers[0]):
        a = delayed(where, pure=False)()
    with dask.annotate(workers=[workers[1]]):
        b = delayed(where, pure=False)()
    c = delayed(same)([a, b])
    assert client.compute(c, optimize_graph=False).result() == [workers[0], workers[1]]


def test_annotated_retries(client: Client, tmp_path: Path) -> None:
    with dask.annotate(retries=3):
        x = delayed(fails_at_first)(str(tmp_path / "mark"), 2)
    assert client.compute(x, optimize_graph=False).result() == 3


def test_annotated_workers_of_an_array(client: Client, workers: list[str]) -> None:
    import dask.array as da

    with dask.annotate(workers=workers[1]):
        x = da.ones(8, chunks=2).map_blocks(
            lambda block: block * 0 + int(where().rsplit(":", 1)[1]), dtype=float
        )
    result = client.compute(x, optimize_graph=False).result()
    assert set(result) == {int(workers[1].rsplit(":", 1)[1])}


def test_retries_of_compute(client: Client, tmp_path: Path) -> None:
    x = delayed(fails_at_first)(str(tmp_path / "mark"), 2)
    assert client.compute(x, retries=2).result() == 3
    y = delayed(fails_at_first)(str(tmp_path / "other"), 1)
    assert client.compute(delayed(inc)(y), retries=1, sync=True) == 3


def test_wrong_options(client: Client) -> None:
    with pytest.raises(TypeError, match="allow_other_workers"):
        client.compute(delayed(inc)(1), workers="a", allow_other_workers="maybe")


# ---- several owners ----


def test_persisted_by_another_client(client: Client, cluster: LocalCluster) -> None:
    """Its value is with another owner, from whom it is borrowed."""
    with Client(cluster, set_as_default=False) as other:
        x = other.persist(delayed(inc)(1))
        assert client.compute(delayed(inc)(x)).result(timeout=5) == 3
        assert other.compute(delayed(inc)(x)).result() == 3
        del x
    assert client.submit(inc, 1).result() == 2


def test_order_is_kept(client: Client, workers: list[str], tmp_path: Path) -> None:
    """A graph runs in the order of ``dask.order``, so that little is in memory at once."""
    mark = str(tmp_path / "mark")
    pairs = []
    for i in range(6):
        leaf = delayed(append_line)(mark, f"leaf-{i}", 0.02)
        pairs.append(delayed(lambda _, m=mark, i=i: append_line(m, f"pair-{i}"))(leaf))
    client.compute(delayed(total)(*pairs), workers=workers[0], optimize_graph=False).result()
    ran = lines(mark)
    held = most = 0
    for line in ran:
        held += 1 if line.startswith("leaf") else -1
        most = max(most, held)
    assert len(ran) == 12 and most <= 3


def test_cancel_a_graph(client: Client, tmp_path: Path) -> None:
    go = tmp_path / "go"
    first = delayed(wait_for_file)(str(go))
    future = client.compute(delayed(same)([delayed(same)(first), first]))
    until(lambda: any(row.state == PUSHED for row in client.owner.core.table.all()))
    future.cancel()
    with pytest.raises(CancelledError):
        future.result(timeout=1)
    go.touch()
    assert client.submit(inc, 1).result() == 2
