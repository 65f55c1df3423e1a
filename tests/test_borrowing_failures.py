"""Futures that travel when processes die, values spill, and other things go wrong."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import dask
import distributed
import pytest
from conftest import FAILED, check_nothing_left
from live import (
    blob,
    inc,
    kill,
    pid_of,
    slowinc,
    small_cluster,
    until,
    until_there,
    wait_for_members,
)
from programs import value_after
from test_borrowing import Box, add, give_back, here, length, make

import dask_ownership
from dask_ownership import Client
from dask_ownership.errors import LostData


@pytest.fixture
def client(cluster: Any, request: Any) -> Iterator[Client]:
    """A client; at the end no table of any process has anything left."""
    with Client(cluster) as client:
        yield client
        if request.node.nodeid not in request.config.stash[FAILED]:
            check_nothing_left(client)


def rows_of(client: Client) -> list[str]:
    gc.collect()
    return [repr(row) for row in list(client.owner.core.table.rows.values())]


def pinned_at(dask_worker: Any) -> int:
    return len(dask_worker.extensions["dask-ownership"].owner.core.table.pinned)


# ---- spilled values ----

SPILL = {
    "distributed.worker.memory.target": 0.001,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
}
"""Everything beyond a megabyte goes to disk."""


@pytest.fixture(scope="module")
def small_memory() -> Iterator[Any]:
    with dask.config.set(SPILL), small_cluster(memory_limit="1GB") as cluster:
        yield cluster


@pytest.fixture
def spilling(small_memory: Any, request: Any) -> Iterator[Client]:
    with Client(small_memory) as client:
        yield client
        if request.node.nodeid not in request.config.stash[FAILED]:
            assert set(client.run(pinned_at).values()) == {0}
            check_nothing_left(client)


def box_and_bytes(size: int, inner: int) -> Any:
    future = here().submit(blob, inner, pure=False)
    return Box(future), b"x" * size


def box_beside(box: Box, size: int) -> Any:
    return box, b"x" * size


def length_inside(value: Any) -> int:
    return length(value[0])


def on_disk(dask_worker: Any) -> int:
    return len(dask_worker.data.slow)


def spilled(client: Client) -> int:
    return sum(client.run(on_disk).values())


def test_a_future_inside_a_spilled_value_is_read_by_a_task(spilling):
    outer = spilling.submit(box_and_bytes, 2_000_000, 1_500_000, pure=False)
    distributed.wait(outer)
    until(lambda: spilled(spilling) >= 2)
    time.sleep(0.3)
    for address in wait_for_members(spilling, 2):
        for _ in range(2):
            got = spilling.submit(length_inside, outer, workers=[address], pure=False)
            assert got.result(timeout=10) == 1_500_000


def test_a_future_inside_a_spilled_value_is_read_by_the_client(spilling):
    outer = spilling.submit(box_and_bytes, 2_000_000, 1_500_000, pure=False)
    distributed.wait(outer)
    box, _ = outer.result(timeout=10)
    del outer, _
    assert spilling.submit(length, box, pure=False).result(timeout=10) == 1_500_000
    assert length(box) == 1_500_000


def test_a_future_of_the_client_inside_a_spilled_value(spilling):
    inner = spilling.submit(blob, 1_500_000, key="inner", pure=False)
    outer = spilling.submit(box_beside, Box(inner), 2_000_000, pure=False)
    distributed.wait(outer)
    del inner
    time.sleep(0.3)
    assert "inner" in spilling.owner.core.table.rows
    # Read back by the other worker's request first, then used where it is.
    home = outer._row.locations[0].address
    others = [a for a in wait_for_members(spilling, 2) if a != home]
    for address in [*others, home, *others, home]:
        got = spilling.submit(length_inside, outer, workers=[address], pure=False)
        assert got.result(timeout=10) == 1_500_000
    del outer, got
    until(lambda: not rows_of(spilling))


def test_a_spilled_value_that_was_read_back_for_another_is_still_used_here(spilling):
    """The first to read it back is the handler of the other worker's request."""
    inner = spilling.submit(inc, 1, pure=False)
    homes = wait_for_members(spilling, 2)
    outer = spilling.submit(
        box_beside, Box(inner), 900_000, workers=[homes[0]], key="read-back", pure=False
    )
    distributed.wait(outer)
    filler = spilling.submit(blob, 900_000, workers=[homes[0]], pure=False)
    distributed.wait(filler)
    until(lambda: spilled(spilling))
    assert outer.result(timeout=10)[0].content[0].result(timeout=5) == 2
    got = spilling.submit(add_inside, outer, workers=[homes[0]], pure=False)
    assert got.result(timeout=10) == 2


