"""Defaults of the ``ownership`` section of Dask's configuration."""

from __future__ import annotations

import threading
from pathlib import Path

import dask
import yaml

_DEFAULTS = Path(__file__).parent / "ownership.yaml"


OWN_FRAMES = r"dask_ownership[\\\/]((client[\\\/](client|data))|(futures[\\\/]gather)|get)\.py"
"""Files whose frames Dask leaves out of tracebacks, as it does with `distributed.client`."""

ACTIVE = {"dataframe.shuffle.method": "tasks", "array.rechunk.method": "tasks"}
"""Settings while a client is open: P2P shuffles, Dask's default, need the central scheduler."""

_lock = threading.Lock()
_open_clients = 0
_changed: list[str] = []


def client_opened() -> None:
    """Apply `ACTIVE` when the first client opens, except for settings that the user chose."""
    global _open_clients
    with _lock:
        _open_clients += 1
        if _open_clients == 1:
            for name, value in ACTIVE.items():
                if dask.config.get(name, None) is None:
                    dask.config.set({name: value})
                    _changed.append(name)


def client_closed() -> None:
    """Undo `client_opened` when the last client closed; the user's later settings stay."""
    global _open_clients
    with _lock:
        _open_clients -= 1
        if _open_clients == 0:
            for name in _changed:
                # Another value than ours is the user's.
                if dask.config.get(name, None) == ACTIVE[name]:
                    dask.config.set({name: None})
            _changed.clear()


def install() -> None:
    """Add the defaults to Dask's configuration; settings of the user stay."""
    with _DEFAULTS.open() as file:
        dask.config.update_defaults(yaml.safe_load(file))
    shorten = dask.config.get("admin.traceback.shorten", None)
    if shorten and OWN_FRAMES not in shorten:
        dask.config.update_defaults({"admin": {"traceback": {"shorten": [*shorten, OWN_FRAMES]}}})
