"""Owned tasks on the pages of Dask's own dashboard."""

from __future__ import annotations

import time
from typing import Any

import distributed
import pytest
from live import blob, boom, inc, slowinc, until
from test_activity import activity
from test_task_stream import SlowToMove, quiet, size_of  # noqa: F401  (a fixture)

from dask_ownership import Client, wait
from dask_ownership.monitoring import task_stream


def prefix(name: str, dask_scheduler: Any = None) -> dict[str, Any] | None:
    """What the scheduler has under the name of a task."""
    found = dask_scheduler.task_prefixes.get(name)
    if found is None:
        return None
    groups = {group.name: dict(group.states) for group in found.groups}
    return {
        "states": {state: n for state, n in found.states.items() if n},
        "groups": {name: {s: n for s, n in states.items() if n} for name, states in groups.items()},
        "size": len(found),
        "compute": found.all_durations["compute"],
    }


def times(name: str, dask_scheduler: Any = None) -> dict[str, float]:
    """Seconds by action, as the scheduler has them under the name of a task."""
    found = dask_scheduler.task_prefixes.get(name)
    return {} if found is None else dict(found.all_durations)


def validate(dask_scheduler: Any) -> None:
    dask_scheduler.validate_state()


def test_progress_counts_owned_tasks(client: Client) -> None:
    activity(client)
    # A name of its own: what other tests computed on this cluster under a name stays, too.
    futures = client.map(slowinc, range(20), delay=0.08, key="counted")
    bad = client.submit(boom)

    def shown(name: str) -> Any:
        activity(client, history=False)
        return client.run_on_scheduler(prefix, name)

    seen = until(lambda: (p := shown("counted")) and "processing" in p["states"] and p)
    assert sum(seen["states"].values()) == 20 == seen["size"]
    assert seen["groups"] == {"counted (owned)": seen["states"]}
    wait([*futures, bad])
    until(lambda: shown("counted")["states"] == {"memory": 20})
    assert 1.6 <= shown("counted")["compute"] < 8
    assert shown("boom")["states"] == {"erred": 1}
    client.run_on_scheduler(validate)
    del futures, bad
    until(lambda: shown("counted")["states"] == {})
    assert shown("counted")["size"] == 0
    assert shown("counted")["compute"] >= 1.6  # what was computed stays


def test_groups_of_the_scheduler_of_the_same_name_are_not_harmed(client: Client) -> None:
    activity(client)
    with distributed.Client(client.scheduler.address, set_as_default=False) as stock:
        mine = client.map(inc, range(7))
        theirs = stock.map(inc, range(5))
        wait(mine)
        distributed.wait(theirs)

        def states() -> Any:
            activity(client)
            return client.run_on_scheduler(prefix, "inc")["states"]

        until(lambda: states() == {"memory": 12})
        client.run_on_scheduler(validate)
        del theirs
        until(lambda: states() == {"memory": 7})
        client.run_on_scheduler(validate)
        del mine
        until(lambda: states() == {})
        client.run_on_scheduler(validate)


def test_nothing_is_shown_that_nobody_keeps_up_to_date(client: Client) -> None:
    activity(client)
    future = client.submit(inc, 1)
    wait(future)
    until(lambda: activity(client) and client.run_on_scheduler(prefix, "inc")["states"])

    def forget(dask_scheduler: Any) -> None:
        dask_scheduler.extensions["dask-ownership"].feed.watchers.until = 0.0

    def group(dask_scheduler: Any) -> bool:
        return "inc (owned)" in dask_scheduler.task_groups

    client.run_on_scheduler(forget)
    until(lambda: not client.run_on_scheduler(group))
    assert client.run_on_scheduler(prefix, "inc")["states"] == {}


