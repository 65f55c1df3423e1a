"""xarray on arrays as expressions: a program of its own, because it registers them for good."""

import dask
import dask_array
import dask_array.xarray
import numpy as np
import xarray as xr

from dask_ownership import Client


def transitions(dask_scheduler):
    return dask_scheduler.transition_counter


def main():
    dask_array.xarray.register()
    values = np.random.default_rng(0).normal(size=(60, 6, 8))
    plain = xr.Dataset({"t": (("time", "y", "x"), values)})
    with Client(n_workers=2, threads_per_worker=1, dashboard_address=":0") as client:
        before = client.run_on_scheduler(transitions)
        chunked = plain.chunk(time=10, y=3)
        assert isinstance(chunked.t.data, dask_array.Array), type(chunked.t.data)
        xr.testing.assert_allclose(chunked.mean("time").compute(), plain.mean("time"))
        anomaly = (chunked - chunked.mean("time")).t.std().compute()
        assert np.isclose(anomaly, (plain - plain.mean("time")).t.std())
        rolled = chunked.t.rolling(time=3).mean().compute()
        xr.testing.assert_allclose(rolled, plain.t.rolling(time=3).mean())
        kept = client.persist(chunked)
        least, most = dask.compute(kept.t.min(), kept.t.max())
        assert (float(least), float(most)) == (values.min(), values.max())
        assert client.run_on_scheduler(transitions) == before, "the scheduler ran tasks"
    print("all is as without chunks")


if __name__ == "__main__":
    main()
