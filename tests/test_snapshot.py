"""What a process says of what it owns, borrows and lends, and what happened to it."""

from __future__ import annotations

import asyncio
import json
import pickle
import threading
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import dask
import distributed
import pytest
from distributed import wait
from live import blob, boom, inc, kill, small_cluster, until

from dask_ownership import Client, fire_and_forget, get_client
from dask_ownership.core.owner.rows.history import REMEMBERED
from dask_ownership.errors import ClosedOwner, FutureCancelledError, LostData
from dask_ownership.monitoring.snapshot import FORMER, ObjectSnapshot, Snapshot


@pytest.fixture
def mortal() -> Iterator[Client]:
    """A client of a cluster whose workers may be killed."""
    with small_cluster() as cluster, Client(cluster) as client:
        yield client


class Box:
    def __init__(self, content: Any) -> None:
        self.content = content


def hold(box: Any, event: str) -> int:
    distributed.Event(f"{event}, running").set()
    distributed.Event(event).wait(30)
    return 1


def look_inside(box: Any) -> Any:
    client = get_client()
    here = distributed.get_worker().address  # else another may take it over, which is told, too
    child = client.submit(inc, 1, workers=[here])
    child.result()
    key = box.content.key
    return client.ownership(), client.ownership(child), client.ownership(key), client.story(child)


async def look_inside_async(x: int) -> Any:
    client = get_client()
    child = client.submit(inc, x)
    await child
    return await client.ownership()


def fail_until(event: str) -> int:
    if not distributed.Event(event).is_set():
        raise ValueError("not yet")
    return 7


