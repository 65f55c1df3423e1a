"""``timeout=`` and ``at_most_once=``: tasks that must not run for too long, or not twice."""

from __future__ import annotations

import asyncio
import os
import pickle
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import LocalCluster, get_client
from live import blob, inc, kill, pid_of, small_cluster, until, wait_for_members
from programs import append_line, lines
from test_cancelling import assert_slots_are_free, deaf, doze, spin, told

from dask_ownership import (
    Client,
    LostData,
    OwnershipError,
    TaskTimeout,
    Uncertain,
    cancelled,
    fire_and_forget,
    wait,
)
from dask_ownership.errors import FutureCancelledError
from dask_ownership.futures.options import taken_by

# ---- tasks ----


def until_cancelled(seconds: float = 20) -> float:
    """How long it ran."""
    start = time.monotonic()
    while not cancelled() and time.monotonic() < start + seconds:
        time.sleep(0.005)
    return time.monotonic() - start


def slow_at_first(path: str, times: int = 1) -> int:
    ran = append_line(path)
    if ran <= times:
        until_cancelled()
    return ran


def waits_for_its_child(path: str) -> Any:
    future = get_client().submit(spin, path, "child", pure=False)
    try:
        return future.result()
    except FutureCancelledError:
        append_line(path, "parent:FutureCancelledError")
        raise


def times_its_child(seconds: float) -> str:
    try:
        get_client().submit(until_cancelled, timeout=seconds, pure=False).result()
    except TaskTimeout as error:
        return f"{error.seconds:g}"
    return "no error"


def with_timeout(x: Any, timeout: Any = None) -> Any:
    return (x, timeout)


def with_keywords(x: Any, **kwargs: Any) -> Any:
    return (x, kwargs)


def with_positional_timeout(x: Any, timeout: Any = None, /) -> Any:
    return (x, timeout)


class Callable:
    """No function, and takes both names itself."""

    __hash__ = None  # type: ignore[assignment]

    def __call__(self, x: Any, *, timeout: Any = None, at_most_once: Any = None) -> Any:
        return (x, timeout, at_most_once)


# ---- a time limit ----


