"""Adds the pages to the dashboard of a running scheduler."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Any

from distributed.http.scheduler.info import IndividualPlots
from tornado.ioloop import IOLoop
from tornado.web import HTTPError, RequestHandler

from dask_ownership.monitoring.pages.failures import Failures
from dask_ownership.monitoring.pages.flow import Flow
from dask_ownership.monitoring.pages.latency import Latency
from dask_ownership.monitoring.pages.look import ALONE, TOGETHER
from dask_ownership.monitoring.pages.objects import Objects
from dask_ownership.monitoring.pages.owners import Owners
from dask_ownership.monitoring.pages.page import INTERVAL, Page, tabs
from dask_ownership.monitoring.pages.tasks import RECORDED, TIMELINE, Tasks
from dask_ownership.monitoring.timeline import chrome_trace

PAGES: dict[str, type[Page]] = {
    "owners": Owners,
    "tasks": Tasks,
    "objects": Objects,
    "flow": Flow,
    "failures": Failures,
    "latency": Latency,
}

NAME = "ownership"
"""Name of the page with all pages as tabs, in the navigation bar."""


MOST_RECORDED = 60.0
"""Seconds for which a download of the timeline records, at most."""


class Together:
    """All pages as tabs. A page is made when its tab first opens, and updated while open.

    Making a page blocks the scheduler for a tenth of a second.

    Parameters
    ----------
    scheduler : distributed.Scheduler

    Attributes
    ----------
    scheduler : distributed.Scheduler
    pages : dict of str to Page
        The pages made so far, by name.
    root : bokeh.models.Tabs
    """

    def __init__(self, scheduler: Any) -> None:
        from bokeh.layouts import column

        self.scheduler = scheduler
        self.pages: dict[str, Page] = {}
        self.root = tabs({name.title(): column(sizing_mode="stretch_both") for name in PAGES})
        self.root.on_change("active", lambda attribute, old, new: self.update())
        self.update()

    def update(self) -> None:
        """Bring the page of the open tab up to date."""
        name = list(PAGES)[self.root.active]
        new = name not in self.pages
        if new:
            self.pages[name] = PAGES[name](self.scheduler)
        # A new page is filled before it goes to the browser.
        self.pages[name].update()
        if new:
            self.root.tabs[self.root.active].child.children = [self.pages[name].root]


def ownership_doc(scheduler: Any, extra: dict[str, Any], doc: Any) -> None:
    """Fill a document with all pages as tabs."""
    from distributed.dashboard.components import add_periodic_callback
    from distributed.dashboard.components.scheduler import BOKEH_THEME, env

    together = Together(scheduler)
    add_periodic_callback(doc, together, INTERVAL)
    doc.title = "Dask: Ownership"
    doc.add_root(together.root)
    doc.template = env.from_string(TOGETHER)
    doc.template_variables.update(extra)
    doc.theme = BOKEH_THEME


def alone_doc(name: str, scheduler: Any, extra: dict[str, Any], doc: Any) -> None:
    """Fill a document with one page by itself."""
    from distributed.dashboard.components import add_periodic_callback
    from distributed.dashboard.components.scheduler import BOKEH_THEME, env

    page = PAGES[name](scheduler)
    page.update()
    add_periodic_callback(doc, page, INTERVAL)
    doc.title = f"Dask: {NAME} {name}".title()
    doc.add_root(page.root)
    doc.template = env.from_string(ALONE)
    doc.theme = BOKEH_THEME


def path_of(name: str) -> str:
    """Return the path of one page by itself."""
    return f"/individual-{NAME}-{name}"


class Timeline(RequestHandler):
    """Sends the task stream of the last minutes and the next seconds, as a Chrome trace."""

    def initialize(self, dask_server: Any) -> None:
        """Take the scheduler, which Dask's HTTP handlers call their server."""
        self.scheduler = dask_server

    async def get(self) -> None:
        """Answer a download; ``?seconds=`` says for how long all tasks are noted first."""
        try:
            seconds = float(self.get_query_argument("seconds", str(RECORDED)))
        except ValueError:
            raise HTTPError(400, reason="seconds is not a number") from None
        stream = self.scheduler.extensions["dask-ownership"].feed.task_stream
        records = await stream.recorded(min(max(0.0, seconds), MOST_RECORDED))
        self.set_header("Content-Type", "application/json")
        self.set_header("Content-Disposition", 'attachment; filename="dask-timeline.json"')
        # Beside the loop: a full stream makes tens of megabytes.
        await self.finish(await asyncio.to_thread(lambda: json.dumps(chrome_trace(records))))


class Plots(IndividualPlots):
    """Names the pages for JupyterLab's Dask extension, beside Dask's own."""

    def write(self, chunk: Any) -> None:
        """Add the pages to Dask's answer."""
        if isinstance(chunk, dict):
            chunk = {**chunk, **{f"{NAME} {name}".title(): path_of(name) for name in PAGES}}
        super().write(chunk)


def add_pages(scheduler: Any) -> None:
    """Serve the pages, and name them in the navigation bar and for JupyterLab.

    Raises
    ------
    ImportError
        When Bokeh is missing, or its version does not suit Dask.
    """
    from distributed.dashboard.core import BokehApplication
    from distributed.dashboard.scheduler import template_variables

    variables = template_variables(scheduler)  # all pages of the dashboard share this dict
    stock = next(a for a in scheduler.http_application.applications if hasattr(a, "get_sessions"))
    docs = {path_of(name): partial(alone_doc, name) for name in PAGES}
    app = BokehApplication(
        {f"/{NAME}": ownership_doc, **docs},
        scheduler,
        prefix=stock.prefix,
        template_variables=variables,
    )
    scheduler.http_application.add_application(app)
    app.initialize(IOLoop.current())
    app.start()
    scheduler.http_application.add_handlers(
        ".*$",
        [
            (f"{stock.prefix}/individual-plots.json", Plots, {"dask_server": scheduler}),
            (f"{stock.prefix}/{TIMELINE}", Timeline, {"dask_server": scheduler}),
        ],
    )
    if NAME not in variables["pages"]:
        variables["pages"].insert(1, NAME)
        variables["plots"].extend(
            {"url": path_of(name).strip("/"), "name": f"{NAME} {name}".title()} for name in PAGES
        )
        variables["plots"].sort(key=lambda plot: plot["name"])
