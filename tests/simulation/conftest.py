"""Simulated programs check each change of a row's state against the table of changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from dask_ownership.core.owner.rows.lifecycle import TRANSITIONS
from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.protocol.states import STATE_NAMES


class CheckedState:
    """Stands for the slot ``Row.state``, and notes the changes that `TRANSITIONS` does not list."""

    def __init__(self, slot: Any) -> None:
        self.slot = slot
        self.illegal: set[str] = set()

    def __get__(self, row: Row | None, kind: type[Row]) -> Any:
        return self.slot if row is None else self.slot.__get__(row, kind)

    def __set__(self, row: Row, state: int) -> None:
        try:
            before = self.slot.__get__(row)
        except AttributeError:
            pass  # the row is being made
        else:
            if before != state and (before, state) not in TRANSITIONS:
                self.illegal.add(f"{STATE_NAMES[before]} -> {STATE_NAMES[state]} of {row.key!r}")
        self.slot.__set__(row, state)


UNCHECKED = ("test_travels", "test_programs")
"""The longest tests, which the check makes half as long again: of the same kinds of programs
`test_transitions` checks some."""


@pytest.fixture(autouse=True)
def states_change_as_they_may(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[CheckedState | None]:
    if request.module.__name__ in UNCHECKED:
        yield None
        return
    checked = CheckedState(Row.__dict__["state"])
    monkeypatch.setattr(Row, "state", checked)
    yield checked
    assert checked.illegal == set()
