"""The page Latency: how long tasks wait and run, where tasks are, and the depth of each slot."""

from __future__ import annotations

from math import nan
from typing import Any

from dask_ownership.monitoring.pages.look import AGAIN, READY, RUNNING, SHADES, WAITING
from dask_ownership.monitoring.pages.page import (
    Page,
    append,
    last_minutes,
    later,
    milliseconds,
    over_time,
)

KINDS = {
    "took": "Submit to done",
    "waited": "Submit to start: inputs, queues, the way there and back",
    "ran": "Start to done",
}

WHERE = {
    "pending": ("with owners", WAITING),
    "queued": ("queued at workers", READY),
    "running": ("running", RUNNING),
    "threads": ("threads", AGAIN),
}
"""Where tasks are that have not ended, and the threads: how many tasks may run at once."""

PERCENTILES = ("p50", "p90", "p99")


class Latency(Page):
    """Percentiles of a sample over time, where tasks are, and the depth of pipelining."""

    def __init__(self, scheduler: Any, **kwargs: Any) -> None:
        from bokeh.layouts import column, row
        from bokeh.models import ColumnDataSource

        super().__init__(scheduler, **kwargs)
        columns = [f"{kind}_{part}" for kind in KINDS for part in PERCENTILES]
        names = ["time", *columns, "depth", *WHERE]
        self.source = ColumnDataSource({name: [] for name in names})
        # One range for all: what happened at the same time is at the same place.
        times = last_minutes()
        figures = self.figures = {
            kind: over_time(
                title,
                "seconds",
                self.source,
                {
                    f"{kind}_{part}": (f"{part[1:]} %", shade)
                    for part, shade in zip(PERCENTILES, SHADES, strict=True)
                },
                y_axis_type="log",
                x_range=times,
            )
            for kind, title in KINDS.items()
        }
        depth = self.depth = over_time(
            "Pipelining",
            "tasks handed out per slot",
            self.source,
            {"depth": ("per slot", RUNNING)},
            x_range=times,
        )
        depth.y_range.start = 0
        where = self.where = over_time(
            "Queueing against running", "tasks", self.source, WHERE, x_range=times
        )
        where.y_range.start = 0
        self.root = column(
            row(figures["took"], where, sizing_mode="stretch_both"),
            row(figures["waited"], depth, sizing_mode="stretch_both"),
            row(figures["ran"], sizing_mode="stretch_both"),
            sizing_mode="stretch_both",
        )

    def show(self, told: dict[str, Any]) -> None:
        """Add the rounds that the plots do not show yet."""
        rows: list[dict[str, Any]] = []
        for one in later(self.source, told["history"]):
            shown = {
                "time": milliseconds(one["time"]),
                "after_gap": one["after_gap"],
                **{name: one[name] for name in WHERE},
            }
            shown["depth"] = one["pushed"] / one["threads"] if one["threads"] else 0.0
            for kind in KINDS:
                for part, seconds in zip(PERCENTILES, one[kind], strict=True):
                    # A round without a measured task leaves a gap in the line.
                    shown[f"{kind}_{part}"] = nan if seconds is None else seconds
            rows.append(shown)
        append(self.source, rows)
