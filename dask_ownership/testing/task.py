"""What virtual tasks do: small descriptions in place of functions."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dask_ownership.core.owner.rows.row import Row
from dask_ownership.testing.travel import VirtualFuture

ARGUMENTS = "arguments that no message can hold"
VALUE = "a value that no message can hold"


@dataclass(frozen=True)
class Task:
    """What a virtual task does.

    It adds its constant and the values of its dependencies; then it submits its
    children, waits for them (without its slot) and adds their values.

    Attributes
    ----------
    constant : int
    duration : float
        Virtual microseconds before the children and again after them.
    large : bool
        The value stays at the worker.
    fails : int
        How many of its attempts end with an error.
    children : tuple of Task
    carries : tuple of VirtualFuture
        Futures inside its arguments.
    uses : str
        What it does with futures that came to it: ``read`` their values and add them,
        have a ``child`` add them, ``return`` them inside its value, ``raise`` an error with
        them inside, or ``drop`` them. Or it ``delegate``s to the first of them, or else to the
        first that it submitted.
    escape : bool
        It does not wait for its children but returns their futures inside its value, or in
        the error that it raises.
    makes : int
        How often it submits its children; when it runs more often, none.
    steps : int
        What it does first, one after the other, each for its duration and each followed by a
        checkpoint; their numbers are added to its value.
    lingers : float
        Virtual microseconds between submitting its children and its end.
    local_lock : str
        A lock of its worker's process that it takes first, and has until it ends.
    cluster_lock : str
        A lock of the cluster that it takes then, and has until it ends.
    kills : bool
        Its worker dies of it when its duration is over.
    unpackable : str
        What of it no message can hold: `ARGUMENTS`, `VALUE` (when it is not large), or nothing.
    """

    constant: int = 1
    duration: float = 10.0
    large: bool = False
    fails: int = 0
    children: tuple[Task, ...] = ()
    carries: tuple[Any, ...] = ()
    uses: str = "drop"
    escape: bool = False
    makes: int = 1_000_000
    steps: int = 0
    lingers: float = 0.0
    local_lock: str = ""
    cluster_lock: str = ""
    kills: bool = False
    unpackable: str = ""

    def value(self, inputs: Sequence[int]) -> int:
        """What a sequential program would get."""
        added = sum(range(self.steps)) + sum(c.value(()) for c in self.children)
        return self.constant + sum(inputs) + added


def fingerprint(task: Task) -> bytes:
    """What a task is, whoever owns the futures that it carries by now."""
    origins = [future.owner.core.table.origin_of(future.row) for future in task.carries]
    # One object for each name: a pickle tells equal objects from the same one twice.
    names = [sys.intern(origin[3]) for origin in origins]
    return pickle.dumps((replace(task, carries=()), names))


@dataclass
class Frame:
    """What a running task has: its inputs, and the futures that came to it."""

    task: Task
    inputs: list[int]
    came: list[VirtualFuture]
    looks: int = 0
    made: list[VirtualFuture] = field(default_factory=list)
    waited: list[Row] = field(default_factory=list)
    returned: list[VirtualFuture] = field(default_factory=list)
