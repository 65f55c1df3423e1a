"""A plugin of pytest for upstream's tests: another client, a record, and an end to what hangs.

Read from the environment, as workers and command lines that tests start inherit it:

``CONFORMANCE_MODE``
    ``stock``, ``ours``, ``forbidden`` or ``present``: upstream's client, with this project's
    plugins in every scheduler and worker that the tests make.
``CONFORMANCE_RESULTS``
    The file to which one line of JSON per test is appended. Tests that are in it are not run.
``CONFORMANCE_CLASSES``
    Classes of tests to run, see ``classify.py``, separated by commas; all when empty.
``CONFORMANCE_SECONDS``
    How long a test may take.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

MODE = os.environ.get("CONFORMANCE_MODE", "stock")
RESULTS = Path(os.environ["CONFORMANCE_RESULTS"])
CLASSES = set(filter(None, os.environ.get("CONFORMANCE_CLASSES", "").split(",")))
SECONDS = float(os.environ.get("CONFORMANCE_SECONDS", "90"))


END = "end"
"""Stands for a test when all of them ran."""


class Counts:
    """What clients of this process did; in mode ``present`` the plugins that started there."""

    owned = 0
    """Owned tasks that ended."""

    central = 0
    """Operations that went to the central scheduler."""

    forbidden: list[str]


Counts.forbidden = []


class CentralFallback(AssertionError):
    """The central scheduler was given what this client owns, or should."""


# ---- the client ----


def count_owned() -> None:
    """Count the answers of workers that end a task, for all owners of this process."""
    from dask_ownership.core.owner.results import Results
    from dask_ownership.core.protocol import messages

    ends = {messages.DONE, messages.STORED, messages.FAILED, messages.DELEGATED}
    receive = Results.receive

    def counting(self: Any, view: Any, batch: Any, now: float) -> None:
        batch = list(batch)
        Counts.owned += sum(message[0] in ends for message in batch)
        receive(self, view, batch, now)

    Results.receive = counting  # type: ignore[method-assign]


def count_central(client: type) -> None:
    """Count what clients of a class give to the central scheduler."""

    def get(self: Any) -> int:
        return self.__dict__.get("central_calls", 0)

    def put(self: Any, number: int) -> None:
        Counts.central += max(number - get(self), 0)
        self.__dict__["central_calls"] = number

    client.central_calls = property(get, put)  # type: ignore[attr-defined]


def forbid_central(base: type, client: type) -> None:
    """Refuse graphs and data that go to the central scheduler from a client that owns.

    What has to run there may: actors, and P2P shuffles.
    """
    from dask_ownership.client.client import asked_for_actors
    from dask_ownership.futures.graph import Graph

    def needs_p2p(expr: Any, keys: Any) -> bool:
        central = Graph(expr).central
        return bool(central(keys) if callable(central) else central)

    to_futures = base._graph_to_futures  # type: ignore[attr-defined]
    scatter = base._scatter  # type: ignore[attr-defined]

    def _graph_to_futures(self: Any, expr: Any, keys: Any, *args: Any, **kwargs: Any) -> Any:
        actors = kwargs.get("actors")
        if isinstance(self, client) and not asked_for_actors(actors) and not needs_p2p(expr, keys):
            Counts.forbidden.append(f"the graph of {list(keys)[:3]!r}")
            raise CentralFallback(f"the graph of {list(keys)[:3]!r} went to the central scheduler")
        return to_futures(self, expr, keys, *args, **kwargs)

    async def _scatter(self: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self, client):
            Counts.forbidden.append("scattered data")
            raise CentralFallback("scattered data went to the central scheduler")
        return await scatter(self, *args, **kwargs)

    base._graph_to_futures = _graph_to_futures  # type: ignore[attr-defined]
    base._scatter = _scatter  # type: ignore[attr-defined]


def put_plugins_in() -> None:
    """Have schedulers load the plugins, which they send to their workers, and count them.

    What tests start as a process finds the setting in its environment.
    """
    import dask.config

    from dask_ownership.scheduler.plugin import OwnershipSchedulerPlugin

    os.environ["DASK_DISTRIBUTED__SCHEDULER__PRELOAD"] = repr(["dask_ownership.preload"])
    dask.config.refresh()
    start = OwnershipSchedulerPlugin.start

    async def counting(self: Any, scheduler: Any) -> None:
        await start(self, scheduler)
        Counts.owned += 1

    OwnershipSchedulerPlugin.start = counting  # type: ignore[method-assign]


def take_place(base: type, client: type) -> None:
    """Put one class where the other stands; what is imported later finds it there."""
    import dask.distributed
    import distributed.utils_test

    for name, found in list(sys.modules.items()):
        if name.split(".")[0] in ("distributed", "dask") and found is not None:
            for attribute, value in list(vars(found).items()):
                if value is base:
                    setattr(found, attribute, client)
    assert distributed.Client is client
    assert dask.distributed.Client is client


if MODE == "present":
    put_plugins_in()
elif MODE != "stock":
    import distributed

    import dask_ownership

    stock = distributed.Client
    count_owned()
    count_central(dask_ownership.Client)
    if MODE == "forbidden":
        forbid_central(stock, dask_ownership.Client)
    take_place(stock, dask_ownership.Client)


def keep_values_at_workers(yes: bool) -> None:
    """Whether small results stay at the workers as large ones do.

    By default they travel to their owner, and who asks a worker does not find them there.
    """
    import distributed.utils_test as utils

    inline = utils.original_config["ownership"]["inline"]
    inline["limit"] = 0 if yes else 64 * 1024


# ---- pytest ----


def pytest_addoption(parser: pytest.Parser) -> None:
    """Settings of pytest-timeout, which upstream's configuration has, when it is not here."""
    for name in ("timeout", "timeout_method"):
        try:
            parser.addini(name, "of pytest-timeout; not used here")
        except ValueError:
            pass  # it is installed


