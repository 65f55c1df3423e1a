"""The page Objects: objects by state and owner, bytes by worker, and what keeps large objects."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dask_ownership.monitoring.pages.cells import BYTES, CODE, PROCESS, WHOLE
from dask_ownership.monitoring.pages.look import AGAIN, INLINE, STATE_COLORS, STATE_LABELS, STORED
from dask_ownership.monitoring.pages.page import (
    Page,
    age,
    hover,
    plot,
    put,
    short,
    table,
    tabs,
    unique,
    with_legend,
)

BYTES_OF = {"owned": "of one owner", "shared": "shared", "spilled": "on disk"}

BYTES_COLORS = (STORED, INLINE, AGAIN)

COLUMNS: dict[str, tuple[str, int, Any]] = {
    "key": ("Key", 260, CODE),
    "owner": ("Owner", 170, PROCESS),
    "state": ("State", 60, None),
    "nbytes": ("Bytes", 70, BYTES),
    "at": ("At", 150, CODE),
    "age": ("Age", 70, None),
    "attempt": ("Attempt", 60, WHOLE),
    "handles": ("Futures", 60, WHOLE),
    "uses": ("Uses", 50, WHOLE),
    "borrowers": ("Borrowers", 70, WHOLE),
    "descendants": ("Lineage of", 70, WHOLE),
    "pinned": ("Pinned", 60, None),
}


def bars(
    title: str, x: str, y: str, labels: dict[str, str], colors: Iterable[str]
) -> tuple[Any, Any]:
    """Return the source and the figure of stacked horizontal bars.

    ``labels`` maps names of columns to the names in the legend.
    """
    from bokeh.models import ColumnDataSource, FactorRange

    names = list(labels)
    source = ColumnDataSource({"who": [], **{name: [] for name in names}})
    fig = plot(title, x, y, y_range=FactorRange())
    fig.hbar_stack(
        names,
        y="who",
        height=0.7,
        color=list(colors),
        source=source,
        legend_label=list(labels.values()),
    )
    fig.x_range.start = 0
    fig.ygrid.grid_line_color = None
    with_legend(fig)
    return source, fig


class Objects(Page):
    """Bars of objects and bytes, and lists of the largest and the oldest objects."""

    def __init__(self, scheduler: Any, **kwargs: Any) -> None:
        from bokeh.layouts import column, row
        from bokeh.models import AdaptiveTicker, BasicTickFormatter, NumeralTickFormatter

        super().__init__(scheduler, **kwargs)
        self.source, self.states = bars(
            "Objects by owner", "objects", "owner", STATE_LABELS, STATE_COLORS.values()
        )
        self.states.xaxis.formatter = BasicTickFormatter(use_scientific=False)
        hover(self.states, ("owner", "@who"), *((w, f"@{n}") for n, w in STATE_LABELS.items()))
        self.bytes_source, self.bytes = bars(
            "Stored values by worker", "bytes", "worker", BYTES_OF, BYTES_COLORS
        )
        self.bytes.xaxis.ticker = AdaptiveTicker(base=1024, mantissas=[1, 64, 128, 256, 512])
        self.bytes.xaxis.formatter = NumeralTickFormatter(format="0.0 b")
        hover(self.bytes, ("worker", "@who"), *((w, f"@{n}{{0.0 b}}") for n, w in BYTES_OF.items()))
        self.largest_source, largest = table(COLUMNS)
        self.oldest_source, oldest = table(COLUMNS)
        self.root = column(
            row(self.states, self.bytes, sizing_mode="stretch_both"),
            tabs({"Largest, and what keeps them": largest, "Oldest, and what keeps them": oldest}),
            sizing_mode="stretch_both",
        )

    def show(self, told: dict[str, Any]) -> None:
        """Bring all bars and lists up to date."""
        owners = [owner for owner in told["owners"] if owner["objects"]]
        rows = [{"who": short(owner["name"]), **owner["states"]} for owner in owners]
        put(self.source, rows)
        self.states.y_range.factors = unique(row["who"] for row in reversed(rows))
        stored = [
            {
                "who": short(worker["address"]),
                # A value can be both shared and on disk: then the parts exceed the sum.
                "owned": max(0, sizes["nbytes"] - sizes["shared"] - sizes["spilled"]),
                "shared": sizes["shared"],
                "spilled": sizes["spilled"],
            }
            for worker in told["workers"]
            for sizes in (worker["stored"],)
        ]
        put(self.bytes_source, stored)
        self.bytes.y_range.factors = unique(row["who"] for row in reversed(stored))
        for name, source in (("largest", self.largest_source), ("oldest", self.oldest_source)):
            listed = [
                {
                    **one,
                    "owner": owner["name"],
                    # An inline value has no workers.
                    "at": ", ".join(map(short, one["workers"])) or "its owner",
                    "age": "" if one["since"] is None else age(told["time"] - one["since"]),
                    "pinned": "yes" if one["pinned"] else "",
                }
                for owner in owners
                for one in owner[name]
            ]
            if name == "largest":
                listed.sort(key=lambda one: -one["nbytes"])
            else:
                listed.sort(key=lambda one: one["since"] or told["time"])
            put(source, listed[:50])
