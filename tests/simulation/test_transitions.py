"""The table of changes of a row's state, which simulated programs are checked against."""

from __future__ import annotations

import random_programs

from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.protocol.states import LOST, READY, STATE_NAMES


def test_states_change_as_they_may(states_change_as_they_may) -> None:
    for seed in range(100):
        random_programs.replay(seed)
    assert states_change_as_they_may.illegal == set()


def test_a_change_that_is_not_listed_is_found(states_change_as_they_may) -> None:
    row = Row("x", None, None, (), 0)
    row.state = LOST
    row.state = READY
    [found] = states_change_as_they_may.illegal
    assert found == f"{STATE_NAMES[LOST]} -> {STATE_NAMES[READY]} of 'x'"
    states_change_as_they_may.illegal.clear()