class WellFormed(HTMLParser):
    """Checks that tags nest, and collects the tags and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)
        self.tags.add(tag)
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + " "


# ---- everything ----


def test_a_client_that_did_nothing_owns_nothing(client, workers):
    seen = client.ownership()
    assert isinstance(seen, Snapshot)
    assert seen.name == client.id
    assert not any(seen.objects.values()) and not any(seen.references.values())
    assert seen.inline_nbytes == 0 and not seen.stored_nbytes
    assert not seen.borrowed and not seen.lent and not seen.refused
    assert set(seen.links) == set(workers)
    assert abs(seen.time - time.time()) < 5


def test_objects_and_bytes_by_where_they_are(client, workers):
    small = client.map(inc, range(3))
    large = [client.submit(blob, 100_000, workers=[w], pure=False) for w in workers]
    failed = client.submit(boom)
    wait([*small, *large, failed])
    seen = client.ownership()
    assert seen.objects["inline"] == 3
    assert seen.objects["stored"] == 2
    assert seen.objects["error"] == 1
    assert sum(seen.objects.values()) == 6
    assert 0 < seen.inline_nbytes < 100
    assert set(seen.stored_nbytes) == set(workers)
    assert all(nbytes >= 100_000 for nbytes in seen.stored_nbytes.values())
    assert seen.references["local_refs"] == 6
    assert seen.lineage["kept"] == 2
    assert 0 < seen.lineage["nbytes"] < seen.lineage["max_bytes"]
    assert seen.counts["submitted"] == 6 and seen.counts["failed"] == 1
    del small, large, failed
    assert not any(client.ownership().objects.values())  # at once, before any sweep


def test_what_was_submitted_just_before_is_in_it(client):
    futures = client.map(inc, range(1000), pure=False)
    assert sum(client.ownership().objects.values()) == 1000
    assert client.ownership().counts["submitted"] == 1000
    wait(futures)


def test_tasks_that_run_and_wait(client, workers):
    event = distributed.Event("running", client=client)
    first = client.submit(hold, None, "running", workers=[workers[0]])
    second = client.submit(inc, first)
    until(lambda: client.ownership().links[workers[0]]["connected"])
    seen = client.ownership()
    link = seen.links[workers[0]]
    assert link["pushed"] and link["accepting"] and link["nthreads"] == 1
    assert seen.objects["pushed"] >= 1
    assert seen.references["task_refs"] == 1
    one, two = client.ownership(first), client.ownership(second)
    assert one.state == "pushed" and one.worker == workers[0] and one.attempt > 0
    assert one.function == "hold" and one.kind is None
    assert one.options["workers"] == (workers[0],)
    assert one.dependents == [second.key] and one.task_refs == 1
    assert two.dependencies == [first.key] and two.waiting == 1
    event.set()
    assert second.result(timeout=10) == 2
    assert client.ownership(second).dependencies == []


def test_what_keeps_objects_by_kind(client, workers):
    event = distributed.Event("kinds", client=client)
    forgotten = client.submit(hold, None, "kinds", workers=[workers[0]])
    fire_and_forget(forgotten)
    base = client.submit(blob, 100_000, workers=[workers[1]])
    top = client.submit(bytearray.__add__, base, b"x", workers=[workers[1]])
    wait([base, top])
    until(lambda: client.ownership(forgotten).fire_and_forget)
    seen = client.ownership().references
    assert seen["local_refs"] == 3 and seen["fire_and_forget"] == 1
    assert seen["lineage_refs"] == 1 and seen["pinned"] == 0
    assert client.ownership(base).lineage_refs == 1
    assert client.ownership(base).lineage_of == [top.key]
    key = base.key
    del base
    until(lambda: client.ownership(key).state == "dormant")
    assert client.ownership().objects["dormant"] == 1
    event.set()
    wait(forgotten)


def test_futures_pickled_by_hand_are_pinned(cluster):
    with Client(cluster) as client:
        future = client.submit(inc, 1)
        pickle.dumps(future)
        seen = client.ownership().references
        assert seen["pinned"] == 1 and seen["local_refs"] == 1
        assert client.ownership(future).pinned
        assert "pinned True" in repr(client.ownership(future))


def test_what_is_lent_and_borrowed(client, workers):
    event = distributed.Event("lending", client=client)
    value = client.submit(inc, 1, key="lent-value")
    value.result()
    task = client.submit(hold, Box(value), "lending", workers=[workers[0]])
    until(lambda: client.ownership().lent)
    seen = client.ownership()
    assert seen.lent == {workers[0]: 1}
    assert seen.references["borrowers"] == 1
    assert client.ownership(value).borrowers == [workers[0]]
    assert client.ownership(value).dependents == [task.key]

    def borrowed_there(dask_worker: Any) -> Any:
        from dask_ownership.monitoring.lookup import find, look, present, take

        owner = dask_worker.extensions["dask-ownership"].owner
        row = find(owner, "lent-value")
        return take(owner, 0), row and look(owner, row), row and present(owner, row)

    whole, one, now = client.run(borrowed_there, workers=[workers[0]])[workers[0]]
    assert whole.name == workers[0]
    assert whole.borrowed[client.id]["objects"] == 1
    assert whole.borrowed[client.id]["pending"] == 0
    assert whole.borrowed[client.id]["nbytes"] > 0
    assert not any(whole.objects.values())  # it owns nothing
    assert one.borrowed and one.owner == client.id and one.key == "lent-value"
    assert one.state == "inline"
    assert now[0] == "lent-value" and client.id in now[2]
    assert client.id in repr(whole) and workers[0] in repr(seen)
    event.set()
    wait(task)
    del task
    until(lambda: not client.ownership().lent)


def test_a_task_sees_its_workers_process(client):
    value = client.submit(inc, 5)
    value.result()
    task = client.submit(look_inside, Box(value))
    whole, child, borrowed, story = task.result(timeout=20)
    assert whole.name in client.ownership().links
    assert whole.objects["inline"] == 1
    assert whole.borrowed[client.id]["objects"] == 1
    assert child.state == "inline" and not child.borrowed and child.owner == whole.name
    assert borrowed.borrowed and borrowed.key == value.key and borrowed.owner == client.id
    assert [entry[:2] for entry in story] == [(child.key, "inline")]


def test_a_coroutine_task_awaits_it(client):
    seen = client.submit(look_inside_async, 5).result(timeout=20)
    assert seen.objects["inline"] == 1


def test_any_thread(client):
    future = client.submit(inc, 1)
    future.result()
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(client.ownership(future).state))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["inline"] * 8


def test_while_threads_submit(client):
    def submit() -> None:
        for _ in range(20):
            client.gather(client.map(inc, range(100), pure=False))

    thread = threading.Thread(target=submit)
    thread.start()
    while thread.is_alive():
        seen = client.ownership()
        assert sum(seen.objects.values()) <= 200
        assert seen.references["local_refs"] <= 200
    thread.join()


def test_asynchronous_clients_await_it(cluster):
    async def look() -> None:
        async with Client(cluster.scheduler_address, asynchronous=True) as client:
            future = client.submit(inc, 1)
            assert sum((await client.ownership()).objects.values()) == 1
            await future
            assert (await client.ownership(future)).state == "inline"
            story = await client.story(future)
            assert [entry[1] for entry in story] == ["inline"]
            with pytest.raises(KeyError, match="nothing-like-it"):
                await client.ownership("nothing-like-it")

    asyncio.run(look())


def test_a_closed_client_says_so(cluster):
    with Client(cluster) as client:
        pass
    with pytest.raises(ClosedOwner):
        client.ownership()
    with pytest.raises(ClosedOwner):
        client.story("x")


def test_plain_values(client):
    failed = client.submit(boom, pure=False)
    large = client.submit(blob, 100_000)
    wait([failed, large])
    seen = client.ownership()
    again = json.loads(json.dumps(seen.to_dict()))
    assert again["objects"] == seen.objects and again["links"] == seen.links
    assert pickle.loads(pickle.dumps(seen)) == seen
    one = client.ownership(failed)
    assert isinstance(one, ObjectSnapshot)
    assert one.to_dict()["failure"]["kind"] == "exception"
    assert pickle.loads(pickle.dumps(one)) == one
    changed = seen.to_dict()
    changed["objects"]["stored"] = 99
    assert seen.objects["stored"] == 1


def test_former_names_work_with_a_warning(client):
    future = client.submit(blob, 100_000)
    wait(future)
    seen, one = client.ownership(), client.ownership(future)
    for former, now in FORMER.items():
        with pytest.warns(DeprecationWarning, match=f"'{former}' is '{now}' now") as warned:
            assert getattr(one, former) == getattr(one, now)
        assert warned[0].filename == __file__
    again = pickle.loads(pickle.dumps(seen))
    with pytest.warns(DeprecationWarning, match="'handles' is 'local_refs' now") as warned:
        assert again.references["handles"] == seen.references["local_refs"] == 1
    assert warned[0].filename == __file__
    for unknown in ("holders", "nothing"):
        with pytest.raises(KeyError, match=unknown):
            seen.references[unknown]
    assert not FORMER.keys() & {*seen.references, *one.to_dict()}


def test_a_snapshot_keeps_nothing(client):
    future = client.submit(blob, 100_000)
    wait(future)
    seen, one = client.ownership(), client.ownership(future)
    del future
    until(lambda: not client.owner.core.table.rows)
    assert one.state == "stored" and seen.objects["stored"] == 1


# ---- one object ----


def test_a_stored_value_and_how_it_is_made_again(client, workers):
    a = client.submit(inc, 1, key="a")
    big = client.submit(bytes.__mul__, b"x" * 100_000, a, workers=[workers[0]])
    wait(big)
    seen = client.ownership(big)
    assert client.ownership(big.key).key == seen.key == big.key
    assert seen.state == seen.kind == "stored" and seen.nbytes >= 200_000
    assert seen.locations == [workers[0]]
    assert seen.lineage is not None
    assert seen.lineage["function"] == "__mul__" and seen.lineage["inputs"] == ["a"]
    assert seen.lineage["payload_nbytes"] > 100_000
    assert client.ownership("a").lineage_of == [big.key]
    text = repr(seen)
    assert workers[0] in text and "__mul__" in text and "195.3" in text


def test_failures_name_where_they_come_from(client):
    failed = client.submit(boom, key="failed")
    after = client.submit(inc, failed, key="after")
    last = client.submit(inc, after, key="last")
    wait(last)
    assert client.ownership(failed).failure["key"] == "failed"
    assert client.ownership(last).failure["key"] == "failed"
    assert client.ownership(last).dependencies == ["after"]
    nowhere = client.submit(inc, 1, workers=["no-such-worker"])
    with dask.config.set({"distributed.scheduler.no-workers-timeout": "50ms"}):
        wait(nowhere)
    failure = client.ownership(nowhere).failure
    assert failure["kind"] == "no-worker" and "no-such-worker" in failure["detail"]
    assert client.ownership(nowhere).kind == "failure"


def test_unknown_keys_are_named(client):
    with pytest.raises(KeyError, match=r"'nobody-knows'.*owned nor borrowed"):
        client.ownership("nobody-knows")


def test_futures_of_others_are_unknown(client, cluster):
    with Client(cluster, set_as_default=False) as other:
        future = other.submit(inc, 1, key="of-the-other")
        with pytest.raises(KeyError, match="of-the-other"):
            client.ownership(future)


def test_keys_that_are_no_strings(client):
    future = client.submit(inc, 1, key=("x", 0, 1))
    future.result()
    assert client.ownership(("x", 0, 1)).key == ("x", 0, 1)
    assert client.story(("x", 0, 1))[-1][:2] == (("x", 0, 1), "inline")
    assert "('x', 0, 1)" in repr(client.ownership(future))


# ---- how it looks ----


def test_html_is_well_formed_and_escaped(client):
    evil = "<script>alert('1')</script>&"
    failed = client.submit(boom, key=evil)
    after = client.submit(inc, failed, key="after-" + evil)
    wait([failed, after])
    for seen in (client.ownership(), client.ownership(failed), client.ownership(after)):
        page = WellFormed(seen._repr_html_())
        assert "script" not in page.tags
        assert page.tags <= {"div", "h3", "h4", "p", "table", "tr", "th", "td", "details",
                             "summary"}  # fmt: skip
    assert evil in WellFormed(client.ownership(failed)._repr_html_()).text
    page = WellFormed(client.ownership()._repr_html_())
    assert all(address in page.text for address in client.ownership().links)


def test_text_is_short_however_much_there_is(client):
    futures = client.map(inc, range(200), pure=False)
    everything = client.submit(lambda xs: len(xs), futures, pure=False)
    failing = client.submit(lambda *xs: 1 / 0, *futures)
    wait([everything, failing])
    text = repr(client.ownership(failing))
    assert "... and 180 more" in text
    assert len(client.ownership(failing).dependencies) == 200
    WellFormed(client.ownership(failing)._repr_html_())
    text = repr(client.ownership())
    assert "owned 202" in text and "inline 201" in text and "error 1" in text
    assert max(map(len, text.splitlines())) < 200


# ---- stories ----


def events(client: Client, *what: Any) -> list[str]:
    return [entry[1] for entry in client.story(*what)]


def test_a_task_that_just_runs_has_no_story(client):
    futures = client.map(inc, range(100), pure=False)
    extra = client.submit(blob, 100_000)
    client.gather([*futures, extra])
    before = time.time()
    # One may have been recalled for a worker with nothing to do.
    assert [e for e in client.owner.core.history.events if e[1] != "recalled"] == []
    story = client.story(futures[0])
    key, event, detail, when = story[-1]
    assert (key, event) == (futures[0].key, "inline") and "attempt" in detail
    assert before <= when <= time.time()


def test_a_killed_worker_is_in_the_story(mortal):
    value = mortal.submit(blob, 300_000, pure=False)
    wait(value)
    there, first = mortal.ownership(value).locations[0], mortal.ownership(value).attempt
    kill(mortal, there)
    assert len(value.result(timeout=30)) == 300_000
    story = mortal.story(value)
    assert [entry[0] for entry in story] == [value.key] * len(story)
    names = [entry[1] for entry in story if entry[1] not in ("recalled", "returned")]
    assert names == ["copy-gone", "recovered", "stored"]
    assert there in story[0][2] and "left the cluster" in story[0][2]
    assert [entry[3] for entry in story] == sorted(entry[3] for entry in story)
    assert mortal.ownership(value).history == story[:-1]
    assert "copy-gone" in repr(mortal.ownership(value))
    assert mortal.ownership().lineage["recovered"] == 1
    assert mortal.ownership().handed_out_again["recovered"] == 1
    assert "worker gone" not in repr(mortal.ownership())  # zeros are left out
    assert "recovered 1" in repr(mortal.ownership())
    attempts = [detail.split(":")[0] for _, event, detail, _ in story if event == "recovered"]
    assert attempts == [f"attempt {first}"]
    assert f"attempt {mortal.ownership(value).attempt}, at " in story[-1][2]


def test_tasks_under_a_killed_worker(mortal):
    event = distributed.Event("killed", client=mortal)
    task = mortal.submit(hold, None, "killed")
    assert distributed.Event("killed, running", client=mortal).wait(20)
    there = mortal.ownership(task).worker
    kill(mortal, there)
    until(lambda: "worker-gone" in events(mortal, task), 10)
    assert mortal.ownership(task).options["deaths"] == 1
    event.set()
    assert task.result(timeout=30) == 1
    gone = next(entry for entry in mortal.story(task) if entry[1] == "worker-gone")
    assert there in gone[2] and gone[2].startswith("attempt ")
    assert mortal.ownership().handed_out_again["worker_gone"] == 1
    losses = mortal.ownership().losses
    assert {name: number for name, number in losses.items() if number} == {"workers_died": 1}
    assert "workers died 1" in repr(mortal.ownership())


def test_inputs_that_are_made_again_with_it(mortal):
    base = mortal.submit(blob, 100_000, key="base")
    top = mortal.submit(bytearray.__add__, base, b"x", key="top")
    wait(top)
    del base
    until(lambda: mortal.ownership("base").state == "dormant")
    kill(mortal, mortal.ownership(top).locations[0])
    assert len(top.result(timeout=30)) == 100_001
    recovered = [e for e in mortal.story("base", "top") if e[1] == "recovered"]
    assert [e[0] for e in recovered] == ["top", "base"]
    assert "'top'" in recovered[1][2]


def test_evicted_lineage_is_in_the_story(cluster):
    with dask.config.set({"ownership.lineage.max-bytes": "5 kB"}), Client(cluster) as client:
        values = client.map(blob, [100_000 + i for i in range(20)], pure=False)
        wait(values)
        seen = client.ownership().lineage
        assert seen["evicted"] > 0 and seen["max_bytes"] == 5000 and seen["nbytes"] <= 5000
        evicted = [v for v in values if "evicted" in events(client, v)]
        assert len(evicted) == seen["evicted"]
        assert all(client.ownership(v).lineage is None for v in evicted)


def test_a_scattered_value_that_is_lost(mortal):
    value = mortal.scatter(b"x" * 100_000)
    kill(mortal, mortal.ownership(value).locations[0])
    until(value.done)
    until(lambda: value.status == "lost", 10)
    story = mortal.story(value)
    assert [entry[1] for entry in story][:2] == ["copy-gone", "lost"]
    assert "scattered" in story[1][2]


def test_retries_failures_and_cancels(client):
    event = distributed.Event("retry", client=client)
    task = client.submit(fail_until, "retry", retries=2)
    wait(task)
    assert events(client, task) == ["retried", "retried", "error", "error"]
    assert "1 retries left" in client.story(task)[0][2]
    event.set()
    task.retry()
    assert task.result(timeout=10) == 7
    assert events(client, task) == ["retried", "retried", "error", "retried", "inline"]
    event.clear()
    other = client.submit(hold, None, "retry")
    after = client.submit(inc, other)
    other.cancel(msg="no more of it")
    until(after.cancelled)
    assert events(client, after)[0] == "cancelled"
    assert "no more of it" in client.story(other)[0][2]
    assert repr(other.key) in client.story(after)[0][2]
    event.set()


def test_a_story_outlives_its_object(client):
    failed = client.submit(boom, key="gone-soon")
    wait(failed)
    del failed
    until(lambda: not client.owner.core.table.rows)
    assert events(client, "gone-soon") == ["error"]
    with pytest.raises(KeyError):
        client.ownership("gone-soon")


def test_keys_of_the_scheduler_have_stock_stories(client, cluster):
    owned = client.submit(boom, key="owned-one")
    wait(owned)
    with distributed.Client(cluster, set_as_default=False) as stock:
        central = stock.submit(inc, 1, key="central-one")
        central.result()
        calls = client.ownership().counts["central_calls"]
        story = client.story("owned-one", "central-one")
        assert [entry[:2] for entry in story[:2]] == [("owned-one", "error")] * 2
        assert any("central-one" in entry for entry in story[2:])
        assert client.ownership().counts["central_calls"] > calls
        assert len(story) - 2 == len(stock.story("central-one"))
    calls = client.ownership().counts["central_calls"]
    client.story("owned-one")
    assert client.ownership().counts["central_calls"] == calls  # nobody else was asked


def test_an_unknown_key_has_no_story(client):
    assert client.story("nobody-knows") == []
    with pytest.raises(ValueError, match="on_error"):
        client.story("x", on_error="perhaps")


def test_old_events_are_forgotten(client):
    history = client.owner.core.history.events
    for start in range(0, REMEMBERED + 100, 1000):
        wait(client.map(boom, [str(i) for i in range(start, start + 1000)], pure=False))
    assert len(history) == REMEMBERED


def test_tasks_that_are_tried_again_are_counted(client):
    event = distributed.Event("tried", client=client)
    before = client.ownership().handed_out_again["retried"]
    task = client.submit(fail_until, "tried", retries=2)
    assert isinstance(task.exception(timeout=20), ValueError)
    assert client.ownership().handed_out_again["retried"] - before == 2
    event.set()
    task.retry()
    assert task.result(timeout=20) == 7
    assert client.ownership().handed_out_again["retried"] - before == 3
    details = [entry[2] for entry in client.story(task) if entry[1] == "retried"]
    attempts = [int(detail.removeprefix("attempt ").split(":")[0]) for detail in details]
    assert attempts == sorted(set(attempts)) and attempts[-1] < client.ownership(task).attempt


def test_cancelled_futures_say_whose_they_were_and_where(client, workers):
    event = distributed.Event("cancelled", client=client)
    running = client.submit(hold, None, "cancelled", workers=[workers[0]], key="running")
    after = client.submit(inc, running, key="after")
    stored = client.submit(blob, 100_000, workers=[workers[1]], key="stored")
    wait(stored)
    until(lambda: client.ownership(running).worker)
    client.cancel([running, stored], reason="enough")
    for future, place in ((running, workers[0]), (stored, workers[1])):
        with pytest.raises(FutureCancelledError) as caught:
            future.result(timeout=10)
        assert caught.value.reason == "enough"
        assert f"It was owned by {client.id}, at {place}." in str(caught.value)
        assert client.story(future)[0][2] == f"enough; owned by {client.id}, at {place}"
    with pytest.raises(FutureCancelledError, match=r"'running' was cancelled \(enough\)"):
        after.result(timeout=10)
    event.set()


def test_lost_values_say_whose_they_were_and_what_was_tried(mortal):
    value = mortal.scatter(b"x" * 100_000)
    there = mortal.ownership(value).locations[0]
    kill(mortal, there)
    until(lambda: value.status == "lost", 10)
    with pytest.raises(LostData) as caught:
        value.result()
    for words in (there, "scattered", f"owned by {mortal.id}"):
        assert words in str(caught.value)
