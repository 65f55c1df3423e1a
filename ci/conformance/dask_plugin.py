"""A plugin of pytest for dask's own tests: every scheduler that has a name is a client's.

Besides `conformance_plugin`, which records and puts the client in place. ``sync``,
``threads``, ``processes`` and what collections use by default become the ``get`` of one client for
the session: in mode ``stock`` that of a `distributed.Client`, else ``"ownership"``. Tests that
make clusters themselves get none, as the checks that come with their fixtures would find it.

``CONFORMANCE_CLUSTER``
    ``threads`` (the default) or ``processes``: what the workers of the session are.
``CONFORMANCE_FUNCTIONS``, ``CONFORMANCE_SHARE``
    Of how many functions of tests one is collected, and of how many tests of those one is run,
    chosen by a hash of its name; all when they are 1, the default. What is not collected costs
    no time: dask has 17 000 tests of 4 000 functions.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import threading
from collections.abc import Iterator
from typing import Any

import dask
import dask.base
import distributed
import pytest
from conformance_plugin import MODE

PROCESSES = os.environ.get("CONFORMANCE_CLUSTER", "threads") == "processes"
FUNCTIONS = int(os.environ.get("CONFORMANCE_FUNCTIONS", "1"))
SHARE = int(os.environ.get("CONFORMANCE_SHARE", "1"))

OWN_CLUSTERS = {"c", "client", "cleanup", "cluster", "loop", "loop_in_thread"}
"""Fixtures of `distributed.utils_test`, which look for what is left over."""


def one_at_a_time(function: Any) -> Any:
    """A function that threads enter one after another."""
    lock = threading.RLock()

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with lock:
            return function(*args, **kwargs)

    return call


# CPython 3.11 counts the recursion of all threads that parse in one number, and raises SystemError
# when it comes out wrong. pytest parses to show a failure while workers do to show theirs.
ast.parse = one_at_a_time(ast.parse)


class Session:
    """The client of the session, and what it stands in for."""

    def __init__(self) -> None:
        self.client: Any = None
        self.named = dict(dask.base.named_schedulers)

    def open(self) -> None:
        """Have the client and put it in place of every scheduler."""
        if self.client is not None and self._usable():
            return
        self.close()
        cluster = distributed.LocalCluster(
            n_workers=2, threads_per_worker=2, processes=PROCESSES, dashboard_address=None
        )
        self.client = distributed.Client(cluster)
        get = self.client.get if MODE == "stock" else self.named["ownership"]
        for name in self.named:
            dask.base.named_schedulers[name] = get
        dask.config.set(scheduler="threads" if MODE == "stock" else "ownership")

    def _usable(self) -> bool:
        """Whether tests before left it as it was: the default, and with its workers."""
        try:
            if distributed.default_client() is not self.client:
                return False
        except ValueError:
            return False
        running = self.client.status == "running"
        return running and len(self.client.scheduler_info(n_workers=-1)["workers"]) == 2

    def close(self) -> None:
        """Put back what was there before."""
        dask.base.named_schedulers.update(self.named)
        client, self.client = self.client, None
        if client is not None:
            dask.config.set(scheduler=None)
            client.close()
            client.cluster.close()


session = Session()


def chosen(name: str, share: int) -> bool:
    """Whether a name is among those that are taken."""
    return int(hashlib.sha1(name.encode()).hexdigest(), 16) % share == 0


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: Any, name: str, obj: object) -> Any:
    if FUNCTIONS > 1 and name.startswith("test_") and callable(obj):
        return None if chosen(f"{collector.nodeid}::{name}", FUNCTIONS) else []
    return None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[Any]) -> None:
    away = [item for item in items if not chosen(item.nodeid, SHARE)]
    items[:] = [item for item in items if chosen(item.nodeid, SHARE)]
    config.hook.pytest_deselected(items=away)


def names_in(code: Any) -> tuple[str, ...]:
    """What a function looks up or imports."""
    return () if code is None else code.co_names + code.co_varnames


@pytest.fixture(autouse=True)
def every_scheduler_is_a_client(request: pytest.FixtureRequest) -> Iterator[None]:
    """The client of the session for a test that brings none."""
    code = getattr(request.function, "__code__", None)
    brings = OWN_CLUSTERS & set(request.fixturenames) or "gen_cluster" in names_in(code)
    if brings or request.path.name == "test_distributed.py":
        session.close()
        yield
        return
    session.open()
    with dask.config.set(scheduler=dask.config.get("scheduler")):
        yield


def pytest_unconfigure() -> None:
    session.close()
