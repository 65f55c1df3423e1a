"""A client as the modules below it see it: those that `dask_ownership.Client` is made of."""

from __future__ import annotations

from typing import Any, Protocol

from dask_ownership.runtime.owner import Owner


class ClientLike(Protocol):
    """What a `dask_ownership.Client` has for the proxies that stand for its scheduler's state.

    Attributes
    ----------
    owner : Owner
        The owner of this client's tasks.
    scheduler : object
        Gives the operations of the scheduler as methods.
    status : str
        ``"running"`` while it is connected.
    central_calls : int
        How many operations went to the central scheduler because they are not owned.
    """

    owner: Owner
    scheduler: Any
    central_calls: int

    @property
    def status(self) -> str: ...

    def who_has(self, futures: Any = None, **kwargs: Any) -> Any:
        """The workers that have each value; a coroutine with ``asynchronous=True``."""

    def _send_to_scheduler(self, msg: dict[str, Any]) -> None: ...
