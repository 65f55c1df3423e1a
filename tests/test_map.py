"""``Client.map``."""

from __future__ import annotations

import queue

import numpy as np
import pytest
from programs import Oops, double, inc, keywords, odd_fails, process, same, total

from dask_ownership import Client


def test_map(client: Client) -> None:
    futures = client.map(inc, range(10))
    assert isinstance(futures, list)
    assert client.gather(futures) == list(range(1, 11))


def test_several_iterables_stop_at_the_shortest(client: Client) -> None:
    assert client.gather(client.map(total, range(3), [10, 20, 30, 40])) == [10, 21, 32]


def test_keywords(client: Client) -> None:
    assert client.gather(client.map(lambda x, y: x + y, range(3), y=5)) == [5, 6, 7]
    x = client.submit(inc, 1)
    assert client.gather(client.map(lambda a, b: (a, b["k"]), [1, 2], b={"k": x})) == [
        (1, 2),
        (2, 2),
    ]


def test_large_keyword(client: Client) -> None:
    big = np.ones(100_000)
    futures = client.map(lambda i, data: float(data[i] + i), range(20), data=big)
    assert client.gather(futures) == [1.0 + i for i in range(20)]


def test_futures_as_items(client: Client) -> None:
    xs = client.map(inc, range(5))
    ys = client.map(double, xs)
    assert client.gather(ys) == [2, 4, 6, 8, 10]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batch_size(client: Client, batch_size: int) -> None:
    assert client.gather(client.map(inc, range(10), batch_size=batch_size)) == list(range(1, 11))


def test_empty(client: Client) -> None:
    assert client.map(inc, []) == []
    assert client.gather([]) == []


def test_pure_is_default(client: Client) -> None:
    a, b = client.map(inc, range(3)), client.map(inc, range(3))
    assert [f.key for f in a] == [f.key for f in b]
    assert a[0].key == client.submit(inc, 0).key


def test_impure(client: Client) -> None:
    futures = client.map(process, range(3), pure=False)
    again = client.map(process, range(3), pure=False)
    assert len({f.key for f in futures + again}) == 6
    assert all(f.key.startswith("process-") for f in futures)
    client.gather(futures + again)


def test_key_as_a_prefix(client: Client) -> None:
    futures = client.map(inc, range(3), key="mine")
    assert all(f.key.startswith("mine-") for f in futures)
    assert len({f.key for f in futures}) == 3
    assert client.gather(futures) == [1, 2, 3]


def test_keys_as_a_list(client: Client) -> None:
    futures = client.map(inc, range(3), key=["a", "b", ("c", 1)])
    assert [f.key for f in futures] == ["a", "b", ("c", 1)]
    assert client.gather(futures) == [1, 2, 3]


def test_keys_of_the_wrong_number(client: Client) -> None:
    with pytest.raises(ValueError, match="key"):
        client.map(inc, range(3), key=["a", "b"])


def test_iterators_are_refused(client: Client) -> None:
    with pytest.raises(TypeError, match="Iterators"):
        client.map(inc, iter([1, 2]))
    with pytest.raises(TypeError, match="Queues"):
        client.map(inc, queue.Queue())


def test_bad_workers(client: Client) -> None:
    with pytest.raises(TypeError, match="Workers must be"):
        client.map(inc, [1], workers=object())
    with pytest.raises(ValueError, match="allow_other_workers"):
        client.map(inc, [1], allow_other_workers=True)


def test_errors_are_of_their_item(client: Client) -> None:
    futures = client.map(odd_fails, range(4))
    assert [type(f.exception()) for f in futures] == [type(None), Oops, type(None), Oops]
    assert client.gather(futures, errors="skip") == [0, 2]


def test_containers_and_none_as_items(client: Client) -> None:
    items = [[1, 2], (3,), {"a": 1}, None, "x", {1}]
    assert client.gather(client.map(same, items)) == items


def test_keywords_by_name(client: Client) -> None:
    assert client.submit(keywords, key="k", values=[1]).result() == {"values": [1]}


def test_large_map(client: Client) -> None:
    assert sum(client.gather(client.map(inc, range(3000)))) == sum(range(1, 3001))
