"""The tasks of ``search.py``: what runs on the workers.

They live in a module of their own, so that workers import them and count their work.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from distributed import as_completed, worker_client
from sklearn.datasets import load_digits
from sklearn.svm import SVC

ROWS = (200, 400, 800, 1200)  # that a model learns from, at each level: the deeper, the more
CHECKED = slice(1200, None)  # the rows that models are judged by


class Box(NamedTuple):
    """A part of the plane of two parameters: logarithms of C and gamma, in the middle."""

    c: float
    gamma: float
    side: float
    level: int = 0

    def quarters(self) -> list[Box]:
        step = self.side / 4
        return [
            Box(self.c + right * step, self.gamma + up * step, self.side / 2, self.level + 1)
            for right in (-1, 1)
            for up in (-1, 1)
        ]


class Found(NamedTuple):
    """The score of a model, and its parameters."""

    score: float
    box: Box


digits = lru_cache(load_digits)
FITS: list[Box] = []  # that this process has made


def fit(box: Box) -> Found:
    """Train a model with the parameters in the middle of the box, and judge it."""
    FITS.append(box)
    data = digits()
    rows = ROWS[min(box.level, len(ROWS) - 1)]
    model = SVC(C=10**box.c, gamma=10**box.gamma).fit(data.data[:rows], data.target[:rows])
    return Found(float(np.mean(model.predict(data.data[CHECKED]) == data.target[CHECKED])), box)


def fits() -> int:
    """How many models this process has trained."""
    return len(FITS)


def search(box: Box, depth: int, keep: int) -> Found:
    """Search a box: its quarters, and theirs, down to a depth; return the best model.

    All quarters are begun at once. As their first scores come in, those that are not among the
    ``keep`` best are cancelled, with all that they have submitted, and all that those have.
    """
    quarters = box.quarters()
    with worker_client() as client:
        scores = client.map(fit, quarters, pure=False, priority=1)
        branches = {
            quarter: client.submit(search, quarter, depth - 1, keep, pure=False)
            for quarter in quarters
            if depth > 1
        }
        found: list[Found] = []
        for future in as_completed(scores):
            found.append(future.result())
            for loser in sorted(found, key=score, reverse=True)[keep:]:
                branch: Any = branches.pop(loser.box, None)
                if branch is not None:
                    branch.cancel()
        return max([*found, *client.gather(list(branches.values()))], key=score)


def score(found: Found) -> float:
    return found.score
