"""``Client.get_executor``: the standard library's interface."""

from __future__ import annotations

import asyncio
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


def test_cancel_and_wait_for_the_first(client: Client) -> None:
    with client.get_executor(pure=False) as executor:
        running = [executor.submit(slowly, i, 0.5) for i in range(2)]
        waiting = [executor.submit(slowly, i, 0.5) for i in range(20)]
        assert all(future.cancel() for future in waiting)
        with pytest.raises(cf.CancelledError):
            waiting[0].result(timeout=5)
        done, not_done = cf.wait(running + waiting, timeout=5, return_when=cf.FIRST_COMPLETED)
        assert done and done | not_done == {*running, *waiting}
        assert [f.result() for f in running] == [0, 1]
        assert not running[0].cancel()


def test_time_limits(client: Client) -> None:
    with client.get_executor(pure=False) as executor:
        with pytest.raises(cf.TimeoutError):
            executor.submit(slowly, 1, 0.3).result(timeout=0.05)
        with pytest.raises(cf.TimeoutError):
            list(executor.map(slowly, range(4), [0.3] * 4, timeout=0.05))
        with pytest.raises(cf.TimeoutError):
            list(cf.as_completed([executor.submit(slowly, 1, 0.3)], timeout=0.05))


def test_coroutines_wait_for_it(client: Client) -> None:
    async def run() -> list[int]:
        loop = asyncio.get_running_loop()
        with client.get_executor() as executor:
            return await asyncio.gather(
                *[loop.run_in_executor(executor, inc, i) for i in range(5)],
                asyncio.wrap_future(executor.submit(inc, 5)),
            )

    assert asyncio.run(run()) == [1, 2, 3, 4, 5, 6]
