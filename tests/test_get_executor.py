"""``Client.get_executor``: the standard library's interface."""

from __future__ import annotations

import concurrent.futures as cf

import pytest
from programs import Oops, inc, odd_fails, oops, slowly, total, where

from dask_ownership import Client


def test_submit_and_map(client: Client) -> None:
    with client.get_executor() as executor:
        assert isinstance(executor, cf.Executor)
        future = executor.submit(inc, 1)
        assert future.result() == 2
        assert list(executor.map(inc, range(10))) == list(range(1, 11))
        assert executor.submit(total, 1, 2, 3).result() == 6
    assert client.central_calls == 0


def test_standard_functions(client: Client) -> None:
    with client.get_executor() as executor:
        futures = [executor.submit(slowly, i, 0.01) for i in range(5)]
        done, not_done = cf.wait(futures, timeout=10)
        assert len(done) == 5 and not not_done
        assert sorted(f.result() for f in cf.as_completed(futures)) == [0, 1, 2, 3, 4]


def test_errors(client: Client) -> None:
    with client.get_executor() as executor:
        future = executor.submit(oops)
        with pytest.raises(Oops, match="it broke"):
            future.result()
        assert isinstance(future.exception(), Oops)
        results = executor.map(odd_fails, range(3))
        assert next(results) == 0
        with pytest.raises(Oops, match="1 is odd"):
            next(results)


def test_options(client: Client, workers: list[str]) -> None:
    with client.get_executor(workers=workers[1], pure=False) as executor:
        assert {executor.submit(where).result() for _ in range(4)} == {workers[1]}


def test_callback_and_shutdown(client: Client) -> None:
    executor = client.get_executor()
    seen: list[int] = []
    future = executor.submit(slowly, 3)
    future.add_done_callback(lambda f: seen.append(f.result()))
    executor.shutdown(wait=True)
    assert future.result() == 3
    with pytest.raises(RuntimeError):
        executor.submit(inc, 1)
    assert seen == [3]
