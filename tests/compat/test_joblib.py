"""joblib's ``dask`` backend, as its users write it."""

from __future__ import annotations

from typing import Any

import joblib
import numpy as np
import pytest
from distributed import LocalCluster
from joblib import Parallel, delayed, parallel_config
from programs import Oops, inc, oops, slowly, where

from dask_ownership import Client

pytestmark = pytest.mark.usefixtures("all_tasks_are_owned")


def nested(i: int) -> list[int]:
    return list(Parallel(n_jobs=2)(delayed(inc)(10 * i + j) for j in range(3)))


def mean_of(array: Any, i: int) -> float:
    return float(array.mean()) + i


def test_parallel(client: Client) -> None:
    with parallel_config(backend="dask"):
        assert Parallel()(delayed(inc)(i) for i in range(100)) == list(range(1, 101))
    with joblib.parallel_backend("dask"):
        assert len(set(Parallel()(delayed(where)() for _ in range(20)))) == 2


def test_generator_returns(client: Client) -> None:
    with parallel_config(backend="dask"):
        results = Parallel(return_as="generator")(delayed(slowly)(i, 0.01) for i in range(8))
        assert list(results) == list(range(8))
        results = Parallel(return_as="generator_unordered")(delayed(slowly)(i) for i in range(8))
        assert sorted(results) == list(range(8))


def test_nested(client: Client) -> None:
    with parallel_config(backend="dask"):
        assert Parallel()(delayed(nested)(i) for i in range(4)) == [
            [10 * i + j + 1 for j in range(3)] for i in range(4)
        ]


def test_scattered_arguments(client: Client) -> None:
    """Large arguments go to the workers once; those named in ``scatter`` before everything."""
    data = np.arange(500_000)
    with parallel_config(backend="dask", scatter=[data]):
        means = Parallel()(delayed(mean_of)(data, i) for i in range(6))
    assert means == [249_999.5 + i for i in range(6)]
    with parallel_config(backend="dask"):
        assert Parallel()(delayed(mean_of)(data, i) for i in range(6)) == means


def test_an_error_ends_it(cluster: LocalCluster) -> None:
    """With a client of its own, as joblib keeps the other futures of a call that failed."""
    with Client(cluster), parallel_config(backend="dask"), pytest.raises(Oops, match="it broke"):
        Parallel()(delayed(oops)() for _ in range(4))
