"""``dask ownership version``: the installed versions."""

from __future__ import annotations

import platform

import click
import dask
import distributed

import dask_ownership
from dask_ownership.runtime.comm.link import PROTOCOL


@click.command("version")
def command() -> None:
    """Show the versions that are installed here.

    Owners, workers and the scheduler must have the same protocol version; `dask ownership
    check` compares those of a cluster.
    """
    versions = {
        "dask_ownership": dask_ownership.__version__,
        "dask": dask.__version__,
        "distributed": distributed.__version__,
        "python": platform.python_version(),
        "protocol": PROTOCOL,
    }
    for name, version in versions.items():
        click.echo(f"{name:<14} {version}")
