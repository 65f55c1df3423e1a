"""``dask ownership ...``: Dask's command line finds these commands by the entry point ``dask_cli``.

Each command is a module of its own, which is imported when the command runs: every ``dask`` command
loads this package.
"""

from __future__ import annotations

from importlib import import_module

import click

__all__ = ["main"]

COMMANDS = ("bench", "check", "simulate", "top", "version")


class Commands(click.Group):
    """A group whose commands are the ``command`` objects of the modules here."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Return the names of all commands, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Return the command of a name, or None if there is none."""
        if name not in COMMANDS:
            return None
        command: click.Command = import_module(f"dask_ownership.cli.{name}").command
        return command


@click.command("ownership", cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Look at, check, measure and plan clusters that run owned tasks."""