def test_exceptions(client: Client) -> None:
    bad = client.submit(boom, "seen on the page", key="boom-on-page")
    wait(bad)

    def erred(dask_scheduler: Any) -> Any:
        return [
            (task.exception_text, task.traceback_text, set(task.erred_on))
            for task in dask_scheduler.erred_tasks
            if task.key == "boom-on-page"
        ]

    # It failed before anybody looked, and is told once.
    (found,) = until(lambda: activity(client) and client.run_on_scheduler(erred))
    assert found[0] == "ZeroDivisionError('seen on the page')"
    assert "raise ZeroDivisionError(text)" in found[1]
    assert found[1].count("File ") == 1
    assert len(found[2]) == 1
    activity(client)
    assert len(client.run_on_scheduler(erred)) == 1


def test_the_task_stream_has_transfers(client: Client, workers: Any) -> None:
    with distributed.get_task_stream() as stream:
        there = client.submit(blob, 300_000, workers=workers[0], pure=False)
        size = client.submit(len, there, workers=workers[1])
        assert size.result() == 300_000
    (record,) = [record for record in stream.data if record["key"] == size.key]
    transfer, *_, compute = record["startstops"]
    assert transfer["action"] == "transfer" and compute["action"] == "compute"
    assert transfer["source"] == workers[0]
    assert transfer["start"] < transfer["stop"] <= compute["start"] + 0.1


def test_times_are_told_by_action(client: Client, workers: Any) -> None:
    activity(client)

    def until_told(name: str) -> dict[str, float]:
        def told() -> Any:
            activity(client, history=False)
            return client.run_on_scheduler(times, name)

        found: dict[str, float] = until(told)
        return found

    there = client.submit(blob, 300_000, workers=workers[0], pure=False)
    wait(client.submit(len, there, workers=workers[1], key="reads"))
    assert until_told("reads").keys() >= {"transfer", "compute"}
    wait(client.submit(size_of, SlowToMove(1000), key="unpickles"))
    assert 0.05 < until_told("unpickles")["deserialize"] < 1


@pytest.mark.usefixtures("quiet")
def test_pages_alone_get_a_sample_of_the_task_stream(client: Client) -> None:
    def open_page(dask_scheduler: Any) -> None:
        dask_scheduler._task_stream_plugin()

    def shown(dask_scheduler: Any) -> int:
        return int(dask_scheduler.plugins["task-stream"].index)

    def noting(dask_worker: Any) -> bool:
        notes = dask_worker.extensions["dask-ownership"].notes
        return bool(notes.noting and notes._gap)

    client.run_on_scheduler(open_page)
    until(lambda: all(client.run(noting).values()))
    activity(client)
    before = (client.run_on_scheduler(prefix, "inc") or {"compute": 0.0})["compute"]
    began = time.time()
    client.gather(client.map(inc, range(4000)))
    time.sleep(1.1)
    activity(client)
    assert 100 < client.run_on_scheduler(shown) <= task_stream.SHOWN * (time.time() - began + 2)
    assert client.run_on_scheduler(prefix, "inc")["compute"] > before


def test_metrics(client: Client) -> None:
    pytest.importorskip("prometheus_client")
    from urllib.request import urlopen

    futures = client.map(inc, range(30))
    wait(futures)
    link = client.dashboard_link.replace("/status", "/metrics")

    def metrics() -> dict[str, float]:
        with urlopen(link) as answer:
            lines = answer.read().decode().splitlines()
        return {
            line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
            for line in lines
            if line.startswith("dask_ownership_")
        }

    def right() -> Any:
        found = metrics()
        return found.get('dask_ownership_objects{state="inline"}') == 30.0 and found

    found = until(right)
    assert found["dask_ownership_owners"] >= 1
    assert found["dask_ownership_tasks_done_total"] >= 30
    assert found['dask_ownership_reexecutions_total{reason="worker-gone"}'] == 0.0
    assert found['dask_ownership_losses_total{kind="killed-worker"}'] >= 0.0
    assert found["dask_ownership_owner_bytes_from_workers_total"] > 0.0
