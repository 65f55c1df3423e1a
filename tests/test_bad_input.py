"""Bad input: each a clear error at its own future or call, and nothing else disturbed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from concurrent.futures import CancelledError
from typing import Any

import dask
import distributed
import pytest
from conftest import FAILED, check_nothing_left
from dask.tokenize import TokenizationError
from live import blob, boom, inc, slowinc, total, until, wait_for_members, where
from programs import Box, open_box, wait_for_file

from dask_ownership import Client
from dask_ownership.errors import (
    ClosedOwner,
    FutureCancelledError,
    LostData,
    NotHere,
    NotSerializable,
    NoWorker,
    TaskExit,
)


@pytest.fixture
def client(cluster, request):
    """A client; other tasks run before, during and after the test, and all go well."""
    with Client(cluster) as client:
        pids = client.run(os.getpid)
        before = [client.submit(slowinc, i, 0.002, pure=False) for i in range(20)]
        yield client
        after = client.map(inc, range(100, 120), pure=False)
        assert client.gather(before) == list(range(1, 21))
        assert client.gather(after) == list(range(101, 121))
        assert client.status == "running"
        assert client.run(os.getpid) == pids
        del before, after
        if request.node.nodeid not in request.config.stash[FAILED]:
            check_nothing_left(client)


# ---- what cannot be pickled ----


class Stubborn:
    """Cannot be pickled."""

    def __init__(self, value: int = 7) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        raise RuntimeError("I stay here")


class StuckAtArrival:
    """Can be pickled, and not unpickled by the client."""

    def __init__(self, home: int, size: int = 0) -> None:
        self.home = home
        self.ballast = bytes(size)

    def __reduce__(self) -> Any:
        return arrive, (self.home, self.ballast)


def arrive(home: int, ballast: bytes) -> Any:
    if home != os.getpid():
        raise ModuleNotFoundError("no module of that name here")
    return StuckAtArrival(home, len(ballast))


class StuckAtWorker:
    """Can be pickled, and not unpickled by a worker."""

    def __reduce__(self) -> Any:
        return arrive, (os.getpid(), b"")


class UnpicklableError(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class RequiredArguments(Exception):
    """Pickles, but its class cannot be rebuilt from ``args``."""

    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"{reason} ({code})")


class UnshowableError(Exception):
    def __reduce__(self) -> Any:
        raise RuntimeError("no pickle")

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __repr__


class HomeError(Exception):
    """Cannot be rebuilt outside the process that raised it."""

    def __reduce__(self) -> Any:
        return arrive_error, (os.getpid(),)


def arrive_error(home: int) -> Exception:
    if home != os.getpid():
        raise ModuleNotFoundError("no module of that name here")
    return HomeError("from home")


def raise_unpicklable() -> None:
    raise UnpicklableError("with a lock")


def raise_required() -> None:
    raise RequiredArguments(404, reason="not found")


def raise_unshowable() -> None:
    raise UnshowableError("hidden")


def raise_home() -> None:
    raise HomeError("from home")


def value_of(stubborn: Any) -> Any:
    return stubborn.value


def stuck(size: int = 0) -> StuckAtArrival:
    return StuckAtArrival(os.getpid(), size)


@pytest.mark.parametrize(
    "args",
    [(threading.Lock(),), ([{"a": Stubborn()}],), (Stubborn(), 1)],
    ids=["lock", "nested", "one of two"],
)
@pytest.mark.parametrize("pure", [True, False])
def test_arguments_that_cannot_be_pickled(client, args, pure):
    """The call itself fails and says which function and why."""
    with pytest.raises((NotSerializable, TypeError), match="pickle") as info:
        client.submit(inc, *args, pure=pure)
    if not pure:
        assert type(info.value) is NotSerializable
        assert "arguments of 'inc'" in str(info.value)
    with pytest.raises((NotSerializable, TypeError), match="pickle"):
        client.map(inc, [1, args[0], 2], pure=pure)
    with pytest.raises((NotSerializable, TypeError), match="pickle"):
        client.submit(inc, x=args[0], pure=pure)
    with pytest.raises((NotSerializable, TypeError), match=r"pickle|serialize"):
        client.scatter([args[0]])


def test_functions_that_cannot_be_pickled(client):
    lock = threading.Lock()

    def closed_over(x: int) -> Any:
        return lock, x

    for pure in (True, False):
        with pytest.raises(NotSerializable, match=r"the function 'closed_over'.*lock"):
            client.submit(closed_over, 1, pure=pure)
        with pytest.raises(NotSerializable, match="closed_over"):
            client.map(closed_over, range(3), pure=pure)


def test_graphs_that_cannot_be_pickled(client):
    with pytest.raises((NotSerializable, TokenizationError), match=r"pickle|hash"):
        client.get({"x": (total, Stubborn())}, "x")


def test_map_that_fails_in_the_middle_leaves_nothing(client):
    with pytest.raises(NotSerializable):
        client.map(inc, [1, 2, threading.Lock(), 4], pure=False)
    assert_nothing_left_here(client)


def assert_nothing_left_here(client):
    keys = [key for key in client.owner.core.table.rows if not str(key).startswith("slowinc")]
    until(
        lambda: not [k for k in client.owner.core.table.rows if not str(k).startswith("slowinc")],
        what=str(keys),
    )


def test_results_that_cannot_be_pickled_stay_usable_where_they_are(client):
    at = wait_for_members(client, 2)[0]
    future = client.submit(Stubborn, 8, workers=at, key="stubborn", pure=False)
    assert client.submit(value_of, future, workers=at).result() == 8
    assert future.status == "finished"
    with pytest.raises(NotSerializable, match="'stubborn'") as info:
        future.result()
    assert at in str(info.value)
    assert "Stubborn" in str(info.value)
    with pytest.raises(NotSerializable, match="'stubborn'"):
        client.gather([client.submit(inc, 1), future])
    assert client.gather([client.submit(inc, 1), future], errors="skip") == [2]
    # Still there.
    assert client.submit(value_of, future, workers=at).result() == 8


def test_results_that_cannot_be_pickled_are_not_moved(client):
    """A task that must run elsewhere fails with the reason."""
    here, there = wait_for_members(client, 2)
    future = client.submit(Stubborn, 9, workers=here, key="unmovable", pure=False)
    dependent = client.submit(value_of, future, workers=there, key="elsewhere")
    with pytest.raises(NotSerializable, match="'unmovable'") as info:
        dependent.result()
    assert "Stubborn" in str(info.value)
    assert there in str(info.value)
    assert client.submit(value_of, future, workers=here, key="at-home").result() == 9


@pytest.mark.parametrize("size", [0, 200_000])
def test_results_that_the_client_cannot_unpickle(client, size):
    future = client.submit(stuck, size, key=f"stuck-{size}")
    with pytest.raises(NotSerializable, match=f"'stuck-{size}'.*no module of that name"):
        future.result()
    with pytest.raises(NotSerializable, match=f"'stuck-{size}'.*no module of that name"):
        client.gather([future])
    assert client.gather([future, client.submit(inc, 5)], errors="skip") == [6]
    assert future.exception() is None
    assert future.status == "finished"
    assert "stuck" in repr(future)


def test_results_that_the_client_cannot_unpickle_awaited(cluster, client):
    async def ask():
        async with Client(cluster.scheduler_address, asynchronous=True) as other:
            future = other.submit(stuck, key="stuck-async")
            with pytest.raises(NotSerializable, match="'stuck-async'"):
                await future
            with pytest.raises(NotSerializable, match="'stuck-async'"):
                await other.gather([future])

    asyncio.run(ask())


def test_arguments_that_the_worker_cannot_unpickle(client):
    future = client.submit(inc, StuckAtWorker(), key="no-entry")
    with pytest.raises(NotSerializable, match=r"'no-entry'.*no module of that name") as info:
        future.result()
    assert "worker" in str(info.value)


def test_functions_that_the_worker_cannot_unpickle(client):
    stuck = StuckAtWorker()
    future = client.submit(lambda: stuck, key="no-function")
    with pytest.raises(NotSerializable, match=r"'no-function'.*installed there"):
        future.result()


# ---- errors that cannot travel ----


@pytest.mark.parametrize(
    ("function", "texts"),
    [
        (raise_unpicklable, ["UnpicklableError", "with a lock"]),
        (raise_unshowable, ["UnshowableError"]),
        (raise_home, ["HomeError", "from home"]),
    ],
)
def test_exceptions_that_cannot_be_rebuilt(client, function, texts):
    """What arrives names the task, the worker and the exception as it was shown there."""
    key = f"raises-{function.__name__}"
    future = client.submit(function, key=key)
    error = future.exception()
    assert isinstance(error, Exception)
    for text in [*texts, key, "worker tcp://"]:
        assert text in str(error)
    assert future.status == "error"
    with pytest.raises(type(error), match=texts[0]):
        client.submit(inc, future).result()
    with pytest.raises(type(error), match=texts[0]):
        client.gather(future)


def test_exceptions_with_required_arguments(client):
    """Such a class does not unpickle by itself; its exception arrives all the same."""
    with pytest.raises(RequiredArguments, match="not found \\(404\\)"):
        client.submit(raise_required).result()


async def coroutine_of(function: Any) -> Any:
    return function()


def raise_exit() -> None:
    sys.exit(3)


def raise_interrupt() -> None:
    raise KeyboardInterrupt


def raise_cancelled() -> None:
    raise asyncio.CancelledError


def raise_generator_exit() -> None:
    raise GeneratorExit


class OwnBase(BaseException):
    pass


def raise_base() -> None:
    raise OwnBase("from below")


def raise_recursion() -> None:
    raise_recursion()


EXITS = [raise_exit, raise_interrupt, raise_cancelled, raise_generator_exit, raise_base]


@pytest.mark.parametrize("in_coroutine", [False, True])
@pytest.mark.parametrize("function", EXITS)
def test_tasks_that_raise_what_ends_processes(client, function, in_coroutine):
    """It fails its own future with an ordinary error; worker and client go on."""
    call = (coroutine_of, function) if in_coroutine else (function,)
    key = f"exit-{function.__name__}-{in_coroutine}"
    future = client.submit(*call, key=key)
    with pytest.raises(TaskExit, match=key) as info:
        future.result()
    names = ["SystemExit(3)", "KeyboardInterrupt", "CancelledError", "GeneratorExit", "OwnBase"]
    assert names[EXITS.index(function)] in str(info.value)
    assert "worker tcp://" in str(info.value)
    with pytest.raises(TaskExit):
        client.gather([future])
    assert future.status == "error"


@pytest.mark.parametrize("in_coroutine", [False, True])
def test_tasks_that_recurse_too_deep(client, in_coroutine):
    call = (coroutine_of, raise_recursion) if in_coroutine else (raise_recursion,)
    future = client.submit(*call, key=f"recursion-{in_coroutine}")
    with pytest.raises(RecursionError, match="recursion"):
        future.result()


# ---- where tasks may run ----


@pytest.fixture
def impatient():
    with dask.config.set({"distributed.scheduler.no-workers-timeout": "100 ms"}):
        yield


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("workers", ["tcp://127.0.0.1:1", ["nobody"], ["10.255.255.1"], 99])
def test_unknown_workers(client, workers):
    """They may join; who will not wait for that long configures it as in Dask."""
    future = client.submit(inc, 1, workers=workers, key=f"nowhere-{workers}")
    with pytest.raises(NoWorker, match="nowhere") as info:
        future.result()
    name = workers if not isinstance(workers, list) else workers[0]
    assert str(name) in str(info.value)
    assert "allow_other_workers" in str(info.value)
    for address in wait_for_members(client, 2):
        assert address in str(info.value)
    with pytest.raises(NoWorker):
        client.gather(client.map(inc, range(3), workers=workers, key=f"nomap-{workers}"))
    loose = client.submit(inc, 1, workers=workers, allow_other_workers=True, key=f"loose-{workers}")
    assert loose.result() == 2


@pytest.mark.usefixtures("impatient")
def test_unknown_workers_of_scatter_and_compute(client):
    with pytest.raises((NoWorker, ValueError), match="nobody"):
        client.scatter([1, 2], workers=["nobody"], timeout=0.5)
    with pytest.raises(NoWorker, match="nobody"):
        client.compute(dask.delayed(inc)(1), workers=["nobody"]).result()


def test_one_unknown_worker_among_known_ones(client):
    known = wait_for_members(client, 2)[0]
    assert client.submit(where, workers=[known, "nobody"], pure=False).result() == known


@pytest.mark.parametrize("workers", [{"a": 1}, 3.5j])
def test_workers_of_a_wrong_type(client, workers):
    with pytest.raises(TypeError, match=r"[Ww]orkers"):
        client.submit(inc, 1, workers=workers)
    with pytest.raises(TypeError, match=r"[Ww]orkers"):
        client.map(inc, [1], workers=workers)


def test_wrong_options(client):
    with pytest.raises((TypeError, ValueError), match="retries"):
        client.submit(inc, 1, retries="many")
    with pytest.raises((TypeError, ValueError), match="resources"):
        client.submit(inc, 1, resources=["GPU"])
    with pytest.raises((TypeError, ValueError), match="resources"):
        client.submit(inc, 1, resources={"GPU": "one"})
    with pytest.raises((TypeError, ValueError), match="priority"):
        client.submit(inc, 1, priority="high")
    with pytest.raises(ValueError, match="allow_other_workers"):
        client.submit(inc, 1, allow_other_workers=True)


# ---- dependencies ----


def test_dependencies_that_failed(client):
    bad = client.submit(boom, "first", key="bad")
    late = client.submit(inc, bad)
    assert isinstance(bad.exception(), ZeroDivisionError)
    for future in (late, client.submit(inc, bad), client.submit(total, 1, [bad])):
        with pytest.raises(ZeroDivisionError, match="first"):
            future.result()
        assert future.status == "error"
    graph = client.get({"a": (boom, "in a graph"), "b": (inc, "a"), "c": (inc, 1)}, "c")
    assert graph == 2
    with pytest.raises(ZeroDivisionError, match="in a graph"):
        client.get({"a": (boom, "in a graph"), "b": (inc, "a")}, "b")


def test_dependencies_that_were_cancelled(client):
    slow = client.submit(slowinc, 1, 0.2, key="slow-one")
    waiting = client.submit(inc, slow, key="waiting-one")
    slow.cancel()
    for future in (slow, waiting):
        with pytest.raises(FutureCancelledError, match="slow-one"):
            future.result()
        assert future.cancelled()
    with pytest.raises(FutureCancelledError, match="slow-one"):
        client.submit(inc, slow, key="late-one").result()
    assert issubclass(FutureCancelledError, CancelledError)


# ---- keys ----


def name_of(key):
    """The same in each of the processes that run tests."""
    return repr(key).partition(" at ")[0]


NO_KEYS = [b"bytes", {"a": 1}, {1}, object(), ("a", b"b"), ("a", ["b"]), 1j]


@pytest.mark.parametrize("key", [*NO_KEYS, ["a"]], ids=name_of)
def test_keys_that_are_none(client, key):
    with pytest.raises(TypeError, match="key"):
        client.submit(inc, 1, key=key)


@pytest.mark.parametrize("key", NO_KEYS, ids=name_of)
def test_keys_of_map_that_are_none(client, key):
    with pytest.raises(TypeError, match="key"):
        client.map(inc, [1, 2], key=["fine", key])
    with pytest.raises(TypeError, match="key"):
        client.map(inc, [1, 2], key=key)
    assert_nothing_left_here(client)


def test_keys_of_get_that_are_none(client):
    with pytest.raises(Exception, match="key") as info:
        client.get({b"x": (inc, 1)}, b"x")
    assert isinstance(info.value, (TypeError, KeyError, ValueError))
    with pytest.raises((KeyError, FutureCancelledError), match="absent"):
        client.get({"x": (inc, 1)}, "absent")


def test_keys_that_are_fine(client):
    for key in ["text", 5, 2.5, ("a", 1), ("a", ("b", 2.0)), "", 0]:
        future = client.submit(inc, 1, key=key)
        assert future.key == key
        assert future.result() == 2
    assert client.gather(client.map(inc, [1, 2], key=[("m", 1), 17])) == [2, 3]
    with pytest.raises(ValueError, match=r"2 keys for 3|keys"):
        client.map(inc, [1, 2, 3], key=["a", "b"])


def test_what_is_not_callable(client):
    for value in (1, None, "inc"):
        with pytest.raises(TypeError, match="callable"):
            client.submit(value, 1)
        with pytest.raises(TypeError, match="callable"):
            client.map(value, [1])


def test_wrong_calls_fail_in_the_task(client):
    with pytest.raises(TypeError, match="inc"):
        client.submit(inc, 1, 2, 3).result()
    with pytest.raises(TypeError, match="inc"):
        client.submit(inc, nothing=1).result()


def test_wrong_arguments_of_the_client(client):
    with pytest.raises(ValueError, match="errors"):
        client.gather([], errors="ignore")
    with pytest.raises(TypeError, match="Iterators"):
        client.map(inc, iter([1]))
    with pytest.raises(TypeError):
        client.gather([client.submit(inc, 1)], errors="raise", nothing=1)
    assert client.gather([1, "two", {"three": 3}]) == [1, "two", {"three": 3}]
    with pytest.raises(TimeoutError, match="did not end within"):
        client.submit(slowinc, 1, 0.3, pure=False).result(timeout=0.01)


# ---- a closed client ----


@pytest.fixture
def closed(cluster):
    """A closed client and its futures: inline, stored, failed and unfinished."""
    client = Client(cluster, set_as_default=False)
    futures = {
        "inline": client.submit(inc, 1, key="inline"),
        "stored": client.submit(blob, key="stored"),
        "failed": client.submit(boom, key="failed"),
    }
    distributed.wait(list(futures.values()))
    futures["unfinished"] = client.submit(slowinc, 1, 0.5, key="unfinished")
    client.close()
    return client, futures


def test_calls_of_a_closed_client(client, closed):
    other, futures = closed
    calls = [
        lambda: other.submit(inc, 1),
        lambda: other.submit(inc, 1, key="inline"),
        lambda: other.map(inc, [1]),
        lambda: other.scatter([1]),
        lambda: other.compute(dask.delayed(inc)(1)),
        lambda: other.compute(dask.delayed(inc)(1), sync=True),
        lambda: other.persist(dask.delayed(inc)(1)),
        lambda: other.get({"x": (inc, 1)}, "x"),
        lambda: other.gather(list(futures.values())),
        lambda: other.gather([]),
        lambda: other.cancel(futures["inline"]),
        lambda: other.retry(futures["failed"]),
        lambda: distributed.fire_and_forget(other.submit(inc, 1)),
    ]
    for number, call in enumerate(calls):
        with pytest.raises(ClosedOwner, match="is closed"):
            call()
            pytest.fail(f"call {number} did not fail")


def test_futures_of_a_closed_client(client, closed):
    """All alike, whatever had become of them: closing freed them."""
    _, futures = closed
    for name, future in futures.items():
        assert future.status == "cancelled", name
        assert future.done()
        assert name in repr(future)
        with pytest.raises(ClosedOwner, match=f"'{name}'.*closed"):
            future.result()
        with pytest.raises(ClosedOwner, match=f"'{name}'.*closed"):
            future.result(timeout=1)
        assert isinstance(future.exception(), ClosedOwner)
        assert future.type is None
        future.release()
    assert issubclass(ClosedOwner, CancelledError)


def test_futures_of_a_closed_client_as_arguments(client, closed):
    _, futures = closed
    with pytest.raises(ClosedOwner, match="'inline'"):
        client.gather(futures["inline"])
    assert client.gather([futures["inline"], client.submit(inc, 1)], errors="skip") == [2]
    with pytest.raises(ClosedOwner, match="'inline'"):
        client.submit(inc, futures["inline"], key="takes-a-closed-one")


def test_closing_twice_and_waiting_while_closing(cluster, client, tmp_path):
    other = Client(cluster, set_as_default=False)
    go = tmp_path / "go"
    future = other.submit(wait_for_file, str(go), key="interrupted")
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            future.result()
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: future._row.waiters)
    other.close()
    other.close()
    thread.join(10)
    assert not thread.is_alive()
    assert isinstance(caught[0], ClosedOwner)
    assert "'interrupted'" in str(caught[0])
    go.touch()
    for address in wait_for_members(client, 2):
        assert client.submit(where, workers=address, pure=False)


# ---- futures in strange places ----


def test_futures_of_another_client(cluster, client):
    with Client(cluster, set_as_default=False) as other:
        theirs = other.submit(inc, 1, key="theirs")
        assert client.gather([client.submit(inc, 2), theirs]) == [3, 2]
        with pytest.raises(NotHere, match="'theirs' belongs to"):
            client.submit(open_box, Box(theirs), key="takes-theirs-inside")
        assert theirs.result() == 2
    with distributed.Client(cluster, set_as_default=False) as stock:
        central = stock.submit(inc, 10, key="central")
        assert client.submit(inc, central, key="takes-central").result() == 12
        assert central.result() == 11


def test_data_that_was_freed_says_so(client):
    """A released future is not read any more."""
    future = client.submit(blob, key="released")
    distributed.wait(future)
    future.release()
    with pytest.raises((FutureCancelledError, LostData), match="released"):
        future.result()


# ---- keys that cannot be sent ----


@pytest.mark.parametrize(
    "key", [2**70, ("part", -(2**80)), "\ud800", ("x", "\udfff", 1)], ids=["int", "in", "str", "s"]
)
def test_a_key_that_no_message_can_carry_is_refused_where_it_is_said(client, key):
    """The message of a task is one of a batch: a bad one must not stop the others."""
    with pytest.raises(TypeError, match="cannot be sent to a worker"):
        client.submit(inc, 1, key=key)
    with pytest.raises(TypeError, match="cannot be sent to a worker"):
        client.map(inc, [1, 2], key=["fine", key])
    with pytest.raises(TypeError, match="cannot be sent to a worker"):
        client.get({key: (inc, 1)}, key)
    with pytest.raises(TypeError, match="cannot be sent to a worker"):
        client.get({key: (inc, 1), "asked": (inc, key)}, "asked")
    with pytest.raises(TypeError, match="cannot be sent to a worker"):
        client.scatter({key: 1})
    assert client.submit(inc, 1, key=("fine", 2**63, "é")).result() == 2


def test_resources_are_numbers_by_name(client):
    with pytest.raises(TypeError, match="resources="):
        client.submit(inc, 1, resources={1: 1})
    with pytest.raises(TypeError, match="resources="):
        client.submit(inc, 1, resources={"GPU": "one"})
    numpy = pytest.importorskip("numpy")
    waits = client.submit(inc, 1, resources={"GPU": numpy.int64(1)}, pure=False)
    assert client.submit(inc, 3, pure=False).result() == 4  # not held up behind it
    assert waits.status == "pending"


# ---- what a message cannot carry as it is ----

NO_UTF8 = "could not read " + os.fsdecode(b"caf\xe9.csv")


def table_of(kind: str) -> Any:
    """A value whose class says its size as `kind`: what pandas or NumPy add up, or nonsense."""
    from dask.sizeof import sizeof

    numpy = pytest.importorskip("numpy")
    says = {
        "int64": lambda _: numpy.int64(160_000),
        "float": lambda _: 1.6e5,
        "nan": lambda _: float("nan"),
        "negative": lambda _: -1,
        "text": lambda _: "large",
        "none": lambda _: None,
    }
    table = type("Table", (), {"columns": numpy.ones(20_000)})
    sizeof.register(table)(says[kind])
    return table()


@pytest.mark.parametrize("kind", ["int64", "float", "nan", "negative"])
def test_any_size_that_a_value_says(client, kind):
    pytest.importorskip("numpy")
    table = client.submit(table_of, kind, pure=False)
    assert type(table.result(timeout=20)).__name__ == "Table"
    length = client.submit(lambda t: len(t.columns), table, pure=False)
    assert length.result(timeout=20) == 20_000


@pytest.mark.parametrize("kind", ["text", "none"])
def test_a_size_that_is_no_number_fails_its_task(client, kind):
    """The worker's own storage compares sizes."""
    pytest.importorskip("numpy")
    with pytest.raises(TypeError, match="not supported between"):
        client.submit(table_of, kind, pure=False).result(timeout=20)