def test_a_task_that_takes_too_long_fails_and_is_told(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "lines"
    future = client.submit(spin, str(path), "it", timeout="300ms", key="slow-one")
    after = client.submit(inc, future)
    with pytest.raises(TaskTimeout, match=r"'slow-one' .* 0\.3 s at tcp://") as info:
        future.result(timeout=10)
    error = info.value
    assert isinstance(error, TimeoutError) and isinstance(error, OwnershipError)
    assert (error.key, error.seconds) == ("slow-one", 0.3)
    assert error.worker in client.scheduler_info(n_workers=-1)["workers"]
    assert future.status == "error"
    with pytest.raises(TaskTimeout, match="'slow-one'"):
        after.result(timeout=10)
    told(path, "it:cancelled")


def test_a_task_that_ends_in_time(client: Client) -> None:
    assert client.submit(inc, 1, timeout=10).result() == 2
    assert client.gather(client.map(inc, range(20), timeout=timedelta(seconds=10))) == list(
        range(1, 21)
    )
    assert_slots_are_free(client)  # and no clock goes on


def test_waiting_for_a_result_is_something_else(client: Client) -> None:
    future = client.submit(until_cancelled, timeout=10, pure=False)
    with pytest.raises(TimeoutError) as info:
        future.result(timeout=0.1)
    assert not isinstance(info.value, TaskTimeout) and not future.done()


def test_a_coroutine_that_takes_too_long(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "lines"
    future = client.submit(doze, str(path), "it", timeout=0.2, pure=False)
    with pytest.raises(TaskTimeout):
        future.result(timeout=10)
    told(path, "it:CancelledError:True")
    assert_slots_are_free(client)


def test_waiting_counts_and_children_are_cancelled(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "lines"
    future = client.submit(waits_for_its_child, str(path), timeout=0.5, pure=False)
    with pytest.raises(TaskTimeout):
        future.result(timeout=10)
    told(path, "child:cancelled")
    told(path, "parent:FutureCancelledError")


def test_a_task_may_limit_its_children(client: Client) -> None:
    assert client.submit(times_its_child, 0.25).result(timeout=10) == "0.25"


def test_each_attempt_has_its_time(client: Client, tmp_path: Path) -> None:
    path = str(tmp_path / "lines")
    future = client.submit(slow_at_first, path, 2, timeout=0.2, retries=2, pure=False)
    assert future.result(timeout=10) == 3
    future = client.submit(until_cancelled, timeout=0.1, retries=1, pure=False)
    with pytest.raises(TaskTimeout):
        future.result(timeout=10)
    assert [e[1] for e in client.story(future)] == ["retried", "error", "error"]


def test_the_time_begins_with_the_slot(client: Client, tmp_path: Path) -> None:
    """What waits in a queue has all of it left."""
    paths = [str(tmp_path / name) for name in ("a", "b")]
    blockers = [client.submit(deaf, path, pure=False) for path in paths]
    for path in paths:
        told(Path(path), "deaf:started")
    timed = client.submit(inc, 1, timeout=0.4, pure=False)
    with pytest.raises(TimeoutError):
        timed.result(timeout=0.6)
    for path in paths:
        Path(path + ".end").touch()
    assert timed.result(timeout=10) == 2
    wait(blockers)


def test_a_slot_stays_taken_after_the_time_is_up(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        future = client.submit(deaf, str(path), timeout=0.2, pure=False)
        with pytest.raises(TaskTimeout):
            future.result(timeout=10)
        behind = client.submit(append_line, str(path), "behind:ran", pure=False)
        with pytest.raises(TimeoutError):
            behind.result(timeout=0.3)
        (tmp_path / "lines.end").touch()
        behind.result(timeout=10)
        assert lines(path) == ["deaf:started", "deaf:ended", "behind:ran"]
        assert_slots_are_free(client)


def test_annotations_are_the_tasks(client: Client) -> None:
    with dask.annotate(timeout="200ms"):
        one = client.submit(until_cancelled, pure=False)
        several = client.map(until_cancelled, [20, 21], pure=False)
        passed = client.submit(with_timeout, 1, timeout=5, pure=False)
        lazy = dask.delayed(until_cancelled)(22)
        longer = client.submit(until_cancelled, 0.4, timeout=10, pure=False)
    for future in (one, *several, client.compute(lazy)):
        with pytest.raises(TaskTimeout):
            future.result(timeout=10)
    assert passed.result() == (1, 5)
    assert longer.result(timeout=10) >= 0.4, "the call's own wins"


def test_a_stream_limits_each_task(client: Client) -> None:
    stream = client.map(until_cancelled, iter([0.0, 20, 0.0]), buffer_size=2, timeout=0.3)
    errors = [future.exception(timeout=10) for future in stream]
    assert [type(error) for error in errors] == [type(None), TaskTimeout, type(None)]


def test_the_error_travels(client: Client) -> None:
    error = pickle.loads(pickle.dumps(TaskTimeout("k", "tcp://h:1", 1.5)))
    assert (error.key, error.worker, error.seconds) == ("k", "tcp://h:1", 1.5)
    assert str(error) == str(TaskTimeout("k", "tcp://h:1", 1.5))
    again = pickle.loads(pickle.dumps(Uncertain("k", "why")))
    assert (again.key, again.detail, str(again)) == ("k", "why", str(Uncertain("k", "why")))


# ---- whose argument it is ----


@pytest.mark.parametrize(
    "function, expected",
    [
        (with_timeout, (1, 5)),
        (with_keywords, (1, {"timeout": 5})),
        (Callable(), (1, 5, None)),
        (partial(with_timeout, timeout=3), (1, 5)),
        (lambda x, timeout: (x, timeout), (1, 5)),
        (with_positional_timeout, (1, None)),
        (inc, 2),
    ],
)
def test_what_the_function_takes_goes_to_the_function(
    client: Client, function: Any, expected: Any
) -> None:
    for _ in range(2):
        assert client.submit(function, 1, timeout=5, pure=False).result() == expected
        assert client.map(function, [1], timeout=5, pure=False)[0].result() == expected


def test_at_most_once_of_a_function_of_that_name(client: Client) -> None:
    assert client.submit(Callable(), 1, at_most_once="mine").result() == (1, None, "mine")
    assert client.submit(with_keywords, 1, at_most_once=1).result() == (1, {"at_most_once": 1})


def test_a_function_whose_signature_cannot_be_read_takes_all(client: Client) -> None:
    with pytest.raises(TypeError, match="keyword"):
        client.submit(time.sleep, 0, timeout=5).result()
    assert client.submit(dict, {}, timeout=5).result() == {"timeout": 5}


def test_a_signature_is_read_once() -> None:
    reads = []

    class Watched:
        @property
        def __signature__(self) -> Any:
            reads.append(1)
            raise AttributeError

        def __call__(self, x: Any) -> Any:
            return x

    function = Watched()
    assert {taken_by(function) for _ in range(5)} == {frozenset()}
    assert len(reads) == 1


@pytest.mark.parametrize(
    "options, error",
    [
        ({"timeout": -1}, ValueError),
        ({"timeout": 0}, ValueError),
        ({"timeout": "soon"}, ValueError),
        ({"timeout": "3 apples"}, ValueError),
        ({"timeout": float("nan")}, ValueError),
        ({"timeout": float("inf")}, ValueError),
        ({"timeout": True}, TypeError),
        ({"timeout": [1]}, TypeError),
        ({"at_most_once": "yes"}, TypeError),
        ({"at_most_once": True, "retries": 1}, ValueError),
    ],
    ids=str,
)
def test_bad_values(client: Client, options: dict[str, Any], error: type[Exception]) -> None:
    names = "|".join(options)
    with pytest.raises(error, match=names):
        client.submit(inc, 1, **options)
    with pytest.raises(error, match=names):
        client.map(inc, [1, 2], **options)
    with pytest.raises(error, match=names):
        client.map(inc, [1, 2], buffer_size=1, **options)
    with dask.annotate(**options), pytest.raises(error, match=names):
        client.submit(inc, 1)
    with dask.annotate(**options), pytest.raises(error, match=names):
        client.compute(dask.delayed(inc)(1))


def test_none_is_no_limit(client: Client) -> None:
    future = client.submit(inc, 1, timeout=None, at_most_once=None)
    assert future.result() == 2
    options = client.ownership(future).options
    assert (options["timeout"], options["at_most_once"]) == (None, False)
    with dask.annotate(at_most_once=True):
        assert client.submit(inc, 1, at_most_once=False, retries=1, pure=False).result() == 2


# ---- at most once ----


@pytest.fixture(scope="module")
def mortal_cluster() -> Iterator[LocalCluster]:
    """Nannies start workers again; each test waits until two are there."""
    with small_cluster() as cluster:
        yield cluster


@pytest.fixture
def mortal(mortal_cluster: LocalCluster) -> Iterator[Client]:
    with Client(mortal_cluster, set_as_default=False) as client:
        until(lambda: len(client.owner.core.placement.workers) == 2, 20, "two workers")
        yield client
        assert client.submit(inc, 1, pure=False).result(timeout=20) == 2


def charge(path: str, name: str, wait_for: str | None = None) -> str:
    """Something that must not happen twice, which takes until the test says so."""
    append_line(path, f"{name}:{os.getpid()}")
    while wait_for is not None and not os.path.exists(wait_for):
        time.sleep(0.01)
    return name


def pay_and_sleep(path: str, name: str) -> str:
    append_line(path, name)
    time.sleep(0.05)
    return name


async def charge_later(path: str, name: str) -> None:
    append_line(path, f"{name}:{os.getpid()}")
    await asyncio.sleep(20)


def submits_a_charge(path: str, address: str) -> str:
    future = get_client().submit(
        charge, path, "child", path + ".never", workers=address, at_most_once=True, pure=False
    )
    try:
        return str(future.result())
    except Uncertain as error:
        return str(error)


@pytest.mark.parametrize("how", ["thread", "coroutine", "annotated"])
def test_what_may_have_started_is_not_run_again(mortal: Client, tmp_path: Path, how: str) -> None:
    path = tmp_path / "lines"
    end = tmp_path / "end"
    if how == "thread":
        future = mortal.submit(charge, str(path), "it", str(end), at_most_once=True, key=how)
    elif how == "coroutine":
        future = mortal.submit(charge_later, str(path), "it", at_most_once=True, key=how)
    else:
        with dask.annotate(at_most_once=True):
            lazy = dask.delayed(charge)(str(path), "it", str(end), dask_key_name=how)
            future = mortal.compute(lazy)
    after = mortal.submit(str, future, pure=False)
    (line,) = until(lambda: lines(path))
    address = future._row.worker.address
    assert pid_of(mortal, address) == int(line.partition(":")[2])
    kill(mortal, address)
    with pytest.raises(Uncertain, match=f"'{how}'") as info:
        future.result(timeout=20)
    assert isinstance(info.value, OwnershipError) and info.value.key == how
    for part in (address, "at most once", "client.retry"):
        assert part in str(info.value)
    with pytest.raises(Uncertain, match=f"'{how}'"):
        after.result(timeout=10)
    assert future.status == "error"
    assert [e[1] for e in mortal.story(future)] == ["error", "error"]
    # By the user's hand it runs again.
    assert lines(path) == [line]
    if how != "coroutine":
        end.touch()
        mortal.retry([future])
        assert future.result(timeout=20) == "it"
        assert len(lines(path)) == 2


def test_many_of_them_while_a_worker_dies(mortal: Client, tmp_path: Path) -> None:
    """Each runs once, but for those that were running then; plain ones beside them all end."""
    path = tmp_path / "lines"
    names = [f"t{i}" for i in range(40)]
    once = mortal.map(pay_and_sleep, [str(path)] * 40, names, at_most_once=True, pure=False)
    plain = mortal.map(inc, range(200), pure=False)
    until(lambda: len(lines(path)) > 8)
    kill(mortal, wait_for_members(mortal, 2)[0])
    wait(once, timeout=30)
    outcomes = [future.exception() for future in once]
    uncertain = [n for n, error in zip(names, outcomes, strict=True) if error is not None]
    assert len(uncertain) <= 1, "no more than it had slots"
    assert all(isinstance(error, Uncertain) for error in outcomes if error is not None)
    ran = Counter(lines(path))
    assert all(ran[name] == 1 for name in names if name not in uncertain)
    assert all(ran[name] <= 1 for name in uncertain)
    assert mortal.gather(plain) == list(range(1, 201))


def test_what_waits_for_its_slot_is_run_elsewhere(mortal: Client, tmp_path: Path) -> None:
    path = tmp_path / "lines"
    end = tmp_path / "end"
    blockers = [mortal.submit(charge, str(path), f"b{i}", str(end), pure=False) for i in range(2)]
    until(lambda: len(lines(path)) == 2)
    once = mortal.submit(charge, str(path), "once", at_most_once=True, pure=False)
    kill(mortal, blockers[0]._row.worker.address)
    end.touch()
    assert once.result(timeout=20) == "once"
    assert [line.partition(":")[0] for line in lines(path)].count("once") == 1


def test_a_large_value_that_is_lost_is_not_made_again(mortal: Client) -> None:
    victim = wait_for_members(mortal, 2)[0]
    value = mortal.submit(blob, workers=victim, at_most_once=True, key="paid", pure=False)
    wait(value)
    kill(mortal, victim)
    until(lambda: value.status == "lost", 20)
    with pytest.raises(LostData, match=r"'paid'.*at most once"):
        value.result(timeout=10)


def test_a_child_that_must_not_run_twice(mortal: Client, tmp_path: Path) -> None:
    path = tmp_path / "lines"
    here, there = wait_for_members(mortal, 2)
    parent = mortal.submit(submits_a_charge, str(path), there, workers=here, pure=False)
    until(lambda: lines(path), 10)
    kill(mortal, there)
    assert "nobody knows whether 'charge-" in parent.result(timeout=20)
    assert len(lines(path)) == 1


def test_a_worker_that_takes_no_tasks_makes_nothing_uncertain(
    mortal: Client, tmp_path: Path
) -> None:
    """A link that is refused before anything was sent over it."""
    path = tmp_path / "lines"
    first = wait_for_members(mortal, 2)[0]
    with Client(mortal.scheduler.address, set_as_default=False) as client:
        wait_for_members(client, 2)
        client.run(refuse_links, True, workers=[first])
        once = client.map(
            pay_and_sleep, [str(path)] * 6, [f"t{i}" for i in range(6)], at_most_once=True
        )
        assert len(set(client.gather(once))) == 6
        assert list(client.owner.core.refusals) == [first]
        client.run(refuse_links, False, workers=[first])
    assert sorted(lines(path)) == [f"t{i}" for i in range(6)]


def refuse_links(yes: bool, dask_worker: Any) -> None:
    server = dask_worker.extensions["dask-ownership"].server
    if yes:
        server._refuse = lambda *greeting: "the test refuses it"
    else:
        del server._refuse


def test_both_limits_and_fire_and_forget(mortal: Client, tmp_path: Path) -> None:
    path = tmp_path / "lines"
    future = mortal.submit(spin, str(path), "it", timeout=0.2, at_most_once=True, pure=False)
    with pytest.raises(TaskTimeout):
        future.result(timeout=10)
    told(path, "it:cancelled")
    fire_and_forget(mortal.submit(append_line, str(path), "fired", at_most_once=True, pure=False))
    told(path, "fired")
