"""Every error of this project that a user can meet, with its reason."""

from __future__ import annotations

from collections.abc import Hashable
from concurrent.futures import CancelledError

from distributed.client import FutureCancelledError
from distributed.scheduler import KilledWorker as _StockKilledWorker

from dask_ownership.core.table import Failure

__all__ = [
    "ClosedOwner",
    "FutureCancelledError",
    "KilledWorker",
    "LostData",
    "NoWorker",
    "NotHere",
    "NotSerializable",
    "OwnershipError",
    "PluginMissing",
    "TaskExit",
]


class OwnershipError(Exception):
    """Base of the errors below."""


class LostData(OwnershipError):
    """The only copy of a value is gone, and nothing can make it again.

    Attributes
    ----------
    key : hashable
        The value that was lost; it may be an input of the one that was asked for.
    """

    def __init__(self, key: Hashable, detail: str) -> None:
        super().__init__(key, detail)
        self.key = key
        self.detail = detail

    def __str__(self) -> str:
        return f"the value of {self.key!r} is lost: {self.detail}"


class KilledWorker(OwnershipError, _StockKilledWorker):
    """A task was given up because workers kept dying under it."""

    def __init__(self, key: Hashable, detail: str) -> None:
        Exception.__init__(self, key, detail)
        self.key = key
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.key!r} was given up: {self.detail}"


class NoWorker(OwnershipError, ValueError):
    """No worker of the cluster may or can run the task."""

    def __init__(self, key: Hashable, detail: str) -> None:
        super().__init__(key, detail)
        self.key = key
        self.detail = detail

    def __str__(self) -> str:
        return f"no worker can run {self.key!r}: {self.detail}"


class NotSerializable(OwnershipError, TypeError):
    """A function, argument, result, value or exception cannot be pickled or unpickled."""


class NotHere(OwnershipError, RuntimeError):
    """A future arrived in a process that does not own it and was asked for something."""


class PluginMissing(OwnershipError, RuntimeError):
    """The cluster does not speak ownership and this client may not teach it."""


class TaskExit(OwnershipError, RuntimeError):
    """A task raised SystemExit, KeyboardInterrupt or another exception that is no `Exception`.

    It must not end other processes, or cancel the coroutine that asks for the result.
    """


class ClosedOwner(OwnershipError, CancelledError, RuntimeError):
    """The client was closed, so nothing can be asked of what it owned.

    Closing frees every value, those that were here already too, so that what a
    future answers then does not depend on its value's size.
    """


def from_failure(key: Hashable, failure: Failure) -> BaseException:
    """The exception that says why a row has no value."""
    if failure.kind == "cancelled":
        detail = failure.detail
        if failure.key != key:
            detail = f"its input {failure.key!r} was cancelled ({detail})"
        return FutureCancelledError(key, detail)
    kinds: dict[str, type[Exception]] = {
        "lost-data": LostData,
        "killed-worker": KilledWorker,
        "no-worker": NoWorker,
    }
    kind = kinds.get(failure.kind)
    if kind is not None:
        return kind(failure.key, failure.detail)
    return ClosedOwner(f"{key!r}: {failure.detail}")
