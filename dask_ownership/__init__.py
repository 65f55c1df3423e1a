"""Tasks owned by the process that calls them, on a stock Dask cluster.

Write ``from dask_ownership import Client`` in place of ``from distributed import Client``, or
``dask.config.set(scheduler="ownership")`` in existing code.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import distributed as _distributed
from distributed import fire_and_forget, get_worker, worker_client

from dask_ownership import config as _config

# Before the imports below, so that no module meets a configuration without the defaults.
_config.install()

from dask_ownership.client.client import Client  # noqa: E402
from dask_ownership.deploy import LocalCluster  # noqa: E402
from dask_ownership.errors import (  # noqa: E402
    ClosedOwner,
    InternalError,
    KilledWorker,
    LostData,
    NotHere,
    NotSerializable,
    NotUnpickled,
    NoWorker,
    NoWorkerInTime,
    OwnerLost,
    OwnershipError,
    PluginMissing,
    SchedulerGone,
    Superseded,
    TaskExit,
    TaskTimeout,
    Uncertain,
)
from dask_ownership.futures.checkpoints import checkpoint, restore  # noqa: E402
from dask_ownership.futures.future import Future, delegate  # noqa: E402
from dask_ownership.futures.progress import progress  # noqa: E402
from dask_ownership.futures.wait import as_completed, wait  # noqa: E402
from dask_ownership.get import get  # noqa: E402
from dask_ownership.runtime.task import cancelled  # noqa: E402

if TYPE_CHECKING:

    def get_client(address: Any = None, timeout: Any = None, **options: Any) -> Client:
        """Return this project's client, as `distributed.get_client` does in owned tasks."""

else:
    from distributed import get_client

    def __getattr__(name: str) -> Any:
        """Say of a name that stays with `distributed` where to import it from."""
        if name not in _distributed.__all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
        text = (
            f"dask_ownership has no {name!r} of its own, and works with Dask's: "
            f"from distributed import {name}"
        )
        # A ``from`` import keeps the text of an ImportError, and not that of an AttributeError.
        if sys._getframe(1).f_code.co_name == "_handle_fromlist":
            raise ImportError(text, name=__name__)
        raise AttributeError(text, name=name)


try:
    __version__ = version("dask-ownership")
except PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "0+unknown"

__all__ = [
    "Client",
    "ClosedOwner",
    "Future",
    "InternalError",
    "KilledWorker",
    "LocalCluster",
    "LostData",
    "NoWorker",
    "NoWorkerInTime",
    "NotHere",
    "NotSerializable",
    "NotUnpickled",
    "OwnerLost",
    "OwnershipError",
    "PluginMissing",
    "SchedulerGone",
    "Superseded",
    "TaskExit",
    "TaskTimeout",
    "Uncertain",
    "as_completed",
    "cancelled",
    "checkpoint",
    "delegate",
    "fire_and_forget",
    "get",
    "get_client",
    "get_worker",
    "progress",
    "restore",
    "wait",
    "worker_client",
]
