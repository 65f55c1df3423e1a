"""Scenarios as transcripts, which are in ``docs/scenarios`` for people to read.

``python tests/simulation/test_scenarios.py`` writes them anew. In them nothing is late, lost or
repeated; what happens when it is, the other tests of this folder say.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from weakref import WeakSet

import pytest

from dask_ownership.core.owner.rows.options import Options
from dask_ownership.core.owner.rows.row import Row
from dask_ownership.futures.streaming import Stream
from dask_ownership.runtime.functions import Functions
from dask_ownership.testing.task import Task
from dask_ownership.testing.transcript import Transcript
from dask_ownership.testing.travel import VirtualFuture
from dask_ownership.testing.virtual import Faults, VirtualCluster, VirtualOwner

FOLDER = Path(__file__).parent.parent.parent / "docs" / "scenarios"

Scenario = Callable[[], Transcript]

SCENARIOS: dict[str, Scenario] = {}


def scenario(function: Scenario) -> Scenario:
    SCENARIOS[function.__name__] = function
    return function


def begin(workers: int = 2, clients: int = 1, slots: int = 1) -> Transcript:
    faults = Faults(duplicate=0.0, disconnect=0.0, longest_delay=500.0, unanswered=0.0)
    cluster = VirtualCluster(1, workers, slots, clients, faults)
    cluster.run()
    return Transcript(cluster)


def drop(
    t: Transcript, owner: VirtualOwner, *rows: Row, futures: list[VirtualFuture] | None = None
) -> None:
    """Let go of these rows, and of futures of which the list has the only reference."""
    t.note("the futures are dropped")
    if futures is not None:
        futures.clear()
    owner.core.release(rows)
    t.cluster.dirty.add(owner)
    t.run()
    t.cluster.assert_empty()


@scenario
def submit() -> Transcript:
    """One task, and its result."""
    t = begin(workers=1)
    client = t.cluster.clients[0]
    t.note("a client submits x")
    row = client.submit("x", Task(5))
    t.run()
    assert t.cluster.outcome(client, row) == 5
    drop(t, client, row)
    return t


@scenario
def chain() -> Transcript:
    """Tasks that need each other's values, which stay at the worker."""
    t = begin()
    client = t.cluster.clients[0]
    t.note("a client submits x, y that needs it, and z that needs y; x and y are large")
    x = client.submit("x", Task(1, large=True))
    y = client.submit("y", Task(1, large=True), [x])
    z = client.submit("z", Task(1), [y])
    t.run()
    assert t.cluster.outcome(client, z) == 3
    drop(t, client, x, y, z)
    return t


@scenario
def nested() -> Transcript:
    """A task that submits a task: the worker owns what is submitted there."""
    t = begin(workers=1)
    client = t.cluster.clients[0]
    t.note("a client submits a parent, which submits a child and waits for it without its slot")
    row = client.submit("parent", Task(1, children=(Task(10),)))
    t.run()
    assert t.cluster.outcome(client, row) == 11
    drop(t, client, row)
    return t


@scenario
def borrow_and_return() -> Transcript:
    """A future that travels inside arguments: the process where it arrives borrows it."""
    t = begin(workers=1)
    client = t.cluster.clients[0]
    t.note("a client submits x, and a reader with the future of x inside its arguments")
    x = client.submit("x", Task(5))
    futures = [VirtualFuture(client, x)]
    reader = client.submit("reader", Task(1, carries=tuple(futures), uses="read"))
    t.run()
    assert t.cluster.outcome(client, reader) == 6
    drop(t, client, reader, futures=futures)
    return t


@scenario
def a_worker_dies() -> Transcript:
    """The only copy of a value dies with its worker, and is made again from its lineage."""
    t = begin()
    client = t.cluster.clients[0]
    t.note("a client submits x, whose value is large and stays at its worker")
    x = client.submit("x", Task(5, large=True))
    t.run()
    [location] = x.locations
    t.note(f"{location.address} dies; the scheduler tells everyone")
    t.cluster.kill(location.address)
    t.run()
    assert t.cluster.outcome(client, x) == 5
    drop(t, client, x)
    return t


def exported_children(t: Transcript, large: bool) -> tuple[VirtualOwner, Row, list[VirtualFuture]]:
    """A client, a parent that has ended, and the future of a child that it returned."""
    client = t.cluster.clients[0]
    t.note("a parent returns the future of its child, which it does not wait for")
    parent = client.submit("parent", Task(1, children=(Task(10, large=large),), escape=True))
    t.run()
    children = client.open(parent)
    t.run()
    return client, parent, children


@scenario
def an_owner_dies() -> Transcript:
    """A worker dies that owned a child whose future had left it: the parent runs again."""
    t = begin()
    client, parent, children = exported_children(t, large=True)
    [child] = [child.row for child in children]
    owner = child.owner_ref[1]
    t.note(f"{owner} dies, and with it the owner of the child")
    t.cluster.kill(owner)
    t.run()
    assert t.cluster.outcome(client, child) == 10
    drop(t, client, parent, futures=children)
    return t


@scenario
def an_owner_leaves() -> Transcript:
    """A worker leaves in good order: who submitted the parent takes the child over."""
    t = begin()
    client, parent, children = exported_children(t, large=False)
    [child] = [child.row for child in children]
    owner = child.owner_ref[1]
    t.note(f"{owner} is retired")
    t.cluster.retire(owner)
    t.run()
    assert t.cluster.outcome(client, child) == 10
    drop(t, client, parent, futures=children)
    return t


