"""The page Flow: tasks from owners to workers, and bytes between owners and workers."""

from __future__ import annotations

from typing import Any

from dask.utils import format_bytes

from dask_ownership.monitoring.pages.look import TEXT
from dask_ownership.monitoring.pages.objects import unique
from dask_ownership.monitoring.pages.page import Page, hover, plot, put, short, words

PALETTE = ["#3b4a5a", "#2f6690", "#3a7ca5", "#58a4b0", "#8fc0a9", "#d9b44a", "#e8893d", "#e2543c"]
"""From little to much. None of the colors is white or black: the background may be either."""

BYTES = ("bytes per second", "0.0 b")
"""Unit and format of bytes per second."""


class Matrix:
    """One flow as a matrix of colors: senders from top to bottom, receivers from left to right.

    Attributes
    ----------
    source : bokeh.models.ColumnDataSource
        One row for each pair.
    fig : bokeh.plotting.figure
    mapper : bokeh.models.LinearColorMapper
        From an amount to its color.
    """

    def __init__(self, title: str, x: str, y: str, unit: str, form: str) -> None:
        from bokeh.models import (
            ColorBar,
            ColumnDataSource,
            FactorRange,
            LinearColorMapper,
            NumeralTickFormatter,
        )

        self.source = ColumnDataSource({"from": [], "to": [], "many": []})
        self.fig = plot(title, x, y, x_range=FactorRange(), y_range=FactorRange())
        self.mapper = LinearColorMapper(palette=PALETTE, low=0, high=1)
        fill = {"field": "many", "transform": self.mapper}
        self.fig.rect(
            "to",
            "from",
            width=0.95,
            height=0.95,
            source=self.source,
            fill_color=fill,
            line_color=None,
        )
        self.fig.xaxis.major_label_orientation = 0.7
        self.fig.grid.grid_line_color = None
        bar = ColorBar(
            color_mapper=self.mapper,
            title=unit,
            formatter=NumeralTickFormatter(format=form),
            background_fill_alpha=0.0,
            title_text_color=TEXT,
            major_label_text_color=TEXT,
        )
        self.fig.add_layout(bar, "right")
        hover(self.fig, ("from", "@from"), ("to", "@to"), (unit, f"@many{{{form}}}"))

    def show(self, flow: list[list[Any]]) -> None:
        """Show pairs of sender and receiver with the amount per second."""
        rows = [
            {"from": short(source), "to": short(target), "many": many}
            for source, target, many in flow
        ]
        put(self.source, rows)
        self.fig.x_range.factors = unique(sorted(one["to"] for one in rows))
        self.fig.y_range.factors = unique(sorted((one["from"] for one in rows), reverse=True))
        # Colors span up to the largest amount; the tiny number keeps the span above zero.
        self.mapper.high = max([1e-9, *(one["many"] for one in rows)])


class Flow(Page):
    """Four matrices: tasks and bytes to workers above, bytes from workers below.

    A line above them says how much the scheduler relays, when it does.
    """

    def __init__(self, scheduler: Any, **kwargs: Any) -> None:
        from bokeh.layouts import column, row

        super().__init__(scheduler, **kwargs)
        self.relays = words()
        self.tasks = Matrix(
            "Tasks handed out", "to worker", "from owner", "tasks per second", "0,0.0"
        )
        self.sent = Matrix("Bytes to workers", "to worker", "from owner", *BYTES)
        self.received = Matrix("Bytes to owners", "to owner", "from worker", *BYTES)
        self.bytes = Matrix("Values between workers", "to worker", "from worker", *BYTES)
        self.source = self.tasks.source
        self.root = column(
            self.relays,
            row(self.tasks.fig, self.sent.fig, sizing_mode="stretch_both"),
            row(self.bytes.fig, self.received.fig, sizing_mode="stretch_both"),
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