def pytest_configure(config: pytest.Config) -> None:
    for plugin, marker in (("pytest-timeout", "timeout"), ("pytest-rerunfailures", "flaky")):
        config.addinivalue_line("markers", f"{marker}: of {plugin}; not used here")


def write(record: dict[str, Any]) -> None:
    """Append one line, at once: what runs next may not return."""
    with RESULTS.open("a") as file:
        file.write(json.dumps(record) + "\n")


def done() -> set[str]:
    if not RESULTS.exists():
        return set()
    records = map(json.loads, RESULTS.read_text().splitlines())
    return {record["test"] for record in records if record["outcome"] != "started"} - {END}


def pytest_collection_modifyitems(config: pytest.Config, items: list[Any]) -> None:
    from classify import classify

    before = done()
    classes: dict[Path, dict[str, str]] = {}
    left, away = [], []
    for item in items:
        known = classes.get(item.path)
        if known is None:
            known = classes[item.path] = classify(item.path)
        name = item.nodeid.split("::", 1)[1].split("[")[0]
        wanted = not CLASSES or known.get(name, "none") in CLASSES
        item.looks_at = known.get(name, "none")
        (left if wanted and item.nodeid not in before else away).append(item)
    items[:] = left
    config.hook.pytest_deselected(items=away)


def pytest_sessionfinish() -> None:
    write({"test": END, "outcome": "passed"})


class Timeout(BaseException):
    """A test took too long; no handler of the test takes it for its own."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: Any, nextitem: Any) -> Iterator[None]:
    write({"test": item.nodeid, "outcome": "started"})
    owned, central = Counts.owned, Counts.central
    Counts.forbidden.clear()
    item.conformance = {"outcome": "passed", "why": ""}
    if MODE not in ("stock", "present"):
        keep_values_at_workers(item.looks_at == "wdata")
    started = time.time()

    def stop(*args: Any) -> None:
        faulthandler.dump_traceback(all_threads=True)
        raise Timeout(f"it took more than {SECONDS:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        result = yield
    except Timeout as error:
        item.conformance = {"outcome": "failed", "why": str(error)}
        result = True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    record = item.conformance
    if record["outcome"] == "passed" and Counts.forbidden:
        record = {"outcome": "failed", "why": f"central fall-back: {Counts.forbidden}"}
    write(
        {
            "test": item.nodeid,
            **record,
            "seconds": round(time.time() - started, 2),
            "owned": Counts.owned - owned,
            "central": Counts.central - central,
        }
    )
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: Any, call: Any) -> Any:
    report = yield
    record = getattr(item, "conformance", None)
    if record is not None and record["outcome"] in ("passed", "skipped"):
        if report.failed:
            record["outcome"] = "failed"
            record["why"] = f"{report.when}: {short(report, call)}"
        elif report.skipped:
            record["outcome"] = "xfailed" if hasattr(report, "wasxfail") else "skipped"
            record["why"] = str(getattr(report, "wasxfail", "") or short(report, call))
    return report


def short(report: Any, call: Any) -> str:
    """The error, and the last line of a test that it came from."""
    if call.excinfo is None or call.excinfo.errisinstance(pytest.skip.Exception):
        return str(report.longrepr)[-300:]
    frames = [
        f"{Path(frame.f_code.co_filename).name}:{line}"
        for frame, line in traceback.walk_tb(call.excinfo.tb)
        if "tests" in Path(frame.f_code.co_filename).parts
    ]
    where = f" ({frames[-1]})" if frames else ""
    return str(call.excinfo.exconly())[:500] + where
