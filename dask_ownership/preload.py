"""Preload module for clusters where clients may not register plugins.

Use ``dask scheduler --preload dask_ownership.preload``, or in the configuration
``distributed.scheduler.preload: [dask_ownership.preload]``. Workers need only the installed
package: the scheduler sends them the worker plugin.
"""

from __future__ import annotations

from typing import Any

from distributed import Scheduler

from dask_ownership.client.client import Client
from dask_ownership.scheduler.plugin import OwnershipSchedulerPlugin


async def dask_setup(server: Any) -> None:
    """Install the scheduler plugin if the process is a scheduler."""
    if isinstance(server, Scheduler):
        await OwnershipSchedulerPlugin(Client.for_worker).start(server)
