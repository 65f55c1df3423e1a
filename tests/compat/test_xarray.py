"""xarray with chunks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr

from dask_ownership import Client, wait

pytestmark = pytest.mark.usefixtures("all_tasks_are_owned")


@pytest.fixture
def dataset() -> xr.Dataset:
    times = np.arange("2024-01-01", "2024-03-01", dtype="datetime64[D]")
    values = np.random.default_rng(0).normal(size=(len(times), 6, 8))
    return xr.Dataset(
        {"temperature": (("time", "y", "x"), values)},
        coords={"time": times.astype("datetime64[ns]"), "y": np.arange(6), "x": np.arange(8)},
    )


def test_compute(client: Client, dataset: xr.Dataset) -> None:
    chunked = dataset.chunk(time=10, y=3)
    xr.testing.assert_allclose(chunked.mean("time").compute(), dataset.mean("time"))
    anomaly = (chunked - chunked.mean("time")).temperature.std().compute()
    assert np.isclose(anomaly, (dataset - dataset.mean("time")).temperature.std())


def test_groupby(client: Client, dataset: xr.Dataset) -> None:
    months = dataset.chunk(time=10).groupby("time.month").mean()
    xr.testing.assert_allclose(months.compute(), dataset.groupby("time.month").mean())


def test_persist_and_load(client: Client, dataset: xr.Dataset) -> None:
    chunked = client.persist(dataset.chunk(time=10))
    wait(chunked)
    xr.testing.assert_identical(chunked.load(), dataset)
    (kept,) = dask.persist(dataset.chunk(time=20) * 2)
    xr.testing.assert_allclose(kept.compute(), dataset * 2)
    future = client.compute(dataset.chunk(x=4).sum())
    xr.testing.assert_allclose(future.result(), dataset.sum())


def test_apply_and_rechunk(client: Client, dataset: xr.Dataset) -> None:
    chunked = dataset.chunk(time=10).chunk(time=-1, x=2)
    medians = xr.apply_ufunc(
        np.median, chunked.temperature, input_core_dims=[["time"]], kwargs={"axis": -1},
        dask="parallelized", output_dtypes=[float],
    )  # fmt: skip
    xr.testing.assert_allclose(medians.compute(), dataset.temperature.median("time"))


def test_files(client: Client, dataset: xr.Dataset, tmp_path: Path) -> None:
    """The directory of netCDF files, and an array that is read from them in chunks."""
    pytest.importorskip("scipy")
    parts = [dataset.isel(time=slice(i * 30, (i + 1) * 30)) for i in range(2)]
    for i, part in enumerate(parts):
        part.to_netcdf(tmp_path / f"{i}.nc", engine="scipy")
    names = sorted(str(path) for path in tmp_path.glob("*.nc"))
    with xr.open_mfdataset(names, engine="scipy", chunks={"time": 10}) as opened:
        xr.testing.assert_allclose(opened.mean().compute(), dataset.mean())


def test_arrays_as_expressions() -> None:
    pytest.importorskip("dask_array")
    program = Path(__file__).parent / "xarray_expressions.py"
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=55
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "all is as without chunks\n"