def add_inside(value: Any) -> int:
    return add(value[0])


def test_spilled_scattered_values_keep_their_futures(spilling):
    inner = spilling.submit(blob, 1_200_000, pure=False)
    (outer,) = spilling.scatter([(Box(inner), b"x" * 2_000_000)])
    del inner
    distributed.wait(outer)
    time.sleep(0.3)
    assert spilling.submit(length_inside, outer, pure=False).result(timeout=10) == 1_200_000


def scatter_inside(box: Box) -> Box:
    """A task's own scatter puts values at its own worker, without pickling them."""
    client = here()
    mine = client.submit(blob, 1_100_000, pure=False)
    return Box(client.scatter([(Box(mine, *box.content), b"x" * 2_000_000)])[0])


def test_a_task_scatters_futures_at_its_own_worker(spilling):
    inner = spilling.submit(blob, 1_300_000, pure=False)
    box = spilling.submit(scatter_inside, Box(inner), pure=False).result(timeout=10)
    del inner
    time.sleep(0.3)
    for address in wait_for_members(spilling, 2):
        got = spilling.submit(length_of_both, box, workers=[address], pure=False)
        assert got.result(timeout=10) == 2_400_000
    value, _ = box.content[0].result(timeout=10)
    assert length(value) == 2_400_000


def length_of_both(box: Box) -> int:
    return length(box.content[0].result()[0])


def test_values_scattered_to_all_workers_keep_their_futures(spilling):
    inner = spilling.submit(blob, 1_200_000, pure=False)
    (outer,) = spilling.scatter([(Box(inner), b"x" * 2_000_000)], broadcast=True)
    del inner
    time.sleep(0.3)
    for address in wait_for_members(spilling, 2):
        got = spilling.submit(length_inside, outer, workers=[address], pure=False)
        assert got.result(timeout=10) == 1_200_000


def test_scattered_values_bring_futures_to_workers_that_are_threads():
    with small_cluster(processes=False) as cluster, Client(cluster) as client:
        inner = client.submit(blob, 200_000, pure=False)
        plain, boxed = client.scatter([b"x" * 100_000, (Box(inner), b"y")], broadcast=True)
        del inner
        time.sleep(0.2)
        for address in wait_for_members(client, 2):
            got = client.submit(length_inside, boxed, workers=[address], pure=False)
            assert got.result(timeout=10) == 200_000
        assert len(plain.result(timeout=10)) == 100_000
        del plain, boxed, got
        until(lambda: not rows_of(client))


# ---- kill -9 of a worker ----


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[Any]:
    with dask.config.set({"ownership.grace": "0.5s"}), small_cluster() as cluster:
        yield cluster


@pytest.fixture
def mortal(own_cluster: Any, request: Any) -> Iterator[Client]:
    """A client of workers that may be killed; nannies start them again."""
    with Client(own_cluster) as client:
        until(lambda: len(client.owner.core.placement.workers) == 2, 20, "two workers")
        yield client
        if request.node.nodeid not in request.config.stash[FAILED]:
            check_nothing_left(client)


def keep_here(box: Box) -> str:
    """Keeps the futures as long as the process lives."""
    worker = distributed.get_worker()
    worker.kept = getattr(worker, "kept", []) + list(box.content)
    return str(worker.address)


def test_a_killed_worker_gives_back_what_it_borrowed(mortal):
    victim, other = wait_for_members(mortal, 2)
    future = mortal.submit(blob, 300_000, workers=[other], key="kept-by-victim", pure=False)
    keeping = mortal.submit(keep_here, Box(future), workers=[victim], pure=False)
    assert keeping.result(timeout=10) == victim
    del future, keeping
    time.sleep(0.5)
    assert "kept-by-victim" in mortal.owner.core.table.rows
    pid = pid_of(mortal, victim)
    os.kill(pid, signal.SIGKILL)
    started = time.monotonic()
    until(lambda: not rows_of(mortal), 4)
    print(f"freed {time.monotonic() - started:.2f} s after the borrower was killed")


