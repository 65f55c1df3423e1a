"""``fire_and_forget``."""

from __future__ import annotations

import gc
import time
from pathlib import Path

import dask
from live import until
from programs import append_line, fails_at_first, fire_inside, inc, lines, oops, slowly

from dask_ownership import Client, fire_and_forget


def until_lines(path: Path, n: int, seconds: float = 5) -> None:
    deadline = time.time() + seconds
    while len(lines(path)) < n and time.time() < deadline:
        time.sleep(0.01)
    assert len(lines(path)) == n


def test_runs_without_a_future(client: Client, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    fire_and_forget(client.submit(append_line, str(mark), "x", 0.1, pure=False))
    gc.collect()
    until_lines(mark, 1)


def test_several(client: Client, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    fire_and_forget([client.submit(append_line, str(mark), str(i), 0.02) for i in range(5)])
    gc.collect()
    until_lines(mark, 5)


def test_of_a_graph(client: Client, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    value = dask.delayed(append_line)(str(mark), dask.delayed(slowly)("x", 0.05))
    fire_and_forget(client.compute(value))
    gc.collect()
    until_lines(mark, 1)


def test_its_arguments_stay(client: Client, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    name = client.submit(slowly, "x", 0.1, pure=False)
    fire_and_forget(client.submit(append_line, str(mark), name))
    del name
    gc.collect()
    until_lines(mark, 1)


def test_an_error_is_forgotten(client: Client) -> None:
    fire_and_forget(client.submit(oops))
    assert client.submit(inc, 1).result() == 2


def test_of_what_ended(client: Client) -> None:
    future = client.submit(inc, 1)
    future.result()
    fire_and_forget(future)
    assert future.result() == 2


def test_the_future_is_still_good(client: Client) -> None:
    future = client.submit(slowly, 5, pure=False)
    fire_and_forget(future)
    assert future.result() == 5


def test_inside_a_task(client: Client, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    assert client.submit(fire_inside, str(mark)).result() == "fired"
    until_lines(mark, 1)


def test_without_it_what_nobody_wants_is_dropped(client: Client, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    running = [client.submit(slowly, i, 0.2) for i in range(2)]
    for i in range(5):
        client.submit(append_line, str(mark), str(i))
    gc.collect()
    client.gather(running)
    assert client.submit(inc, 1).result() == 2
    assert len(lines(mark)) <= 1


def test_the_worker_logs_an_error(client: Client) -> None:
    """Nobody asks for the result: it is all that there is of the failure."""
    fire_and_forget(client.submit(oops, key="forgotten-1"))

    def logged() -> bool:
        text = str(client.get_worker_logs())
        return "Compute Failed" in text and "forgotten-1" in text and "Oops" in text

    until(logged)


def test_the_worker_logs_what_a_retry_hides(client: Client, tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")
    assert client.submit(fails_at_first, mark, retries=1, key="flaky-1").result()
    assert str(client.get_worker_logs()).count("flaky-1") == 1
