"""One picture of a cluster for a terminal, drawn from the scheduler's answer to `ACTIVITY`.

rich is an extra: the functions here import rich when they draw.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from dask.utils import format_bytes

from dask_ownership.cli.keys import SORTS

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

WIDE = 110
"""Width of a terminal from which on all columns are displayed."""

SPARKS = "▁▂▃▄▅▆▇█"
"""Bars of eight heights."""

EVENTS = 6
"""Lines of events, at most."""

NUMBERED = re.compile(r"^(.*?-[0-9a-f]{8})-[0-9a-f]{4}-[0-9a-f-]+$")
"""Ids of clients: a kind with the first part of a number, and the remaining four parts."""

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes
    ----------
    title : str
    text : callable
        From an entry to the text of its cell.
    wide : bool
        Whether only wide terminals have the column.
    colour : str
        Of any other number than 0: red for errors, yellow for what was made good or goes on.
    """

    title: str
    text: Callable[[Entry], str]
    wide: bool = False
    colour: str = ""
    """Whether anything but 0 is worth a look."""


def number(value: float) -> str:
    """Return a count in at most seven characters."""
    # Counts below 100 000 are written in full.
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 100 * size or (value >= size and unit != "k"):
            return (
                f"{value / size:.3g}{unit}" if value < 1000 * size else f"{value / size:,.0f}{unit}"
            )
    return f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """Return a time in at most seven characters."""
    if seconds is None:
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.0f} µs"


def short(name: str) -> str:
    """Return the name of a client without most of its number, any other name unchanged."""
    return NUMBERED.sub(r"\1", name)


def percent(value: Any) -> str:
    """Return a percentage, or "-" for None."""
    return "-" if value is None else f"{value:.0f}%"


def amount(value: Any) -> str:
    """Return a number of bytes, or "-" for None."""
    return "-" if value is None else format_bytes(int(value)) if value else "0"


def again(owner: Entry) -> int:
    """Return how often tasks of an owner were handed out again because of a failure."""
    # A recall is no failure: it moves a task that had not started to an idle worker.
    return sum(count for reason, count in owner["again"].items() if reason != "recalled")


OWNERS = (
    Column("tasks/s", lambda o: number(o["rate"])),
    Column("pending", lambda o: number(o["pending"])),
    Column("handed", lambda o: number(o["running"])),
    Column("done", lambda o: number(o["done"])),
    Column("failed", lambda o: number(o["failed"]), colour="red"),
    Column("again", lambda o: number(again(o)), colour="yellow"),
    Column("inline", lambda o: amount(o["inline_nbytes"]), wide=True),
    Column("lineage", lambda o: amount(o["lineage_nbytes"]), wide=True),
    Column("borrowed", lambda o: number(o["borrowed"]), wide=True),
    Column("lent", lambda o: number(o["lent"]), wide=True),
)
"""Columns of the table of owners."""

WORKERS = (
    Column("tasks/s", lambda w: number(w["rate"])),
    Column("queued", lambda w: number(w["queued"])),
    Column("running", lambda w: f"{w['running']}/{w['threads']}"),
    Column("done", lambda w: number(w["done"])),
    Column("failed", lambda w: number(w["failed"]), colour="red"),
    Column("stored", lambda w: amount(w["stored"]["nbytes"])),
    Column("waiting", lambda w: number(w["parked"]), wide=True),
    Column("lingers", lambda w: number(w["lingering"]), wide=True, colour="yellow"),
    Column("spilled", lambda w: amount(w["stored"]["spilled"]), wide=True),
    Column("cpu", lambda w: percent(w.get("cpu")), wide=True),
    Column("memory", lambda w: amount(w.get("memory")), wide=True),
)
"""Columns of the table of workers."""

ORDERS: dict[str, tuple[Callable[[Entry], Any], Callable[[Entry], Any]]] = {
    "rate": (lambda o: -o["rate"], lambda w: -w["rate"]),
    "pending": (lambda o: -o["pending"] - o["running"], lambda w: -w["queued"] - w["running"]),
    "failed": (lambda o: (-o["failed"], -again(o)), lambda w: -w["failed"]),
    "memory": (
        lambda o: -o["inline_nbytes"] - o["lineage_nbytes"],
        lambda w: -w["stored"]["nbytes"],
    ),
    "name": (lambda o: o["name"], lambda w: w["address"]),
}
"""Sort keys of owners and of workers, by the name of the order."""


def spark(values: Sequence[float], width: int) -> str:
    """Return the last values as bars of text; the greatest value has the highest bar."""
    shown = values[-width:]
    most = max(shown, default=0.0) or 1.0
    return "".join(SPARKS[min(7, int(8 * value / most))] if value else " " for value in shown)


