"""``dask ownership top``: owners, workers, rates and failures, live in a terminal."""

from __future__ import annotations

import asyncio
from typing import Any

import click

from dask_ownership.cli.check import scheduler_plugin, versions_in
from dask_ownership.cli.connecting import (
    Asking,
    Unreachable,
    cluster_options,
    quietly,
    scheduler_at,
    security_of,
)
from dask_ownership.cli.frame import frame
from dask_ownership.cli.keys import SORTS, Keys
from dask_ownership.cli.terminal import console
from dask_ownership.runtime.comm.scheduler_ops import ACTIVITY

RATES = 1.2
"""Seconds after which two reports give rates."""

METRICS_EVERY = 5
"""Pictures for which CPU and memory of workers are asked once."""


class Source:
    """Asks the scheduler for the content of a picture.

    Parameters
    ----------
    ask : Asking

    Attributes
    ----------
    ask : Asking
    metrics : dict
        Metrics in the heartbeats of workers, by address.
    """

    def __init__(self, ask: Asking) -> None:
        self.ask = ask
        self.metrics: dict[str, Any] = {}
        self._asked = 0

    async def check(self) -> None:
        """Check that the scheduler can be asked.

        Raises
        ------
        click.ClickException
            When the scheduler takes no owners.
        """
        identity = await self.ask.identity()
        versions = versions_in(await self.ask("versions", packages=["dask_ownership"]))
        plugin = await scheduler_plugin(self.ask, versions, identity["workers"].values())
        if not plugin.ok:
            raise click.ClickException(f"{self.ask.address}: the plugin is {plugin.text}")

    async def told(self) -> dict[str, Any]:
        """Return the activity of all owners and workers.

        Raises
        ------
        Unreachable
        """
        # The identity of a scheduler lists all workers, which is much to send for each picture.
        if self._asked % METRICS_EVERY == 0:
            identity = await self.ask.identity()
            workers = identity["workers"].items()
            self.metrics = {address: worker["metrics"] for address, worker in workers}
        self._asked += 1
        told = await self.ask(ACTIVITY)
        if not isinstance(told, dict) or "owners" not in told:
            raise Unreachable(
                f"{self.ask.address} does not tell what owners do: install the same "
                "dask_ownership there as here"
            )
        return told


async def show_once(source: Source, sort: str) -> None:
    """Print one picture."""
    await source.told()
    # The first question makes the reports begin; rates need a second one.
    await asyncio.sleep(RATES)
    told = await source.told()
    terminal = console()
    terminal.print(frame(told, source.ask.address, sort, terminal.width, None, source.metrics))


async def show_live(source: Source, sort: str, interval: float) -> None:
    """Draw pictures until `q` is pressed."""
    from rich.live import Live

    terminal = console()
    keys = Keys(sort)
    told = await source.told()
    loop = asyncio.get_running_loop()
    with (
        keys.listening(),
        Live(console=terminal, screen=True, auto_refresh=False) as live,
    ):
        due = loop.time()
        while not keys.quit:
            # A key redraws at once, from the last answer; the scheduler is asked at its interval.
            if loop.time() >= due:
                told = await source.told()
                due = loop.time() + interval
            width, height = terminal.size
            live.update(
                frame(told, source.ask.address, keys.sort, width, height, source.metrics),
                refresh=True,
            )
            await keys.within(max(0.0, due - loop.time()))


@click.command("top")
@click.argument("address")
@click.option(
    "--sort",
    type=click.Choice(list(SORTS.values())),
    default="rate",
    show_default=True,
    help="What is first.",
)
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two pictures.",
)
@click.option("--once", is_flag=True, help="Print one picture and end.")
@cluster_options
def command(
    *,
    address: str,
    sort: str,
    interval: float,
    once: bool,
    timeout: float,
    tls_ca_file: str | None,
    tls_cert: str | None,
    tls_key: str | None,
) -> None:
    """Watch the cluster at ADDRESS: owners, workers, rates and failures.

    Owners are clients, and workers whose tasks submit tasks. `pending` tasks were not handed to
    a worker yet, `handed` ones run or wait there; `again` counts tasks that were handed out once
    more because something had gone wrong. The keys r, p, f, m and n sort by
    rate, pending, failed, memory and name; q quits. Where the output is no terminal, one
    picture is printed, as with --once.

    While it runs, owners and workers report to the scheduler up to twice a second, as they do
    for the dashboard.
    """
    terminal = console()

    async def shown() -> None:
        async with scheduler_at(address, security, timeout) as ask:
            source = Source(ask)
            await source.check()
            if once or not terminal.is_terminal:
                await show_once(source, sort)
            else:
                await show_live(source, sort, interval)

    security = security_of(tls_ca_file, tls_cert, tls_key)
    quietly(shown())
