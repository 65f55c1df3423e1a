"""The page Failures: tasks handed out again, recoveries, losses, and unusual events."""

from __future__ import annotations

from typing import Any

from dask_ownership.core.owner.rows.failure_counts import (
    KILLED_WORKER,
    LOSSES,
    LOST_DATA,
    ORPHANED,
    OWNER_LOST,
    OWNERS_GONE,
    UNCERTAIN,
    WORKERS_DIED,
)
from dask_ownership.core.owner.rows.history import AGAIN
from dask_ownership.monitoring.pages.cells import CLOCK, CODE, WHOLE
from dask_ownership.monitoring.pages.look import AGAIN as AMBER
from dask_ownership.monitoring.pages.look import ERROR, STORED
from dask_ownership.monitoring.pages.page import (
    Page,
    hover,
    milliseconds,
    plot,
    put,
    table,
    tabs,
    words,
)

MEANING = {
    "worker-gone": "its worker left",
    "worker-silent": "its worker did not answer",
    "recovered": "its value was lost",
    "repeated": "for what it submitted",
    "recalled": "for an idle worker",
    "returned": "the worker gave it back",
    "retried": "it failed before",
}
"""Reasons for handing a task out again, as the page words them."""

COSTS = {
    WORKERS_DIED: "workers died",
    KILLED_WORKER: "tasks: KilledWorker",
    UNCERTAIN: "tasks: uncertain",
    LOST_DATA: "values lost",
    OWNERS_GONE: "owners gone",
    ORPHANED: "tasks orphaned",
    OWNER_LOST: "borrowed futures lost",
}
"""What deaths cost, in the order of the page."""


ENDED = (KILLED_WORKER, UNCERTAIN, LOST_DATA, OWNER_LOST)
"""What ended in an error of a future; all else was made good."""


def numbers(title: str, called: str, source: Any, name: str, color: str) -> Any:
    """Return a figure with horizontal bars: how often each item of a column occurred."""
    from bokeh.models import BasicTicker

    # Bokeh draws the first factor at the bottom, the page has it at the top.
    fig = plot(title, "times", called, y_range=list(source.data[name])[::-1])
    fig.hbar(y=name, right="times", height=0.7, source=source, color=color)
    fig.x_range.start = 0
    fig.xaxis.ticker = BasicTicker(min_interval=1)
    fig.ygrid.grid_line_color = None
    return fig


class Failures(Page):
    """Bars by reason and by cost, recoveries over time, and lists of events and costs."""

    def __init__(self, scheduler: Any, **kwargs: Any) -> None:
        from bokeh.layouts import column, row
        from bokeh.models import ColumnDataSource

        super().__init__(scheduler, **kwargs)
        factors = [MEANING[reason] for reason in AGAIN]
        self.source = ColumnDataSource({"reason": factors, "times": [0] * len(factors)})
        again = numbers("Tasks handed out again", "because", self.source, "reason", AMBER)
        hover(again, ("because", "@reason"), ("times", "@times"))
        costs = [COSTS[kind] for kind in LOSSES]
        self.losses_source = ColumnDataSource(
            {
                "kind": costs,
                "times": [0] * len(costs),
                "color": [ERROR if kind in ENDED else AMBER for kind in LOSSES],
            }
        )
        title = "What deaths cost (red: ended in an error)"
        losses = numbers(title, "what happened", self.losses_source, "kind", "color")
        hover(losses, ("what", "@kind"), ("times", "@times"))
        self.summary = words()
        self.recoveries_source = ColumnDataSource({"time": [], "seconds": [], "owner": []})
        # This line is invisible. It gives the plot a time axis also when there are no recoveries.
        self.time_source = ColumnDataSource({"time": [], "zero": []})
        self.events_source, events = table(
            {
                "time": ("Time (UTC)", 90, CLOCK),
                "event": ("Event", 90, None),
                "key": ("Key", 220, CODE),
                "owner": ("Owner", 180, CODE),
                "detail": ("What happened", 500, CODE),
            }
        )
        self.processes_source, processes = table(
            {
                "who": ("Owner or worker", 220, CODE),
                **{kind: (cost[0].upper() + cost[1:], 130, WHOLE) for kind, cost in COSTS.items()},
            }
        )
        self.root = column(
            self.summary,
            row(again, losses, self._recoveries(), sizing_mode="stretch_both"),
            tabs({"Events": events, "Kills and owner losses by process": processes}),
            sizing_mode="stretch_both",
        )

    def _recoveries(self) -> Any:
        """Return the plot of how long each recovery of a lost value took."""
        recoveries = plot(
            "Values made again after a loss",
            "time of day (UTC)",
            "seconds until it was there again",
            x_axis_type="datetime",
        )
        recoveries.line("time", "zero", source=self.time_source, line_alpha=0)
        recoveries.scatter("time", "seconds", source=self.recoveries_source, size=8, color=STORED)
        recoveries.y_range.start = 0
        hover(recoveries, ("owner", "@owner"), ("seconds", "@seconds{0.000}"))
        return recoveries

    def show(self, told: dict[str, Any]) -> None:
        """Bring all plots and tables up to date."""
        owners = told["owners"]
        counted = [
            {"reason": MEANING[reason], "times": sum(owner["again"][reason] for owner in owners)}
            for reason in AGAIN
        ]
        put(self.source, counted)
        processes = [
            {"who": who, **counts} for who, counts in told["losses"].items() if any(counts.values())
        ]
        put(self.processes_source, processes)
        sums = {kind: sum(one[kind] for one in processes) for kind in LOSSES}
        bars = [{"kind": COSTS[kind], "times": times} for kind, times in sums.items()]
        # The colors stay as they are.
        put(self.losses_source, bars, ("kind", "times"))
        failed = sum(owner["failed"] for owner in owners)
        self.summary.text = (
            f"Tasks of the {len(owners)} owners that are there that failed for good: {failed:,d}. "
            f"Workers that left the cluster: {told['workers_gone']:,d}."
        )
        # The first and the last round give the time axis its ends.
        first = told["history"][:1] + told["history"][-1:]
        put(self.time_source, [{"time": milliseconds(one["time"]), "zero": 0} for one in first])
        recoveries = [
            {"time": milliseconds(when), "seconds": seconds, "owner": owner["name"]}
            for owner in owners
            for when, seconds in owner["recoveries"]
        ]
        put(self.recoveries_source, recoveries)
        events = [{**event, "time": milliseconds(event["time"])} for event in told["events"]]
        put(self.events_source, events[::-1])