def head(told: Entry, address: str, width: int) -> list[Text]:
    """Return the lines about the whole cluster."""
    from rich.text import Text

    owners, workers, history = told["owners"], told["workers"], told["history"]
    last = history[-1] if history else {}
    title = Text(no_wrap=True)
    title.append("dask ownership top", "bold")
    title.append(f"  {address}  ")
    title.append(datetime.fromtimestamp(told["time"]).strftime("%H:%M:%S"))
    threads = sum(w["threads"] for w in workers)
    running = sum(w["running"] for w in workers)
    now = Text(no_wrap=True)
    now.append(f"{number(last.get('rate', 0.0))} tasks/s", "bold")
    now.append(
        f"  {number(sum(o['pending'] for o in owners))} pending  "
        f"{running:,d} running on {threads:,d} threads"
    )
    took = last.get("took") or (None, None, None)
    if took[0] is not None:
        now.append(f"  took {duration(took[0])}, 99 % {duration(took[2])}", "dim")
    failures = Text(no_wrap=True)
    for count, what, colour in (
        (sum(o["failed"] for o in owners), "failed", "red"),
        (sum(o["recovered"] for o in owners), "recovered", "yellow"),
        (sum(w["lingering"] for w in workers), "cancelled but still running", "yellow"),
        (
            told["workers_gone"],
            "worker gone" if told["workers_gone"] == 1 else "workers gone",
            "yellow",
        ),
    ):
        failures.append(f"{number(count)} {what}  ", colour if count else "")
    reasons: Counter[str] = Counter()
    for owner in owners:
        reasons.update({r: c for r, c in owner["again"].items() if c and r != "recalled"})
    if reasons:
        text = ", ".join(f"{reason} {number(count)}" for reason, count in reasons.most_common())
        failures.append(f"handed out again: {text}", "yellow")
    rates = [round_["rate"] for round_ in history]
    line = Text("rate ", no_wrap=True)
    line.append(spark(rates, width - 5), "cyan")
    lines = [title, now, failures, line]
    for each in lines:
        each.truncate(width, overflow="ellipsis")
    return lines


def table(
    title: str,
    entries: Iterable[Entry],
    name: str,
    columns: Sequence[Column],
    rows: int,
    width: int,
) -> Table:
    """Return a table of owners or workers with so many rows; the last row may count the rest."""
    from rich.table import Table
    from rich.text import Text

    those = list(entries)
    shown = those if len(those) <= rows else those[: max(0, rows - 1)]
    wide = width >= WIDE
    made = Table(box=None, padding=(0, 1, 0, 0), width=width, header_style="bold reverse")
    made.add_column(f"{title} ({len(those):,d})", no_wrap=True, ratio=1, overflow="ellipsis")
    those_columns = [column for column in columns if wide or not column.wide]
    for column in those_columns:
        made.add_column(column.title, justify="right", no_wrap=True, min_width=7)
    for entry in shown:
        cells = []
        for column in those_columns:
            text = column.text(entry)
            cells.append(Text(text, column.colour if text != "0" else ""))
        made.add_row(Text(short(str(entry[name]))), *cells)
    if len(shown) < len(those):
        made.add_row(Text(f"... and {len(those) - len(shown):,d} more", "dim"))
    return made


def events(told: Entry, rows: int, width: int) -> list[Text]:
    """Return the latest unusual events, newest first."""
    from rich.text import Text

    lines = []
    unusual = [event for event in told["events"] if event["event"] != "recalled"]
    for event in unusual[::-1][:rows]:
        when = datetime.fromtimestamp(event["time"]).strftime("%H:%M:%S")
        words = " ".join(filter(None, [short(event["owner"]), event["key"], event["detail"]]))
        line = Text(no_wrap=True)
        line.append(f"{when} ", "dim")
        line.append(f"{event['event']} ", "red")
        line.append(" ".join(words.split()))
        line.truncate(width, overflow="ellipsis")
        lines.append(line)
    return lines


def foot(sort: str, width: int) -> Text:
    """Return the line of keys."""
    from rich.text import Text

    text = Text("sort by ", "dim", no_wrap=True)
    for key, what in SORTS.items():
        text.append(f" {key} ", "reverse" if what == sort else "bold")
        text.append(f"{what}  ", "bold" if what == sort else "dim")
    text.append("  q ", "bold")
    text.append("quit", "dim")
    text.truncate(width, overflow="ellipsis")
    return text


def frame(
    told: Entry,
    address: str,
    sort: str,
    width: int,
    height: int | None,
    metrics: Mapping[str, Entry] | None = None,
) -> RenderableType:
    """Return the whole picture.

    Parameters
    ----------
    told : dict
        The answer of `dask_ownership.monitoring.feed.Feed.activity`.
    address : str
        Address of the scheduler.
    sort : str
        One of the values of `SORTS`.
    width, height : int
        Size of the terminal; without a height all rows are displayed, and no keys.
    metrics : dict, optional
        Metrics in the heartbeats of workers, by address.
    """
    from rich.console import Group
    from rich.text import Text

    by_owner, by_worker = ORDERS[sort]
    # The scheduler's own owner has nothing until an object is in a queue, variable or dataset.
    owners = sorted(
        (o for o in told["owners"] if o["kind"] != "scheduler" or o["objects"]), key=by_owner
    )
    workers = []
    for worker in sorted(told["workers"], key=by_worker):
        beat = (metrics or {}).get(worker["address"], {})
        workers.append({**worker, "cpu": beat.get("cpu"), "memory": beat.get("memory")})
    lines: list[RenderableType] = [*head(told, address, width), Text()]
    if height is None:
        shown = events(told, EVENTS, width)
        of_owners, of_workers = len(owners), len(workers)
    else:
        # Events get the lines that both tables leave over, at most a third. Owners get half of the
        # rest, or more when there are few workers.
        left = height - len(lines) - 4  # the headers of both tables, a line between, the keys
        shown = events(
            told, max(0, min(EVENTS, left - len(owners) - len(workers) - 1, left // 3)), width
        )
        left -= len(shown) + bool(shown)
        of_owners = max(1, min(len(owners), max(left // 2, left - len(workers))))
        of_workers = max(1, left - of_owners)
    lines += [
        table("owners", owners, "name", OWNERS, of_owners, width),
        Text(),
        table("workers", workers, "address", WORKERS, of_workers, width),
    ]
    if shown:
        lines += [Text(), *shown]
    if height is not None:
        # The keys are on the last line: blank lines fill the space above.
        used = 5 + 3 + min(len(owners), of_owners) + min(len(workers), of_workers)
        used += len(shown) + bool(shown)
        lines += [Text()] * max(0, height - used - 1)
        lines.append(foot(sort, width))
    return Group(*lines)
