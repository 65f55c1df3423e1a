"""The executor in an owner's own process, as its owner and clients see it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from dask_ownership.core.executor.session import Entry
from dask_ownership.core.protocol.messages import Key, Message, Origin, Process, ValueName
from dask_ownership.runtime.parking import Parking


class Home(Protocol):
    """The interface of an executor for the owner at the same worker.

    The protocol keeps this package free of an import of the executor, which imports the owner.

    Attributes
    ----------
    worker : distributed.Worker
    incarnation : str
        The incarnation of the owner at the worker.
    parking : Parking
        Parks tasks of the worker while they wait.
    """

    worker: Any
    incarnation: str
    parking: Parking

    def deliver(self, posts: Iterable[Message]) -> None:
        """Pass posts of the owner on to other processes. Loop thread."""

    def local_link(
        self, process: Process, deliver: Callable[[Any], object]
    ) -> Callable[[Any], None]:
        """Make a link between the owner and this executor, without a connection.

        Parameters
        ----------
        process : Process
            The owner.
        deliver : callable
            Called with each batch for the owner.

        Returns
        -------
        callable
            Takes each batch of the owner.
        """

    def mark_exported(self, heir: Origin) -> None:
        """Note that futures of children of the task ``heir`` may be elsewhere. Any thread."""

    def child_submitted(self, entry: Entry, child: Key) -> None:
        """Name a child to the owner of its parent task, if the owner looks for it. Any thread."""

    def stored(self, name: ValueName) -> Any:
        """Return a value kept at this worker.

        Raises
        ------
        KeyError
            When the worker does not have the value.
        """

    def hold(self, owner: str, key: Key, number: int, value: Any) -> int:
        """Keep a scattered value, and return its size in bytes. Loop thread."""
