"""``dask ownership check``: whether owned tasks can run between this process and a cluster."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any
from uuid import uuid4

import click
import distributed
from distributed import Security
from distributed.versions import get_versions

from dask_ownership.cli.connecting import (
    Asking,
    Unreachable,
    cluster_options,
    dial,
    quietly,
    reason,
    scheduler_at,
    security_of,
)
from dask_ownership.cli.terminal import console
from dask_ownership.config import value_of
from dask_ownership.runtime.comm.link import PROTOCOL, LinkRefused, OwnerLink
from dask_ownership.runtime.comm.reach import Reach
from dask_ownership.runtime.comm.scheduler_ops import JOIN, TOLD
from dask_ownership.runtime.comm.secret import Joining

COMPARED = ("dask_ownership", "dask", "distributed", "cloudpickle", "python")
"""Packages whose versions must be the same everywhere."""

AT_ONCE = 200
"""Workers that are asked at the same time, at most."""

NAMED = 3
"""Workers that one line names, at most."""

PRELOAD = (
    "the first dask_ownership.Client installs it, unless clients may not register plugins there: "
    "then start the scheduler with --preload dask_ownership.preload"
)
"""What is to come at a scheduler without the plugin."""

INSTALL = (
    "the scheduler cannot import dask_ownership: install it there and at the workers, in the "
    "version that is here"
)
"""Advice for a scheduler without the package."""


@dataclass(frozen=True)
class Finding:
    """One line of output: an aspect of the cluster, and either that it is well or what to do.

    Attributes
    ----------
    ok : bool or None
        None for a line that is information only.
    what, text : str
        The aspect, and the finding.
    """

    ok: bool | None
    what: str
    text: str

    @property
    def mark(self) -> str:
        """The word at the beginning of the line."""
        return "-" if self.ok is None else "ok" if self.ok else "PROBLEM"


@dataclass
class Reached:
    """The results for one worker.

    Attributes
    ----------
    address : str
    unreachable : str
        Why no connection to the worker opens, or "".
    refused : str
        Why the worker does not take the owner's link, or "".
    versions : dict of str to str
        Versions of packages there; empty when the worker did not answer.
    way : str
        ``"direct"``, or ``"relayed"`` by the scheduler.
    round_trip : float
        Seconds for which a small question and its answer take.
    """

    address: str
    unreachable: str = ""
    refused: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    way: str = "direct"
    round_trip: float = 0.0


def named(addresses: Iterable[str]) -> str:
    """Return the first addresses, and the number of further ones."""
    those = list(addresses)
    more = f" and {len(those) - NAMED:,d} more" if len(those) > NAMED else ""
    return ", ".join(those[:NAMED]) + more


def versions_in(found: Any) -> dict[str, str]:
    """Return the compared versions from Dask's description of an installation."""
    packages = found.get("packages", {}) if isinstance(found, dict) else {}
    versions = {name: packages.get(name) or "not installed" for name in COMPARED}
    # Python may differ in its last number.
    versions["python"] = ".".join(versions["python"].split(".")[:2])
    return versions


async def examine(address: str, security: Security, seconds: float) -> AsyncIterator[Finding]:
    """Examine a cluster, and change nothing there; yield the findings.

    Raises
    ------
    Unreachable
        When no scheduler answers.
    """
    async with scheduler_at(address, security, seconds) as ask:
        began = perf_counter()
        identity = await ask.identity()
        took = perf_counter() - began
        workers = list(identity["workers"])
        yield Finding(
            True,
            "scheduler",
            f"{ask.address} answers in {1e3 * took:.1f} ms; {len(workers):,d} workers",
        )
        found = await ask("versions", packages=["dask_ownership"])
        at_scheduler = versions_in(found)
        plugin = await scheduler_plugin(ask, at_scheduler, identity["workers"].values())
        if plugin.ok:
            async with token_of(ask) as token:
                reached = await reach_all(workers, ask, token)
        else:
            # Without the plugin no owner can join, and workers are only asked for their versions.
            reached = await reach_all(workers, ask, None)
    here = versions_in(get_versions(packages=["dask_ownership"]))
    yield compare(here, at_scheduler, {r.address: r.versions for r in reached if r.versions})
    yield plugin
    if not workers:
        yield Finding(False, "workers", "there is none: start some with `dask worker`")
        return
    if plugin.ok:
        yield worker_plugins(reached)
    yield reachable(reached)
    yield same_security(ask.address, workers)
    yield Finding(
        None,
        "shared memory",
        "not used: values between processes of one host pass through its network stack",
    )


