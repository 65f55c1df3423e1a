"""The page Failures: errors of tasks, tasks handed out again, what deaths cost, and events.

A task that is recalled for an idle worker has not failed: the page has recalls as a number only.
"""

from __future__ import annotations

from typing import Any

from dask_ownership.core.owner.rows import restarts
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
from dask_ownership.monitoring.pages import look
from dask_ownership.monitoring.pages.cells import CLOCK, CODE, FRAMES, PROCESS, WHOLE, WORDS
from dask_ownership.monitoring.pages.page import (
    Page,
    hover,
    last_minutes,
    matching,
    milliseconds,
    plot,
    put,
    search,
    table,
    tabs,
    words,
)

RECALLED = restarts.RECALLED.event

MEANING = {
    "worker-gone": "its worker left",
    "worker-silent": "its worker did not answer",
    "recovered": "its value was lost",
    "repeated": "for what it submitted",
    "returned": "the worker gave it back",
    "retried": "it failed before",
}
"""Reasons for handing a task out again, as the page words them, from the top."""

COSTS = {
    WORKERS_DIED: "losses of workers",
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

RECOVERIES = "Values made again after a loss"

RAISED = ("error", "retried")
"""Events of tasks that raised an error."""


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
    """Lists of errors and events below bars by reason and by cost, and recoveries over time."""

    def __init__(self, scheduler: Any, **kwargs: Any) -> None:
        from bokeh.layouts import column, row
        from bokeh.models import ColumnDataSource

        super().__init__(scheduler, **kwargs)
        factors = list(MEANING.values())
        self.source = ColumnDataSource({"reason": factors, "times": [0] * len(factors)})
        again = numbers("Tasks handed out again", "because", self.source, "reason", look.AGAIN)
        hover(again, ("because", "@reason"), ("times", "@times"))
        costs = [COSTS[kind] for kind in LOSSES]
        self.losses_source = ColumnDataSource(
            {
                "kind": costs,
                "times": [0] * len(costs),
                "color": [look.ERROR if kind in ENDED else look.AGAIN for kind in LOSSES],
            }
        )
        title = "What deaths cost (red: ended in an error)"
        losses = numbers(title, "what happened", self.losses_source, "kind", "color")
        hover(losses, ("what", "@kind"), ("times", "@times"))
        self.summary = words()
        self.recoveries_source = ColumnDataSource({"time": [], "seconds": [], "owner": []})
        # This line is invisible. It gives the plot a time axis also when there are no recoveries.
        self.time_source = ColumnDataSource({"time": [], "zero": []})
        self.filter = search(self._fill)
        self._told: dict[str, Any] = {}
        lists = self._lists()
        self.root = column(
            self.summary,
            row(again, losses, self._recoveries(), sizing_mode="stretch_both"),
            self.filter,
            lists,
            sizing_mode="stretch_both",
        )

    def _lists(self) -> Any:
        """Make the tables, and return the tabs that they are in."""
        told = {
            "name": ("Tasks called", 130, CODE),
            "exception": ("Exception", 130, CODE),
            "message": ("Message", 330, WORDS),
        }
        place: dict[str, tuple[str, int, Any]] = {
            "key": ("Key", 190, CODE),
            "worker": ("Worker", 150, PROCESS),
            "owner": ("Owner", 150, PROCESS),
            "where": ("Raised in", 220, FRAMES),
        }
        self.groups_source, groups = table(
            {
                **told,
                "times": ("Times", 50, WHOLE),
                "time": ("Last (UTC)", 80, CLOCK),
                **{
                    name: (f"Last {title.lower()}", width, form)
                    for name, (title, width, form) in place.items()
                },
            }
        )
        self.errors_source, errors = table({"time": ("Time (UTC)", 80, CLOCK), **told, **place})
        for source in (self.groups_source, self.errors_source):
            source.data["traceback"] = []
        self.events_source, events = table(
            {
                "time": ("Time (UTC)", 90, CLOCK),
                "event": ("Event", 90, None),
                "key": ("Key", 220, CODE),
                "owner": ("Owner", 180, PROCESS),
                "detail": ("What happened", 500, WORDS),
            }
        )
        self.processes_source, processes = table(
            {
                "who": ("Owner or worker", 220, PROCESS),
                **{kind: (cost[0].upper() + cost[1:], 130, WHOLE) for kind, cost in COSTS.items()},
            }
        )
        return tabs(
            {
                "Errors by task": groups,
                "Errors": errors,
                "Events": events,
                "Deaths by process": processes,
            }
        )

    def _recoveries(self) -> Any:
        """Return the plot of how long each recovery of a lost value took."""
        recoveries = self.recoveries = plot(
            RECOVERIES,
            "time of day (UTC)",
            "seconds until it was there again",
            x_axis_type="datetime",
            x_range=last_minutes(),
        )
        recoveries.line("time", "zero", source=self.time_source, line_alpha=0)
        recoveries.scatter(
            "time", "seconds", source=self.recoveries_source, size=8, color=look.STORED
        )
        recoveries.y_range.start = 0
        hover(recoveries, ("owner", "@owner"), ("seconds", "@seconds{0.000}"))
        return recoveries

    def show(self, told: dict[str, Any]) -> None:
        """Bring all plots and tables up to date."""
        self._told = told
        owners = told["owners"]
        again = {kind: sum(owner["again"][kind] for owner in owners) for kind in AGAIN}
        counted = [{"reason": text, "times": again[kind]} for kind, text in MEANING.items()]
        put(self.source, counted)
        sums = {kind: sum(one[kind] for one in told["losses"].values()) for kind in LOSSES}
        bars = [{"kind": COSTS[kind], "times": times} for kind, times in sums.items()]
        # The colors stay as they are.
        put(self.losses_source, bars, ("kind", "times"))
        failed = sum(owner["failed"] for owner in owners)
        self.summary.text = (
            f"Tasks of the {len(owners)} owners that are there that failed for good: {failed:,d}. "
            f"Workers that left the cluster: {told['workers_gone']:,d}. Tasks moved to idle "
            f"workers before they began, which is no failure: {again[RECALLED]:,d}."
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
        self.recoveries.title.text = RECOVERIES if recoveries else f"{RECOVERIES}: none"
        self._fill()

    def _fill(self) -> None:
        """Fill the tables with the lines that the filter lets pass, newest first."""
        if not self._told:
            return
        told, text = self._told, self.filter.value_input
        put(self.groups_source, matching(map(_line, told["failure_groups"]), text))
        put(self.errors_source, matching(map(_line, told["failures"][::-1]), text))
        raised = {one["key"]: f"{one['exception']}: {one['message']}" for one in told["failures"]}
        events = [
            {
                **event,
                "time": milliseconds(event["time"]),
                "detail": f"{event['detail']} ({raised[event['key']]})"
                if event["event"] in RAISED and event["key"] in raised
                else event["detail"],
            }
            for event in told["events"][::-1]
            if event["event"] != RECALLED
        ]
        put(self.events_source, matching(events, text))
        processes = [
            {"who": who, **counts} for who, counts in told["losses"].items() if any(counts.values())
        ]
        put(self.processes_source, matching(processes, text))


def _line(failure: dict[str, Any]) -> dict[str, Any]:
    """Return a failure as a line of a table."""
    frames = [line.strip() for line in failure["traceback"].splitlines() if " line " in line]
    return {
        **failure,
        "time": milliseconds(failure["time"]),
        # `File "/home/me/prices.py", line 7, in parse` becomes `prices.py", line 7, in parse`.
        "where": frames[-1].rpartition("/")[2].removeprefix("File ").replace('"', "")
        if frames
        else "",
    }
