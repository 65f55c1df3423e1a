"""``dask.annotate``, ``dask.config.set`` and context variables, at submit time and inside tasks."""

from __future__ import annotations

import contextvars
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import pytest
from distributed import LocalCluster, Reschedule, get_client, get_worker, span, worker_client
from distributed.worker import thread_state
from live import assert_nothing_left, inc, small_cluster, wait_for_members, where
from programs import Oops, append_line, fails_at_first, lines, wait_for_file

from dask_ownership import Client


@pytest.fixture(scope="module")
def pair() -> Iterator[LocalCluster]:
    with small_cluster(processes=False, threads_per_worker=1) as cluster:
        yield cluster


@pytest.fixture
def owner(pair: LocalCluster) -> Iterator[Client]:
    with Client(pair, set_as_default=False) as client:
        yield client
        assert_nothing_left(client)


def order_of(client: Client, future: Any) -> int:
    return int(client.ownership(future).order)


# ---- annotations ----


def test_options_of_the_call_come_before_annotations_around_it(owner: Client) -> None:
    a, b = wait_for_members(owner, 2)
    value = dask.delayed(where, pure=False)()
    with dask.annotate(workers=a, retries=5, priority=7):
        future = owner.submit(where, workers=b, retries=2, priority=3, pure=False)
        around = owner.submit(where, pure=False)
        graph = owner.compute(value, workers=[b], retries=1, optimize_graph=False)
    assert future.result() == graph.result() == b
    options = [owner.ownership(f).options for f in (future, around, graph)]
    assert [o["workers"] for o in options] == [(b,), (a,), (b,)]
    assert [o["retries"] for o in options] == [2, 5, 1]
    assert order_of(owner, around) < order_of(owner, future)


def test_annotations_of_a_layer_come_first(owner: Client) -> None:
    a, b = wait_for_members(owner, 2)
    with dask.annotate(workers=a, retries=0):
        layer = dask.delayed(where, pure=False)()
    with dask.annotate(workers=b, retries=3):
        other = dask.delayed(where, pure=False)()
        first, second = owner.compute([layer, other], workers=b, optimize_graph=False)
    assert [first.result(), second.result()] == [a, b]


def test_values_for_each_key(owner: Client, tmp_path: Path) -> None:
    """Callables get the key."""
    a, b = wait_for_members(owner, 2)
    mark = str(tmp_path / "mark")
    with dask.annotate(
        workers=lambda key: a if str(key).startswith("a") else b,
        priority=lambda key: {"a2": 5, "b": -1}.get(key, 0),
        retries=lambda key: {"a1": 1}.get(key, 0),
    ):
        futures = [owner.submit(where, key=key, pure=False) for key in ("a1", "a2", "b")]
        delayed = [dask.delayed(where, pure=False)(dask_key_name=f"{k}-graph") for k in "ab"]
        graph = owner.compute(delayed, optimize_graph=False)
        assert owner.submit(fails_at_first, mark, 1, key="a1-").status
    assert owner.gather([*futures, *graph]) == [a, a, b, a, b]
    orders = [order_of(owner, future) for future in futures]
    assert orders[1] < orders[0] < orders[2]
    assert owner.ownership(futures[0]).options["retries"] == 1

    with dask.annotate(retries=lambda key: 2 if key == "one" else 0):
        one, two = (dask.delayed(fails_at_first)(mark + k, dask_key_name=k) for k in ("one", "two"))
        one, two = owner.compute([one, two], optimize_graph=False)
    assert one.result() == 2
    with pytest.raises(Oops):
        two.result()


def test_unknown_annotations_and_bad_ones(owner: Client) -> None:
    with dask.annotate(qux="bar", timeout_of_mine=object()):
        assert owner.submit(inc, 1).result() == 2
        assert dask.delayed(inc)(2).compute(scheduler=owner, optimize_graph=False) == 3
    bad: dict[str, Any] = {"priority": "high", "retries": "2", "resources": "G", "workers": {1: 2}}
    for name, value in bad.items():
        with dask.annotate(**{name: lambda key, value=value: value}):
            with pytest.raises(TypeError, match=name):
                owner.submit(inc, 7)
            with pytest.raises(TypeError, match=name):
                owner.compute(dask.delayed(inc)(8))
    assert owner.submit(inc, 7).result() == 8


def annotated_parent(a: str, b: str) -> list[Any]:
    """What a task submits under annotations of its own, and without."""
    client = get_client()
    found: list[Any] = [dask.get_annotations()]
    with dask.annotate(workers=b, priority=4):
        futures = [client.submit(where, pure=False), *client.map(where, [], pure=False)]
        futures.append(client.compute(dask.delayed(where, pure=False)()))
        found.append(client.gather(futures))
    free = client.submit(where, pure=False)
    found.append(client.owner.core.table.rows[free.key].options.workers)
    free.result()
    return found


async def annotated_coroutine(a: str, b: str) -> list[Any]:
    client = get_client()
    found: list[Any] = [dask.get_annotations()]
    with dask.annotate(workers=b, priority=4):
        found.append(await client.gather([client.submit(where, pure=False) for _ in range(2)]))
    free = client.submit(where, pure=False)
    found.append(client.owner.core.table.rows[free.key].options.workers)
    await free
    return found


