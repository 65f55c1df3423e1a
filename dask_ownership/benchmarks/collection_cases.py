"""Cases that compute Dask's collections with the engine's scheduler.

A collection is made before the clock starts, with content that no earlier collection had, so that
no result of an earlier repeat can be taken.
"""

from __future__ import annotations

import itertools
import math
import time
from typing import Any

from dask_ownership.benchmarks.engines import Engine
from dask_ownership.benchmarks.functions import add, inc

__all__ = [
    "array_sum",
    "bag_sum",
    "dataframe_groupby",
    "delayed_merge",
    "delayed_tree",
    "rechunk",
    "shuffle",
    "transpose_add",
]

_numbers = itertools.count(1)


def _timed(engine: Engine, collection: Any) -> tuple[Any, dict[str, float]]:
    """Return the value of a collection, and the seconds it took."""
    start = time.perf_counter()
    value = engine.compute(collection)
    return value, {"seconds": time.perf_counter() - start}


def _check_close(value: float, expected: float, tolerance: float = 1e-9) -> None:
    """Raise AssertionError when a number is wrong."""
    if not math.isclose(value, expected, rel_tol=tolerance):
        raise AssertionError(f"wrong answer: {value} instead of {expected}")


def array_sum(engine: Engine, n: int) -> dict[str, float]:
    """Sum an array of about ``n`` chunks of 10 by 10."""
    import dask.array as da

    side = math.isqrt(n) * 10
    number = next(_numbers)
    array = da.full((side, side), number, chunks=(10, 10), dtype="f8")
    value, result = _timed(engine, array.sum())
    _check_close(float(value), float(side * side * number))
    return result


def transpose_add(engine: Engine, n: int) -> dict[str, float]:
    """Add a square array of random numbers to its transpose, and sum."""
    import dask.array as da

    array = da.random.default_rng(next(_numbers)).random((n, n), chunks=(100, 100))
    value, result = _timed(engine, (array + array.T).sum())
    # The sum of very many random numbers between 0 and 1 is close to its mean.
    _check_close(float(value), float(n * n), 0.05)
    return result


def bag_sum(engine: Engine, n: int) -> dict[str, float]:
    """Square and sum a bag of ``n`` partitions of 100 numbers."""
    import dask.bag as db

    start = next(_numbers)
    values = range(start, start + 100 * n)
    bag = db.from_sequence(values, npartitions=n).map(_square).sum()
    value, result = _timed(engine, bag)
    _check_close(value, sum(map(_square, values)))
    return result


def _square(value: int) -> int:
    return value * value


def dataframe_groupby(engine: Engine, n: int) -> dict[str, float]:
    """Aggregate a dataframe of ``n`` partitions of 10 000 rows by a key."""
    import dask.dataframe as dd
    import numpy
    import pandas

    rows = n * 10_000
    rng = numpy.random.default_rng(next(_numbers))
    frame = pandas.DataFrame({"k": rng.integers(0, 100, rows), "x": rng.random(rows)})
    lazy = dd.from_pandas(frame, npartitions=n).groupby("k").agg({"x": ["sum", "mean", "count"]})
    value, result = _timed(engine, lazy)
    _check_close(float(value[("x", "sum")].sum()), float(frame["x"].sum()))
    return result


def shuffle(engine: Engine, n: int) -> dict[str, float]:
    """Shuffle a dataframe of ``n`` partitions of 10 000 rows by tasks, and look at each part."""
    import dask
    import dask.dataframe as dd
    import numpy
    import pandas

    rows = n * 10_000
    rng = numpy.random.default_rng(next(_numbers))
    frame = pandas.DataFrame({"k": rng.integers(0, 10 * n, rows), "x": rng.random(rows)})
    with dask.config.set({"dataframe.shuffle.method": "tasks"}):
        parts = dd.from_pandas(frame, npartitions=n).shuffle("k", npartitions=n)
        value, result = _timed(engine, parts.map_partitions(_look, meta={"n": "i8", "x": "f8"}))
    # The numbers of keys in the parts add up to all keys only if no key is in two parts.
    if (int(value["n"].sum()), len(value)) != (10 * n, n):
        raise AssertionError("a key is in two parts, or a part is missing")
    _check_close(float(value["x"].sum()), float(frame["x"].sum()))
    return result


def _look(part: Any) -> Any:
    """Return the number of keys in one part of a shuffled frame, and the part's sum."""
    import pandas

    return pandas.DataFrame({"n": [part["k"].nunique()], "x": [part["x"].sum()]})


def rechunk(engine: Engine, n: int) -> dict[str, float]:
    """Turn ``n`` chunks of rows of a square array into ``n`` of columns by tasks, and sum."""
    import dask
    import dask.array as da

    side = 100 * n
    rows = da.random.default_rng(next(_numbers)).random((side, side), chunks=(100, side))
    with dask.config.set({"array.rechunk.method": "tasks"}):
        value, result = _timed(engine, rows.rechunk((side, 100)).sum(axis=0).sum())
    _check_close(float(value), side * side / 2, 0.05)
    return result


def delayed_merge(engine: Engine, n: int) -> dict[str, float]:
    """Compute ``n`` delayed calls and their sum."""
    import dask

    step = dask.delayed(inc, pure=False)
    total = dask.delayed(sum, pure=False)([step(i) for i in range(n)])
    value, result = _timed(engine, total)
    _check_close(value, n * (n + 1) // 2)
    return result


def delayed_tree(engine: Engine, n: int) -> dict[str, float]:
    """Compute ``n`` delayed calls and add their results in pairs."""
    import dask

    leaf = dask.delayed(inc, pure=False)
    join = dask.delayed(add, pure=False)
    level = [leaf(i) for i in range(n)]
    while len(level) > 1:
        pairs = [join(a, b) for a, b in zip(level[::2], level[1::2], strict=False)]
        level = pairs + level[len(pairs) * 2 :]
    value, result = _timed(engine, level[0])
    _check_close(value, n * (n + 1) // 2)
    return result
