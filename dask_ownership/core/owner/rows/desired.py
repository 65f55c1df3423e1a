"""Tasks whose results nobody awaits, as ``fire_and_forget`` asks: each is kept until it ends."""

from __future__ import annotations

from collections.abc import Iterable

from dask_ownership.core.owner.rows.lifecycle import Lifecycle
from dask_ownership.core.owner.rows.listener import RowListener
from dask_ownership.core.owner.rows.row import DESIRED, Row
from dask_ownership.core.owner.rows.table import Table
from dask_ownership.core.protocol.states import INLINE


class Desired(RowListener):
    """Rows that one owner keeps until they end, with one handle each.

    Parameters
    ----------
    table : Table
    lifecycle : Lifecycle

    Attributes
    ----------
    rows : set of Row
    """

    def __init__(self, table: Table, lifecycle: Lifecycle) -> None:
        self._table = table
        self._lifecycle = lifecycle
        self.rows: set[Row] = set()

    def keep(self, rows: Iterable[Row]) -> None:
        """Keep these, but for those that have ended. Twice is once."""
        for row in rows:
            if row.state < INLINE and row not in self.rows:
                self._table.hold(row)
                self.rows.add(row)
                row.roles |= DESIRED

    def finished(self, row: Row) -> None:
        """It has ended, with a value."""
        self.ended(row)

    def ended(self, row: Row) -> None:
        """It has ended."""
        if row in self.rows:
            self.rows.discard(row)
            self._lifecycle.release([row])
