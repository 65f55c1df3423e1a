"""Progress bars of owned work, which Dask's own ``progress`` shows."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.distributed
import distributed
import pytest
from distributed.core import clean_exception
from distributed.diagnostics.progressbar import MultiProgressBar, TextProgressBar
from live import boom, inc, slowinc, total

import dask_ownership
from dask_ownership import Client, wait


def bars(out: str) -> list[tuple[str, int]]:
    """Each bar that was drawn, and its percent."""
    return [
        (bar, int(p)) for bar, p in re.findall(r"\r(\[#* *\]) \| (\d+)% Completed \| +\S+", out)
    ]


class Recorder(MultiProgressBar):
    """A bar with groups that keeps what it would draw."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.drawn: list[Any] = []
        self.stopped: Any = None

    def _draw_bar(self, **response: Any) -> None:
        self.drawn.append(response)

    def _draw_stop(self, **response: Any) -> None:
        self.stopped = response


@pytest.fixture
def gate(client: Client) -> Iterator[distributed.Event]:
    """An event that tasks wait for; set in the end, whatever happens."""
    event = distributed.Event("gate")
    event.clear()
    yield event
    event.set()


def held(x: int) -> int:
    distributed.Event("gate").wait()
    return x


def test_a_bar_in_a_terminal(client: Client, capsys: Any) -> None:
    futures = client.map(slowinc, range(20))
    dask.distributed.progress(futures, notebook=False, interval="10ms")
    assert all(f.done() for f in futures)
    drawn = bars(capsys.readouterr().out)
    assert drawn[0][1] < 100
    assert drawn[-1] == ("[" + "#" * 40 + "]", 100)
    percents = [percent for _, percent in drawn]
    assert percents == sorted(percents)
    assert len(set(percents)) > 3
    assert client.central_calls == 0


def test_there_is_one_progress() -> None:
    assert dask_ownership.progress is distributed.progress is dask.distributed.progress


def test_what_has_ended_already(client: Client, capsys: Any) -> None:
    futures = client.map(inc, range(3))
    wait(futures)
    distributed.progress(*futures, notebook=False)
    assert bars(capsys.readouterr().out) == [("[" + "#" * 40 + "]", 100)]
    distributed.progress([], notebook=False, scheduler=client.scheduler.address)


def test_it_ends_with_the_first_failure(client: Client, gate: Any) -> None:
    bar = TextProgressBar([client.submit(boom), client.submit(held, 1)])
    assert bar.status == "error"
    assert bar._last_response["remaining"] == 2
    assert isinstance(shown(bar._last_response), ZeroDivisionError)


def shown(response: dict[str, Any]) -> BaseException | None:
    """The exception that a bar is told of: pickled, as by the scheduler."""
    assert isinstance(response["exception"], bytes)
    return clean_exception(response["exception"])[1]


@pytest.mark.parametrize("how", ["cancel", "release", "close"])
def test_it_ends_when_nobody_wants_the_tasks(client: Client, gate: Any, how: str) -> None:
    with Client(client.scheduler.address, set_as_default=False) as other:
        futures = [other.submit(held, 1)]
        do = {"cancel": futures[0].cancel, "release": futures[0].release, "close": other.close}
        threading.Timer(0.2, do[how]).start()
        bar = TextProgressBar(futures)
        assert bar.status == "error"
        assert "exception" not in bar._last_response


def test_inputs_that_are_not_there_count(client: Client, gate: Any) -> None:
    first = client.map(held, range(3), pure=False)
    second = client.map(inc, first)
    whole = client.submit(total, *second)
    threading.Timer(0.2, gate.set).start()
    bar = TextProgressBar([whole])
    assert bar._last_response == {"all": 7, "remaining": 0, "status": "finished"}


def test_groups(client: Client, gate: Any) -> None:
    first = client.map(held, range(3), pure=False)
    second = client.map(inc, first)
    done = client.submit(inc, 10)
    wait(done)
    bar = Recorder([*second, done])
    threading.Timer(0.2, gate.set).start()
    client.sync(bar.listen)
    assert bar.drawn[0] == {
        "all": {"held": 3, "inc": 4},
        "remaining": {"held": 3, "inc": 3},
        "status": None,
    }
    assert bar.stopped == {
        "all": {"held": 3, "inc": 4},
        "remaining": {"held": 0, "inc": 0},
        "status": "finished",
    }


def test_groups_that_the_user_makes(client: Client) -> None:
    futures = [client.submit(inc, n, key=("part", n)) for n in range(4)]
    bar = Recorder(futures, group_by=lambda key: key[1] % 2)
    client.sync(bar.listen)
    assert bar.stopped["all"] == {0: 2, 1: 2}
    bar = Recorder(futures, group_by="spans")
    client.sync(bar.listen)
    assert bar.stopped["all"] == {("default", "default"): 4}


def test_the_group_that_failed(client: Client) -> None:
    future = client.submit(total, client.submit(inc, 1), client.submit(boom))
    bar = Recorder([future])
    client.sync(bar.listen)
    assert bar.status == "error"
    assert bar.stopped["remaining"]["boom"] == 1
    assert bar.stopped["remaining"]["total"] == 1
    assert isinstance(shown(bar.stopped), ZeroDivisionError)


