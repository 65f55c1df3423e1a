"""Defaults of the ``ownership`` section of Dask's configuration."""

from __future__ import annotations

from pathlib import Path

import dask
import yaml

_DEFAULTS = Path(__file__).parent / "ownership.yaml"


def install() -> None:
    """Make the defaults known to Dask; what the user set stays."""
    with _DEFAULTS.open() as file:
        dask.config.update_defaults(yaml.safe_load(file))
