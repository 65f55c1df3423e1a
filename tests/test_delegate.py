"""``return delegate(future)``: a task whose value is another's."""

from __future__ import annotations

import gc
from typing import Any

import distributed
import pytest
from live import blob, inc, slowinc

import dask_ownership
from dask_ownership import delegate


def here() -> Any:
    return distributed.get_client()


def spawn(n: int) -> Any:
    return delegate(here().submit(slowinc, n, 0.05, pure=False))


def count_down(n: int, total: int = 0) -> Any:
    if n == 0:
        return total
    return delegate(here().submit(count_down, n - 1, total + n, pure=False))


def spawn_large(size: int) -> Any:
    return delegate(here().submit(blob, size, pure=False))


def spawn_failing() -> Any:
    return delegate(here().submit(fail, pure=False))


def fail() -> None:
    raise ValueError("it failed")


def hidden(n: int) -> Any:
    return [delegate(here().submit(inc, n, pure=False))]


class Box:
    def __init__(self, content: Any) -> None:
        self.content = content


def given(box: Box) -> Any:
    return delegate(box.content)


def makes_futures(n: int) -> Any:
    return Box([here().submit(inc, i, pure=False) for i in range(n)])


def spawns_futures(n: int) -> Any:
    return delegate(here().submit(makes_futures, n, pure=False))


async def spawns_in_a_coroutine(n: int) -> Any:
    return delegate(here().submit(inc, n, pure=False))


def threads(dask_worker: Any) -> int:
    return len(dask_worker.extensions["dask-ownership"].executor.threads)


def test_the_value_is_that_of_the_other(client):
    assert client.submit(spawn, 1, pure=False).result(timeout=10) == 2
    assert client.submit(spawns_in_a_coroutine, 1, pure=False).result(timeout=10) == 2
    futures = [client.submit(spawn, i, pure=False) for i in range(20)]
    assert client.gather(futures) == list(range(1, 21))


def test_it_is_an_argument_like_any_other(client):
    assert client.submit(inc, client.submit(spawn, 1, pure=False), pure=False).result() == 3


def test_a_long_chain_needs_no_threads(client):
    before = client.run(threads)
    assert client.submit(count_down, 300, pure=False).result(timeout=30) == 300 * 301 // 2
    after = client.run(threads)
    assert sum(after.values()) <= sum(before.values()) + 20


def test_a_large_value_does_not_pass_through_the_owner(client):
    future = client.submit(spawn_large, 300_000, pure=False)
    assert len(future.result(timeout=10)) == 300_000
    assert future._row.value is None


def test_an_error_is_that_of_the_other(client):
    with pytest.raises(ValueError, match="it failed"):
        client.submit(spawn_failing, pure=False).result(timeout=10)


def test_a_future_that_was_given(client):
    other = client.submit(slowinc, 1, 0.1, pure=False)
    assert client.submit(given, Box(other), pure=False).result(timeout=10) == 2


def test_a_value_with_futures_inside(client):
    box = client.submit(spawns_futures, 3, pure=False).result(timeout=10)
    assert client.gather(box.content) == [1, 2, 3]


def test_inside_something_it_is_refused(client):
    with pytest.raises(dask_ownership.NotSerializable, match="must be returned"):
        client.submit(hidden, 1, pure=False).result(timeout=10)
    client.run(gc.collect)  # pickling that fails leaves cycles, with the future in them


def test_it_takes_futures_only(client):
    with pytest.raises(TypeError, match="not a int"):
        delegate(1)
    with pytest.raises(TypeError, match="not a int"):
        client.submit(delegate, 1, pure=False).result(timeout=10)