def test_keys_and_no_futures(client: Client) -> None:
    futures = client.map(slowinc, range(3))
    bar = TextProgressBar([f.key for f in futures], scheduler=client.scheduler.address)
    assert bar._last_response == {"all": 3, "remaining": 0, "status": "finished"}


def test_with_futures_of_the_scheduler(client: Client, gate: Any) -> None:
    with distributed.Client(client.scheduler.address, set_as_default=False) as stock:
        central = stock.map(slowinc, range(5), delay=0.05)
        mine = client.map(slowinc, range(5, 10))
        bar = TextProgressBar([*central, *mine])
        assert bar._last_response == {"all": 10, "remaining": 0, "status": "finished"}
        assert all(f.done() for f in [*central, *mine])
        futures = [stock.submit(boom), client.submit(held, 1)]
        bar = Recorder(futures)
        client.sync(bar.listen)
        assert bar.status == "error"
        assert bar.stopped["all"] == {"boom": 1, "held": 1}
        bar = TextProgressBar(stock.map(slowinc, range(20, 23)))
        assert bar._last_response == {"all": 3, "remaining": 0, "status": "finished"}


def test_a_collection(client: Client, capsys: Any) -> None:
    array = pytest.importorskip("dask.array")
    persisted = array.ones(100, chunks=10).persist()
    distributed.progress(persisted, notebook=False)
    assert bars(capsys.readouterr().out)[-1][1] == 100
    assert persisted.sum().compute() == 100


def test_a_client_that_is_not_the_default(cluster: Any, capsys: Any) -> None:
    with Client(cluster, set_as_default=False) as client:
        distributed.progress(client.map(inc, range(3)), notebook=False)
    assert bars(capsys.readouterr().out)[-1][1] == 100


def test_inside_a_task_no_slot_is_held(client: Client, workers: Any) -> None:
    def outer(worker: str) -> Any:
        inner = distributed.get_client()
        futures = inner.map(slowinc, range(5), workers=[worker])
        distributed.progress(futures, notebook=False)
        return inner.gather(futures)

    assert client.submit(outer, workers[0], workers=workers[0]).result(20) == [1, 2, 3, 4, 5]


def test_from_asyncio(cluster: Any) -> None:
    async def show() -> None:
        async with Client(cluster.scheduler_address, asynchronous=True) as client:
            futures = client.map(slowinc, range(5))
            bar = TextProgressBar(futures, start=False)
            await bar.listen()
            assert bar._last_response == {"all": 5, "remaining": 0, "status": "finished"}

    asyncio.run(show())


def test_a_bar_that_is_given_up_leaves_nothing(client: Client, gate: Any) -> None:
    future = client.submit(held, 1)
    bar = TextProgressBar([future], start=False)

    async def give_up() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(bar.listen(), 0.2)

    client.sync(give_up)
    assert bar.status is None
    assert future._row.waiters is None


def test_what_it_costs(client: Client) -> None:
    futures = client.map(inc, range(5000))
    started = time.thread_time()
    bar = Recorder(futures, interval="10ms")
    client.sync(bar.listen)
    assert bar.status == "finished"
    assert time.thread_time() - started < 0.5


def test_in_a_notebook(client: Client) -> None:
    pytest.importorskip("ipywidgets")
    futures = client.map(slowinc, range(5))
    bar = distributed.progress(futures, notebook=True)
    client.sync(bar.listen)
    assert bar.bars["slowinc"].value == 1.0
    assert bar.bars["slowinc"].bar_style == "success"
    assert "5 / 5" in bar.bar_texts["slowinc"].value
    assert "Finished" in bar.elapsed_time.value
    future = client.submit(boom)
    bar = distributed.progress(future, notebook=True, multi=False)
    client.sync(bar.listen)
    assert bar.bar.bar_style == "danger"
    assert "ZeroDivisionError" in bar.elapsed_time.value


BEFORE = """
from dask.distributed.diagnostics.progressbar import ProgressBar as Before
import distributed.diagnostics.progressbar as own
assert Before is not own.ProgressBar
import dask_ownership
import dask.distributed.diagnostics.progress_stream as after
import distributed.diagnostics.progress_stream as own_stream
assert after is own_stream
assert own_stream.__spec__.name == own_stream.__name__ == "distributed.diagnostics.progress_stream"
from distributed.utils import LoopRunner


class Bar(Before):
    def _draw_bar(self, remaining, all, **kwargs):
        self.drawn = remaining, all


if __name__ == "__main__":
    client = dask_ownership.Client({address!r})
    bar = Bar(client.map(abs, range(20)))
    LoopRunner(loop=None).run_sync(bar.listen)
    print(bar.drawn)
"""


def test_a_bar_of_a_second_copy_of_the_module(client: Client, tmp_path: Path) -> None:
    """`dask.distributed.…` imports the modules of distributed once more."""
    script = tmp_path / "script.py"
    script.write_text(BEFORE.replace("{address!r}", repr(client.scheduler.address)))
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(0, 20)"