def raise_no_utf8() -> None:
    raise OSError(NO_UTF8)


def test_texts_that_are_no_utf8(client):
    """A file name with surrogate export, in a reason, an error, an argument and a result."""
    waits = client.submit(slowinc, 1, 30, pure=False)
    holder = client.submit(open_box, Box(waits), pure=False)
    client.cancel([waits], msg=NO_UTF8)
    with pytest.raises((FutureCancelledError, CancelledError)):
        waits.result(timeout=20)
    with pytest.raises((FutureCancelledError, CancelledError)):
        holder.result(timeout=20)
    with pytest.raises(OSError) as said:
        client.submit(raise_no_utf8).result(timeout=20)
    assert said.value.args == (NO_UTF8,)
    assert client.submit(lambda x: x + "!", NO_UTF8).result(timeout=20) == NO_UTF8 + "!"
    assert client.submit(inc, 1, workers=["no " + NO_UTF8], pure=False).status == "pending"


# ---- deep values, and values that contain themselves ----


def nested(depth: int) -> list[Any]:
    made: list[Any] = []
    for _ in range(depth):
        made = [made]
    return made


def depth_of(value: Any) -> int:
    depth = 0
    while value:
        value, depth = value[0], depth + 1
    return depth


def in_itself(size: int = 0) -> list[Any]:
    made: list[Any] = [bytes(size)]
    made.append(made)
    return made


