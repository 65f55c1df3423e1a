"""The parts of `dask_ownership.Client` that the modules below the client use."""

from __future__ import annotations

from typing import Any, Protocol

from dask_ownership.core.owner.rows.row import Row
from dask_ownership.futures.future import Future
from dask_ownership.runtime.owner.owner import Owner


class ImportsLike(Protocol):
    """Takes futures of other clients into a client, see `dask_ownership.interop.bridge.Imports`."""

    def future(self, value: Any) -> Future:
        """Return a future of this client for a future or an actor of another client."""

    def row(self, value: Any) -> Row:
        """Return the row of the future that `future` would return, with a local reference."""


class ClientLike(Protocol):
    """The parts of a `dask_ownership.Client` that the modules below the client use.

    Attributes
    ----------
    owner : Owner
        The owner of this client's tasks.
    imports : ImportsLike
        Takes in futures of other clients.
    futures : dict
        Futures of this client by key, also those of the central scheduler.
    scheduler : object
        Has the operations of the scheduler as methods.
    status : str
        ``"running"`` while the client is connected.
    central_calls : int
        How many operations went to the central scheduler because they are not owned.
    """

    owner: Owner
    futures: Any
    scheduler: Any
    central_calls: int

    @property
    def imports(self) -> ImportsLike: ...

    @property
    def status(self) -> str: ...

    def who_has(self, futures: Any = None, **kwargs: Any) -> Any:
        """Return the locations of each value; a coroutine with ``asynchronous=True``."""

    def _send_to_scheduler(self, msg: dict[str, Any]) -> None: ...