async def scheduler_plugin(
    ask: Asking, versions: Mapping[str, str], workers: Iterable[Mapping[str, Any]]
) -> Finding:
    """Return whether the scheduler takes owners.

    No owner joins by this question, because only a registered client would be let in.
    """
    answer = None
    installed = versions["dask_ownership"] != "not installed"
    # A scheduler logs a warning about an operation it does not know. So the question is asked only
    # if the package is installed at the scheduler, or workers have the plugin's metric.
    if installed or any("owned_tasks" in worker.get("metrics", ()) for worker in workers):
        answer = await ask(JOIN, protocol=PROTOCOL)
    if not isinstance(answer, dict) and installed:
        return Finding(None, "plugin", f"not installed at the scheduler yet: {PRELOAD}")
    if not isinstance(answer, dict):
        return Finding(False, "plugin", f"not installed at the scheduler: {INSTALL}")
    if answer.get("status") == "refused":
        return Finding(False, "plugin", str(answer.get("reason")))
    return Finding(True, "plugin", f"installed at the scheduler, protocol {PROTOCOL}")


Joined = tuple[str, str, dict[str, str]]
"""Name and token of an owner, and incarnations of the workers by address."""


@contextlib.asynccontextmanager
async def token_of(ask: Asking) -> AsyncIterator[Joined]:
    """Join an owner, which stays joined as long as the context: only joined owners may open links.

    Yields the name and token of the owner, and the incarnations of the workers by their addresses.
    """
    owner = uuid4().hex
    try:
        client = await distributed.Client(
            ask.address,
            security=ask.security,
            asynchronous=True,
            set_as_default=False,
            timeout=ask.seconds,
            name="ownership-check",
        )
    except Exception as error:
        raise Unreachable(f"{ask.address} takes no client: {reason(error, ask.seconds)}") from None
    try:
        # What the scheduler tells of other processes meanwhile is nothing to this owner.
        ignore: Callable[..., None] = lambda **message: None  # noqa: E731
        client._stream_handlers.update(dict.fromkeys(TOLD, ignore))
        joining = Joining(client._send_to_scheduler)
        joined = joining(client.scheduler, owner=owner, client=client.id)
        answer = await asyncio.wait_for(joined, ask.seconds)
        if answer.get("status") != "OK":
            raise Unreachable(f"{ask.address} lets no owner join: {answer.get('reason')}")
        incarnations = {one["address"]: one["incarnation"] for one in answer["members"]}
        yield owner, answer["token"], incarnations
    finally:
        with contextlib.suppress(Exception):
            await asyncio.wait_for(client.close(), ask.seconds)


async def reach_all(workers: list[str], ask: Asking, token: Joined | None) -> list[Reached]:
    """Ask all workers, `AT_ONCE` at a time."""
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(address: str) -> Reached:
        async with turn:
            return await reach(address, ask, token)

    return await asyncio.gather(*map(one, workers))


async def reach(address: str, ask: Asking, token: Joined | None) -> Reached:
    """Ask a worker for its versions, and open a link to the worker as an owner does."""
    result = Reached(address)
    seconds = ask.seconds
    # As an owner does: a worker that no dial reaches is asked by way of the scheduler.
    ways = Reach(
        ask.arguments,
        None if token is None else lambda: ask.address,
        asker=lambda: token[0] if token else "",
        token=lambda: token[1] if token else "",
        now_direct=lambda _: None,
    )
    try:
        comm = await dial(ways.route(address), ask.arguments, seconds)
        result.way = ways.way_to(address)
        try:
            question = Asking(comm, address, ask.security, seconds)
            answer = await question("versions", packages=["dask_ownership"])
            began = perf_counter()
            await question("identity")
            result.round_trip = perf_counter() - began
        finally:
            comm.abort()
    except Unreachable as error:
        result.unreachable = error.message.removeprefix(ways.route(address)).strip()
        return result
    finally:
        await ways.close()
    result.versions = versions_in(answer)
    if token is None:
        return result
    owner, secret, incarnations = token
    hello = {
        "owner": owner,
        "address": "",
        "name": "ownership-check",
        "token": secret,
        "to": incarnations.get(address, ""),
    }
    ignore: Callable[[Any], None] = lambda _: None  # noqa: E731
    link = OwnerLink(
        address,
        hello,
        ask.arguments,
        received=ignore,
        refused=ignore,
        unreachable=ignore,
        route=ways.route,
    )
    try:
        await asyncio.wait_for(link.probe(), seconds)
    except LinkRefused as error:
        result.refused = str(error)
    except Exception as error:
        result.unreachable = f"takes no link: {reason(error, seconds)}"
    return result


