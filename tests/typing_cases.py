"""What type checkers say of programs: checked by mypy and pyright, and never run."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import distributed
from typing_extensions import assert_type

from dask_ownership import Client, Future, delegate, get_client
from dask_ownership.futures.streaming import Stream


def inc(n: int) -> int:
    return n + 1


def scale(values: list[float], by: float = 2.0) -> list[float]:
    return [by * value for value in values]


async def later(n: int) -> str:
    return str(n)


def untyped(x, y=1):  # type: ignore[no-untyped-def]
    return x + y


@dataclass
class Model:
    name: str
    weights: Future[list[float]]
    more: Future | None = None


class Counter:
    def __init__(self, start: int = 0) -> None:
        self.n = start

    def add(self, by: int) -> int:
        return self.n + by


def fib(n: int) -> int:
    if n < 2:
        return n
    client = get_client()
    a, b = client.submit(fib, n - 1), client.submit(fib, n - 2)
    return a.result() + b.result()


def countdown(n: int) -> str:
    return delegate(get_client().submit(countdown, n - 1)) if n else "done"


def submitting(client: Client) -> None:
    assert_type(client.submit(inc, 1), Future[int])
    assert_type(client.submit(inc, 1).result(), int)
    assert_type(client.submit(inc, 1).result(timeout="2s"), int)
    assert_type(client.submit(later, 1), Future[str])
    assert_type(client.submit(scale, [1.0], by=3.0), Future[list[float]])
    assert_type(client.submit(Counter, 1), Future[Counter])
    assert_type(client.submit(Counter().add, 1), Future[int])
    # Futures in place of values, at any depth, and the options of the call.
    one = client.submit(inc, 1)
    assert_type(client.submit(inc, one), Future[int])
    assert_type(client.submit(inc, n=one), Future[int])
    assert_type(client.submit(sum, [one, one]), Future[Any])
    assert_type(client.submit(scale, [one, 2.0], by=one), Future[list[float]])
    assert_type(client.submit(later, one, pure=False), Future[str])
    assert_type(client.submit(inc, one, key="k", retries=2, priority=3, workers=["a"]), Future[int])
    assert_type(client.submit(inc, one, timeout="30s", at_most_once=True), Future[int])
    # A future of a subclass is one of the class.
    wide: Future[float] = client.submit(inc, 1)
    plain: Future = client.submit(inc, 1)
    stock: distributed.Future[Any] = client.submit(inc, 1)
    model = Model("m", client.submit(scale, [1.0]), more=plain)
    assert_type(client.submit(scale, model.weights).result(), list[float])
    assert_type(delegate(one), int)
    # Functions that say little.
    str(client.submit(operator.add, 1, 2).result() + 1)
    client.submit(lambda x: x + 1, 2).result()
    client.submit(max, 1, 2).result()
    str(client.submit(untyped, 1, y=one).result() + 1)
    client.submit(Counter, 1, actor=True).result().add(1).result()
    del wide, stock


def mapping(client: Client, size: int | None) -> None:
    assert_type(client.map(inc, range(3)), list[Future[int]])
    assert_type(client.map(later, range(3)), list[Future[str]])
    assert_type(client.map(scale, [[1.0]], by=2.0, pure=False), list[Future[list[float]]])
    assert_type(client.map(inc, client.map(inc, [1])), list[Future[int]])
    stream = client.map(inc, iter(range(3)), buffer_size=2)
    assert_type(stream, Stream[int])
    for future in stream:
        assert_type(future, Future[int])
    client.map(inc, range(3), buffer_size=size)


def gathering(client: Client) -> None:
    futures = client.map(inc, range(3))
    values = client.gather(futures)
    total: int = sum(values)
    exact: list[int] = values
    assert_type(values[0], int)
    str(client.gather({"a": futures[0], "b": 1})["a"] + 1)
    client.gather(futures, errors="skip", asynchronous=False)
    del total, exact


def in_a_block() -> None:
    with Client(n_workers=1) as client:
        assert_type(client, Client)
        assert_type(client.submit(inc, 1).result(), int)


async def asynchronously() -> None:
    async with Client("tcp://a:1", asynchronous=True) as client:
        assert_type(client, Client)
        future = client.submit(inc, 1)
        assert_type(await future, int)
        assert_type(await client.gather([future]), list[int])
        async for each in client.map(later, iter([1]), buffer_size=1):
            assert_type(await each, str)
    other = await Client(asynchronous=True)
    assert_type(other, Client)


def passing_functions(client: Client, func: Callable[[int], bytes]) -> Future[bytes]:
    return client.submit(func, 1)


def mistakes(client: Client) -> None:
    """Each must be an error: a comment that is not needed is one, too."""
    client.submit(inc, 1).result().upper()  # type: ignore  # pyright: ignore
    wrong: Future[str] = client.submit(inc, 1)  # type: ignore  # pyright: ignore
    client.submit(1)  # type: ignore  # pyright: ignore
    del wrong
