"""Small things that users of Dask expect, and that upstream's tests look at."""

from __future__ import annotations

import threading
import traceback
from collections import OrderedDict, namedtuple
from concurrent.futures import CancelledError
from typing import Any

import dask
import dask.array as da
import programs
import pytest
from dask import delayed
from distributed import LocalCluster, Queue, Variable, wait

from dask_ownership import Client, LostData, NotSerializable
from dask_ownership.errors import NotUnpickled


def divide(a: int, b: int) -> float:
    return a / b


@pytest.mark.parametrize("how", ["result", "gather"])
def test_a_traceback_shows_what_the_user_wrote(client: Client, how: str) -> None:
    future = client.submit(divide, 1, 0)
    with pytest.raises(ZeroDivisionError) as caught:
        future.result() if how == "result" else client.gather(future)
    frames = [frame.f_code.co_name for frame, _ in traceback.walk_tb(caught.value.__traceback__)]
    assert frames == ["test_a_traceback_shows_what_the_user_wrote", how, "divide"]


class Pair(namedtuple("Pair", "ab, c")):
    """Not made by its fields."""

    def __new__(cls, a: str, b: str, c: Any) -> Pair:
        return super().__new__(cls, f"{a}-{b}", c)

    def __getnewargs__(self) -> Any:
        return *self.ab.split("-"), self.c


def third(pair: Pair) -> Any:
    assert pair.ab == "a-b"
    return pair.c


class Futures(list):
    """As libraries have lists of their futures."""


def kinds(container: Any) -> list[str]:
    items = container.values() if isinstance(container, dict) else container
    return [type(container).__name__, *(type(item).__name__ for item in items)]


def test_subclasses_of_containers_arrive_as_plain_ones_when_they_have_futures(
    client: Client,
) -> None:
    future = client.submit(programs.inc, 1)
    for given, arrives in (
        (Futures([future, 2]), ["list", "int", "int"]),
        (Futures([1, 2]), ["Futures", "int", "int"]),
        (OrderedDict(a=future), ["dict", "int"]),
        (OrderedDict(a=1), ["OrderedDict", "int"]),
        ({"a": Futures([future])}, ["dict", "list"]),
    ):
        assert client.submit(kinds, given).result() == arrives


def test_a_future_in_a_namedtuple_with_a_constructor_of_its_own(client: Client) -> None:
    assert client.submit(third, Pair("a", "b", client.submit(programs.inc, 1))).result() == 2


class Unpicklable:
    def __reduce__(self) -> Any:
        raise OSError("not me")


class Unloadable:
    def __getstate__(self) -> Any:
        return {"x": 1}

    def __setstate__(self, state: Any) -> None:
        raise OSError("not here")


def test_what_cannot_be_sent_or_read(client: Client) -> None:
    with pytest.raises(NotSerializable, match="serialize"):
        client.submit(programs.inc, Unpicklable(), pure=False)
    with pytest.raises(NotUnpickled, match="deserialization") as caught:
        client.submit(programs.inc, Unloadable(), pure=False).result()
    assert isinstance(caught.value, RuntimeError)
    assert isinstance(caught.value.__cause__, OSError)


def test_a_lost_value_is_a_cancelled_one_too() -> None:
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        future = client.scatter(1)
        [worker] = cluster.workers.values()
        cluster.sync(worker.close)
        with pytest.raises(CancelledError):
            future.result()
        with pytest.raises(LostData):
            future.result()
        with pytest.raises(TimeoutError, match="no worker"):
            client.scatter(2, timeout=0.1)


def test_within_a_process_what_cannot_be_pickled_is_passed_on() -> None:
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        here, there = cluster.scheduler.workers
        lock = threading.Lock()
        scattered = client.scatter(lock, workers=here)
        passed = client.submit(lambda x: x, scattered, workers=there)
        assert passed.result() is lock
        assert scattered.result() is lock
        del scattered, passed


def test_normalize_collection_puts_owned_futures_into_a_graph(client: Client) -> None:
    y = delayed(programs.inc)(delayed(programs.inc)(1))
    z = delayed(programs.inc)(y)
    persisted = client.persist(y)
    normal = client.normalize_collection(z)
    assert normal.dask[y.key].key == y.key
    assert len(normal.dask) < len(z.dask)
    wait(persisted)
    assert client.compute(normal).result() == 4


def test_a_future_that_was_taken_out_knows_its_status(client: Client) -> None:
    good, bad = client.submit(programs.inc, 1), client.submit(divide, 1, 0)
    wait([good, bad])
    Variable("good", client=client).set(good)
    queue = Queue("bad", client=client)
    queue.put(bad)
    with Client(client.scheduler.address, set_as_default=False) as other:
        assert Variable("good", client=other).get().status == "finished"
        assert Queue("bad", client=other).get().status == "error"
    Variable("good", client=client).delete()


def test_futures_are_counted_by_key(client: Client) -> None:
    assert not client.futures
    x, y = client.submit(programs.inc, 1), client.submit(programs.inc, 1)
    assert x.key in client.futures and client.refcount[x.key] == 2
    del y
    assert client.refcount[x.key] == 1
    wait(x)
    assert client.futures[x.key].status == "finished"
    assert len(client.futures) == 1
    key = x.key
    x.cancel()
    assert key not in client.futures and key not in client.refcount
    with pytest.raises(KeyError):
        client.futures[key]


def test_futures_of_one_object_have_one_state(client: Client) -> None:
    same = client.map(programs.inc, [1, 1, 1])
    other = client.map(programs.inc, [1, 1], pure=False)
    assert len({future._state for future in same}) == 1
    assert len({future._state for future in other}) == 2


def test_what_is_large_is_warned_of(client: Client) -> None:
    with pytest.warns(UserWarning, match="Sending large call of 'len' of size 10"):
        assert client.submit(len, b"0" * 11_000_000).result() == 11_000_000
    with pytest.warns(UserWarning, match="Sending large graph of size"):
        assert delayed(len)(b"0" * 11_000_000).compute() == 11_000_000
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1GB"}):
        assert client.submit(len, b"1" * 11_000_000).result() == 11_000_000
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1MB"}):
        # Two megabytes of calls, in none of which there is any data.
        assert da.ones((60, 60), chunks=(2, 2)).sum().compute() == 3600
