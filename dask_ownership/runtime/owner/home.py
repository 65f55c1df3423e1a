"""The executor in an owner's own process, as far as the owner and its clients use it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from dask_ownership.core.executor.session import Entry
from dask_ownership.core.protocol.messages import Key, Message, Origin, Process, ValueName
from dask_ownership.runtime.parking import Parking


class Home(Protocol):
    """What an owner at a worker needs of the executor there.

    Attributes
    ----------
    worker : distributed.Worker
    incarnation : str
        Of the worker, and so of its owner.
    parking : Parking
        Tasks that wait are parked there.
    """

    worker: Any
    incarnation: str
    parking: Parking

    def deliver(self, posts: Iterable[Message]) -> None:
        """Pass on what the owner posts to others. Loop thread."""

    def local_link(
        self, process: Process, deliver: Callable[[Any], object]
    ) -> Callable[[Any], None]:
        """A link to this executor: takes the batches to call ``deliver`` with, gives what
        takes those of the owner."""

    def say_escaped(self, heir: Origin) -> None:
        """Futures of what the task ``heir`` submitted may be elsewhere. Any thread."""

    def made(self, entry: Entry, child: Key) -> None:
        """A task submitted a child that may be sought. Any thread."""

    def stored(self, name: ValueName) -> Any:
        """A value that is kept here; KeyError when it is not."""

    def hold(self, owner: str, key: Key, number: int, value: Any) -> int:
        """Keep a scattered value; its size in bytes. Loop thread."""
