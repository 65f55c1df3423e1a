"""What commands print with: rich, which is an extra of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    """A console on standard output.

    Raises
    ------
    click.ClickException
        When rich is not installed here.
    """
    try:
        from rich.console import Console
    except ImportError:
        raise click.ClickException(
            "this command needs rich: pip install 'dask-ownership[cli]'"
        ) from None
    return Console(highlight=False)
