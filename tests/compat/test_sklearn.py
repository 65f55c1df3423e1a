"""scikit-learn on a cluster, through joblib."""

from __future__ import annotations

import joblib
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

from dask_ownership import Client

pytestmark = pytest.mark.usefixtures("all_tasks_are_owned")


def test_grid_search(client: Client) -> None:
    data, target = load_digits(return_X_y=True)
    data, target = data[:400], target[:400]
    grid = {"C": [0.1, 1.0, 10.0], "gamma": [0.001, 0.01]}
    with joblib.parallel_backend("dask"):
        search = GridSearchCV(SVC(), grid, cv=3).fit(data, target)
    here = GridSearchCV(SVC(), grid, cv=3).fit(data, target)
    assert search.best_params_ == here.best_params_
    assert np.allclose(search.cv_results_["mean_test_score"], here.cv_results_["mean_test_score"])


def test_nested_parallelism(client: Client) -> None:
    """A search over forests, each of which grows its trees in parallel."""
    data, target = load_digits(n_class=3, return_X_y=True)
    forest = RandomForestClassifier(n_estimators=4, random_state=0, n_jobs=2)
    with joblib.parallel_backend("dask", scatter=[data, target]):
        search = GridSearchCV(forest, {"max_depth": [2, 4]}, cv=2, n_jobs=-1).fit(data, target)
    assert search.best_score_ > 0.8


def partial_fit(model: SGDClassifier, data: np.ndarray, target: np.ndarray) -> SGDClassifier:
    return model.partial_fit(data, target, classes=[0, 1])


def score(model: SGDClassifier, data: np.ndarray, target: np.ndarray) -> float:
    return float(model.score(data, target))


def test_incremental_training(client: Client) -> None:
    """As dask-ml does it: models that stay at the workers learn from one block after another."""
    data, target = load_digits(n_class=2, return_X_y=True)
    blocks = client.scatter(
        [(data[i::4], target[i::4]) for i in range(4)]
    )  # futures of pairs, as dask-ml has of blocks
    models = [client.submit(SGDClassifier, random_state=i, pure=False) for i in range(3)]
    for _ in range(2):
        for block in blocks:
            models = [
                client.submit(lambda model, pair: partial_fit(model, *pair), model, block)
                for model in models
            ]
    scores = client.map(lambda model, pair: score(model, *pair), models, [blocks[0]] * 3)
    assert min(client.gather(scores)) > 0.9
