"""Functions that the tests run as tasks; worker processes import them from here."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import sys
import time
import types
from pathlib import Path
from typing import Any

import dask
import distributed
import numpy as np
from distributed import (
    Event,
    Lock,
    as_completed,
    get_client,
    get_worker,
    rejoin,
    secede,
    wait,
    worker_client,
)

import dask_ownership
from dask_ownership.core.executor import session as ex


class Oops(Exception):
    """What failing tasks raise."""


class Twofold(Exception):
    """An exception with more than a message."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message, code)
        self.code = code


# ---- small tasks ----


def inc(x: Any) -> Any:
    return x + 1


def double(x: Any) -> Any:
    return 2 * x


def total(*values: Any) -> Any:
    return sum(values)


def keywords(**values: Any) -> dict[str, Any]:
    return values


def same(x: Any) -> Any:
    return x


def oops(*args: Any) -> None:
    raise Oops("it broke")


def twofold() -> None:
    raise Twofold("two things", 7)


def odd_fails(x: int) -> int:
    if x % 2:
        raise Oops(f"{x} is odd")
    return x


def sleep(seconds: float, value: Any = None) -> Any:
    time.sleep(seconds)
    return value


def slowly(value: Any, seconds: float = 0.05) -> Any:
    time.sleep(seconds)
    return value


def ones(n: int) -> Any:
    return np.ones(n)


def where(*args: Any) -> str:
    return str(get_worker().address)


def process(*args: Any) -> int:
    return os.getpid()


def append_line(path: str, line: str = "x", seconds: float = 0) -> int:
    """Leave a mark that shows that the task ran; how many there are."""
    time.sleep(seconds)
    with open(path, "a") as file:
        file.write(f"{line}\n")
    with open(path) as file:
        return len(file.readlines())


def lines(path: Any) -> list[str]:
    try:
        with open(path) as file:
            return file.read().split()
    except FileNotFoundError:
        return []


def fails_at_first(path: str, times: int = 1) -> int:
    ran = append_line(path)
    if ran <= times:
        raise Oops(f"attempt {ran}")
    return ran


def value_after(path: str, value: Any) -> Any:
    """A value, once the test allows the end."""
    wait_for_file(path)
    return value


def wait_for_file(path: str, timeout: float = 10) -> str:
    """Run until the test allows the end."""
    deadline = time.time() + timeout
    while not os.path.exists(path):
        if time.time() > deadline:
            raise TimeoutError(path)
        time.sleep(0.01)
    return path


# ---- coroutine tasks ----


async def inc_later(x: Any) -> Any:
    await asyncio.sleep(0.01)
    return x + 1


async def oops_later(x: Any) -> Any:
    await asyncio.sleep(0.01)
    raise Oops("it broke later")


async def coroutine_submits(n: int) -> int:
    client = get_client()
    futures = [client.submit(inc, i) for i in range(n)]
    return sum(await client.gather(futures))


async def coroutine_awaits(x: int) -> int:
    return await get_client().submit(inc, x)


async def coroutine_as_completed(n: int) -> int:
    client = get_client()
    result = 0
    async for future in as_completed(client.map(inc, range(n))):
        result += await future
    return result


async def coroutine_stock_as_completed(n: int) -> int:
    client = get_client()
    result = 0
    async for future in distributed.as_completed(client.map(inc, range(n)), loop=client.loop):
        result += await future
    return result


def kind_of_client() -> str:
    return type(get_client()).__module__


def impatient(seconds: float) -> float:
    """How long a wait of 0.1 s lasts for a child that takes longer and runs first."""
    future = get_client().submit(sleep, seconds, pure=False)
    time.sleep(0.1)
    started = time.perf_counter()
    try:
        future.result(timeout=0.1)
    except TimeoutError:
        return time.perf_counter() - started
    return -1.0


async def coroutine_deep(n: int) -> int:
    if n == 0:
        return 0
    return 1 + await get_client().submit(coroutine_deep, n - 1, pure=False)


# ---- tasks that submit tasks ----


def fib(n: int) -> int:
    if n < 2:
        return n
    client = get_client()
    a = client.submit(fib, n - 1)
    b = client.submit(fib, n - 2)
    return int(a.result() + b.result())


def deep(n: int) -> int:
    if n == 0:
        return 0
    return 1 + int(get_client().submit(deep, n - 1, pure=False).result())


