"""The page Objects: objects by state and owner, bytes by worker, and what keeps large objects."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dask_ownership.monitoring.pages.cells import BYTES, CODE, PROCESS, WHOLE, WORDS
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

MEMORY = {"inline": "at the owner", "stored": "at workers"}

MEMORY_COLORS = (INLINE, STORED)

NAMES = 15
"""Names of tasks with bars of their own: those with most bytes."""

COLUMNS: dict[str, tuple[str, int, Any]] = {
    "key": ("Key", 260, CODE),
    "owner": ("Owner", 170, PROCESS),
    "state": ("State", 60, None),
    "nbytes": ("Bytes", 70, BYTES),
    "at": ("At", 150, CODE),
    "age": ("Age", 70, None),
    "attempt": ("Attempt", 60, WHOLE),
    "local_refs": ("Local refs", 70, WHOLE),
    "task_refs": ("Task refs", 70, WHOLE),
    "borrowers": ("Borrowers", 70, WHOLE),
    "lineage_refs": ("Lineage refs", 80, WHOLE),
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
        line_color=None,
        source=source,
        legend_label=list(labels.values()),
    )
    fig.x_range.start = 0
    fig.ygrid.grid_line_color = None
    with_legend(fig)
    return source, fig


def in_bytes(fig: Any) -> None:
    """Have the horizontal axis of a figure count bytes."""
    from bokeh.models import AdaptiveTicker, NumeralTickFormatter

    ticks = AdaptiveTicker(base=1024, mantissas=[2**n for n in range(10)], desired_num_ticks=4)
    fig.xaxis.ticker = ticks
    fig.xaxis.formatter = NumeralTickFormatter(format="0.0 b")


class Objects(Page):
    """Bars of objects and bytes, and lists of the largest and the oldest objects."""

    def __init__(self, scheduler: Any, **kwargs: Any) -> None:
        from bokeh.layouts import column, row
        from bokeh.models import BasicTickFormatter

        super().__init__(scheduler, **kwargs)
        self.source, self.states = bars(
            "Objects by owner", "objects", "owner", STATE_LABELS, STATE_COLORS.values()
        )
        self.states.xaxis.formatter = BasicTickFormatter(use_scientific=False)
        hover(self.states, ("owner", "@who"), *((w, f"@{n}") for n, w in STATE_LABELS.items()))
        self.bytes_source, self.bytes = bars(
            "Stored values by worker", "bytes", "worker", BYTES_OF, BYTES_COLORS
        )
        in_bytes(self.bytes)
        hover(self.bytes, ("worker", "@who"), *((w, f"@{n}{{0.0 b}}") for n, w in BYTES_OF.items()))
        self.memory_source, self.memory = bars(
            "Memory by name of the task", "bytes", "tasks called", MEMORY, MEMORY_COLORS
        )
        in_bytes(self.memory)
        hover(self.memory, ("name", "@who"), *((w, f"@{n}{{0.0 b}}") for n, w in MEMORY.items()))
        self.detached_source, detached = table(
            {
                "kind": ("Kept by a", 90, None),
                "name": ("Name", 260, CODE),
                "objects": ("Objects", 70, WHOLE),
                "nbytes": ("Bytes", 80, BYTES),
                "states": ("State", 120, None),
                "at": ("At", 400, WORDS),
            }
        )
        self.largest_source, largest = table(COLUMNS)
        self.oldest_source, oldest = table(COLUMNS)
        self.root = column(
            row(self.states, self.memory, self.bytes, sizing_mode="stretch_both"),
            tabs(
                {
                    "Largest, and what keeps them": largest,
                    "Oldest, and what keeps them": oldest,
                    "Kept for the cluster": detached,
                }
            ),
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
        names: dict[str, list[int]] = {}
        for owner in owners:
            for name, nbytes in owner["group_nbytes"].items():
                names[name] = [a + b for a, b in zip(names.get(name, (0, 0)), nbytes, strict=True)]
        largest = sorted(names.items(), key=lambda item: -sum(item[1]))[:NAMES]
        memory: list[dict[str, Any]] = [
            {"who": name, "inline": i, "stored": s} for name, (i, s) in largest if i + s
        ]
        put(self.memory_source, memory)
        self.memory.y_range.factors = unique(row["who"] for row in reversed(memory))
        detached = [
            {
                **one,
                "states": ", ".join(one["states"]),
                "at": ", ".join(one["workers"]) or "the scheduler",
            }
            for one in told["detached"]
        ]
        put(self.detached_source, detached)
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
