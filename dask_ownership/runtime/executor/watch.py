"""An observer of the tasks of a worker, when there is one."""

from __future__ import annotations

from typing import Protocol

from dask_ownership.core.executor.session import Entry
from dask_ownership.runtime.task import Outcome


class Observer(Protocol):
    """What an executor tells of its tasks, in their threads and on the loop.

    No method may raise: an observer must not change the outcome of a task.
    """

    def note(self, entry: Entry, outcome: Outcome, started: float) -> None:
        """Take a note of an ended task, before its owner hears of the end.

        ``started`` is the time of the worker's clock at which the task began.
        """

    def step(self, entry: Entry, action: str, began: float) -> None:
        """Take a note of a step of a task besides computing, from ``began`` until now."""

    def fetched(self, entry: Entry, seconds: float, source: str) -> None:
        """Take a note of a fetched value, for the tasks that waited for it.

        ``source`` is the address of the worker that gave the value.
        """


class Watch:
    """The place of the observer of one worker, which parts of its executor share.

    Attributes
    ----------
    observer : Observer or None
        None while no client and no page looks at tasks: then a task costs one test.
    """

    __slots__ = ("observer",)

    def __init__(self) -> None:
        self.observer: Observer | None = None

    def by(self, observer: Observer | None) -> None:
        """Have this observer told of tasks from now on; None ends that."""
        self.observer = observer
