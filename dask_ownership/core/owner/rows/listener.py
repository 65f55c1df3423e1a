"""What features hear of the life of rows.

A feature that wants to know what becomes of some rows is a `RowListener`. It marks these rows with
a bit of its own in `Row.roles`, and is told when one of them has a value, ends without one, or is
forgotten. A row without roles costs one test. A bit that stays when the feature has lost its
interest costs a call and does no harm, because a listener looks at its own records.
"""

from __future__ import annotations

from dask_ownership.core.owner.rows.row import Row


class RowListener:
    """Is told what becomes of the rows that have one of its roles.

    What a method does not do anything about need not be defined.
    """

    def finishing(self, row: Row, arguments: tuple[Row, ...]) -> None:
        """A row has a value; ``arguments`` were the rows of the futures in its payload.

        Function, payload and dependencies are still there, for the last time.
        """

    def failing(self, row: Row) -> None:
        """A row is about to get an error with futures inside, beside those of its payload."""

    def finished(self, row: Row) -> None:
        """A row has a value, and what waited for it goes on."""

    def ended(self, row: Row) -> None:
        """A row has ended without a value."""

    def forgotten(self, row: Row) -> None:
        """Nothing counts a row any more; what it had is still there."""

    def withdrawn(self, row: Row) -> None:
        """The value of a row is gone and is made again, or its error is tried again."""

    def locations_changed(self, row: Row) -> None:
        """Other workers have a stored value than before."""

    def instead(self, row: Row, state: int) -> bool:
        """What a row waits for has ended in this state. Whether the row goes on all the same."""
        return False

    def recover(self, row: Row) -> bool:
        """The last copy of a row's value is gone. Whether the value is made again."""
        return False

    def unheld(self, row: Row) -> None:
        """Only other rows that were made from it still count a row."""
