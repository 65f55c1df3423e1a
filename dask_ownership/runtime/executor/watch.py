"""Somebody who looks at the tasks of a worker, or nobody."""

from __future__ import annotations

from typing import Protocol

from dask_ownership.core.executor.session import Entry
from dask_ownership.runtime.task import Outcome


class Observer(Protocol):
    """Somebody who looks is told of tasks, in their threads and on the loop. It never raises."""

    def note(self, entry: Entry, outcome: Outcome, started: float) -> None:
        """A task ended. Before that is said to its owner."""

    def step(self, entry: Entry, action: str, began: float) -> None:
        """A task did something else than computing, until now."""

    def fetched(self, entry: Entry, seconds: float, source: str) -> None:
        """A value arrived, for tasks that wait for it."""


class Watch:
    """Who looks at the tasks of one worker.

    Attributes
    ----------
    observer : Observer or None
    """

    __slots__ = ("observer",)

    def __init__(self) -> None:
        self.observer: Observer | None = None

    def by(self, observer: Observer | None) -> None:
        """Somebody looks from now on, or nobody."""
        self.observer = observer