def fan(n: int) -> int:
    client = get_client()
    return sum(client.gather(client.map(inc, range(n))))


def fan_in_worker_client(n: int) -> int:
    with worker_client() as client:
        return sum(client.gather(client.map(inc, range(n))))


def fan_together(n: int) -> int:
    client = get_client()
    return int(client.submit(total, *client.map(inc, range(n))).result())


def fan_as_completed(n: int, ours: bool) -> int:
    futures = get_client().map(inc, range(n))
    cls = dask_ownership.as_completed if ours else as_completed
    return sum(f.result() for f in cls(futures))


def fan_wait(n: int, ours: bool) -> int:
    futures = get_client().map(inc, range(n))
    done, not_done = (dask_ownership.wait if ours else wait)(futures)
    assert not not_done
    return sum(f.result() for f in done)


def fan_pids(n: int) -> list[int]:
    client = get_client()
    return list(client.gather([client.submit(slow_process, i) for i in range(n)]))


def slow_process(i: int) -> int:
    time.sleep(0.03)
    return os.getpid()


def compute_inside(n: int) -> int:
    return sum(dask.compute(*[dask.delayed(inc)(i) for i in range(n)]))


def compute_array_inside(n: int) -> float:
    import dask.array as da

    return float(da.ones(n, chunks=max(1, n // 4)).sum().compute())


def compute_with(scheduler: Any, n: int) -> int:
    with dask.config.set(scheduler=scheduler):
        return int(dask.delayed(sum)([dask.delayed(inc)(i) for i in range(n)]).compute())


def persist_inside(n: int) -> float:
    import dask.array as da

    x = da.ones(n, chunks=max(1, n // 4)).persist()
    return float(x.sum().compute())


def scatter_inside(n: int) -> float:
    client = get_client()
    return float(client.submit(np.sum, client.scatter(np.ones(n))).result())


def large_child(n: int) -> float:
    """A child whose value stays at a worker, used by another child."""
    client = get_client()
    return float(client.submit(np.sum, client.submit(ones, n)).result())


def child_fails() -> str:
    future = get_client().submit(oops)
    try:
        future.result()
    except Oops as error:
        return f"caught {error}"
    return "no error"


def child_error_passes() -> None:
    get_client().submit(oops).result()


def child_keys(n: int) -> list[str]:
    client = get_client()
    return [client.submit(inc, i, pure=False).key for i in range(n)]


def children_leave_marks(path: str, started: str, n: int) -> None:
    client = get_client()
    futures = [client.submit(append_line, path, str(i), 0.1, pure=False) for i in range(n)]
    append_line(started)
    client.gather(futures)


def secede_and_rejoin(n: int) -> int:
    client = get_client()
    futures = client.map(inc, range(n))
    secede()
    result = sum(client.gather(futures))
    rejoin()
    return result + int(client.submit(inc, 0).result())


def secede_only(n: int) -> int:
    futures = get_client().map(inc, range(n))
    secede()
    return sum(f.result() for f in futures)


def fire_inside(path: str) -> str:
    client = get_client()
    dask_ownership.fire_and_forget(client.submit(append_line, path, pure=False))
    return "fired"


def parks_and_counts(n: int) -> int:
    """Wait many times in one task."""
    client = get_client()
    value = 0
    for _ in range(n):
        value = client.submit(inc, value).result()
    return value


def chain_inside(n: int) -> int:
    client = get_client()
    future = client.submit(inc, 0)
    for _ in range(n - 1):
        future = client.submit(inc, future)
    return int(future.result())


def returns_future() -> Any:
    return get_client().submit(inc, 1)


def asks_future(box: Any) -> Any:
    """``box`` hides a future where Dask does not look."""
    return box.content.result()


class Box:
    """An object with a future inside, where Dask does not look."""

    def __init__(self, content: Any) -> None:
        self.content = content


# ---- synchronization through the scheduler ----


def under_lock(name: str, path: str) -> int:
    with Lock(name):
        before = len(lines(path))
        time.sleep(0.02)
        after = append_line(path)
    assert after == before + 1
    return after


def set_event(name: str) -> bool:
    Event(name).set()
    return True


def wait_event(name: str) -> bool:
    return bool(Event(name).wait(timeout=5))


class SlowToArrive:
    """A value so large that it is unpickled beside the loop, which takes a second."""

    def __init__(self) -> None:
        self.content = bytes(2_000_000)

    def __setstate__(self, state: dict[str, Any]) -> None:
        time.sleep(1)
        self.__dict__.update(state)


class Counter:
    """An actor."""

    def __init__(self) -> None:
        self.n = 0

    def increment(self) -> int:
        self.n += 1
        return self.n


# ---- what is left at a worker ----


# ---- what crosses between the planes ----


def marked_blob(size: int, path: str) -> bytearray:
    append_line(path)
    return bytearray(size)


def size_and_place(value: Any) -> tuple[int, str]:
    return len(value), where()


def is_same(value: Any, other: Any) -> bool:
    return value is other


def add(counter: Any, by: int) -> int:
    return counter.add(by).result()


class Adder:
    """An actor."""

    n = 0

    def __init__(self, start: int = 0) -> None:
        self.n = start

    def add(self, by: int) -> int:
        self.n += by
        return self.n

    def slow(self) -> int:
        time.sleep(0.5)
        return self.n

    def fail(self) -> None:
        raise Oops("it broke")


class Traced(bytearray):
    """A large value that says which processes unpickle it."""

    path = ""

    def __reduce__(self) -> Any:
        return traced, (self.path, bytes(self))


def traced(path: str, content: bytes = b"x" * 300_000) -> Traced:
    append_line(path, str(os.getpid()))
    value = Traced(content)
    value.path = path
    return value


def open_box(box: Box) -> Any:
    return box.content.result()


def through_both_planes(x: int) -> int:
    """Inside a task: the worker's client promotes and imports as any other."""
    client = get_client()
    owned = client.submit(inc, x)
    actor = client.submit(Adder, owned, actor=True)
    return int(client.submit(add, actor, client.submit(inc, owned)).result())


def shuffles_inside(n: int) -> float:
    import dask.array as array

    x = array.arange(n * n, chunks=n).reshape(n, n).persist()
    return float((x.rechunk((n, 1), method="p2p") + 1).sum().compute())


# ---- what is left ----


def forget_the_dead(owner: Any) -> None:
    """What is kept for half a minute after a death, for those who ask late, is kept no more."""
    for incarnation in list(owner.core.retention.orphans):
        owner.call(owner.core.retention.expire, incarnation)


def leftovers(owner: str, dask_worker: Any) -> dict[str, Any]:
    """Whatever this worker still has of an owner, and of its own tasks' futures."""
    side = dask_worker.extensions.get("dask-ownership")
    if side is None:
        return {}
    forget_the_dead(side.owner)
    left: dict[str, Any] = {}
    core = side.executor.core
    for name, session in core.sessions.items():
        entries = [repr(e) for e in session.entries.values() if e.state != ex.HELD]
        if entries and name in (owner, side.owner.incarnation):
            left["entries"] = entries[:5]
    if side.executor.store.sizes:
        of = {
            entry.stored: f"{entry} of {name}"
            for name, session in core.sessions.items()
            for entry in session.entries.values()
        }
        left["store"] = [(name, of.get(name)) for name in side.executor.store.sizes][:5]
    if core.queue.queued or core.queue.busy or len(core.queue.crowd) or core.queue.resuming:
        left["slots"] = (
            core.queue.queued,
            core.queue.busy,
            len(core.queue.crowd),
            len(core.queue.resuming),
        )
    if side.owner.core.table.rows:
        left["rows"] = [repr(r) for r in side.owner.core.table.rows.values()][:5]
    return left


# ---- modules that change ----


def add_to_path(folder: str) -> None:
    sys.path.insert(0, folder)


def remove_from_path(folder: str) -> None:
    sys.path.remove(folder)


def import_again(name: str) -> Any:
    """A module, with what its file says now."""
    importlib.invalidate_caches()
    known = sys.modules.get(name)
    if known is None:
        return importlib.import_module(name)
    Path(importlib.util.cache_from_source(str(known.__file__))).unlink(missing_ok=True)
    return importlib.reload(known)


def patch_rule(name: str) -> None:
    sys.modules[name].rule = lambda x: "patched"  # type: ignore[attr-defined]


def replace_module(name: str) -> None:
    module = types.ModuleType(name)
    module.rule = lambda x: "replaced"  # type: ignore[attr-defined]
    sys.modules[name] = module


def delete_rule(name: str) -> None:
    del sys.modules[name].rule


def first_item(data: Any) -> int:
    return int(data[0])
