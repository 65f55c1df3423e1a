"""What a user does from a machine that reaches the scheduler only; run by `outside.py`."""

from __future__ import annotations

import os
from operator import add
from typing import Any

import dask
import dask.array as da
import dask.dataframe as dd
import pandas as pd
from distributed import get_client

from dask_ownership import Client


def inc(x: int) -> int:
    return x + 1


def fan(n: int) -> int:
    client = get_client()
    return sum(client.gather(client.map(inc, range(n), pure=False)))


def main() -> None:
    with Client(os.environ["SCHEDULER"]) as client:
        workers = list(client.scheduler_info(n_workers=-1)["workers"])
        assert sorted(client.owner.core.workers) == sorted(workers)
        assert client.submit(inc, 1).result(timeout=20) == 2
        assert client.gather(client.map(inc, range(500), pure=False)) == list(range(1, 501))
        large = [client.submit(bytes, 3_000_000, workers=w, pure=False) for w in workers]
        assert [len(value) for value in client.gather(large)] == [3_000_000] * len(workers)
        assert len(client.submit(add, *large).result(timeout=20)) == 6_000_000
        assert client.submit(fan, 20).result(timeout=20) == 210
        scattered = client.scatter(b"x" * 1_000_000)
        assert client.submit(len, scattered).result(timeout=20) == 1_000_000
        assert da.ones((500, 500), chunks=(100, 100)).sum().compute() == 250_000
        frame = dd.from_pandas(pd.DataFrame({"a": range(100), "b": [0, 1] * 50}), npartitions=4)
        assert list(frame.groupby("b").a.sum().compute()) == [2450, 2500]
        with dask.config.set(scheduler="ownership"):
            assert dask.delayed(inc)(5).compute() == 6
        ways: dict[str, Any] = client.ownership().links
        assert {one["way"] for one in ways.values()} == {"relayed"}, ways


if __name__ == "__main__":
    main()
