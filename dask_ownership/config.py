"""Defaults of the ``ownership`` section of Dask's configuration."""

from __future__ import annotations

import threading
from pathlib import Path

import dask
import yaml

_DEFAULTS = Path(__file__).parent / "ownership.yaml"


OWN_FRAMES = r"dask_ownership[\\\/]((client[\\\/](client|data))|(futures[\\\/]gather)|get)\.py"
"""Files whose frames Dask leaves out of tracebacks, as it does those of `distributed.client`."""

ACTIVE = {"dataframe.shuffle.method": "tasks", "array.rechunk.method": "tasks"}
"""P2P shuffles need the central scheduler, so they are not the default while a client is open."""

_lock = threading.Lock()
_open_clients = 0
_changed: list[str] = []


def client_opened() -> None:
    """Switch shuffles to tasks, unless the user chose; for the first client that opens."""
    global _open_clients
    with _lock:
        _open_clients += 1
        if _open_clients == 1:
            for name, value in ACTIVE.items():
                if dask.config.get(name, None) is None:
                    dask.config.set({name: value})
                    _changed.append(name)


def client_closed() -> None:
    """Undo it when the last client closed; what the user set meanwhile stays."""
    global _open_clients
    with _lock:
        _open_clients -= 1
        if _open_clients == 0:
            for name in _changed:
                if dask.config.get(name, None) == ACTIVE[name]:
                    dask.config.set({name: None})
            _changed.clear()


def install() -> None:
    """Make the defaults known to Dask; what the user set stays."""
    with _DEFAULTS.open() as file:
        dask.config.update_defaults(yaml.safe_load(file))
    shorten = dask.config.get("admin.traceback.shorten", None)
    if shorten and OWN_FRAMES not in shorten:
        dask.config.update_defaults({"admin": {"traceback": {"shorten": [*shorten, OWN_FRAMES]}}})
