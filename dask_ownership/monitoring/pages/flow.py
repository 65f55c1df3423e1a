"""The page Flow: tasks from owners to workers, and bytes between owners and workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dask.utils import format_bytes

from dask_ownership.monitoring.pages.cells import BYTES, PROCESS, WHOLE
from dask_ownership.monitoring.pages.look import TEXT, amount
from dask_ownership.monitoring.pages.page import Page, hover, plot, put, short, table, unique, words

NUMBERED = 12
"""Senders or receivers of a matrix with numbers in its fields; more leave no room."""


def per_second(tasks: float) -> str:
    """Return a number of tasks per second as text."""
    return f"{tasks:,.0f}" if tasks >= 10 or tasks < 0.05 else f"{tasks:.1f}"


def nbytes_per_second(nbytes: float) -> str:
    """Return a number of bytes per second as text."""
    return format_bytes(int(nbytes)) if nbytes >= 1 else "0"


class Matrix:
    """One flow as fields of one hue: senders from top to bottom, receivers from left to right.

    The more goes from a sender to a receiver, the stronger is the color; the number is in the
    field.

    Parameters
    ----------
    title, x, y : str
    unit : str
        Of the amounts.
    text : callable
        From an amount to its text.

    Attributes
    ----------
    source : bokeh.models.ColumnDataSource
        One row for each pair.
    fig : bokeh.plotting.figure
    """

    def __init__(self, title: str, x: str, y: str, unit: str, text: Callable[[float], str]) -> None:
        from bokeh.models import ColumnDataSource, FactorRange

        self.title = f"{title}, {unit}"
        self._text = text
        columns = ("from", "to", "many", "text", "number", "fill", "color")
        self.source = ColumnDataSource({name: [] for name in columns})
        self.fig = plot(self.title, x, y, x_range=FactorRange(), y_range=FactorRange())
        self.fig.rect(
            "to",
            "from",
            width=0.95,
            height=0.95,
            source=self.source,
            fill_color="fill",
            line_color=TEXT,
            line_alpha=0.3,
        )
        self.fig.text(
            "to",
            "from",
            "number",
            source=self.source,
            text_color="color",
            text_align="center",
            text_baseline="middle",
            text_font_size="12px",
        )
        self.fig.xaxis.major_label_orientation = 0.7
        self.fig.grid.grid_line_color = None
        hover(self.fig, ("from", "@from"), ("to", "@to"), (unit, "@text"))

    def show(self, flow: list[list[Any]]) -> None:
        """Show pairs of sender and receiver with the amount per second."""
        senders = unique(sorted((short(one) for one, _, _ in flow), reverse=True))
        receivers = unique(sorted(short(one) for _, one, _ in flow))
        most = max((many for _, _, many in flow), default=0)
        numbered = max(len(senders), len(receivers)) <= NUMBERED
        rows = []
        for source, target, many in flow:
            text = self._text(many)
            nothing = text == "0"
            rows.append(
                {
                    "from": short(source),
                    "to": short(target),
                    "many": many,
                    "text": text,
                    "number": text if numbered else "",
                    "fill": "transparent" if nothing else amount(many / most),
                    "color": TEXT if nothing else "#ffffff",
                }
            )
        put(self.source, rows)
        self.fig.x_range.factors = receivers
        self.fig.y_range.factors = senders
        self.fig.title.text = self.title if most else f"{self.title}: none in the last seconds"


class Flow(Page):
    """Four matrices: tasks and bytes to workers above, bytes from workers below.

    A line above them says how much the scheduler relays, when it does, and a table below them
    between whom.
    """

    def __init__(self, scheduler: Any, **kwargs: Any) -> None:
        from bokeh.layouts import column, row

        super().__init__(scheduler, **kwargs)
        self.relays = words()
        self.tasks = Matrix(
            "Tasks handed out", "to worker", "from owner", "tasks per second", per_second
        )
        unit = ("bytes per second", nbytes_per_second)
        self.sent = Matrix("To workers", "to worker", "from owner", *unit)
        self.received = Matrix("To owners", "to owner", "from worker", *unit)
        self.bytes = Matrix("Values between workers", "to worker", "from worker", *unit)
        self.source = self.tasks.source
        self.connections_source, self.connections = table(
            {
                "owner": ("From owner", 300, PROCESS),
                "worker": ("By way of the scheduler to worker", 300, PROCESS),
                "connections": ("Connections", 100, WHOLE),
                "nbytes": ("Bytes so far", 120, BYTES),
            },
            visible=False,
        )
        self.root = column(
            self.relays,
            row(self.tasks.fig, self.sent.fig, sizing_mode="stretch_both"),
            row(self.bytes.fig, self.received.fig, sizing_mode="stretch_both"),
            self.connections,
            sizing_mode="stretch_both",
        )

    def show(self, told: dict[str, Any]) -> None:
        """Bring all matrices up to date."""
        for kind in ("tasks", "sent", "received", "bytes"):
            getattr(self, kind).show(told["flow"][kind])
        relays = told["relays"]
        if relays.get("opened"):
            self.relays.text = (
                f"The scheduler relays over {relays['open']:,d} connections to workers that some "
                f"processes cannot dial: {format_bytes(relays['nbytes'])} so far."
            )
        sums: dict[tuple[str, str], list[int]] = {}
        for owner, worker, nbytes in relays.get("connections", ()):
            sums.setdefault((owner, worker), []).append(nbytes)
        rows: list[dict[str, Any]] = [
            {"owner": owner, "worker": worker, "connections": len(each), "nbytes": sum(each)}
            for (owner, worker), each in sums.items()
        ]
        rows.sort(key=lambda relayed: -relayed["nbytes"])
        put(self.connections_source, rows)
        self.connections.visible = bool(rows)