def compare(
    here: Mapping[str, str],
    at_scheduler: Mapping[str, str],
    at_workers: Mapping[str, Mapping[str, str]],
) -> Finding:
    """Return whether versions are the same here, at the scheduler and at all workers."""
    different = []
    for name in COMPARED:
        places: dict[str, list[str]] = defaultdict(list)
        for place, versions in {"here": here, "scheduler": at_scheduler, **at_workers}.items():
            places[versions[name]].append(place)
        if len(places) > 1:
            where = "; ".join(f"{version} at {named(those)}" for version, those in places.items())
            different.append(f"{name} is {where}")
    if different:
        text = "; ".join(different) + ": install the same in all places"
        return Finding(False, "versions", text)
    same = ", ".join(f"{name} {here[name]}" for name in COMPARED)
    places_ = f"here, at the scheduler and at {len(at_workers):,d} workers"
    return Finding(True, "versions", f"{same}: {places_}")


def worker_plugins(reached: list[Reached]) -> Finding:
    """Return whether every worker that was reached takes owners."""
    refused = [r for r in reached if r.refused]
    if refused:
        text = f"{len(refused):,d} of {len(reached):,d} workers take no owned tasks: "
        return Finding(False, "worker plugin", text + refused[0].refused)
    linked = sum(1 for r in reached if not r.unreachable)
    if not linked:
        return Finding(None, "worker plugin", "not known: no worker was reached")
    return Finding(True, "worker plugin", f"installed at {linked:,d} workers")


def reachable(reached: list[Reached]) -> Finding:
    """Return whether an owner in this process reaches every worker."""
    failed = [r for r in reached if r.unreachable]
    there = [r for r in reached if not r.unreachable]
    relayed = [r for r in there if r.way == "relayed"]
    if not failed:
        slowest = max(there, key=lambda r: r.round_trip)
        trip = f"; a round trip takes {1e3 * slowest.round_trip:.1f} ms at most ({slowest.address})"
        if not relayed:
            return Finding(True, "reachable", f"all {len(reached):,d} workers from here{trip}")
        direct = len(there) - len(relayed)
        how = (
            "The configuration here says ownership.reach: relay, so that none is dialled"
            if value_of("ownership.reach") == "relay"
            else "For the full rate give these an address that can be dialled from here "
            "(--contact-address)"
        )
        text = (
            f"{direct:,d} workers from here, and {len(relayed):,d} by way of the "
            f"scheduler, which relays to them ({named(r.address for r in relayed)}){trip}. {how}"
        )
        return Finding(True, "reachable", text)
    return Finding(
        False,
        "reachable",
        f"{len(failed):,d} of {len(reached):,d} workers are not, from here: "
        f"{named(r.address for r in failed)} ({failed[0].unreachable}): open that port, give the "
        "workers an address that can be dialled from here (--contact-address), or run the client "
        "inside the cluster's network",
    )


def same_security(scheduler: str, workers: list[str]) -> Finding:
    """Return whether all processes speak TLS, or none does."""
    speaks: dict[bool, list[str]] = {True: [], False: []}
    for address in [scheduler, *workers]:
        speaks[address.startswith(("tls://", "wss://"))].append(address)
    if speaks[True] and speaks[False]:
        return Finding(
            False,
            "security",
            f"TLS at {named(speaks[True])}, none at {named(speaks[False])}: give the scheduler and "
            "all workers the same distributed.comm.tls configuration",
        )
    if speaks[True]:
        return Finding(True, "security", "TLS between here, the scheduler and all workers")
    return Finding(True, "security", "no TLS, here as at the scheduler and all workers")


def show(finding: Finding) -> None:
    """Print a line; in a terminal with its color, and with long text indented."""
    terminal = console()
    if not terminal.is_terminal:
        click.echo(f"{finding.mark:<8} {finding.what:<14} {finding.text}")
        return
    from rich.table import Table
    from rich.text import Text

    style = {"ok": "green", "PROBLEM": "bold red"}.get(finding.mark, "dim")
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=7)
    grid.add_column(width=13)
    grid.add_column(overflow="fold")
    grid.add_row(Text(finding.mark, style), Text(finding.what), Text(finding.text))
    terminal.print(grid)


@click.command("check")
@click.argument("address")
@cluster_options
def command(
    address: str,
    timeout: float,
    tls_ca_file: str | None,
    tls_cert: str | None,
    tls_key: str | None,
) -> None:
    """Check that owned tasks can run between here and the cluster at ADDRESS.

    One line each for the scheduler, the versions of packages here and there, the plugins, the
    way from here to every worker (a link is opened as owners do), TLS and shared memory: `ok`,
    or what to do. The exit status is 1 when there is a problem. Nothing is installed in the
    cluster.
    """

    async def examined() -> bool:
        well = True
        async for finding in examine(address, security, timeout):
            show(finding)
            well = well and finding.ok is not False
        return well

    # Raises now if rich is missing, before the cluster is asked.
    console()
    security = security_of(tls_ca_file, tls_cert, tls_key)
    if not quietly(examined()):
        raise click.exceptions.Exit(1)
