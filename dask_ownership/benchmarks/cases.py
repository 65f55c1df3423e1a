"""The cases: work that every engine does.

A case is a function of an engine and a size. It does its work once, checks the answer and returns
the measured numbers. Work before its clock starts and after its clock stops does not count.
"""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dask_ownership.benchmarks import (
    collection_cases,
    functions,
    recovery_cases,
    relay_cases,
    system_cases,
    travel_cases,
)
from dask_ownership.benchmarks.engines import (
    COLLECTIONS,
    PENDING,
    RECOVERY,
    SCHEDULER,
    TASKS,
    TRAVEL,
    Engine,
)
from dask_ownership.benchmarks.timing import check, round_trips

__all__ = ["CASES", "Case", "Metric", "case_named"]

MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Metric:
    """One number that a case measures.

    Attributes
    ----------
    name
        Name in the results of the case.
    label
        Name in the table, after the title of the case; may be empty.
    unit
        The unit.
    higher
        Whether more is better.
    compared
        Whether engines are compared by this number.
    """

    name: str
    label: str
    unit: str
    higher: bool = False
    compared: bool = True


@dataclass(frozen=True)
class Case:
    """A case with its sizes and its needs.

    Attributes
    ----------
    name
        Name on the command line.
    title
        Name in the table, with ``{n}`` for the size.
    run
        Does the work once: takes the engine and the size, returns numbers by the names of
        ``metrics``.
    size, quick_size
        The size, and the size for ``--quick``.
    metrics
        The measured numbers.
    needs
        The ability that the engine must have.
    warm_up
        The size of the warm-up; 0 for none.
    isolated
        Whether the case runs in a process and a cluster of its own.
    repeat
        The most repeats that make sense.
    """

    name: str
    title: str
    run: Callable[[Engine, int], dict[str, float]]
    size: int
    quick_size: int
    metrics: tuple[Metric, ...]
    needs: str = TASKS
    warm_up: int = 100
    isolated: bool = False
    repeat: int = 1000

    def full_title(self, size: int) -> str:
        """Return the title with the size filled in."""
        return self.title.format(n=f"{size:,}".replace(",", " "))


_numbers = itertools.count()


def _fresh(n: int) -> range:
    """Return ``n`` numbers that no task had as an argument before.

    Equal arguments would give equal pure keys, whose values an engine may still have.
    """
    block = next(_numbers)
    start = (block << 32) + 1
    return range(start, start + n)


@contextmanager
def _clock(result: dict[str, float], name: str = "seconds") -> Iterator[None]:
    """Measure the seconds of a block."""
    start = time.perf_counter()
    yield
    result[name] = time.perf_counter() - start


def _rate(n: int, seconds: float) -> dict[str, float]:
    """Return tasks per second."""
    return {"rate": n / seconds}


def submit_loop(engine: Engine, n: int) -> dict[str, float]:
    """Submit no-ops one by one and gather them."""
    client = engine.client
    start = time.perf_counter()
    futures = [client.submit(functions.noop, i, pure=False) for i in range(n)]
    values = client.gather(futures)
    seconds = time.perf_counter() - start
    check(values, list(range(n)))
    return _rate(n, seconds)


def map_once(engine: Engine, n: int) -> dict[str, float]:
    """Submit no-ops by one ``map`` and gather them."""
    client = engine.client
    start = time.perf_counter()
    values = client.gather(client.map(functions.noop, range(n), pure=False))
    seconds = time.perf_counter() - start
    check(values, list(range(n)))
    return _rate(n, seconds)


def script(engine: Engine, n: int) -> dict[str, float]:
    """Submit a no-op of the program itself, as scripts and notebooks do."""
    client, function = engine.client, functions.of_script()
    start = time.perf_counter()
    values = client.gather([client.submit(function, i, pure=False) for i in range(n)])
    seconds = time.perf_counter() - start
    check(values, list(range(n)))
    return _rate(n, seconds)


def script_map(engine: Engine, n: int) -> dict[str, float]:
    """Do as `script`, by one ``map``."""
    client, function = engine.client, functions.of_script()
    start = time.perf_counter()
    values = client.gather(client.map(function, range(n), pure=False))
    seconds = time.perf_counter() - start
    check(values, list(range(n)))
    return _rate(n, seconds)


