"""Every change of a row's state is one that `rows.lifecycle` lists, and each of those happens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import random_programs

from dask_ownership.core.owner.rows.lifecycle import TRANSITIONS
from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.protocol.states import STATE_NAMES

SEEDS = range(40)


class Checked:
    """Stands for the slot ``Row.state``, and counts changes."""

    def __init__(self, slot) -> None:
        self.slot = slot
        self.seen: Counter[tuple[int, int]] = Counter()

    def __get__(self, row, kind=None):
        return self.slot if row is None else self.slot.__get__(row, kind)

    def __set__(self, row, state: int) -> None:
        try:
            before = self.slot.__get__(row)
        except AttributeError:
            pass  # it is being made
        else:
            if before != state:
                self.seen[before, state] += 1
        self.slot.__set__(row, state)


@pytest.fixture
def checked(monkeypatch) -> Iterator[Checked]:
    checked = Checked(Row.__dict__["state"])
    monkeypatch.setattr(Row, "state", checked)
    yield checked


def names(pairs) -> set[str]:
    return {f"{STATE_NAMES[a]} -> {STATE_NAMES[b]}" for a, b in pairs}


def test_states_change_as_they_may(checked) -> None:
    for seed in SEEDS:
        random_programs.replay(seed)
    assert names(checked.seen.keys() - TRANSITIONS) == set()
