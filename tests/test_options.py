"""Options of a call: pure, key, workers, retries, priority, resources."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import dask
import pytest
from distributed import LocalCluster, Worker
from live import until, until_handed_out, until_there
from programs import (
    Oops,
    append_line,
    fails_at_first,
    inc,
    lines,
    oops,
    process,
    same,
    slowly,
    wait_for_file,
    where,
)

from dask_ownership import Client

# ---- pure and key ----


def test_pure_calls_share_a_future_while_one_lives(client: Client, tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")
    a = client.submit(append_line, mark)
    b = client.submit(append_line, mark)
    assert a.key == b.key and a.key.startswith("append_line-")
    assert a.result() == b.result() == 1
    assert lines(mark) == ["x"]


def test_impure_calls_run_each_time(client: Client, tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")
    a = client.submit(append_line, mark, pure=False)
    a.result()
    b = client.submit(append_line, mark, pure=False)
    assert a.key != b.key
    assert b.result() == 2


def test_pure_calls_differ_by_arguments(client: Client) -> None:
    calls = [
        client.submit(same, 1),
        client.submit(same, 1.0),
        client.submit(same, True),
        client.submit(same, "1"),
        client.submit(same, b"1"),
        client.submit(same, x=1),
        client.submit(same, [1]),
        client.submit(same, (1,)),
        client.submit(same, None),
        client.submit(inc, 1),
    ]
    assert len({f.key for f in calls}) == len(calls)
    client.gather(calls)


def test_pure_lambdas_differ_by_what_they_close_over(client: Client) -> None:
    futures = [client.submit(lambda x, n=n: x + n, 1) for n in range(3)]
    assert client.gather(futures) == [1, 2, 3]


def test_futures_as_arguments_of_pure_calls(client: Client) -> None:
    x = client.submit(inc, 1)
    assert client.submit(inc, x).key == client.submit(inc, x).key
    y = client.submit(inc, client.submit(inc, 5))
    assert client.submit(inc, x).key != y.key
    assert y.result() == 7


@pytest.mark.parametrize("key", ["name", ("name", 1, 2), 17, 1.5])
def test_keys(client: Client, key: object) -> None:
    future = client.submit(inc, 1, key=key)
    assert future.key == key
    assert future.result() == 2


def test_same_key_is_the_same_future(client: Client) -> None:
    a = client.submit(inc, 1, key="same")
    b = client.submit(inc, 100, key="same")
    assert a.result() == b.result() == 2
    a.release()
    assert b.result() == 2


def test_key_is_free_again_after_release(client: Client) -> None:
    a = client.submit(inc, 1, key="free")
    assert a.result() == 2
    a.release()
    del a
    until(lambda: not client.owner.core.table.rows)
    assert client.submit(inc, 100, key="free").result() == 101


def test_key_again_soon_after_release(client: Client) -> None:
    for n in range(5):
        future = client.submit(inc, n, key="again")
        assert future.result() == n + 1
        del future
        time.sleep(0.05)


# ---- workers ----


def test_workers_by_address(client: Client, workers: list[str]) -> None:
    for address in workers:
        assert client.submit(where, workers=[address], pure=False).result() == address
        assert client.submit(where, workers=address, pure=False).result() == address
        assert set(client.gather(client.map(where, range(5), workers=address, pure=False))) == {
            address
        }


def test_workers_by_name_and_host(client: Client, cluster: LocalCluster) -> None:
    info = client.scheduler_info(n_workers=-1)["workers"]
    assert sorted(about["name"] for about in info.values()) == [0, 1]
    for address, about in info.items():
        assert client.submit(where, workers=about["name"], pure=False).result() == address
        value = dask.delayed(where, pure=False)()
        assert client.compute(value, workers=about["name"]).result() == address
    host = next(iter(info.values()))["host"]
    assert client.submit(where, workers=host, pure=False).result() in info


def test_workers_as_a_set_and_a_tuple(client: Client, workers: list[str]) -> None:
    assert client.submit(where, workers={workers[0]}, pure=False).result() == workers[0]
    assert client.submit(where, workers=tuple(workers), pure=False).result() in workers


def test_restricted_does_not_hold_the_others_up(
    client: Client, workers: list[str], tmp_path: Path
) -> None:
    go = tmp_path / "go"
    first = client.submit(wait_for_file, str(go), workers=workers[0])
    behind = client.submit(where, workers=workers[0], pure=False)
    free = client.submit(where, workers=workers[1], pure=False)
    assert free.result(timeout=5) == workers[1]
    assert behind.status == "pending"
    go.touch()
    assert behind.result() == workers[0]
    assert first.result()


def test_unknown_worker(client: Client) -> None:
    """It waits, as in Dask: such a worker may join. What is asked says so."""
    future = client.submit(inc, 1, workers="tcp://10.255.255.1:1")
    with pytest.raises(TimeoutError):
        future.result(timeout=0.2)
    assert client.submit(inc, 1, pure=False).result() == 2
    expected = "workers=[tcp://10.255.255.1:1] names no worker"
    assert expected in str(client.ownership(future).no_worker)
    assert expected in client.story(future)[-1][2]
    impatient = dask.config.set({"distributed.scheduler.no-workers-timeout": "50ms"})
    with impatient, pytest.raises(ValueError, match="names no worker"):
        future.result(timeout=5)


@pytest.mark.parametrize("name", ["later", 77])
def test_a_named_worker_joins(name: object) -> None:
    with (
        LocalCluster(n_workers=1, processes=False, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):

        async def join() -> Worker:
            return await Worker(cluster.scheduler_address, name=name)

        futures = client.map(where, range(3), workers=name, pure=False)
        futures.append(client.compute(dask.delayed(where, pure=False)(), workers=[name]))
        assert client.submit(inc, 1).result() == 2
        assert [future.status for future in futures] == ["pending"] * 4
        worker = client.sync(join)
        assert client.gather(futures) == [worker.address] * 4
        client.sync(worker.close)


def test_allow_other_workers(client: Client, workers: list[str]) -> None:
    future = client.submit(
        inc, 1, workers="tcp://10.255.255.1:1", allow_other_workers=True, pure=False
    )
    assert future.result(timeout=5) == 2
    future = client.submit(where, workers=workers[1:], allow_other_workers=True, pure=False)
    assert future.result() in workers


def test_allow_other_workers_needs_workers(client: Client) -> None:
    with pytest.raises(ValueError, match="allow_other_workers"):
        client.submit(inc, 1, allow_other_workers=True)
    with pytest.raises(TypeError, match="allow_other_workers"):
        client.submit(inc, 1, workers="a", allow_other_workers="yes")


def test_workers_of_compute(client: Client, workers: list[str]) -> None:
    value = dask.delayed(where, pure=False)
    assert client.compute(value(), workers=workers[0]).result() == workers[0]
    assert value().compute(workers=workers[1]) == workers[1]
    with dask.annotate(workers=workers[0]):
        future = client.submit(where, pure=False)
    assert future.result() == workers[0]


# ---- retries ----


def test_retries(client: Client, tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")
    assert client.submit(fails_at_first, mark, 2, retries=2).result() == 3


def test_too_few_retries(client: Client, tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")
    future = client.submit(fails_at_first, mark, 5, retries=2)
    with pytest.raises(Oops, match="attempt 3"):
        future.result()
    assert len(lines(mark)) == 3


def test_retries_of_map_and_compute(client: Client, tmp_path: Path) -> None:
    marks = [str(tmp_path / f"mark-{i}") for i in range(3)]
    assert client.gather(client.map(fails_at_first, marks, retries=1)) == [2, 2, 2]
    value = dask.delayed(fails_at_first)(str(tmp_path / "other"))
    assert value.compute(retries=1) == 2


def test_no_retries_by_default(client: Client, tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")
    with pytest.raises(Oops, match="attempt 1"):
        client.submit(fails_at_first, mark).result()
    assert lines(mark) == ["x"]


# ---- priority ----


def test_priority(client: Client, workers: list[str], tmp_path: Path) -> None:
    """What is urgent runs first, also among what was handed out already."""
    go, mark = tmp_path / "go", str(tmp_path / "mark")
    first = client.submit(wait_for_file, str(go), workers=workers[0])
    until_there(client, "running", first)
    low = client.submit(append_line, mark, "low", workers=workers[0], priority=-5)
    usual = client.submit(append_line, mark, "usual", workers=workers[0])
    high = client.submit(append_line, mark, "high", workers=workers[0], priority=5)
    until_handed_out(client)
    go.touch()
    client.gather([first, low, usual, high])
    assert lines(mark) == ["high", "usual", "low"]


def test_priority_of_an_annotation(client: Client, workers: list[str], tmp_path: Path) -> None:
    go, mark = tmp_path / "go", str(tmp_path / "mark")
    first = client.submit(wait_for_file, str(go), workers=workers[0])
    until_there(client, "running", first)
    usual = client.submit(append_line, mark, "usual", workers=workers[0])
    with dask.annotate(priority=5):
        high = client.submit(append_line, mark, "high", workers=workers[0])
    graph = [
        dask.delayed(append_line)(mark, "graph-low"),
        dask.delayed(append_line)(mark, "graph-high"),
    ]
    a = client.compute(graph[0], priority=-9, workers=workers[0])
    b = client.compute(graph[1], priority=9, workers=workers[0])
    until_handed_out(client)
    go.touch()
    client.gather([first, usual, high, a, b])
    assert lines(mark) == ["graph-high", "high", "usual", "graph-low"]


def test_first_come_first_served(client: Client, workers: list[str], tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")
    futures = [client.submit(append_line, mark, str(i), workers=workers[0]) for i in range(30)]
    client.gather(futures)
    assert lines(mark) == [str(i) for i in range(30)]


# ---- resources ----


@pytest.fixture(scope="module")
def with_resources() -> Iterator[LocalCluster]:
    with LocalCluster(
        n_workers=1,
        threads_per_worker=4,
        processes=False,
        dashboard_address=":0",
        resources={"GPU": 2, "licence": 1},
    ) as cluster:
        yield cluster


def together(path: str, seconds: float = 0.05) -> int:
    """How many of these run at once, at most."""
    import os
    import threading

    name = f"{path}.{threading.get_ident()}"
    with open(name, "w"):
        pass
    time.sleep(seconds / 2)
    folder, prefix = os.path.split(path)
    count = sum(1 for n in os.listdir(folder) if n.startswith(prefix))
    time.sleep(seconds / 2)
    os.remove(name)
    return count


def test_resources_limit_what_runs_at_once(with_resources: LocalCluster, tmp_path: Path) -> None:
    with Client(with_resources, set_as_default=False) as client:
        path = str(tmp_path / "running")
        futures = [
            client.submit(together, path, resources={"GPU": 1}, pure=False) for _ in range(8)
        ]
        assert max(client.gather(futures)) == 2
        futures = client.map(together, [path] * 4, resources={"licence": 1}, pure=False)
        assert max(client.gather(futures)) == 1
        futures = client.map(together, [path] * 8, pure=False)
        assert max(client.gather(futures)) >= 3


def test_resources_of_graphs(with_resources: LocalCluster, tmp_path: Path) -> None:
    with Client(with_resources, set_as_default=False) as client:
        path = str(tmp_path / "running")
        values = [dask.delayed(together, pure=False)(path) for _ in range(6)]
        assert max(client.gather(client.compute(values, resources={"GPU": 2}))) == 1
        with dask.annotate(resources={"licence": 1}):
            values = [dask.delayed(together, pure=False)(path) for _ in range(4)]
        assert max(client.gather(client.compute(values, optimize_graph=False))) == 1


def test_resources_that_no_worker_has(client: Client) -> None:
    """It waits, as in Dask: a worker that has them may come."""
    future = client.submit(inc, 1, resources={"unobtainium": 1})
    with pytest.raises(TimeoutError):
        future.result(timeout=0.2)
    assert client.submit(inc, 2).result() == 3
    future.cancel()


# ---- together ----


def test_options_do_not_reach_the_function(client: Client, workers: list[str]) -> None:
    future = client.submit(
        process,
        pure=False,
        retries=1,
        priority=2,
        workers=workers,
        allow_other_workers=True,
        fifo_timeout="1s",
    )
    assert isinstance(future.result(), int)


def test_slow_task_beside_many(client: Client) -> None:
    slow = client.submit(slowly, "slow", 0.3)
    start = time.time()
    assert sum(client.gather(client.map(inc, range(200)))) == sum(range(1, 201))
    assert time.time() - start < 2
    assert slow.result() == "slow"
    with pytest.raises(Oops):
        client.submit(oops).result()
