"""The page Owners: the tree of owners, with the tasks and objects of each."""

from __future__ import annotations

from typing import Any

from dask_ownership.monitoring.pages.cells import BYTES, CODE, PROCESS, RATE, WHOLE
from dask_ownership.monitoring.pages.look import STATE_LABELS, STATES, STORED
from dask_ownership.monitoring.pages.page import (
    Page,
    append,
    last_minutes,
    later,
    milliseconds,
    over_time,
    put,
    table,
    tabs,
    words,
)


def tree(owners: list[dict[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
    """Return owners with their depths, each below the owner whose tasks submit to it."""
    names = {owner["name"] for owner in owners}
    children: dict[str, list[dict[str, Any]]] = {}
    for owner in owners:
        # The parent may have left the cluster.
        above = owner["parent"] if owner["parent"] in names else ""
        children.setdefault(above, []).append(owner)
    found: list[tuple[int, dict[str, Any]]] = []
    placed: set[str] = set()

    def place(owner: dict[str, Any], depth: int) -> None:
        if owner["id"] in placed:
            return
        placed.add(owner["id"])
        found.append((depth, owner))
        for child in sorted(children.get(owner["name"], ()), key=lambda one: one["name"]):
            place(child, depth + 1)

    # Roots first: clients before the scheduler and workers.
    for owner in sorted(children.get("", ()), key=lambda one: (one["kind"], one["name"])):
        place(owner, 0)
    for owner in owners:
        place(owner, 0)  # owners whose tasks submit to each other are below no other owner
    return found


def _state(stream: dict[str, Any]) -> str:
    """Return what a stream does now, in words."""
    if not stream["open"]:
        return "at its end"
    full = stream["waiting"] >= stream["buffer_size"]
    return "waits for its consumer" if full else "open"


class Owners(Page):
    """A line for each owner; a click on a line shows its tasks by name, links and streams."""

    def __init__(self, scheduler: Any, **kwargs: Any) -> None:
        from bokeh.layouts import column
        from bokeh.models import ColumnDataSource

        super().__init__(scheduler, **kwargs)
        self.source, shown = table(
            {
                "name": ("Owner", 280, CODE),
                "kind": ("Kind", 70, None),
                "rate": ("Tasks/s", 70, RATE),
                "pending": ("Pending", 70, WHOLE),
                "running": ("Handed out", 80, WHOLE),
                "done": ("Done", 80, WHOLE),
                "failed": ("Failed", 60, WHOLE),
                "objects": ("Objects", 70, WHOLE),
                "inline_nbytes": ("Inline", 75, BYTES),
                "lineage_nbytes": ("Lineage", 75, BYTES),
                "borrowed": ("Borrowed", 70, WHOLE),
                "lent": ("Lent", 60, WHOLE),
                "links": ("Links", 50, WHOLE),
            }
        )
        # The incarnation is not a column of the table; it tells which owner was clicked on.
        self.source.data["id"] = []
        self.source.selected.on_change("indices", self._clicked)
        self.groups_source, groups = table(
            {
                "group": ("Tasks called", 200, CODE),
                **{state: (word.capitalize(), 70, WHOLE) for state, word in STATE_LABELS.items()},
            }
        )
        self.links_source, links = table(
            {
                "owner": ("Owner", 200, PROCESS),
                "worker": ("Worker", 200, PROCESS),
                "pushed": ("Handed out", 80, WHOLE),
                "given": ("Since it joined", 100, WHOLE),
                "nthreads": ("Threads", 60, WHOLE),
                "accepting": ("Takes tasks", 80, None),
                "sent": ("Sent", 80, BYTES),
                "received": ("Received", 80, BYTES),
            }
        )
        self.streams_source, streams = table(
            {
                "owner": ("Owner", 200, PROCESS),
                "name": ("Tasks called", 200, CODE),
                "submitted": ("Submitted", 80, WHOLE),
                "waiting": ("Not taken yet", 90, WHOLE),
                "buffer_size": ("Buffer", 70, WHOLE),
                "state": ("State", 200, None),
            }
        )
        self.title = words(**{"font-weight": "bold"})
        self.history_source = ColumnDataSource({"time": [], "rate": []})
        rates = over_time(
            "Tasks of all owners",
            "tasks done per second",
            self.history_source,
            {"rate": ("done", STORED)},
            x_range=last_minutes(),
        )
        rates.y_range.start = 0
        self.chosen = ""
        self._told: dict[str, Any] = {"owners": []}
        self.root = column(
            rates,
            shown,
            self.title,
            tabs({"Objects by name of the task": groups, "Links": links, "Streams": streams}),
            sizing_mode="stretch_both",
        )

    def _clicked(self, attribute: str, old: list[int], new: list[int]) -> None:
        """Show the tasks and links of the owner whose line of the table was clicked."""
        ids = list(self.source.data["id"])
        # The number of rows may have changed since the click.
        self.chosen = ids[new[0]] if new and new[0] < len(ids) else ""
        self._show_chosen()

    def show(self, told: dict[str, Any]) -> None:
        """Bring the tree, the plot and the tables up to date."""
        self._told = told
        rows = [
            # An em space for each level indents the name; HTML drops ordinary spaces.
            {**owner, "name": "\u2003" * depth + owner["name"], "links": len(owner["links"])}
            for depth, owner in tree(told["owners"])
        ]
        put(self.source, rows)
        ids = [row["id"] for row in rows]
        # Rows move when owners come and go. The selection follows the chosen owner.
        wanted = [ids.index(self.chosen)] if self.chosen in ids else []
        if self.source.selected.indices != wanted:
            self.source.selected.indices = wanted
        new = later(self.history_source, told["history"])
        append(self.history_source, [{**one, "time": milliseconds(one["time"])} for one in new])
        self._show_chosen()

    def _show_chosen(self) -> None:
        """Show the tasks and links of the chosen owner, or of all owners."""
        owners = self._told["owners"]
        chosen = [owner for owner in owners if owner["id"] == self.chosen]
        self.title.text = (
            f"Objects, links and streams of {chosen[0]['name']}"
            if chosen
            else "Objects, links and streams of all owners (click on one for its own)"
        )
        sums: dict[str, dict[str, int]] = {}
        for owner in chosen or owners:
            for name, states in owner["groups"].items():
                there = sums.setdefault(name, dict.fromkeys(STATES, 0))
                for state, number in states.items():
                    there[state] += number
        most = sorted(sums.items(), key=lambda item: -sum(item[1].values()))
        put(self.groups_source, [{"group": name, **states} for name, states in most])
        links = [
            {
                **link,
                "owner": owner["name"],
                "worker": address,
                "accepting": "yes" if link["accepting"] else "no",
                "sent": sent,
                "received": received,
            }
            for owner in chosen or owners
            for address, link in owner["links"].items()
            for sent, received in (owner["traffic"].get(address, (0, 0)),)
        ]
        put(self.links_source, links)
        streams = [
            {**stream, "owner": owner["name"], "state": _state(stream)}
            for owner in chosen or owners
            for stream in owner["streams"]
        ]
        put(self.streams_source, streams)
