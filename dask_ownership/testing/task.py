"""Virtual tasks: small descriptions in place of functions."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dask_ownership.core.owner.rows.row import Row
from dask_ownership.core.protocol.names import KEY
from dask_ownership.testing.travel import VirtualFuture

ARGUMENTS = "arguments that no message can hold"
VALUE = "a value that no message can hold"


@dataclass(frozen=True)
class Task:
    """Describes a virtual task.

    The task adds its constant and the values of its dependencies. Then it submits its children,
    waits for them (without its slot) and adds their values.

    Attributes
    ----------
    constant : int
    duration : float
        Virtual microseconds before the children and again after them.
    large : bool
        Whether the value stays at the worker.
    fails : int
        How many of the first attempts end with an error.
    children : tuple of Task
    carries : tuple of VirtualFuture
        Futures inside the arguments.
    uses : str
        What the task does with futures that came to it: ``read`` and add their values, have a
        ``child`` add the values, ``return`` the futures inside the value, ``raise`` an error with
        the futures inside, or ``drop`` the futures. Or ``delegate`` to the first of the futures,
        or else to the first child.
    escape : bool
        The task does not wait for its children but returns their futures inside its value, or
        inside the error that it raises.
    makes : int
        In how many runs the task submits its children; later runs submit none.
    steps : int
        Number of steps before all else, each as long as ``duration`` and followed by a
        checkpoint. The numbers of the steps are added to the value.
    lingers : float
        Virtual microseconds between submitting the children and the end.
    local_lock : str
        Name of a lock of the worker's process, which the task takes first and has until its end.
    cluster_lock : str
        Name of a lock of the cluster, which the task takes next and has until its end.
    kills : bool
        Whether the worker dies under the task when ``duration`` is over.
    unpackable : str
        The part of the task that no message can hold: `ARGUMENTS`, `VALUE` (when it is not
        large), or none.
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
        """Return the value that a sequential program would get."""
        added = sum(range(self.steps)) + sum(c.value(()) for c in self.children)
        return self.constant + sum(inputs) + added


def fingerprint(task: Task) -> bytes:
    """Pickle a task without the owners of its futures, which other owners may have by now."""
    origins = [future.owner.core.table.origin_of(future.row) for future in task.carries]
    # One object for each name: a pickle of two equal objects differs from that of one object.
    names = [sys.intern(origin[KEY]) for origin in origins]
    return pickle.dumps((replace(task, carries=()), names))


@dataclass
class Frame:
    """The state of a running task.

    Attributes
    ----------
    task : Task
    inputs : list of int
        Values of the dependencies.
    came : list of VirtualFuture
        Futures that came with arguments and dependencies.
    looks : int
        How often a value was found lost that the task had waited for.
    made : list of VirtualFuture
        Futures of the children.
    waited : list of Row
        Rows for which the task waits.
    returned : list of VirtualFuture
        Futures for the value or the error of the task.
    """

    task: Task
    inputs: list[int]
    came: list[VirtualFuture]
    looks: int = 0
    made: list[VirtualFuture] = field(default_factory=list)
    waited: list[Row] = field(default_factory=list)
    returned: list[VirtualFuture] = field(default_factory=list)
