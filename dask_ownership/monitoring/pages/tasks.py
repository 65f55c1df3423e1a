"""The page Tasks: how many tasks there are of each name and owner, and why tasks wait."""

from __future__ import annotations

from typing import Any

from dask_ownership.monitoring.pages.cells import CODE, PROCESS, WHOLE, WORDS
from dask_ownership.monitoring.pages.look import STATE_LABELS
from dask_ownership.monitoring.pages.page import (
    Page,
    age,
    matching,
    put,
    search,
    table,
    tabs,
    words,
)

TIMELINE = "ownership-timeline.json"
"""Path of the timeline, beside that of the page."""

RECORDED = 5.0
"""Seconds for which a download of the timeline records all tasks."""

UNFINISHED = ("waiting", "ready", "pushed")

VALUES = ("inline", "stored")


class Tasks(Page):
    """A line for each owner and name of tasks, and a line for some of the unfinished tasks."""

    def __init__(self, scheduler: Any, **kwargs: Any) -> None:
        from bokeh.layouts import column, row

        super().__init__(scheduler, **kwargs)
        self.filter = search(self._fill)
        self._told: dict[str, Any] = {"owners": []}
        self.groups_source, groups = table(
            {
                "name": ("Tasks called", 150, CODE),
                "owner": ("Owner", 200, PROCESS),
                **{state: (STATE_LABELS[state].capitalize(), 75, WHOLE) for state in UNFINISHED},
                "values": ("Values", 75, WHOLE),
                "error": ("Errors", 75, WHOLE),
                "why": ("Why the first of them waits", 520, WORDS),
            }
        )
        self.source, single = table(
            {
                "key": ("Key", 230, CODE),
                "state": ("State", 80, None),
                "why": ("Why it waits", 520, WORDS),
                "age": ("Since", 70, None),
                "attempt": ("Attempt", 60, WHOLE),
                "worker": ("Worker", 170, PROCESS),
                "owner": ("Owner", 200, PROCESS),
            }
        )
        self.timeline = words(
            f'<a href="{TIMELINE}">Download a timeline</a> of the tasks that ran: what the task '
            f"stream has, and all tasks of the next {RECORDED:g} seconds. It is a Chrome trace, "
            "for ui.perfetto.dev or chrome://tracing."
        )
        self.lingering = words()
        self.root = column(
            row(self.filter, self.timeline),
            self.lingering,
            tabs({"By name and owner": groups, "Unfinished, the first of each name": single}),
            sizing_mode="stretch_both",
        )

    def show(self, told: dict[str, Any]) -> None:
        """Bring both tables, and the line about cancelled functions, up to date."""
        self._told = told
        self.lingering.text = _lingering(told["workers"])
        self._fill()

    def _fill(self) -> None:
        """Fill the tables with the lines that the filter lets pass."""
        owners, text = self._told["owners"], self.filter.value_input
        put(self.groups_source, matching(_groups(owners), text))
        single = [
            {
                **task,
                "state": STATE_LABELS[task["state"]],
                "age": "" if task["since"] is None else age(self._told["time"] - task["since"]),
                "owner": owner["name"],
            }
            for owner in owners
            for task in owner["unfinished"]
        ]
        single.sort(key=lambda task: (not task["stuck"], task["state"] != "ready"))
        put(self.source, matching(single, text))


def _lingering(workers: list[dict[str, Any]]) -> str:
    """Return a line about cancelled tasks whose functions go on; none when there are none."""
    slots = sum(worker["lingering"] for worker in workers)
    if not slots:
        return ""
    where = ", ".join(worker["address"] for worker in workers if worker["lingering"])
    functions, keep = ("function", "keeps its slot") if slots == 1 else ("functions", "keep slots")
    go = "goes" if slots == 1 else "go"
    return f"{slots:,d} cancelled {functions} {go} on and {keep}, at {where}."


def _groups(owners: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a line for each owner and name of tasks.

    Names with tasks that cannot go on until a worker changes come first, then those with most
    unfinished tasks.
    """
    lines = []
    for owner in owners:
        reasons: dict[str, str] = {}
        for task in sorted(owner["unfinished"], key=lambda task: not task["stuck"]):
            reasons.setdefault(task["name"], task["why"])
        stuck = {task["name"] for task in owner["unfinished"] if task["stuck"]}
        for name, states in owner["groups"].items():
            lines.append(
                {
                    "name": name,
                    "owner": owner["name"],
                    **{state: states.get(state, 0) for state in UNFINISHED},
                    "values": sum(states.get(state, 0) for state in VALUES),
                    "error": states.get("error", 0),
                    "why": reasons.get(name, ""),
                    "stuck": name in stuck,
                }
            )
    lines.sort(
        key=lambda line: (not line["stuck"], -line["ready"], -line["waiting"], -line["pushed"])
    )
    return lines
