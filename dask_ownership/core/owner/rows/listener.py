"""Listeners: how features are told what becomes of rows.

A feature that follows the life of some rows is a `RowListener`. The feature marks its rows with a
bit of its own in `Row.roles`, a *role*, and is told when such a row has a value, ends without a
value, or is forgotten. A row without roles costs one test. A role that stays when the feature has
lost interest costs a call and does no harm, because a listener looks at its own records.
"""

from __future__ import annotations

from dask_ownership.core.owner.rows.row import Row


class RowListener:
    """Base of the features that are told what becomes of rows with one of their roles.

    Every method here does nothing; a listener defines the methods for the events that concern the
    feature. `instead`, `recover` and `only_lineage_left` are called for all rows, with a role or
    without.
    """

    def finishing(self, row: Row, arguments: tuple[Row, ...]) -> None:
        """Hear that a row has a value, before its task is cleared.

        Function, payload and dependencies of the row are still there, for the last time.

        Parameters
        ----------
        row : Row
        arguments : tuple of Row
            The rows of the futures inside the payload; ``row.contains`` has the rows of the
            futures inside the value already.
        """

    def failing(self, row: Row) -> None:
        """Hear that a row with the role `RETAINED` is about to get an error with futures inside.

        ``row.contains`` has the futures inside the payload, and is about to get the futures inside
        the error as well.
        """

    def finished(self, row: Row) -> None:
        """Hear that a row has a value, after the waiting rows were told."""

    def ended(self, row: Row) -> None:
        """Hear that a row has ended without a value."""

    def forgotten(self, row: Row) -> None:
        """Hear that nothing counts a row any more; value and payload are still there."""

    def withdrawn(self, row: Row) -> None:
        """Hear that the value of a row is gone and is made again, or an error is tried again."""

    def locations_changed(self, row: Row) -> None:
        """Hear that a stored value has other locations than before."""

    def instead(self, row: Row, state: int) -> bool:
        """Return True to keep a row from failing when its dependency has ended in ``state``.

        Only `DetachedObjects` does.
        """
        return False

    def recover(self, row: Row) -> bool:
        """Return True when the feature has a row's value made again whose last copy is gone.

        `Lineages`, `Reconstruction` and `DetachedObjects` are asked, in this order.
        """
        return False

    def only_lineage_left(self, row: Row) -> None:
        """Hear that only lineage references are left of a row."""


class Listeners(dict[int, tuple[RowListener, ...]]):
    """The listeners of one `Lifecycle`: roles of a row, to the listeners that hear of the row.

    The dict fills itself: a combination of roles is looked up once, in the order of `add`.

    Attributes
    ----------
    everyone : list of RowListener
        All listeners, for the events that concern every row.
    """

    def __init__(self) -> None:
        super().__init__()
        self.everyone: list[RowListener] = []
        self._masks: list[int] = []

    def add(self, listener: RowListener, roles: int) -> None:
        """Have a listener hear of rows with one of ``roles``, after all earlier listeners."""
        self.everyone.append(listener)
        self._masks.append(roles)
        self.clear()

    def __missing__(self, roles: int) -> tuple[RowListener, ...]:
        pairs = zip(self.everyone, self._masks, strict=True)
        found = self[roles] = tuple([one for one, mask in pairs if mask & roles])
        return found

    def has_instead(self, row: Row, state: int) -> bool:
        """Tell whether a listener keeps a row from failing; see `RowListener.instead`."""
        return any(listener.instead(row, state) for listener in self.everyone)

    def recover(self, row: Row) -> bool:
        """Tell whether a listener has a row's value made again; see `RowListener.recover`."""
        return any(listener.recover(row) for listener in self.everyone)
