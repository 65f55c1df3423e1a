"""Futures: outcome, state, callbacks, cancelling, retrying."""

from __future__ import annotations

import copy
import gc
import pickle
import queue
import threading
import time
import traceback
from pathlib import Path

import distributed
import numpy as np
import pytest
from distributed import CancelledError
from live import until, until_there
from programs import (
    Box,
    Oops,
    Twofold,
    fails_at_first,
    inc,
    lines,
    ones,
    oops,
    same,
    sleep,
    slowly,
    total,
    twofold,
    wait_for_file,
)

from dask_ownership import Client, Future, wait


def test_outcome_of_a_value(client: Client) -> None:
    future = client.submit(inc, 1)
    assert future.result() == 2
    assert future.exception() is None
    assert future.traceback() is None
    assert future.done() and not future.cancelled()
    assert future.status == "finished"
    assert future.type is int


def test_outcome_of_a_stored_value(client: Client) -> None:
    future = client.submit(ones, 100_000)
    assert (future.result() == 1).all()
    assert future.type is np.ndarray
    assert future.status == "finished"


def test_status_pending(client: Client, tmp_path: Path) -> None:
    go = tmp_path / "go"
    future = client.submit(wait_for_file, str(go))
    assert future.status == "pending" and not future.done()
    assert future.type is None
    assert "pending" in repr(future)
    go.touch()
    future.result()
    assert future.status == "finished"


def test_outcome_of_an_error(client: Client) -> None:
    future = client.submit(oops)
    error = future.exception()
    assert isinstance(error, Oops)
    assert future.status == "error"
    frames = traceback.extract_tb(future.traceback())
    assert frames[-1].name == "oops"
    assert "raise Oops" in (frames[-1].line or "")
    with pytest.raises(Oops) as caught:
        future.result()
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "oops"
    assert "error" in repr(future)


def test_error_can_be_asked_twice(client: Client) -> None:
    future = client.submit(oops)
    for _ in range(2):
        with pytest.raises(Oops, match="it broke"):
            future.result()


def test_errors_are_let_go_without_the_collector(client: Client) -> None:
    """What was told of an error holds no frames, and through them no futures."""
    gc.collect()
    gc.disable()
    try:
        for ask in ("result", "exception", "traceback"):
            try:
                getattr(client.submit(oops, ask), ask)()
            except Oops:
                pass
        try:
            client.gather([client.submit(oops)])
        except Oops:
            pass
        deadline = time.time() + 2
        while client.owner.core.table.rows and time.time() < deadline:
            time.sleep(0.01)
        assert not client.owner.core.table.rows
    finally:
        gc.enable()


def test_error_with_attributes(client: Client) -> None:
    error = client.submit(twofold).exception()
    assert isinstance(error, Twofold) and error.code == 7


def test_result_with_timeout(client: Client) -> None:
    future = client.submit(sleep, 0.3)
    start = time.time()
    with pytest.raises(TimeoutError):
        future.result(timeout=0.05)
    with pytest.raises(distributed.TimeoutError):
        future.result(timeout="50ms")
    with pytest.raises(TimeoutError):
        future.exception(timeout=0.05)
    assert time.time() - start < 0.3
    assert future.result() is None


def test_repr_and_str(client: Client) -> None:
    future = client.submit(inc, 1, key="my-key")
    future.result()
    assert repr(future) == "<Future: finished, type: int, key: my-key>"
    assert str(future) == repr(future)
    assert "Future" in future._repr_html_()


def test_is_hashable_and_compares(client: Client) -> None:
    a = client.submit(inc, 1)
    b = client.submit(inc, 1)
    assert a.key == b.key
    assert {a: 1}[a] == 1
    assert a == a


def test_copies_are_local_references(client: Client) -> None:
    future = client.submit(ones, 100_000)
    future.result()
    other = copy.copy(future)
    third = pickle.loads(pickle.dumps(future))
    assert isinstance(third, Future) and third.key == future.key
    future.release()
    assert other.result().sum() == third.result().sum() == 100_000
    third.cancel()  # a pickle made by hand keeps it for good


def test_done_callback(client: Client) -> None:
    seen: queue.Queue[tuple[str, str]] = queue.Queue()
    future = client.submit(slowly, 1)
    future.add_done_callback(lambda f: seen.put((f.status, threading.current_thread().name)))
    status, _ = seen.get(timeout=5)
    assert status == "finished"
    future.add_done_callback(lambda f: seen.put((f.status, "late")))
    assert seen.get(timeout=5) == ("finished", "late")


def test_done_callback_of_an_error_and_a_cancelled_one(client: Client) -> None:
    seen: queue.Queue[str] = queue.Queue()
    bad = client.submit(oops)
    bad.add_done_callback(lambda f: seen.put(f.status))
    assert seen.get(timeout=5) == "error"
    gone = client.submit(sleep, 0.5, pure=False)
    gone.add_done_callback(lambda f: seen.put(f.status))
    gone.cancel()
    assert seen.get(timeout=5) == "cancelled"


def test_release(client: Client) -> None:
    future = client.submit(inc, 1)
    future.result()
    future.release()
    future.release()
    assert future.status == "cancelled"
    with pytest.raises(CancelledError):
        future.result()
    with pytest.raises(CancelledError):
        client.gather([future])
    assert client.gather([future], errors="skip") == []


def test_release_ends_those_who_wait(client: Client) -> None:
    future = client.submit(sleep, 0.5, pure=False)
    caught: list[BaseException] = []

    def ask() -> None:
        try:
            future.result()
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    until(lambda: future._row.waiters)
    future.release()
    thread.join(5)
    assert isinstance(caught[0], CancelledError)