def pure_keys(engine: Engine, n: int) -> dict[str, float]:
    """Submit no-ops whose keys are hashes of their arguments."""
    client = engine.client
    numbers = _fresh(n)
    start = time.perf_counter()
    values = client.gather([client.submit(functions.noop, i) for i in numbers])
    seconds = time.perf_counter() - start
    check(values, list(numbers))
    return _rate(n, seconds)


def closures(engine: Engine, n: int) -> dict[str, float]:
    """Submit functions that have to be pickled by value, a different one for each task."""
    client = engine.client
    start = time.perf_counter()
    values = client.gather([client.submit(functions.closure(i), pure=False) for i in range(n)])
    seconds = time.perf_counter() - start
    check(values, list(range(n)))
    return _rate(n, seconds)


def round_trip(engine: Engine, n: int) -> dict[str, float]:
    """Submit one task at a time and wait for its result."""
    client = engine.client
    return round_trips(lambda i: client.submit(functions.noop, i, pure=False).result(), n)


def chain(engine: Engine, n: int) -> dict[str, float]:
    """Submit tasks that each take the result of the task before."""
    client = engine.client
    result: dict[str, float] = {}
    with _clock(result):
        future = client.submit(functions.inc, 0, pure=False)
        for _ in range(n - 1):
            future = client.submit(functions.inc, future, pure=False)
        value = future.result()
    check(value, n)
    return result


