"""``Client.gather``."""

from __future__ import annotations

import queue
from collections import namedtuple

import distributed
import numpy as np
import pytest
from distributed import CancelledError, LocalCluster
from programs import Oops, inc, ones, oops, sleep

from dask_ownership import Client

Pair = namedtuple("Pair", "left right")


def test_nested_containers(client: Client) -> None:
    x, y = client.submit(inc, 1), client.submit(inc, 2)
    structure = {"a": [x, (y, 5)], "b": {"c": {x}}, "d": frozenset([y]), "e": "text"}
    assert client.gather(structure) == {
        "a": [2, (3, 5)],
        "b": {"c": {2}},
        "d": frozenset([3]),
        "e": "text",
    }


def test_one_future_and_none(client: Client) -> None:
    assert client.gather(client.submit(inc, 1)) == 2
    assert client.gather([]) == []
    assert client.gather({}) == {}
    assert client.gather([1, "a", None]) == [1, "a", None]


def test_same_future_often(client: Client) -> None:
    x = client.submit(inc, 1)
    assert client.gather([x, x, [x]]) == [2, 2, [2]]


def test_namedtuple(client: Client) -> None:
    pair = client.gather(Pair(client.submit(inc, 1), client.submit(inc, 2)))
    assert tuple(pair) == (2, 3)


def test_iterator_gives_an_iterator(client: Client) -> None:
    result = client.gather(iter(client.map(inc, range(3))))
    assert list(result) == [1, 2, 3]


def test_queue_is_refused(client: Client) -> None:
    with pytest.raises(TypeError, match="Queues"):
        client.gather(queue.Queue())


def test_stored_values_of_both_workers(client: Client, workers: list[str]) -> None:
    futures = [client.submit(ones, 20_000 + i, workers=workers[i % 2]) for i in range(10)]
    assert [len(a) for a in client.gather(futures)] == [20_000 + i for i in range(10)]


def test_error_raises_at_once(client: Client) -> None:
    slow = client.submit(sleep, 0.5, pure=False)
    bad = client.submit(oops)
    with pytest.raises(Oops, match="it broke"):
        client.gather([slow, bad])
    assert slow.status == "pending"


def test_skip(client: Client) -> None:
    good, bad = client.submit(inc, 1), client.submit(oops)
    assert client.gather([good, bad], errors="skip") == [2]
    assert client.gather([bad], errors="skip") == []


def test_skip_cancelled(client: Client) -> None:
    good, gone = client.submit(inc, 1), client.submit(sleep, 0.2, pure=False)
    gone.cancel()
    assert client.gather([gone, good], errors="skip") == [2]
    with pytest.raises(CancelledError):
        client.gather([gone, good])


def test_bad_value_of_errors(client: Client) -> None:
    with pytest.raises(ValueError, match="errors"):
        client.gather([], errors="explode")


def test_value_that_cannot_travel(client: Client) -> None:
    import threading

    future = client.submit(threading.Lock, pure=False)
    name = client.submit(lambda lock: type(lock).__name__, future)
    assert name.result() == "lock"
    with pytest.raises(TypeError, match="pickle"):
        future.result(timeout=5)
    assert client.submit(inc, 1).result() == 2


def test_arrays_are_writable(client: Client) -> None:
    small, large = client.gather([client.submit(ones, 10), client.submit(ones, 100_000)])
    small += 1
    large += 1
    assert small.sum() == 20 and large.sum() == 200_000
    assert np.asarray(small).flags.writeable


def test_a_result_is_not_shared(client: Client) -> None:
    future = client.submit(list, [1, 2])
    first = future.result()
    first.append(3)
    assert future.result() == [1, 2]


def test_owned_and_stock_futures_together(client: Client, cluster: LocalCluster) -> None:
    actor_free = client.submit(inc, 1)
    with distributed.Client(cluster, set_as_default=False) as stock:
        theirs = stock.submit(inc, 5)
        with pytest.raises(ValueError, match="another client"):
            client.gather([actor_free, theirs])
        assert stock.gather(theirs) == 6
        del theirs