def is_in_itself(value: Any) -> bool:
    return value[1] is value


def test_values_as_deep_as_pickle_takes_them_go_everywhere(client):
    one, other = wait_for_members(client, 2)
    assert client.submit(depth_of, nested(300)).result() == 300
    assert client.map(depth_of, [nested(300)])[0].result() == 300
    assert depth_of(client.submit(nested, 300).result()) == 300
    assert client.submit(depth_of, client.scatter(nested(300), direct=True)).result() == 300
    made = client.submit(nested, 300, workers=[one], pure=False)
    assert client.submit(depth_of, made, workers=[other]).result() == 300


@pytest.mark.parametrize("size", [0, 200_000])
def test_values_that_contain_themselves_go_everywhere(client, size):
    one, other = wait_for_members(client, 2)
    assert client.submit(is_in_itself, in_itself(size)).result()
    assert is_in_itself(client.submit(in_itself, size).result())
    assert client.submit(is_in_itself, client.scatter([in_itself(size)])[0]).result()
    made = client.submit(in_itself, size, workers=[one], pure=False)
    assert client.submit(is_in_itself, made, workers=[other]).result()


PENDING = """
import time
from dask_ownership import Client

if __name__ == "__main__":
    client = Client({address!r})
    future = client.submit(time.sleep, 1)
    future.add_done_callback(print)
"""


def test_a_program_that_ends_with_a_callback_pending_is_quiet(cluster, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(PENDING.replace("{address!r}", repr(cluster.scheduler_address)))
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