def test_the_children_of_a_killed_worker_are_lost_at_the_client(mortal):
    victim, other = wait_for_members(mortal, 2)
    outer = mortal.submit(make_named, 3, [other], workers=[victim], pure=False)
    done = outer.result(timeout=10).content
    distributed.wait(list(done))
    slow = mortal.submit(make_slow, workers=[victim], pure=False).result(timeout=10).content
    needs = mortal.submit(inc, slow[0], pure=False)
    deep = mortal.submit(add, Box(slow[1]), workers=[other], pure=False)
    seen: list[Any] = []
    slow[0].add_done_callback(lambda f: seen.append(f.status))
    kill(mortal, victim)
    started = time.monotonic()
    for future in slow:
        with pytest.raises(LostData, match=rf"(?s)slow-child.*{victim}"):
            future.result(timeout=10)
    print(f"lost {time.monotonic() - started:.2f} s after the owner was killed")
    with pytest.raises(LostData, match="slow-child"):
        needs.result(timeout=10)
    with pytest.raises(LostData, match="slow-child"):
        deep.result(timeout=10)
    assert mortal.gather(list(slow), errors="skip") == []
    until(lambda: seen == ["lost"])
    for future in done:
        assert future.status in ("finished", "lost")
        with pytest.raises(LostData, match=rf"(?s)named-.*{victim}"):
            future.result(timeout=10)
    small = mortal.submit(make, 2, pure=False).result(timeout=20)
    assert [f.result(timeout=10) for f in small.content] == [1, 2]


def make_named(count: int, workers: list[str]) -> Box:
    client = here()
    made = [
        client.submit(blob, 200_000, key=f"named-{i}-{time.time()}", workers=workers)
        for i in range(count)
    ]
    distributed.wait(made)
    return Box(*made)


def make_slow() -> Box:
    client = here()
    # At this worker: what waits for them elsewhere needs a slot there.
    mine = [distributed.get_worker().address]
    return Box(
        *[client.submit(slowinc, 1, 30, key=f"slow-child-{i}", workers=mine) for i in range(2)]
    )


def test_a_value_of_a_killed_owner_that_is_here_already_stays(mortal):
    victim, _ = wait_for_members(mortal, 2)
    box = mortal.submit(make, 2, workers=[victim], pure=False).result(timeout=10)
    assert [future.result(timeout=10) for future in box.content] == [1, 2]
    kill(mortal, victim)
    until(lambda: victim not in mortal.owner.core.placement.workers, 10)
    time.sleep(1)
    assert [future.result(timeout=10) for future in box.content] == [1, 2]
    assert mortal.submit(inc, box.content[1], pure=False).result(timeout=20) == 3


def test_a_worker_is_killed_between_two_clients(mortal, own_cluster):
    """Whatever it passed on arrives by another way."""
    with Client(own_cluster, set_as_default=False) as other:
        until(lambda: len(other.owner.core.placement.workers) == 2, 20)
        futures = [mortal.submit(slowinc, i, 0.05, key=f"relayed-{i}") for i in range(40)]
        boxes = [mortal.submit(give_back, Box(f), pure=False) for f in futures]
        for box in boxes:
            box.result(timeout=10)
        pickled = pickle.dumps(futures)
        theirs = load_at(other, pickled)
        first = next(iter(mortal.owner.core.placement.workers))
        kill(mortal, first)
        more = load_at(other, pickle.dumps(boxes[:0] + futures[:5]))
        outcomes = []
        for future in theirs + more:
            try:
                outcomes.append(future.result(timeout=20))
            except LostData:
                outcomes.append(None)
        assert outcomes == [*range(1, 41), *range(1, 6)]
        del theirs, more, boxes, box, futures, future
        unpin_here(mortal)


def load_at(client: Client, pickled: bytes) -> Any:
    """Unpickle as another process would; both clients are in this one."""
    from dask_ownership.futures import future as module

    known = dict(module.owned_clients)
    try:
        for incarnation, there in known.items():
            if there is not client:
                module.owned_clients.pop(incarnation)
        from dask_ownership.runtime.serialize import arriving

        with arriving(client):
            return pickle.loads(pickled)
    finally:
        module.owned_clients.update(known)


def unpin_here(client: Client) -> None:
    rows = list(client.owner.core.table.pinned)
    client.owner.core.table.pinned.clear()
    for row in rows:
        client.owner.drop(row)


