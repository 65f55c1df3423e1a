"""A client as the modules below it see it: those that `dask_ownership.Client` is made of."""

from __future__ import annotations

from typing import Any, Protocol

from dask_ownership.core.owner.rows.row import Row
from dask_ownership.futures.future import Future
from dask_ownership.runtime.owner.owner import Owner


class ImportsLike(Protocol):
    """What takes futures of others into a client, see `dask_ownership.interop.bridge.Imports`."""

    def future(self, value: Any) -> Future:
        """A future of this client for what another has."""

    def row(self, value: Any) -> Row:
        """The row of what `future` takes, with a handle."""


class ClientLike(Protocol):
    """What a `dask_ownership.Client` is for the modules below it.

    Attributes
    ----------
    owner : Owner
        The owner of this client's tasks.
    imports : ImportsLike
    futures : dict
        Futures of this client by key, of the scheduler's too.
    scheduler : object
        Gives the operations of the scheduler as methods.
    status : str
        ``"running"`` while it is connected.
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
        """The workers that have each value; a coroutine with ``asynchronous=True``."""

    def _send_to_scheduler(self, msg: dict[str, Any]) -> None: ...
