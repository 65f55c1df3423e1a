"""Gradient boosting on a cluster: one long task per worker, tied to it, beside its data.

`test_training_beside_the_data` does what these packages do. The others need them, which are
large: ``make test-compat`` installs them.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import dask.array as da
import numpy as np
import pytest
from distributed import get_worker, wait

from dask_ownership import Client

pytestmark = pytest.mark.usefixtures("all_tasks_are_owned")


def train(parts: list[Any]) -> tuple[str, int, float]:
    """What one worker does with its blocks."""
    return get_worker().address, len(parts), float(sum(np.sum(part) for part in parts))


@pytest.mark.parametrize("rows", [100, 50_000])
def test_training_beside_the_data(client: Client, workers: list[str], rows: int) -> None:
    blocks = da.ones((8 * rows, 1), chunks=(rows, 1)).to_delayed().ravel()
    parts = client.compute(list(blocks))
    wait(parts)
    # XGBoost asks the scheduler, LightGBM the client.
    asked = client.sync(client.scheduler.who_has, keys=[part.key for part in parts])
    assert asked == client.who_has(parts)
    by_key = {part.key: part for part in parts}
    by_worker = defaultdict(list)
    for key, locations in asked.items():
        by_worker[next(iter(locations))].append(by_key[key])
    assert set(by_worker) <= set(workers)
    futures = [
        client.submit(
            train, mine, workers=[address], allow_other_workers=False, pure=False, priority=10
        )
        for address, mine in by_worker.items()
    ]
    results = client.gather(futures)
    assert {address for address, _, _ in results} == set(by_worker)
    assert sum(count for _, count, _ in results) == 8
    assert sum(total for _, _, total in results) == 8 * rows


def table() -> tuple[Any, Any]:
    data = da.random.default_rng(0).random((2000, 5), chunks=(500, 5))
    return data, (data.sum(axis=1) > 2.5).astype(int)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_xgboost(client: Client) -> None:
    pytest.importorskip("xgboost", reason="make test-compat installs it")
    import xgboost.dask as boosting

    data, target = table()
    matrix = boosting.DaskDMatrix(client, data, target)
    trained = boosting.train(
        client, {"objective": "binary:logistic"}, matrix, num_boost_round=5,
        evals=[(matrix, "train")],
    )  # fmt: skip
    losses = trained["history"]["train"]["logloss"]
    assert len(losses) == 5 and losses[-1] < losses[0]
    predicted = boosting.predict(client, trained, data).compute()
    assert ((predicted > 0.5) == target.compute()).mean() > 0.9
    model = boosting.DaskXGBClassifier(n_estimators=5)
    model.client = client
    model.fit(data, target)
    assert (model.predict(data).compute() == target.compute()).mean() > 0.9


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_lightgbm(client: Client) -> None:
    lightgbm = pytest.importorskip("lightgbm", reason="make test-compat installs it")
    data, target = table()
    model = lightgbm.DaskLGBMClassifier(n_estimators=5, client=client, verbose=-1)
    model.fit(data, target)
    assert (model.predict(data).compute() == target.compute()).mean() > 0.9
