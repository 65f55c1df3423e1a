"""``dask ownership bench``: the benchmarks, with their own options."""

from __future__ import annotations

import click

from dask_ownership.benchmarks.cli import main


@click.command(
    "bench",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    short_help="Measure this project and others, embedded or on a cluster.",
)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def command(options: tuple[str, ...]) -> None:
    """Measure this project and others; ``--help`` is that of the benchmarks."""
    raise click.exceptions.Exit(main(list(options), "dask ownership bench"))
