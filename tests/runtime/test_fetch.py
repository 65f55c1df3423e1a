"""Reading values: what becomes of rows while others are waited for."""

from __future__ import annotations

import asyncio
from typing import Any

from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.protocol.states import INLINE, WAITING
from dask_ownership.runtime.owner.fetch import fetch


class Owner:
    """Rows end, and an early one is lost again before the last one has ended."""

    def __init__(self, lost: Row) -> None:
        self.lost: list[Row] = [lost]

    async def wait_async(self, rows: list[Row]) -> None:
        for row in rows:
            row.state, row.value = INLINE, b"value"
        if self.lost:
            self.lost.pop().state = WAITING


def test_a_value_that_is_lost_while_others_are_waited_for_is_waited_for_again() -> None:
    early, late = rows = [Row(key, None, None, (), 0) for key in ("early", "late")]
    owner: Any = Owner(early)
    assert asyncio.run(fetch(owner, rows)) == {early: b"value", late: b"value"}