def test_a_task_with_a_future_is_tried_again_after_its_worker_was_killed(mortal, tmp_path):
    victim, other = wait_for_members(mortal, 2)
    go = tmp_path / "go"
    slow = mortal.submit(value_after, str(go), 2, workers=[other], pure=False)
    task = mortal.submit(add, Box(slow), workers=[victim], allow_other_workers=True, pure=False)
    del slow
    until_there(mortal, "parked", task)
    kill(mortal, victim)
    go.touch()
    assert task.result(timeout=20) == 2


def test_a_value_with_futures_is_made_again_when_its_worker_dies(mortal):
    victim, other = wait_for_members(mortal, 2)
    inner = mortal.submit(blob, 200_000, workers=[other], key="inner-of-lost", pure=False)
    distributed.wait(inner)
    outer = mortal.submit(
        box_beside,
        Box(inner),
        200_000,
        workers=[victim],
        allow_other_workers=True,
        pure=False,
    )
    distributed.wait(outer)
    del inner
    time.sleep(0.3)
    assert "inner-of-lost" in mortal.owner.core.table.rows
    kill(mortal, victim)
    box = outer.result(timeout=20)
    del box, outer
    until(lambda: "inner-of-lost" not in mortal.owner.core.table.rows, 5)


def test_a_task_is_cancelled_that_waits_for_its_future(mortal, tmp_path):
    go = tmp_path / "go"
    slow = mortal.submit(value_after, str(go), 2, pure=False)
    task = mortal.submit(add, Box(slow), pure=False)
    until_there(mortal, "parked", task)
    task.cancel()
    go.touch()
    del slow
    until(lambda: not rows_of(mortal), 5)


# ---- another process ----

PROGRAM = """
import os, pickle, sys, time
import distributed
from live import *
from test_borrowing import *
from dask_ownership import Client
client = Client({address!r}, security={security})
def say(*args):
    print(*args, flush=True)
def hear():
    return sys.stdin.readline().strip()
"""


