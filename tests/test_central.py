"""What is not owned: it works through the scheduler, or says that it does not."""

from __future__ import annotations

from pathlib import Path

import distributed
import pytest
from distributed import Event, Lock, Queue, Semaphore, Variable
from programs import Counter, inc, lines, set_event, slowly, under_lock, wait_event

from dask_ownership import Client, Future, NotHere, wait


def test_actor(client: Client) -> None:
    before = client.central_calls
    counter = client.submit(Counter, actor=True).result()
    assert counter.increment().result() == 1
    assert counter.increment().result() == 2
    assert client.central_calls > before
    assert client.submit(inc, 1).result() == 2


def test_actors_by_map(client: Client) -> None:
    counters = client.gather(client.map(lambda _: Counter(), range(2), actors=True))
    assert [c.increment().result() for c in counters] == [1, 1]
    assert client.central_calls >= 1


def test_queue_with_values(client: Client) -> None:
    queue = Queue("values", client=client)
    queue.put(1)
    queue.put((2, {"a": 3}))
    assert queue.get(timeout=5) == 1
    assert queue.get(timeout=5) == (2, {"a": 3})
    queue.close()


def test_queue_with_an_owned_future(client: Client) -> None:
    queue = Queue("futures", client=client)
    x = client.submit(inc, 1)
    queue.put(x)
    back = queue.get(timeout=5)
    assert isinstance(back, Future) and back.key == x.key
    assert back.result() == 2
    queue.put(x)
    assert [future.result() for future in queue.get(batch=True, timeout=5)] == [2]
    queue.close()
    x.cancel()  # what is put somewhere is kept


def test_variable(client: Client) -> None:
    variable = Variable("variable", client=client)
    variable.set({"a": 1})
    assert variable.get(timeout=5) == {"a": 1}
    variable.set(client.submit(inc, 1))
    back = variable.get(timeout=5)
    assert back.result() == 2
    variable.delete()
    back.cancel()


def test_published_dataset_of_owned_futures(client: Client) -> None:
    x = client.submit(inc, 1)
    client.publish_dataset(x, name="mine")
    client.publish_dataset(ours=[x])
    assert client.get_dataset("mine").result() == 2
    assert client.get_dataset("ours")[0].result() == 2
    client.publish_dataset(plain=[1, 2])
    assert client.get_dataset("plain") == [1, 2]
    for name in ("mine", "ours", "plain"):
        client.unpublish_dataset(name)
    x.cancel()


def test_counter_of_central_calls(client: Client) -> None:
    wait(client.map(inc, range(10)))
    client.gather(client.scatter([1, 2]))
    client.get({"x": (inc, 1)}, "x")
    assert client.central_calls == 0
    Variable("counted", client=client).set(1)
    assert client.central_calls == 1
    Variable("counted", client=client).delete()


def test_lock_inside_tasks(client: Client, tmp_path: Path) -> None:
    path = str(tmp_path / "mark")
    futures = [client.submit(under_lock, "a-lock", path, pure=False) for _ in range(6)]
    assert sorted(client.gather(futures)) == [1, 2, 3, 4, 5, 6]
    assert len(lines(path)) == 6


def test_lock_between_client_and_task(client: Client, tmp_path: Path) -> None:
    with Lock("b-lock"):
        future = client.submit(under_lock, "b-lock", str(tmp_path / "mark"), pure=False)
        with pytest.raises(TimeoutError):
            future.result(timeout=0.1)
    assert future.result() == 1


def test_event_between_tasks(client: Client, workers: list[str]) -> None:
    waiting = client.submit(wait_event, "an-event", workers=workers[0], pure=False)
    setting = client.submit(set_event, "an-event", workers=workers[1], pure=False)
    assert client.gather([waiting, setting]) == [True, True]
    Event("an-event", client=client).clear()


def test_semaphore(client: Client) -> None:
    semaphore = Semaphore(max_leases=2, name="a-semaphore")

    def use(i: int, semaphore: Semaphore) -> int:
        with semaphore:
            return i

    assert client.gather(client.map(use, range(6), semaphore=semaphore)) == list(range(6))
    semaphore.close()


def test_events_of_the_cluster(client: Client) -> None:
    def tell() -> None:
        distributed.get_worker().log_event("a-topic", {"x": 1})

    client.submit(tell, pure=False).result()
    import time

    deadline = time.time() + 3
    while not (found := client.get_events("a-topic")) and time.time() < deadline:
        time.sleep(0.05)
    assert found[0][1]["x"] == 1


def test_stock_calls_of_the_client(client: Client, workers: list[str]) -> None:
    """Calls about the cluster go on working while tasks are owned."""
    future = client.submit(slowly, 1)
    assert set(client.ncores()) == set(workers)
    assert isinstance(client.processing(), dict)
    assert client.who_has() == {future.key: ()}
    client.wait_for_workers(2, timeout=5)
    assert client.get_versions(check=False)["client"]
    assert future.result() == 1


def test_stock_futures_of_owned_keys_are_refused(client: Client) -> None:
    x = client.submit(inc, 1)
    x.result()
    with pytest.raises(NotHere, match="owned by this client"):
        distributed.Future(x.key, client)
    assert x.result() == 2