@scenario
def cancel_down_the_tree() -> Transcript:
    """A task that waits for its children is cancelled, and they with it."""
    t = begin(workers=1, slots=1)
    client = t.cluster.clients[0]
    t.note("a parent waits for a child that takes long")
    parent = client.submit("parent", Task(1, children=(Task(10, duration=1e6),)))
    t.cluster.run_for(5_000.0)
    t.note("the client cancels the parent")
    client.core.cancel([parent], "by the user")
    client.core.release([parent])
    t.cluster.dirty.add(client)
    t.run()
    t.cluster.assert_empty()
    return t


@scenario
def retry() -> Transcript:
    """A task fails, and what needs it with it; retrying it revives both."""
    t = begin(workers=1)
    client = t.cluster.clients[0]
    t.note("x fails the first time, and y needs it")
    x = client.submit("x", Task(5, fails=1))
    y = client.submit("y", Task(1), [x])
    t.run()
    assert t.cluster.outcome(client, y) == "error"
    t.note("the client retries x")
    client.core.retry([x])
    t.cluster.dirty.add(client)
    t.run()
    assert t.cluster.outcome(client, y) == 6
    drop(t, client, x, y)
    return t


@scenario
def checkpoint_and_resume() -> Transcript:
    """A task of three steps keeps each; its worker dies, and another goes on from there."""
    t = begin()
    client = t.cluster.clients[0]
    t.note("x takes three steps, and keeps each with its owner")
    x = client.submit("x", Task(5, duration=10_000.0, steps=3), options=Options(retries=1))
    t.cluster.run_for(25_000.0)
    worker = x.worker.address
    t.note(f"{worker} dies after the second step")
    t.cluster.kill(worker)
    t.run()
    assert t.cluster.outcome(client, x) == 5 + 0 + 1 + 2
    drop(t, client, x)
    return t


@scenario
def the_scheduler_restarts() -> Transcript:
    """Another scheduler is started, with a worker of its own: the client goes on with that."""
    t = begin(workers=1)
    client = t.cluster.clients[0]
    t.note("a client submits x, which takes long")
    x = client.submit("x", Task(5, duration=100_000.0, large=True))
    t.cluster.run_for(5_000.0)
    t.note("the scheduler is gone with its workers, another is started with a worker of its own")
    t.cluster.restart_scheduler([("new-0", 1)])
    t.run()
    assert t.cluster.outcome(client, x) == 5
    drop(t, client, x)
    return t


class Streamer:
    """The client, calls and owner of a real `Stream`, over an owner of the virtual cluster."""

    def __init__(self, cluster: VirtualCluster, client: VirtualOwner) -> None:
        self.calls = self.owner = self
        self.functions = Functions()
        self.lock = nullcontext()
        self.streams: WeakSet[Stream] = WeakSet()
        self._cluster = cluster
        self._client = client

    def map_keys(self, *arguments) -> None:
        """The keys are given."""

    def row(self, func, args, kwargs, key, *options, **more) -> Row:
        return self._client.submit(key, Task(*args, duration=10_000.0))

    def wait(self, rows) -> None:
        while not all(row.done for row in rows):
            self._cluster.run_for(100.0)

    def drop(self, row: Row) -> None:
        self._client.dropped.append(row)
        self._client.wants_step()


@scenario
def a_stream_with_a_slow_consumer() -> Transcript:
    """A map with a buffer of two, and a consumer that is slow: one is taken, one is submitted."""
    t = begin(workers=1)
    client = t.cluster.clients[0]
    t.note("a client maps over items without end; nothing is submitted before one is asked for")
    names = (f"item-{number}" for number in count())
    stream = Stream(
        Streamer(t.cluster, client), abs, (count(),), {}, None, buffer_size=2, key=names
    )
    for number in range(3):
        t.note(f"the consumer asks for item-{number}")
        future = next(stream)
        assert t.cluster.outcome(client, future._row) == number
        t.note(f"it takes 50 ms over item-{number}, and drops it")
        t.cluster.run_for(50_000.0)
        del future
    t.note("the consumer closes the stream: what it was not given is dropped")
    stream.close()
    t.run()
    t.cluster.assert_empty()
    return t


def written(name: str) -> str:
    made = SCENARIOS[name]
    return f"{made.__doc__}\n\n{made().text()}"


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    """All transcripts, by a process of its own: tables go by the hashes of keys."""
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    command = [sys.executable, __file__, "print"]
    found = subprocess.run(command, env=environment, capture_output=True, check=True).stdout
    return dict(json.loads(found))


@pytest.mark.parametrize("name", SCENARIOS)
def test_it_goes_as_it_is_written(name: str, made: dict[str, str]) -> None:
    expected = (FOLDER / f"{name}.txt").read_text(encoding="utf-8")
    assert made[name] == expected, f"run python {Path(__file__).name}, and read what changed"


def test_nothing_else_is_written() -> None:
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(SCENARIOS)


if __name__ == "__main__":
    # Tables go by the hashes of keys.
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.execve(
            sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONHASHSEED": "0"}
        )
    everything = {name: written(name) for name in SCENARIOS}
    if "print" in sys.argv:
        print(json.dumps(everything))
    else:
        FOLDER.mkdir(exist_ok=True)
        for name, text in everything.items():
            (FOLDER / f"{name}.txt").write_text(text, encoding="utf-8")
