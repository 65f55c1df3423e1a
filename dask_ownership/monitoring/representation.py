"""How clients and futures look in notebooks and terminals: Dask's display and the owner's numbers.

All of it comes from this process; no other process is asked. The table in a notebook is counted
from the rows, a tenth of a second for a million rows; the text of a client costs nothing.
"""

from __future__ import annotations

from html import escape
from typing import Any

from dask.utils import format_bytes, key_split, typename

from dask_ownership.core.owner.rows.row import Borrowed, Row
from dask_ownership.core.protocol.names import NAME
from dask_ownership.core.protocol.states import ERROR, INLINE, PUSHED, READY, STORED, WAITING
from dask_ownership.monitoring.html import Section
from dask_ownership.monitoring.lookup import locations_of
from dask_ownership.runtime.owner.owner import Owner
from dask_ownership.runtime.owner.pending import stuck

GREY = "color: var(--jp-ui-font-color2, gray)"
RED = "color: var(--jp-error-color0, red)"

NAMED = 2
"""Locations of a value that are named; further locations are only counted."""


def owned(owner: Owner) -> dict[str, str]:
    """Return what a process owns now, by title, as texts. Any thread."""
    pending = running = finished = failed = borrowed = stored = 0
    for row in owner.core.table.all():
        state = row.state
        if row.borrowed:
            borrowed += 1
        elif state in (WAITING, READY):
            pending += 1
        elif state == PUSHED:
            running += 1
        elif state == ERROR:
            failed += 1
        elif state in (INLINE, STORED):
            finished += 1
            stored += row.nbytes if state == STORED else 0
    lineages = owner.core.lineages
    allowed = lineages.limits.lineage_bytes
    shown = {
        "Pending": f"{pending:,d}",
        "Running": f"{running:,d}",
        "Finished": f"{finished:,d}",
        "Failed": f"{failed:,d}",
        "Borrowed": f"{borrowed:,d}",
        "Inline": format_bytes(owner.core.lifecycle.inline_bytes),
        "Stored": format_bytes(stored),
        "Lineage": f"{format_bytes(lineages.nbytes)} of {format_bytes(allowed)}",
    }
    return shown


def client_html(stock: str, owner: Owner) -> str:
    """Return Dask's HTML of a client, with the objects of the owner below."""
    section = Section("Owned by this process", [(k, v) for k, v in owned(owner).items()])
    return f'<div>{stock}<div style="margin-left: 48px;">{section.html()}</div></div>'


def client_text(stock: str, owner: Owner) -> str:
    """Return Dask's text of a client, with two numbers of the owner; costs nothing per object."""
    objects = len(owner.core.table.rows)
    views = list(owner.core.placement.workers.values())
    running = sum(len(view.pushed) for view in views)
    lingering = sum(len(view.lingering) for view in views)
    lingers = f" cancelled-but-running={lingering}" if lingering else ""
    # A text of another form, of another version of Dask or of a subclass, stays as it is.
    if not (objects or lingering) or not stock.endswith(">"):
        return stock
    return f"{stock[:-1]}, objects={objects} running={running}{lingers}>"


def whereabouts(row: Row) -> str:
    """Return a text on the owner of a row, and where its task or value is."""
    state = row.state
    if isinstance(row, Borrowed):
        whose = f"borrowed from {row.owner_ref[NAME]}"
        if state < INLINE:
            return whose
    else:
        whose = "owned here"
    if state == PUSHED and row.worker is not None:
        return f"{whose}, handed to {row.worker.address}"
    if state == WAITING and row.waiting:
        return f"{whose}, waits for {row.waiting:,d} of its inputs"
    if state in (WAITING, READY):
        return f"{whose}, not handed to a worker yet"
    if state == INLINE:
        return f"{whose}, {format_bytes(row.nbytes)} inline"
    if state == STORED:
        places = locations_of(row)
        more = f" and {len(places) - NAMED} more" if len(places) > NAMED else ""
        return f"{whose}, {format_bytes(row.nbytes)} at {', '.join(places[:NAMED])}{more}"
    return whose


def future_html(future: Any, owner: Owner, row: Row) -> str:
    """Return the HTML of a future: one line with status, type, key and whereabouts.

    Parameters
    ----------
    future : Future
    owner : Owner
        The owner of the future's client.
    row : Row
        The row of the future.
    """
    status, kind = future.status, future.type
    why = stuck(owner.core, row) if status == "pending" else None
    words = {
        "status": (status, RED if status in ("error", "lost") else ""),
        "type": (typename(kind) if kind is not None else "", ""),
        "key": (str(future.key), ""),
        "where": ("" if status in ("cancelled", "lost") else whereabouts(row), ""),
        "because": (why or "", ""),
    }
    parts = [
        f'<span style="{GREY}">{name}:</span> <span style="{style}">{escape(text)}</span>'
        for name, (text, style) in words.items()
        if text
    ]
    name = escape(str(key_split(future.key)))
    return f"<div><strong>Future: {name}</strong> {', '.join(parts)}</div>"