@pytest.mark.parametrize("parent", [annotated_parent, annotated_coroutine])
def test_nested_tasks_take_the_annotations_of_their_own_code(owner: Client, parent: Any) -> None:
    """What is said of a task is not inherited by what it submits, as in Dask."""
    a, b = wait_for_members(owner, 2)
    with dask.annotate(workers=a, retries=3, resources={}):
        future = owner.submit(parent, a, b)
    assert future.result() == [{}, [b, b], None]


def spans_inside() -> list[Any]:
    names = [dask.get_annotations().get("span", {}).get("name")]
    with span("inner"):
        future = get_client().submit(lambda: dask.get_annotations()["span"]["name"], pure=False)
    return [*names, future.result()]


async def span_of_coroutine() -> Any:
    return dask.get_annotations()["span"]["name"]


def test_spans_pass_on_to_what_tasks_submit(owner: Client) -> None:
    with span("outer"):
        future = owner.submit(spans_inside)
        coroutine = owner.submit(span_of_coroutine)
        array = da.ones(10, chunks=5).sum().compute(scheduler=owner)
        with dask.annotate(span=lambda key: {"name": ("odd",), "ids": ("x",)}):
            odd = owner.submit(span_of_coroutine, pure=False)
    assert future.result() == [("outer",), ("outer", "inner")]
    assert coroutine.result() == ("outer",) and odd.result() == ("odd",)
    assert array == 10
    assert owner.submit(lambda: dask.get_annotations()).result() == {}


# ---- configuration and context variables ----

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


def read() -> str:
    return variable.get()


def sets_variable() -> tuple[str, str, str]:
    before = variable.get()
    variable.set("by the task")
    child = get_client().submit(inc, 1, pure=False)
    child.result()
    with worker_client() as client:
        client.submit(inc, 2, pure=False).result()
    assert dask.delayed(inc)(5).compute() == 6
    return before, variable.get(), get_client().submit(read, pure=False).result()


async def sets_variable_on_loop() -> tuple[str, str, str]:
    before = variable.get()
    variable.set("by the task")
    await get_client().submit(inc, 1, pure=False)
    return before, variable.get(), await get_client().submit(read, pure=False)


@pytest.mark.parametrize("task", [sets_variable, sets_variable_on_loop])
def test_context_variables_are_a_tasks_own(owner: Client, task: Any) -> None:
    """They live through its waits, and reach neither other tasks nor what it submits."""
    token = variable.set("by the client")
    try:
        for _ in range(3):
            found = owner.submit(task, pure=False).result()
            assert found == ("unset", "by the task", "unset")
    finally:
        variable.reset(token)


def config_inside() -> tuple[Any, Any]:
    with dask.config.set({"some.option": "inside"}):
        child = get_client().submit(dask.config.get, "some.option", None, pure=False)
        here = dask.config.get("some.option")
        delayed = dask.delayed(inc)(1).compute()
        assert delayed == 2
        return here, child.result()


def test_configuration_inside_a_task_is_of_the_whole_process(owner: Client) -> None:
    """As in Dask: these workers are in one process, so the child sees it as well."""
    assert owner.submit(config_inside).result() == ("inside", "inside")
    assert dask.config.get("some.option", None) is None


# ---- what a task asks of its worker ----


def about_itself() -> tuple[Any, ...]:
    worker = get_worker()
    assert thread_state.execution_state["worker"] is worker
    assert thread_state.start_time > 0
    return worker.get_current_task(), thread_state.key


def test_a_task_knows_its_key(owner: Client) -> None:
    future = owner.submit(about_itself)
    assert future.result() == (future.key, future.key)


def elsewhere(path: str, address: str) -> str:
    append_line(path, "run")
    here: str = get_worker().address
    if here != address:
        raise Reschedule()
    return here


def elsewhere_nested(path: str, address: str) -> Any:
    return get_client().submit(elsewhere, path, address, pure=False).result()


@pytest.mark.parametrize("task", [elsewhere, elsewhere_nested])
def test_reschedule(owner: Client, tmp_path: Path, task: Any) -> None:
    """The task runs again, on another worker when one is free; nothing is counted as a try."""
    for number, address in enumerate(wait_for_members(owner, 2)):
        path = str(tmp_path / f"runs-{number}")
        assert owner.submit(task, path, address, pure=False).result(timeout=10) == address
        assert len(lines(path)) <= 2


def test_reschedule_waits_for_the_other_worker(owner: Client, tmp_path: Path) -> None:
    a, b = wait_for_members(owner, 2)
    go, path = tmp_path / "go", str(tmp_path / "runs")
    busy = owner.submit(wait_for_file, str(go), workers=b)
    only = owner.submit(elsewhere, path, a, workers=a)
    assert only.result(timeout=5) == a
    go.touch()
    busy.result()
    with pytest.raises(Exception, match="Reschedule"):
        owner.submit(elsewhere, path, "nowhere", at_most_once=True).result(timeout=5)
