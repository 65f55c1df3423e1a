"""dask-array: arrays as expressions that are optimized as a whole before they become a graph."""

from __future__ import annotations

import dask
import numpy as np
import pytest
from distributed import get_client

from dask_ownership import Client

da = pytest.importorskip("dask_array")

pytestmark = pytest.mark.usefixtures("all_tasks_are_owned")

VALUES = np.random.default_rng(0).normal(size=(60, 40))


def total(n: int) -> float:
    """A task that computes an array of its own, with the client of its worker."""
    assert type(get_client()).__name__ == "Client"
    return float(da.ones((n, n), chunks=n // 2).sum().compute())


def test_what_arrays_do(client: Client) -> None:
    array = da.from_array(VALUES, chunks=(20, 20))
    assert np.allclose((array + 1).mean(axis=0).compute(), VALUES.mean(axis=0) + 1)
    assert np.allclose(array[5:50, ::3].std().compute(), VALUES[5:50, ::3].std())
    assert np.allclose(array.rechunk((60, 10)).cumsum(axis=0).compute(), VALUES.cumsum(axis=0))
    assert np.allclose((array @ array.T).compute(), VALUES @ VALUES.T)
    assert np.allclose(array[array > 0].sum().compute(), VALUES[VALUES > 0].sum())
    doubled = array.map_overlap(lambda block: block * 2, depth=1, boundary="reflect")
    assert np.allclose(doubled.compute(), VALUES * 2)


def test_persist_and_compute(client: Client) -> None:
    array = da.from_array(VALUES, chunks=(20, 20))
    assert np.allclose((client.persist(array) * 2).sum().compute(), 2 * VALUES.sum())
    assert np.allclose(client.compute(array.sum()).result(), VALUES.sum())
    least, most = dask.compute(array.min(), array.max())
    assert (least, most) == (VALUES.min(), VALUES.max())


def test_in_a_task(client: Client) -> None:
    assert client.submit(total, 10).result() == 100.0
