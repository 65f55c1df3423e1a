"""Calls that wait until owners have acknowledged borrowings."""

from __future__ import annotations

from collections.abc import Callable


class Acknowledgements:
    """Calls ``call`` when the owners of all ``left`` rows have acknowledged the borrowings."""

    __slots__ = ("call", "left")

    def __init__(self, left: int, call: Callable[[], None]) -> None:
        self.left = left
        self.call = call

    def one_acknowledged(self) -> None:
        """Count one row whose owner counts this process as a borrower."""
        self.left -= 1
        if self.left == 0:
            self.call()


class Both:
    """Two calls that wait for one row: ``one``, which may be a pair itself, and ``other``."""

    __slots__ = ("one", "other")

    def __init__(self, one: Acknowledgements | Both, other: Acknowledgements) -> None:
        self.one = one
        self.other = other

    def one_acknowledged(self) -> None:
        """Pass the acknowledgement of the row on to both."""
        self.one.one_acknowledged()
        self.other.one_acknowledged()
