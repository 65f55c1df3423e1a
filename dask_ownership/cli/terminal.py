"""The console that commands print on, made by rich, which is an extra."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    """Return a console on standard output.

    Raises
    ------
    click.ClickException
        When rich is not installed.
    """
    try:
        from rich.console import Console
    except ImportError:
        # The package itself, because the extra `cli` has different names in a clone and elsewhere.
        raise click.ClickException("this command needs rich: pip install rich") from None
    return Console(highlight=False)