def tree(engine: Engine, n: int) -> dict[str, float]:
    """Submit leaves and add them in pairs: ``n`` tasks in all."""
    client = engine.client
    result: dict[str, float] = {}
    leaves = (n + 1) // 2
    with _clock(result):
        level = [client.submit(functions.inc, i, pure=False) for i in range(leaves)]
        while len(level) > 1:
            pairs = [
                client.submit(functions.add, left, right, pure=False)
                for left, right in zip(level[::2], level[1::2], strict=False)
            ]
            # An odd task at the end goes to the next level as it is.
            level = pairs + level[len(pairs) * 2 :]
        value = level[0].result()
    check(value, leaves * (leaves + 1) // 2)
    return result


def nested(engine: Engine, n: int) -> dict[str, float]:
    """Submit four tasks that each submit ``n`` and gather them."""
    client = engine.client
    result: dict[str, float] = {}
    with _clock(result):
        futures = [client.submit(functions.nested, n, pure=False) for _ in range(4)]
        values = client.gather(futures)
    check(values, [n * (n - 1) // 2] * 4)
    return result


def fib(engine: Engine, n: int) -> dict[str, float]:
    """Compute a Fibonacci number with a task per call."""
    client = engine.client
    result: dict[str, float] = {}
    with _clock(result):
        value = client.submit(functions.fib, n, pure=False).result()
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    check(value, a)
    return result


def pass_array(engine: Engine, n: int) -> dict[str, float]:
    """Make 1 MiB at one worker, use it at another worker, fetch the result; ``n`` times."""
    client = engine.client
    workers = engine.workers()
    places = [None if w is None else [w] for w in workers]
    times = []
    for i in range(n):
        start = time.perf_counter()
        first = client.submit(
            functions.make_array, MEBIBYTE, i, workers=places[i % len(places)], pure=False
        )
        second = client.submit(
            functions.shifted, first, workers=places[(i + 1) % len(places)], pure=False
        )
        value = second.result()
        times.append((time.perf_counter() - start) * 1000)
        check((len(value), int(value[-1])), (MEBIBYTE, (i + 1) % 256))
    return {"p50": statistics.median(times)}


def shared_argument(engine: Engine, n: int) -> dict[str, float]:
    """Scatter 1 MiB once and use it in ``n`` tasks."""
    client = engine.client
    # New content each time: a scattered value is named by its content, and an engine may still have
    # it.
    array = functions.make_array(MEBIBYTE, next(_numbers))
    expected = [int(array[0])] * n
    result: dict[str, float] = {}
    with _clock(result):
        shared = client.scatter(array)
        futures = [client.submit(functions.first_bytes, shared, i, pure=False) for i in range(n)]
        values = client.gather(futures)
    check(values, expected)
    return result


def uneven(engine: Engine, n: int) -> dict[str, float]:
    """Run mostly short tasks and a few long ones, in an order drawn once."""
    client = engine.client
    long = max(n // 25, 1)
    durations = [0.2] * long + [0.001] * (n - long)
    # The same order for all engines.
    random.Random(7).shuffle(durations)
    # No schedule is faster than all slots busy all the time, nor than the longest task.
    ideal = max(sum(durations) / engine.slots, max(durations))
    result: dict[str, float] = {}
    with _clock(result):
        values = client.gather(client.map(functions.sleep, durations, pure=False))
    check(values, durations)
    result["times_ideal"] = result["seconds"] / ideal
    return result


RATE = (Metric("rate", "", "tasks/s", higher=True),)
SECONDS = (Metric("seconds", "", "s"),)
TRIP = (Metric("p50", "median", "ms"), Metric("p99", "p99", "ms", compared=False))
MIDDLE = (Metric("p50", "median", "ms"),)
UNEVEN = (
    Metric("seconds", "", "s"),
    Metric("times_ideal", "against the ideal", "x", compared=False),
)
MEMORY = (
    Metric("bytes", "memory of each", "B", compared=False),
    Metric("longest", "longest submit", "ms", compared=False),
)
REDUCTION = (
    Metric("seconds", "", "s"),
    Metric("grown", "workers' memory", "MB", compared=False),
)
MESSAGES = (
    Metric("messages", "messages", "messages", compared=False),
    Metric("bytes", "bytes", "B", compared=False),
)
REACH = (
    Metric("rate", "no-ops", "tasks/s", higher=True, compared=False),
    Metric("p50", "round trip, median", "ms", compared=False),
    Metric("bandwidth", "gather", "MB/s", higher=True, compared=False),
    Metric("grown", "scheduler's memory", "MiB", compared=False),
    Metric("lag", "scheduler's loop late", "ms", compared=False),
)
BORROW = tuple(Metric(f"b{b}", f"b = {b}", "tasks/s", higher=True) for b in travel_cases.BORROWERS)
MANY = tuple(
    Metric(name, label, "µs each", compared=False)
    for name, label in (
        ("pickle", "pickled"),
        ("send", "pickled, sent, counted"),
        ("back", "there and back"),
        ("first", "made by a task, first completed"),
        ("all", "made by a task, as completed"),
    )
)
DEATHS = tuple(
    Metric(f"{name}{ms}", f"tasks of {ms} ms, {label}", unit, compared=False)
    for ms in recovery_cases.DURATIONS
    for name, label, unit in (
        ("without", "no death", "s"),
        ("with", "with a death", "s"),
        ("ratio", "with a death against without", "x"),
        ("steps", "with a death, begun", "tasks"),
    )
)

CASES: tuple[Case, ...] = (
    Case("submit loop", "{n} no-op submit, gather", submit_loop, 10_000, 2_000, RATE),
    Case("map", "map of {n} no-ops, gather", map_once, 10_000, 2_000, RATE),
    Case("script", "{n} no-op submit, of the script itself", script, 10_000, 2_000, RATE),
    Case("script map", "map of {n} no-ops, of the script itself", script_map, 10_000, 2_000, RATE),
    Case("pure keys", "{n} no-op submit, keys hashed", pure_keys, 10_000, 2_000, RATE),
    Case("closures", "{n} closures", closures, 2_000, 300, RATE),
    Case("round trip", "submit().result() in turn", round_trip, 2_000, 200, TRIP, warm_up=20),
    Case("chain", "chain of {n} inc", chain, 1_000, 300, SECONDS),
    Case("tree", "tree of {n} tasks", tree, 2_047, 511, SECONDS),
    Case("nested", "4 tasks that each submit {n}", nested, 1_000, 200, SECONDS, warm_up=20),
    Case("fib", "fib({n}) by recursion", fib, 11, 7, SECONDS, warm_up=3),
    Case("pass array", "1 MiB made, passed on, fetched", pass_array, 50, 10, MIDDLE, warm_up=4),
    Case("shared argument", "1 MiB used by {n} tasks", shared_argument, 1_000, 200, SECONDS),
    Case("uneven", "{n} tasks, 1 ms and 200 ms", uneven, 200, 50, UNEVEN, warm_up=4),
    Case(
        "borrow",
        "1 MiB borrowed for {n} no-ops",
        travel_cases.borrow,
        10_000,
        2_000,
        BORROW,
    ),
    Case(
        "many futures",
        "{n} futures in one object",
        travel_cases.many_futures,
        100_000,
        10_000,
        MANY,
        TRAVEL,
    ),
    Case(
        "array sum",
        "sum of an array of {n} chunks",
        collection_cases.array_sum,
        10_000,
        900,
        SECONDS,
        COLLECTIONS,
    ),
    Case(
        "transpose add",
        "x + x.T of {n}², chunks of 100²",
        collection_cases.transpose_add,
        5_000,
        1_500,
        SECONDS,
        COLLECTIONS,
        warm_up=500,
    ),
    Case(
        "bag",
        "bag of {n} partitions",
        collection_cases.bag_sum,
        1_000,
        200,
        SECONDS,
        COLLECTIONS,
        warm_up=20,
    ),
    Case(
        "dataframe",
        "groupby of {n} partitions",
        collection_cases.dataframe_groupby,
        100,
        20,
        SECONDS,
        COLLECTIONS,
        warm_up=4,
    ),
    Case(
        "shuffle",
        "shuffle of {n} partitions by tasks",
        collection_cases.shuffle,
        64,
        8,
        SECONDS,
        COLLECTIONS,
        warm_up=4,
    ),
    Case(
        "rechunk",
        "rechunk of {n} chunks by tasks",
        collection_cases.rechunk,
        40,
        8,
        SECONDS,
        COLLECTIONS,
        warm_up=4,
    ),
    Case(
        "delayed merge",
        "delayed: {n} inc, one sum",
        collection_cases.delayed_merge,
        5_000,
        500,
        SECONDS,
        COLLECTIONS,
    ),
    Case(
        "delayed tree",
        "delayed: tree of {n} leaves",
        collection_cases.delayed_tree,
        4_096,
        512,
        SECONDS,
        COLLECTIONS,
    ),
    Case(
        "deep reduction",
        "sum of {n} layers of 100 chunks",
        system_cases.deep_reduction,
        50,
        5,
        REDUCTION,
        SCHEDULER,
        warm_up=5,
        isolated=True,
        repeat=3,
    ),
    Case(
        "recovery",
        "chain of {n} s, small values",
        recovery_cases.recovery,
        10,
        2,
        DEATHS,
        RECOVERY,
        warm_up=0,
        isolated=True,
        repeat=3,
    ),
    Case(
        "recovery large",
        "chain of {n} s, 10 MiB values",
        recovery_cases.recovery_large,
        10,
        2,
        DEATHS,
        RECOVERY,
        warm_up=0,
        isolated=True,
        repeat=3,
    ),
    Case(
        "scheduler messages",
        "scheduler, {n} tasks above idle",
        system_cases.scheduler_messages,
        10_000,
        2_000,
        MESSAGES,
        SCHEDULER,
        warm_up=0,
        isolated=True,
        repeat=3,
    ),
    Case(
        "relay",
        "a client that reaches the scheduler only",
        relay_cases.relay,
        10_000,
        1_000,
        REACH,
        SCHEDULER,
        warm_up=0,
        isolated=True,
        repeat=3,
    ),
    Case(
        "direct",
        "a client that reaches the workers",
        relay_cases.direct,
        10_000,
        1_000,
        REACH,
        SCHEDULER,
        warm_up=0,
        isolated=True,
        repeat=3,
    ),
    Case(
        "memory",
        "no-ops pending",
        system_cases.pending_memory,
        1_000_000,
        100_000,
        MEMORY,
        PENDING,
        warm_up=0,
        isolated=True,
        repeat=1,
    ),
)


def case_named(name: str) -> Case:
    """Find a case by its name, with ``-`` or ``_`` for blanks."""
    wanted = name.strip().replace("-", " ").replace("_", " ")
    for case in CASES:
        if case.name == wanted:
            return case
    raise ValueError(f"no case is named {name!r}: choose from {', '.join(c.name for c in CASES)}")
