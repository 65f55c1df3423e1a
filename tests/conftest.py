"""Clusters for the tests, and checks that nothing is left over after each."""

from __future__ import annotations

import copy
import faulthandler
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest
from distributed import LocalCluster
from distributed.utils import get_mp_context

from dask_ownership import Client
from dask_ownership.testing.invariants import check_empty, check_ownership

# Worker processes import the functions of tests/programs.py.
HERE = str(Path(__file__).parent)
os.environ["PYTHONPATH"] = os.pathsep.join([HERE, *filter(None, [os.environ.get("PYTHONPATH")])])
if HERE not in sys.path:
    sys.path.insert(0, HERE)

import programs  # noqa: E402

# As in Dask's own tests: a worker is forked from a process that has imported all that workers
# import, which saves a second of processor time each. Workers that have imported nothing yet are
# those of the examples, of `test_command_line_clusters`, of `processes.Cluster`, and of tests with
# the fixture `spawned`.
dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})
get_mp_context().set_forkserver_preload(
    [
        "distributed",
        "dask_ownership.client.client",
        "dask_ownership.worker.plugin",
        "numpy",
        "pandas",
    ]
)

TEST_SECONDS = 60
"""A test that takes longer hangs: it fails with the stacks of all threads."""

LEFT_SECONDS = 2.0
"""How long what nobody holds any more may stay."""


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FAILED] = set()


def pytest_collection_finish() -> None:
    keep_what_is_there()


def keep_what_is_there() -> None:
    """Spare the checks after each test from looking through what stays, as imported modules."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def imports_stay() -> Iterator[None]:
    """What the tests of a module have imported stays when their clusters are gone."""
    yield
    keep_what_is_there()


FAILED = pytest.StashKey[set[str]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Any:
    report = yield
    if report.failed:
        item.config.stash[FAILED].add(item.nodeid)
    return report


@pytest.fixture(autouse=True)
def no_hang(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that hangs, and say where."""
    slow = any(request.node.get_closest_marker(name) for name in ("slow", "soak"))

    def stop(*args: Any) -> None:
        faulthandler.dump_traceback(all_threads=True)
        raise TimeoutError(f"the test took more than {TEST_SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0 if slow else TEST_SECONDS)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def settings_stay() -> Iterator[None]:
    """A test leaves no setting behind: the schedulers of later tests are in this process too."""
    before = copy.deepcopy(dask.config.get("ownership"))
    yield
    after = dask.config.get("ownership")
    dask.config.set(ownership=before)
    assert after == before


@pytest.fixture
def spawned() -> Iterator[None]:
    """Workers start as users' workers do: slowly, as new interpreters."""
    with dask.config.set({"distributed.worker.multiprocessing-method": "spawn"}):
        yield


@pytest.fixture(scope="session", autouse=True)
def nothing_remains() -> Iterator[None]:
    """No thread and no process is left when the tests are over."""
    yield
    until_empty(remains, 10)


def remains() -> list[str]:
    """Threads and processes of this project that should be gone."""
    threads = [t.name for t in threading.enumerate() if t.name.startswith("Dask-Ownership")]
    left = list(threads)
    for child in psutil.Process().children(recursive=True):
        try:
            command = " ".join(child.cmdline())
            stays = "resource_tracker" in command or "forkserver" in command
            if child.status() != psutil.STATUS_ZOMBIE and not stays:
                left.append(f"process {child.pid}: {command}")
        except psutil.NoSuchProcess:
            pass
    return left


def until_empty(find: Any, seconds: float) -> None:
    """Assert that what is found is gone within some seconds."""
    deadline = time.time() + seconds
    while left := find():
        if time.time() > deadline:
            raise AssertionError(f"left over: {left}")
        gc.collect()
        time.sleep(0.02)


@pytest.fixture(scope="session")
def cluster() -> Iterator[LocalCluster]:
    """Two worker processes of one thread each, for all tests."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
    ) as cluster:
        keep_what_is_there()  # the dashboard alone imports hundreds of thousands of objects
        yield cluster


@pytest.fixture
def client(cluster: LocalCluster, request: pytest.FixtureRequest) -> Iterator[Client]:
    """A client on the cluster; afterwards nothing that it owned is left anywhere."""
    with Client(cluster) as client:
        yield client
        if request.node.nodeid not in request.config.stash[FAILED]:
            check_nothing_left(client)


@pytest.fixture
def workers(client: Client) -> list[str]:
    """Addresses of the cluster's workers."""
    return list(client.scheduler_info(n_workers=-1)["workers"])


@pytest.fixture
def all_tasks_are_owned(client: Client) -> Iterator[None]:
    """The scheduler hears of no task."""
    before = client.run_on_scheduler(transitions)
    yield
    assert client.run_on_scheduler(transitions) == before


def transitions(dask_scheduler: Any) -> int:
    return int(dask_scheduler.transition_counter)


def check_nothing_left(client: Client) -> None:
    """What the client owned is gone, from it and from the workers (rule R6)."""
    gc.collect()
    programs.forget_the_dead(client.owner)
    core = client.owner.core

    def rows() -> list[str]:
        return [repr(row) for row in list(core.table.rows.values())[:5]]

    try:
        until_empty(rows, LEFT_SECONDS)
    except AssertionError as error:
        # As in this process: what only garbage holds goes when the collector comes to it.
        print(f"{error}; {list(core.history.events)[-50:]}", file=sys.stderr)
        client.run(gc.collect)
        until_empty(rows, LEFT_SECONDS)

    async def on_loop() -> list[str]:
        check_ownership(core)
        try:
            check_empty(core)
        except AssertionError as error:
            return [str(error)]
        return []

    # What other processes borrowed is let go of by messages, some of which are on their way.
    until_empty(lambda: client.sync(on_loop, asynchronous=False), LEFT_SECONDS)

    def at_workers() -> dict[str, Any]:
        left = client.run(programs.leftovers, client.owner.incarnation)
        return {address: what for address, what in left.items() if what}

    until_empty(at_workers, LEFT_SECONDS)
