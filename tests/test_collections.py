"""Dask collections give what they give with the threaded scheduler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import distributed
import numpy as np
import pandas as pd
import pytest
from dask._task_spec import Alias, DataNode
from dask.delayed import Delayed
from distributed import LocalCluster, get_worker
from live import kill, small_cluster, wait_for_members
from programs import inc

from dask_ownership import Client, wait
from dask_ownership.core.protocol.states import STORED


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    n = 600
    return pd.DataFrame(
        {
            "a": np.arange(n),
            "b": np.arange(n) % 7,
            "c": np.linspace(0, 1, n),
            "name": [f"name-{i % 11}" for i in range(n)],
        }
    )


@pytest.fixture
def ddf(frame: pd.DataFrame) -> dd.DataFrame:
    return dd.from_pandas(frame, npartitions=4)


# ---- array ----


def test_array_reduction(client: Client) -> None:
    x = da.arange(10_000, chunks=1000)
    assert x.sum().compute() == sum(range(10_000))
    assert (x + 1).mean().compute() == 5000.5
    assert client.central_calls == 0


def test_array_transpose_and_dot(client: Client) -> None:
    x = np.arange(400).reshape(20, 20)
    d = da.from_array(x, chunks=7)
    assert ((d + d.T).compute() == x + x.T).all()
    assert (d.dot(d).compute() == x.dot(x)).all()


def test_array_rechunk(client: Client) -> None:
    x = np.arange(400).reshape(20, 20)
    d = da.from_array(x, chunks=(20, 2)).rechunk((2, 20))
    assert (d.compute() == x).all()
    assert client.central_calls == 0


def test_array_slicing_and_overlap(client: Client) -> None:
    x = np.random.default_rng(0).random((40, 40))
    d = da.from_array(x, chunks=10)
    assert np.allclose(d[3:30:2, ::-1].compute(), x[3:30:2, ::-1])
    blurred = d.map_overlap(lambda b: b + np.roll(b, 1, axis=0), depth=1, boundary="periodic")
    assert np.allclose(blurred.compute(), x + np.roll(x, 1, axis=0))


def test_array_whose_parts_are_used_once_and_through_an_alias(client: Client) -> None:
    x = da.ones((400, 10), chunks=(5, 10))
    unknown = da.concatenate([x, dd.from_array(x).values]).rechunk({1: 5})
    kept = unknown.persist()
    assert kept.sum().compute() == 8000
    assert client.central_calls == 0


def test_array_indexed_by_arrays(client: Client) -> None:
    """Its keys have numbers of NumPy in them."""
    x = np.arange(64).reshape(8, 8)
    d = da.from_array(x, chunks=4)
    assert (d.vindex[[0, 5, 7], [1, 6, 2]].compute() == x[[0, 5, 7], [1, 6, 2]]).all()
    key = ("part", np.int64(3), np.str_("a"), np.float64(0.5))
    assert client.get({key: (inc, 1)}, key) == 2
    assert client.submit(inc, 1, key=key).key == ("part", 3, "a", 0.5)
    assert client.central_calls == 0


def test_array_linear_algebra(client: Client) -> None:
    x = da.random.default_rng(0).random((200, 20), chunks=(50, 20))
    q, r = da.linalg.qr(x)
    assert np.allclose((q.dot(r)).compute(), x.compute())


def test_array_persist(client: Client) -> None:
    x = da.random.default_rng().random(1000, chunks=100).persist()
    assert x.sum().compute() == x.sum().compute()
    y = client.persist(x + 1)
    wait(y)
    assert np.isclose(y.sum().compute(), x.sum().compute() + 1000)


def test_array_store_and_map_blocks(client: Client) -> None:
    x = da.ones((30, 30), chunks=10)
    assert (x.map_blocks(lambda b: b * 2).compute() == 2).all()
    assert x.to_delayed()[0, 0].compute().shape == (10, 10)


# ---- bag ----


def test_bag(client: Client) -> None:
    bag = db.range(100, npartitions=5)
    assert bag.map(inc).filter(lambda x: x % 2).sum().compute() == sum(range(1, 101, 2))
    assert bag.take(3) == (0, 1, 2)
    assert dict(bag.map(lambda x: x % 3).frequencies().compute()) == {0: 34, 1: 33, 2: 33}


def test_bag_of_text(client: Client, tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text("one two\nthree\n")
    words = db.read_text(str(tmp_path / "*.txt")).str.strip().str.split().flatten()
    assert words.count().compute() == 9
    assert sorted(words.distinct().compute()) == ["one", "three", "two"]


def test_bag_groupby(client: Client) -> None:
    groups = dict(db.range(30, npartitions=4).groupby(lambda x: x % 3).compute())
    assert {k: sorted(v) for k, v in groups.items()} == {k: list(range(k, 30, 3)) for k in range(3)}
    assert client.central_calls == 0


def test_bag_fold_and_product(client: Client) -> None:
    bag = db.from_sequence(range(20), npartitions=4)
    assert bag.fold(lambda a, b: a + b).compute() == 190
    assert len(bag.product(bag).compute()) == 400


# ---- dataframe ----


def test_dataframe_reduction(client: Client, frame: pd.DataFrame, ddf: dd.DataFrame) -> None:
    assert ddf.a.sum().compute() == frame.a.sum()
    assert len(ddf) == len(frame)
    assert list(ddf[ddf.b == 3].compute().a) == list(frame[frame.b == 3].a)


def test_dataframe_groupby(client: Client, frame: pd.DataFrame, ddf: dd.DataFrame) -> None:
    got = ddf.groupby("b").agg({"a": "sum", "c": "mean"}).compute().sort_index()
    pd.testing.assert_frame_equal(got, frame.groupby("b").agg({"a": "sum", "c": "mean"}))
    got = ddf.groupby("name").a.sum(split_out=2).compute().sort_index()
    assert got.to_dict() == frame.groupby("name").a.sum().to_dict()


def test_dataframe_merge(client: Client, frame: pd.DataFrame, ddf: dd.DataFrame) -> None:
    small = pd.DataFrame({"b": range(7), "weight": range(10, 17)})
    got = ddf.merge(dd.from_pandas(small, npartitions=2), on="b").compute()
    want = frame.merge(small, on="b")
    assert sorted(got.weight * got.a) == sorted(want.weight * want.a)
    large = ddf.merge(ddf[["a", "c"]], on="a", shuffle_method="tasks").compute()
    assert len(large) == len(frame)
    assert client.central_calls == 0


def test_dataframe_shuffle(client: Client, frame: pd.DataFrame, ddf: dd.DataFrame) -> None:
    shuffled = ddf.shuffle("b")
    parts = client.gather(client.compute([shuffled.partitions[i] for i in range(4)]))
    assert sum(map(len, parts)) == len(frame)
    seen = [set(part.b) for part in parts]
    assert sum(map(len, seen)) == len(set().union(*seen)) == 7
    assert client.central_calls == 0


@pytest.mark.parametrize("by", ["b", "name"])
def test_a_shuffle_gives_what_stock_gives(
    client: Client, cluster: LocalCluster, ddf: dd.DataFrame, by: str
) -> None:
    """The same rows in the same partition, in the same order."""
    shuffled = ddf.repartition(npartitions=10).shuffle(by, npartitions=10, shuffle_method="tasks")
    mine = client.gather(client.compute(shuffled.to_delayed()))
    with distributed.Client(cluster, set_as_default=False) as stock:
        theirs = stock.gather(stock.compute(shuffled.to_delayed()))
    assert len(mine) == 10
    for one, other in zip(mine, theirs, strict=True):
        pd.testing.assert_frame_equal(one, other)
    assert client.central_calls == 0


def test_a_rechunk_gives_what_stock_gives(client: Client, cluster: LocalCluster) -> None:
    x = da.arange(3600, chunks=100).reshape(60, 60).rechunk((60, 7), method="tasks")
    x = x.rechunk((11, 60), method="tasks")
    mine = client.gather(client.compute(list(x.to_delayed().ravel())))
    with distributed.Client(cluster, set_as_default=False) as stock:
        theirs = stock.gather(stock.compute(list(x.to_delayed().ravel())))
    assert all((one == other).all() for one, other in zip(mine, theirs, strict=True))
    assert client.central_calls == 0


def test_dataframe_sort_and_index(client: Client, frame: pd.DataFrame, ddf: dd.DataFrame) -> None:
    got = ddf.sort_values("c", ascending=False).compute()
    assert list(got.a) == list(frame.sort_values("c", ascending=False).a)
    got = ddf.set_index("c").compute()
    assert list(got.a) == list(frame.a)


@pytest.mark.filterwarnings(r"ignore:[\s\S]*inplace keyword in DataFrame")  # with -W error
def test_dataframe_parquet(client: Client, ddf: dd.DataFrame, tmp_path: Path) -> None:
    ddf.to_parquet(tmp_path / "data")
    back = dd.read_parquet(tmp_path / "data")
    assert back.a.sum().compute() == ddf.a.sum().compute()


def test_dataframe_map_partitions_and_delayed(client: Client, ddf: dd.DataFrame) -> None:
    assert ddf.map_partitions(len).compute().sum() == 600
    back = dd.from_delayed(ddf.to_delayed())
    assert back.a.max().compute() == 599


def test_dataframe_persist(client: Client, frame: pd.DataFrame, ddf: dd.DataFrame) -> None:
    kept = ddf.assign(d=ddf.a * 2).persist()
    assert kept.d.sum().compute() == frame.a.sum() * 2
    assert kept.groupby("b").d.max().compute().max() == 1198


# ---- together ----


@pytest.mark.filterwarnings("ignore:Computing mixed collections")
def test_several_collections_at_once(client: Client, ddf: dd.DataFrame) -> None:
    x = da.ones(100, chunks=10)
    bag = db.range(10, npartitions=2)
    value = dask.delayed(inc)(1)
    assert dask.compute(x.sum(), bag.sum(), ddf.a.max(), value) == (100, 45, 599, 2)
    futures = client.compute([x.sum(), bag.sum(), ddf.a.max(), value])
    assert client.gather(futures) == [100, 45, 599, 2]
    x, bag, value = dask.persist(x, bag, value)
    assert dask.compute(x.sum(), bag.sum(), value) == (100, 45, 2)


def test_delayed_of_a_collection(client: Client) -> None:
    x = da.ones(100, chunks=10)
    assert dask.delayed(float)(x.sum()).compute() == 100
    assert da.from_delayed(
        dask.delayed(np.ones)(5), shape=(5,), dtype=float
    ).sum().compute() == 5  # fmt: skip


def test_collections_of_futures(client: Client, frame: pd.DataFrame) -> None:
    parts = client.scatter([frame.iloc[:300], frame.iloc[300:]])
    ddf = dd.from_delayed(parts, meta=frame.iloc[:0])
    assert ddf.a.sum().compute() == frame.a.sum()


def test_p2p_goes_to_the_scheduler_and_is_counted(client: Client, ddf: dd.DataFrame) -> None:
    shuffled = ddf.shuffle("b", shuffle_method="p2p")
    assert len(shuffled.compute()) == 600
    assert client.central_calls > 0


def test_collection_as_argument_of_submit(client: Client) -> None:
    """A collection is an object like any other: it arrives as it is."""
    x = da.ones(10, chunks=5)
    assert client.submit(lambda c: type(c).__name__, x).result() == "Array"


def parts_of_a_table() -> dict[int, pd.DataFrame]:
    table = pd.DataFrame({name: np.arange(20_000.0) for name in "abc"})
    return {0: table, 1: table.iloc[:0]}


def shapes(parts: dict[int, pd.DataFrame]) -> list[tuple[int, ...]]:
    return [part.shape for part in parts.values()]


def test_empty_parts_go_to_another_worker_of_this_process() -> None:
    """A buffer may have three columns of nothing, and is not copied on its way here."""
    with small_cluster(processes=False) as cluster, Client(cluster) as client:
        workers = list(client.scheduler_info(n_workers=-1)["workers"])
        made = client.submit(parts_of_a_table, workers=workers[0])
        assert client.submit(shapes, made, workers=workers[1]).result() == [(20_000, 3), (0, 3)]
        assert shapes(made.result()) == [(20_000, 3), (0, 3)]


# ---- persisted data belongs to workers ----


@pytest.mark.parametrize("size", [8, 400_000])
def test_persisted_literals_are_where_they_were_wanted(client: Client, size: int) -> None:
    """Blocks that the graph has in it, as of an array of this process."""
    here = wait_for_members(client, 2)[1]
    values = np.arange(size, dtype=float)
    blocks = client.persist(da.from_array(values, chunks=size // 4), workers=[here])
    wait(blocks)
    assert set(client.who_has(blocks).values()) == {(here,)}
    assert set(client.nbytes(summary=False).values()) == {size // 4 * 8}
    futures = distributed.futures_of(blocks)
    assert set(client.has_what()[here]) == {future.key for future in futures}
    assert {client.submit(where_with, future).result() for future in futures} == {here}
    assert (blocks.compute() == values).all()


def test_other_names_of_literals_are_persisted_at_workers(client: Client) -> None:
    """As graphs have them after they were optimized."""
    here = wait_for_members(client, 2)[1]
    graph = {"data": DataNode("data", [1, 2]), "name": Alias("name", "data")}
    (value,) = dask.persist(Delayed("name", graph), workers=[here])
    wait(value)
    assert client.who_has(value) == {"name": (here,)}
    assert value.compute() == [1, 2]


def where_with(value: Any) -> str:
    return get_worker().address


def test_persisted_results_stay_at_workers_however_small(client: Client) -> None:
    ones = da.ones(8, chunks=2).persist()
    wait(ones)
    rows = [future._row for future in distributed.futures_of(ones)]
    assert {row.state for row in rows} == {STORED}
    assert float(ones.sum().compute()) == 8
    delayed = dask.delayed([1, 2]).persist()
    assert delayed.compute() == [1, 2]


def test_persisted_literals_are_made_again() -> None:
    with small_cluster() as cluster, Client(cluster, set_as_default=False) as client:
        here = wait_for_members(client, 2)[0]
        blocks = client.persist(da.from_array(np.arange(40.0), chunks=10), workers=[here],
                                allow_other_workers=True)  # fmt: skip
        wait(blocks)
        kill(client, here)
        assert client.compute(blocks.sum()).result(timeout=20) == 780