def test_released_value_leaves_the_workers(client: Client) -> None:
    future = client.submit(ones, 100_000)
    after = client.submit(same, future)
    wait([after])
    del future, after
    gc.collect()  # the check after each test says whether it went


def test_argument_stays_while_it_is_needed(client: Client, tmp_path: Path) -> None:
    go = tmp_path / "go"
    gate = client.submit(wait_for_file, str(go))
    x = client.submit(ones, 100_000)
    y = client.submit(lambda a, _: float(a.sum()), x, gate)
    row = x._row
    del x, gate
    until(lambda: row.local_refs == 0)
    go.touch()
    assert y.result() == 100_000


def test_cancel(client: Client, tmp_path: Path) -> None:
    go = tmp_path / "go"
    running = [client.submit(wait_for_file, str(go), pure=False) for _ in range(2)]
    future = client.submit(sleep, 0.01, pure=False)
    after = client.submit(inc, future)
    future.cancel()
    assert future.status == "cancelled" and future.cancelled() and future.done()
    assert after.status == "cancelled"
    with pytest.raises(CancelledError):
        future.result()
    with pytest.raises(CancelledError):
        after.result(timeout=1)
    assert future.exception() is None and future.traceback() is None, "as in Dask"
    assert [f.status for f in running] == ["pending", "pending"]
    go.touch()
    client.gather(running)


def test_cancelled_before_it_ran_does_not_run(
    client: Client, workers: list[str], tmp_path: Path
) -> None:
    go, mark = tmp_path / "go", tmp_path / "mark"
    running = [client.submit(wait_for_file, str(go), workers=w, pure=False) for w in workers]
    until_there(client, "running", *running)
    futures = [client.submit(fails_at_first, str(mark), 0, pure=False) for _ in range(20)]
    client.cancel(futures)
    assert {f.status for f in futures} == {"cancelled"}
    go.touch()
    client.gather(running)
    assert client.submit(inc, 1).result() == 2
    assert lines(mark) == []


def test_cancel_a_running_task(client: Client, tmp_path: Path) -> None:
    """Nobody waits for the function, which goes on."""
    go = tmp_path / "go"
    future = client.submit(wait_for_file, str(go), pure=False)
    until_there(client, "running", future)
    future.cancel()
    with pytest.raises(CancelledError):
        future.result()
    go.touch()


def test_cancel_says_why(client: Client) -> None:
    future = client.submit(sleep, 0.2, pure=False)
    future.cancel(msg="nobody wants it")
    with pytest.raises(CancelledError, match="nobody wants it"):
        future.result()


def test_key_again_after_cancel(client: Client) -> None:
    future = client.submit(slowly, 3, key="again")
    future.cancel()
    again = client.submit(slowly, 3, key="again")
    assert again.result() == 3
    assert future.status == "cancelled"


def test_cancel_a_finished_one(client: Client) -> None:
    future = client.submit(ones, 100_000)
    future.result()
    future.cancel()
    assert future.cancelled()
    with pytest.raises(CancelledError):
        future.result()


def test_retry(client: Client, tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")
    future = client.submit(fails_at_first, mark)
    after = client.submit(inc, future)
    with pytest.raises(Oops, match="attempt 1"):
        after.result()
    after.retry()
    assert after.result() == 3
    assert future.result() == 2
    assert after.status == "finished"


def test_retrying_the_first_that_failed_runs_what_failed_with_it(
    client: Client, tmp_path: Path
) -> None:
    first, second = (
        client.submit(fails_at_first, str(tmp_path / name), pure=False) for name in ("a", "b")
    )
    chain = [first]
    for _ in range(3):
        chain.append(client.submit(inc, chain[-1], pure=False))
    both = client.submit(total, first, second, pure=False)
    rest = [*chain, second, both]
    wait(rest)
    assert {f.status for f in rest} == {"error"}
    first.retry()
    assert client.gather(chain) == [2, 3, 4, 5]
    late = client.submit(inc, chain[-1], pure=False)
    assert late.result() == 6
    assert both.exception() is not None
    client.retry([second])
    assert both.result() == 4


def test_retry_of_what_did_not_fail(client: Client) -> None:
    future = client.submit(inc, 1)
    future.result()
    future.retry()
    assert future.result() == 2


def test_client_retry(client: Client, tmp_path: Path) -> None:
    futures = [client.submit(fails_at_first, str(tmp_path / f"mark-{i}")) for i in range(3)]
    wait(futures)
    assert {f.status for f in futures} == {"error"}
    client.retry(futures)
    assert client.gather(futures) == [2, 2, 2]


def test_future_hidden_in_an_object_comes_home(client: Client) -> None:
    x = client.submit(slowly, 1)
    box = client.submit(same, Box(x)).result()
    assert isinstance(box.content, Future)
    assert box.content.result() == 1


def test_result_on_the_event_loop(client: Client, tmp_path: Path) -> None:
    """Blocking the loop would wait for ever: an error instead."""
    go = tmp_path / "go"
    future = client.submit(wait_for_file, str(go))

    async def block() -> None:
        assert client.owner is not None
        client.owner.wait([future._row])

    with pytest.raises(RuntimeError, match="await"):
        client.sync(block)
    go.touch()
    future.result()


def test_threads_share_a_future(client: Client) -> None:
    future = client.submit(slowly, 5)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(future.result())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [5] * 8


def test_threads_submit(client: Client) -> None:
    found: list[int] = []

    def work(start: int) -> None:
        futures = [client.submit(inc, start + i) for i in range(100)]
        found.append(sum(client.gather(futures)))

    threads = [threading.Thread(target=work, args=(50 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [sum(range(50 * i + 1, 50 * i + 101)) for i in range(4)]
