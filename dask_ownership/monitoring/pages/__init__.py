"""Pages about ownership in Dask's dashboard; `install` adds them to a scheduler that has one.

Bokeh may be missing, and takes long to import: the functions here import Bokeh when they are
called.
"""

from __future__ import annotations

import logging
from typing import Any

from dask_ownership.monitoring.pages.server import add_pages

logger = logging.getLogger("dask_ownership.scheduler")


def install(scheduler: Any) -> bool:
    """Add the pages to the dashboard of a running scheduler.

    Returns
    -------
    bool
        False when the scheduler has no dashboard: Bokeh is missing, too old or too new, or the
        scheduler was started with ``dashboard=False``. Nothing else depends on the pages.
    """
    if not any(hasattr(app, "get_sessions") for app in applications(scheduler)):
        return False
    try:
        add_pages(scheduler)
    except Exception as error:
        logger.warning("the dashboard has no pages about ownership: %r", error)
        return False
    return True


def applications(scheduler: Any) -> list[Any]:
    """Return the applications that serve the scheduler's HTTP, with Bokeh's if there is any."""
    return list(getattr(getattr(scheduler, "http_application", None), "applications", ()))
