"""Rows that are kept until their tasks end, without any future, as ``fire_and_forget`` asks."""

from __future__ import annotations

from collections.abc import Iterable

from dask_ownership.core.owner.rows.lifecycle import Lifecycle
from dask_ownership.core.owner.rows.listener import RowListener
from dask_ownership.core.owner.rows.row import DESIRED, Row
from dask_ownership.core.owner.rows.table import Table
from dask_ownership.core.protocol.states import INLINE


class Desired(RowListener):
    """The rows that an owner keeps until their tasks end, with a local reference each.

    Parameters
    ----------
    table : Table
    lifecycle : Lifecycle

    Attributes
    ----------
    rows : set of Row
        The kept rows.
    """

    def __init__(self, table: Table, lifecycle: Lifecycle) -> None:
        self._table = table
        self._lifecycle = lifecycle
        self.rows: set[Row] = set()

    def keep(self, rows: Iterable[Row]) -> None:
        """Keep the rows that have not ended. Keeping a row twice is the same as once."""
        for row in rows:
            if row.state < INLINE and row not in self.rows:
                self._table.hold(row)
                self.rows.add(row)
                row.roles |= DESIRED

    def finished(self, row: Row) -> None:
        """Let go of a row whose task has ended with a value."""
        self.ended(row)

    def ended(self, row: Row) -> None:
        """Let go of a row whose task has ended without a value."""
        if row in self.rows:
            self.rows.discard(row)
            self._lifecycle.release([row])