@pytest.fixture
def another(own_cluster: Any) -> Iterator[Any]:
    """Starts processes with a client of their own; nobody survives the test."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, address: str = "", security: str = "None") -> subprocess.Popen[str]:
        program = PROGRAM.format(
            address=address or own_cluster.scheduler_address, security=security
        )
        process = subprocess.Popen(
            [sys.executable, "-c", program + code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def line(process: Any) -> str:
    said = process.stdout.readline().strip()
    if not said:
        raise AssertionError(process.stderr.read())
    return str(said)


def test_another_process_borrows_from_a_file(mortal, another, tmp_path):
    futures = [mortal.submit(inc, 1, pure=False), mortal.submit(blob, 200_000, pure=False)]
    (tmp_path / "futures").write_bytes(pickle.dumps(Box(*futures)))
    process = another(
        f"box = pickle.load(open({str(tmp_path / 'futures')!r}, 'rb'))\n"
        "say(box.content[0].result(timeout=10), len(box.content[1].result(timeout=10)))\n"
        "say(client.submit(add, Box(box.content[0]), pure=False).result(timeout=10))\n"
        "say(client.gather(client.map(inc, [box.content[0]] * 3, pure=False)))\n"
        "hear()\n"
    )
    assert line(process) == "2 200000"
    assert line(process) == "2"
    assert line(process) == "[3, 3, 3]"
    del futures
    assert len(mortal.owner.core.table.rows) == 2
    unpin_here(mortal)
    time.sleep(0.3)
    assert len(mortal.owner.core.table.rows) == 2  # borrowed
    process.communicate("end\n", timeout=20)
    assert process.returncode == 0
    until(lambda: not rows_of(mortal), 3)


@pytest.mark.parametrize("signal_number", [0, signal.SIGKILL])
def test_another_process_that_is_killed_gives_back_what_it_borrowed(
    mortal, another, tmp_path, signal_number
):
    future = mortal.submit(blob, 200_000, pure=False)
    (tmp_path / "future").write_bytes(pickle.dumps(future))
    process = another(
        f"future = pickle.load(open({str(tmp_path / 'future')!r}, 'rb'))\n"
        "say(len(future.result(timeout=10)))\n"
        "hear()\n"
    )
    assert line(process) == "200000"
    del future
    unpin_here(mortal)
    time.sleep(0.3)
    assert len(rows_of(mortal)) == 1
    started = time.monotonic()
    if signal_number:
        process.send_signal(signal_number)
        process.wait(10)
    else:
        process.communicate("end\n", timeout=20)
    until(lambda: not rows_of(mortal), 5)
    print(f"freed after {time.monotonic() - started:.2f} s")


def test_an_owner_process_that_is_killed_loses_what_it_lent(mortal, another, tmp_path):
    path = tmp_path / "future"
    process = another(
        "a = client.submit(slowinc, 1, 2, key='of-the-dead')\n"
        "b = client.submit(blob, 200_000, key='stored-by-the-dead')\n"
        "b.result()\n"
        f"open({str(path)!r}, 'wb').write(pickle.dumps([a, b]))\n"
        "say(client.id)\n"
        "hear()\n"
    )
    owner = line(process)
    slow, stored = pickle.loads(path.read_bytes())
    assert len(stored.result(timeout=10)) == 200_000
    needs = mortal.submit(inc, slow, pure=False)
    process.kill()
    started = time.monotonic()
    with pytest.raises(LostData, match=rf"(?s)of-the-dead.*{owner}"):
        slow.result(timeout=15)
    print(f"lost after {time.monotonic() - started:.2f} s")
    with pytest.raises(LostData, match="of-the-dead"):
        needs.result(timeout=15)
    with pytest.raises(LostData, match=rf"(?s)stored-by-the-dead.*{owner}"):
        stored.result(timeout=15)


def test_another_process_gets_futures_out_of_a_dataset(mortal, another):
    future = mortal.submit(inc, 1, pure=False)
    mortal.publish_dataset(boxed=Box(future))
    process = another("box = client.get_dataset('boxed')\nsay(box.content[0].result(timeout=10))\n")
    assert line(process) == "2"
    process.communicate(timeout=20)
    mortal.unpublish_dataset("boxed")


@pytest.mark.parametrize("kind", ["queue", "variable", "dataset"])
@pytest.mark.parametrize(
    ("shape", "whose"),
    [
        ("bare", "own"),
        ("list", "own"),
        ("box", "own"),
        ("bare", "borrowed"),
        ("list", "borrowed"),
        ("box", "borrowed"),
    ],
)
def test_queues_variables_and_datasets_carry_futures(mortal, kind, shape, whose):
    if whose == "own":
        future = mortal.submit(inc, 1, pure=False)
    else:
        future = mortal.submit(make, 1, pure=False).result(timeout=10).content[0]
    value: Any = {"bare": future, "list": [future], "box": Box(future)}[shape]
    name = f"{kind}-{shape}-{whose}"
    if kind == "queue":
        place = distributed.Queue(name, client=mortal)
        place.put(value, timeout=5)
        back = place.get(timeout=5)
    elif kind == "variable":
        place = distributed.Variable(name, client=mortal)
        place.set(value, timeout=5)
        back = place.get(timeout=5)
    else:
        mortal.publish_dataset(value, name=name)
        back = mortal.get_dataset(name)
        mortal.unpublish_dataset(name)
    found = back.content[0] if shape == "box" else back[0] if shape == "list" else back
    assert type(found) is dask_ownership.Future
    assert found.result(timeout=5) in (1, 2)
    del found
    if kind == "variable":
        place.delete()
    back = value = future = place = None


# ---- a cluster in a process of its own ----


@pytest.fixture(scope="module")
def far_cluster() -> Iterator[str]:
    """The address of a cluster whose scheduler is in another process, as it usually is."""
    program = (
        "import sys; from live import small_cluster\n"
        "if __name__ == '__main__':\n"
        "    with small_cluster() as cluster:\n"
        "        print(cluster.scheduler_address, flush=True)\n"
        "        sys.stdin.readline()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    yield process.stdout.readline().strip()
    process.communicate("end\n", timeout=30)


@pytest.fixture
def far(far_cluster: str, request: Any) -> Iterator[Client]:
    with Client(far_cluster) as client:
        until(lambda: len(client.owner.core.placement.workers) == 2, 20, "two workers")
        yield client
        if request.node.nodeid not in request.config.stash[FAILED]:
            check_nothing_left(client)


@pytest.mark.parametrize("place", ["queue", "variable", "dataset"])
@pytest.mark.parametrize("shape", ["list", "box"])
def test_futures_wait_in_a_scheduler_that_has_no_client(far, another, far_cluster, place, shape):
    """Another process gets them out alive, or they were refused at once."""
    future = far.submit(inc, 1, pure=False)
    value: Any = [future] if shape == "list" else Box(future)
    inside = "value[0]" if shape == "list" else "value.content[0]"
    name = f"far-{place}-{shape}"
    try:
        if place == "queue":
            distributed.Queue(name, client=far).put(value, timeout=5)
            get = f"distributed.Queue({name!r}, client=client).get(timeout=5)"
        elif place == "variable":
            distributed.Variable(name, client=far).set(value, timeout=5)
            get = f"distributed.Variable({name!r}, client=client).get(timeout=5)"
        else:
            far.publish_dataset(value, name=name)
            get = f"client.get_dataset({name!r})"
    except NotImplementedError as error:
        assert "it is owned by" in str(error)
        return
    process = another(
        f"value = {get}\nsay(type({inside}).__module__, {inside}.result(timeout=10))\n",
        address=far_cluster,
    )
    assert line(process) == "dask_ownership.futures.future 2"
    process.communicate(timeout=20)
    if place == "variable":
        distributed.Variable(name, client=far).delete()
    elif place == "dataset":
        far.unpublish_dataset(name)


def test_futures_of_another_process_live_on_at_this_one(far, another, far_cluster, tmp_path):
    """It borrows what that one made, passes it to tasks, and that one hears of the end."""
    path = tmp_path / "futures"
    process = another(
        "box = client.submit(make, 3, pure=False).result(timeout=10)\n"
        "mine = client.map(blob, [200_000] * 2, pure=False)\n"
        "distributed.wait(mine)\n"
        f"open({str(path)!r}, 'wb').write(pickle.dumps(Box(*mine, *box.content)))\n"
        "del mine, box\n"
        "say('written'); hear()\n"
        "for row in list(client.owner.core.table.pinned): client.owner.drop(row)\n"
        "client.owner.core.table.pinned.clear()\n"
        "say(len(client.owner.core.table.rows)); hear()\n"
        "time.sleep(0.5); say(len(client.owner.core.table.rows)); hear()\n",
        address=far_cluster,
    )
    assert line(process) == "written"
    box = pickle.loads(path.read_bytes())
    assert [len(f.result(timeout=10)) for f in box.content[:2]] == [200_000] * 2
    say(process)
    assert int(line(process)) >= 2
    assert [f.result(timeout=10) for f in box.content[2:]] == [1, 2, 3]
    assert far.submit(length, Box(*box.content[:2]), pure=False).result(timeout=10) == 400_000
    assert far.submit(total_length, *box.content[:2], pure=False).result(timeout=10) == 400_000
    assert far.submit(add, Box(*box.content[2:]), pure=False).result(timeout=10) == 6
    del box
    until(lambda: not rows_of(far))
    say(process)
    assert int(line(process)) == 0
    process.communicate("end\n", timeout=20)


def say(process: Any) -> None:
    process.stdin.write("\n")
    process.stdin.flush()


def total_length(*values: Any) -> int:
    return sum(map(len, values))


def test_with_tls(another, tmp_path):
    """Two workers, and clients in two processes, all over TLS."""
    security = distributed.security.Security.temporary()
    names = ["tls_ca_file"]
    names += [f"tls_{role}_{what}" for role in ("client",) for what in ("cert", "key")]
    given = {name: getattr(security, name) for name in names} | {"require_encryption": True}
    with small_cluster(security=security) as cluster, Client(cluster) as client:
        assert cluster.scheduler_address.startswith("tls://")
        future = client.submit(blob, 200_000, pure=False)
        made = client.submit(make, 2, pure=False).result(timeout=10)
        assert client.submit(length, Box(future), pure=False).result(timeout=10) == 200_000
        assert client.submit(add, made, pure=False).result(timeout=10) == 3
        path = tmp_path / "futures"
        path.write_bytes(pickle.dumps(Box(future, *made.content)))
        process = another(
            f"box = pickle.load(open({str(path)!r}, 'rb'))\n"
            "say(len(box.content[0].result(timeout=10)), add(Box(*box.content[1:])))\n"
            "say(client.submit(length, Box(box.content[0]), pure=False).result(timeout=10))\n",
            address=cluster.scheduler_address,
            security=f"distributed.security.Security(**{given!r})",
        )
        assert line(process) == "200000 3"
        assert line(process) == "200000"
        process.communicate(timeout=20)
        unpin_here(client)
        del future, made
        check_nothing_left(client)
