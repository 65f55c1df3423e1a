"""Owned tasks in what Dask tells about the past: task stream, profiles, performance report."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import dask
import distributed
import pytest
from distributed import get_task_stream
from live import blob, boom, inc, slowinc, small_cluster, until

from dask_ownership import Client, wait
from dask_ownership.core.protocol import messages as m
from dask_ownership.monitoring import task_stream
from dask_ownership.runtime.executor.watch import Watch
from dask_ownership.runtime.task import Outcome


def noting(client: Client) -> bool:
    """Whether any worker notes what runs there."""

    def here(dask_worker: Any) -> bool:
        return bool(dask_worker.extensions["dask-ownership"].notes.noting)

    return any(client.run(here).values())


def stop(dask_scheduler: Any) -> None:
    """Nobody looks any more."""
    if "task-stream" in dask_scheduler.plugins:
        dask_scheduler.remove_plugin(name="task-stream")


def computing(record: Any) -> Any:
    """The step in which the function ran; on a busy machine there may be others."""
    (step,) = [step for step in record["startstops"] if step["action"] == "compute"]
    return step


@pytest.fixture
def quiet(client: Client) -> Any:
    """A client of a cluster where nobody has asked for a task stream yet."""
    client.run_on_scheduler(stop)
    until(lambda: not noting(client))
    yield client
    client.run_on_scheduler(stop)
    until(lambda: not noting(client))


def test_what_ran_in_a_block(quiet: Client, workers: Any) -> None:
    client = quiet
    client.gather(client.map(inc, range(100, 110)))
    began = time.time()
    with get_task_stream() as stream:
        futures = client.map(slowinc, range(20))
        wait(futures)
        large = client.submit(blob)
        bad = client.submit(boom)
        wait([large, bad])
    ended = time.time()
    client.gather(client.map(inc, range(200, 210)))
    by_key = {record["key"]: record for record in stream.data}
    assert by_key.keys() == {f.key for f in [*futures, large, bad]}
    assert len(stream.data) == 22
    for future in futures:
        record = by_key[future.key]
        assert record["status"] == "OK"
        assert record["worker"] in workers
        startstop = computing(record)
        # Times are the scheduler's, as far as a busy machine lets the worker know its delay.
        assert began - 0.5 < startstop["start"] < startstop["stop"] < ended + 0.5
        assert startstop["stop"] - startstop["start"] >= 0.0099
    assert by_key[large.key]["nbytes"] >= 200_000
    assert by_key[bad.key]["status"] == "error"
    stops = [record["startstops"][-1]["stop"] for record in stream.data]
    assert stops == sorted(stops)


def test_what_is_told_of_a_task_is_what_dask_tells(quiet: Client) -> None:
    with (
        distributed.Client(quiet.scheduler.address, set_as_default=False) as stock,
        get_task_stream(client=stock) as stream,
    ):
        wait([quiet.submit(inc, 1), quiet.submit(blob), quiet.submit(boom)])
        distributed.wait([stock.submit(inc, 2), stock.submit(blob), stock.submit(boom)])
    by_name: dict[str, list[Any]] = {}
    for record in stream.data:
        by_name.setdefault(distributed.utils.key_split(record["key"]), []).append(record)
    for name, kind in (("inc", int), ("blob", bytearray)):
        owned, central = sorted(by_name[name], key=lambda record: "stimulus_id" in record)
        assert owned.keys() == central.keys() - {"stimulus_id"}
        assert owned["typename"] == central["typename"] == kind.__name__
        assert pickle.loads(owned["type"]) is pickle.loads(central["type"]) is kind
        assert owned["metadata"] == central["metadata"]
    owned, central = sorted(by_name["boom"], key=lambda record: "stimulus_id" in record)
    assert "typename" not in owned and "typename" not in central


def test_types_that_cannot_be_told(quiet: Client) -> None:
    """The type of a lock can be pickled, and not unpickled; tasks are as if nobody looked."""
    with get_task_stream(client=quiet) as stream:
        locks = [quiet.submit(threading.Lock, pure=False) for _ in range(4)]
        names = [quiet.submit(name_of_type, lock) for lock in locks]
        assert quiet.gather(names) == ["lock"] * 4
    assert {record["key"] for record in stream.data} == {f.key for f in [*locks, *names]}
    assert all(record["status"] == "OK" for record in stream.data)


def test_what_cannot_be_noted_harms_no_task(quiet: Client) -> None:
    def break_it(dask_worker: Any) -> None:
        dask_worker.extensions["dask-ownership"].notes.group_of = None

    def mend_it(dask_worker: Any) -> None:
        from dask_ownership.monitoring.owner_report import group_of

        dask_worker.extensions["dask-ownership"].notes.group_of = group_of

    with get_task_stream(client=quiet) as stream:
        until(lambda: noting(quiet))
        quiet.run(break_it)
        try:
            assert quiet.gather(quiet.map(inc, range(50))) == list(range(1, 51))
        finally:
            quiet.run(mend_it)
    assert stream.data == []


def test_the_time_of_all_tasks_is_told_where_a_sample_is_noted() -> None:
    notes = task_stream.Notes(Watch(), lambda key: str(key[0]))
    notes.take(watch=True, note=True, gap=0.001)
    outcome = Outcome((m.DONE, "key", 1, b"", 1.0), 0, 1)
    seconds = {"brief": 0.0001, "short": 0.0009, "long": 0.02}
    random = Random(1)
    for number in range(20_000):
        name = "long" if number % 5000 == 0 else random.choice(("brief", "short"))
        entry = SimpleNamespace(key=(name, number), dependencies=())
        notes.note(entry, outcome, time.time() - seconds[name])
    told = {name: tally["compute"] for name, tally in notes.tallied().items()}
    assert told["long"] >= 4 * 0.02
    assert sum(told.values()) == pytest.approx(10_000 * 0.001 + 4 * 0.02, rel=0.1)
    assert 2000 > len(notes.take(watch=False, note=False, gap=0.0)) >= 10


def test_tasks_of_one_thread_do_not_overlap_when_the_delay_of_its_clock_is_measured_anew() -> None:
    buffer: list[Any] = []
    plugin = SimpleNamespace(buffer=buffer, index=0)
    stream = task_stream.TaskStream(
        SimpleNamespace(plugins={"task-stream": plugin}, handlers={}), lambda: None
    )
    for number, delay in enumerate((-0.001, 0.05, -0.05, 7.0)):
        step = ("compute", number, number + 1.0, None)
        note = (f"x-{number}", 1, True, 0, b"", "", (step,))
        stream.took(["w"], [{"delay": delay, "notes": [note]}])
    assert [one["startstops"][0]["start"] for one in buffer] == [-0.001, 0.999, 1.999, 10.0]


def name_of_type(value: Any) -> str:
    return type(value).__name__


class SlowToMove:
    """Takes its time to be pickled, and to be made again."""

    def __init__(self, nbytes: int = 100_000) -> None:
        self.content = bytes(nbytes)

    def __sizeof__(self) -> int:
        return len(self.content)

    def __reduce__(self) -> Any:
        time.sleep(0.02)
        return make_slowly, (len(self.content),)


def make_slowly(nbytes: int) -> SlowToMove:
    time.sleep(0.05)
    return SlowToMove(nbytes)


def size_of(value: SlowToMove, other: Any = None) -> int:
    return len(value.content)


def actions(stream: Any, key: str) -> dict[str, float]:
    """Seconds by action, of a task whose steps come one after the other."""
    (record,) = [record for record in stream.data if record["key"] == key]
    times = [t for step in record["startstops"] for t in (step["start"], step["stop"])]
    assert times == sorted(times)
    return {step["action"]: step["stop"] - step["start"] for step in record["startstops"]}


def test_unpickling_arguments_is_told_apart(quiet: Client) -> None:
    with get_task_stream() as stream:
        quiet.submit(size_of, SlowToMove(1)).result()
        future = quiet.submit(size_of, SlowToMove(1000))
        assert future.result() == 1000
    told = actions(stream, future.key)
    assert told.keys() == {"deserialize", "compute"}
    assert told["deserialize"] > 0.049 > told["compute"]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_reading_from_disk_and_writing_there_are_told_apart() -> None:
    spilling = {
        "distributed.worker.memory.target": 150_000 / 1e9,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.worker.memory.terminate": False,
    }
    with (
        dask.config.set(spilling),
        small_cluster(n_workers=1, memory_limit="1GB", dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        client.submit(size_of, SlowToMove(1)).result()  # what is imported for it takes time
        with get_task_stream() as stream:
            first = client.submit(SlowToMove, pure=False)
            wait(first)
            second = client.submit(SlowToMove, pure=False)  # the first goes to disk
            wait(second)
            size = client.submit(size_of, first)
            assert size.result() == 100_000
        assert actions(stream, first.key).keys() == {"compute"}
        assert actions(stream, second.key).keys() == {"compute", "disk-write"}
        told = actions(stream, size.key)
        assert told.keys() == {"disk-read", "compute"}
        assert told["disk-read"] > 0.049 > told["compute"]


def test_nothing_is_noted_until_somebody_asks(quiet: Client) -> None:
    client = quiet
    client.gather(client.map(inc, range(20)))
    assert not noting(client)
    assert client.get_task_stream() == ()
    assert noting(client)
    futures = client.map(inc, range(20, 30))
    wait(futures)
    assert {record["key"] for record in client.get_task_stream()} == {f.key for f in futures}
    assert len(client.get_task_stream(count=3)) == 3
    assert len(client.get_task_stream(start="60s")) == 10
    assert client.get_task_stream(start=time.time() + 10) == ()


def test_who_looks_at_the_plugin_sees_tasks_too(quiet: Client) -> None:
    client = quiet

    def open_page(dask_scheduler: Any) -> None:
        dask_scheduler._task_stream_plugin()

    def shown(dask_scheduler: Any) -> int:
        return len(dask_scheduler.plugins["task-stream"].buffer)

    client.run_on_scheduler(open_page)
    until(lambda: noting(client))
    client.gather(client.map(inc, range(10)))
    until(lambda: client.run_on_scheduler(shown) == 10)


def test_coroutines_and_nested_tasks(quiet: Client) -> None:
    async def waits(n: int) -> int:
        await asyncio.sleep(0.05)
        return n

    def outer(n: int) -> Any:
        client = distributed.get_client()
        return client.submit(slowinc, n, 0.05).result()

    client = quiet
    with get_task_stream() as stream:
        client.gather([client.submit(waits, 1), client.submit(outer, 5)])
    names = sorted(distributed.utils.key_split(record["key"]) for record in stream.data)
    assert names == ["outer", "slowinc", "waits"]
    for record in stream.data:
        startstop = computing(record)
        assert 0.045 < startstop["stop"] - startstop["start"] < 5


def test_with_tasks_of_the_scheduler_and_a_stock_client(quiet: Client) -> None:
    with distributed.Client(quiet.scheduler.address, set_as_default=False) as stock:
        with get_task_stream(client=stock) as stream:
            wait(quiet.map(inc, range(5)))
            stock.gather(stock.map(inc, range(10, 15)))
        assert len(stream.data) == 10
        assert {len(record["startstops"]) > 0 for record in stream.data} == {True}


def test_a_worker_that_joins_later_notes_too() -> None:
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        client.get_task_stream()
        cluster.scale(2)
        client.wait_for_workers(2)
        workers = list(client.scheduler_info()["workers"])
        until(lambda: len(client.owner.core.placement.workers) == 2)
        until(
            lambda: all(
                client.run(
                    lambda dask_worker: dask_worker.extensions["dask-ownership"].notes.noting
                ).values()
            )
        )
        futures = [client.submit(inc, n, workers=w) for n, w in enumerate(workers)]
        wait(futures)
        assert {record["worker"] for record in client.get_task_stream()} == set(workers)


def test_a_worker_keeps_so_many_notes(quiet: Client) -> None:
    client = quiet

    def keep(dask_worker: Any, number: int) -> None:
        from collections import deque

        dask_worker.extensions["dask-ownership"].notes._notes = deque(maxlen=number)

    client.get_task_stream()
    client.run(keep, number=10)
    try:
        futures = client.map(inc, range(2000))
        wait(futures)
        told = {record["key"] for record in client.get_task_stream()}
        assert 10 <= len(told) < 2000
        assert told <= {future.key for future in futures}
    finally:
        client.run(keep, number=task_stream.KEPT)


def spin(seconds: float) -> None:
    end = time.time() + seconds
    while time.time() < end:
        sum(range(100))


def test_profile(client: Client) -> None:
    client.gather(client.map(spin, [0.4, 0.401]))

    def functions(state: Any) -> set[str]:
        found = {state["description"]["name"]} if isinstance(state["description"], dict) else set()
        return found.union(*map(functions, state["children"].values()))

    until(lambda: "spin" in functions(client.profile()))
    until(lambda: "spin" in functions(client.profile(key="spin")))
    assert "spin" not in functions(client.profile(key="inc"))


def test_performance_report(quiet: Client, tmp_path: Path) -> None:
    pytest.importorskip("bokeh")
    client = quiet
    file = tmp_path / "report.html"
    with distributed.performance_report(filename=str(file)):
        client.gather(client.map(spin, [0.2 + n / 1000 for n in range(4)]))
    html = file.read_text()
    assert "number of tasks: 4" in html
    assert "compute time" in html
    assert html.count("spin-") >= 4


def test_a_plot(quiet: Client, tmp_path: Path) -> None:
    pytest.importorskip("bokeh")
    file = tmp_path / "stream.html"
    with get_task_stream(plot="save", filename=str(file)) as stream:
        quiet.gather(quiet.map(slowinc, range(5)))
    assert stream.figure is not None
    assert "slowinc" in file.read_text()
