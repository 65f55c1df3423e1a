"""Pages about ownership in Dask's dashboard; `install` adds them where there is one.

Bokeh may be missing, and takes long to import: the functions here import it when they are called.
"""

from __future__ import annotations

import logging
from typing import Any

from dask_ownership.monitoring.pages.server import add_pages

logger = logging.getLogger("dask_ownership.scheduler")


def install(scheduler: Any) -> bool:
    """Add the pages to a scheduler's dashboard while it runs.

    Returns
    -------
    bool
        False when it has none, as Bokeh is missing, too old or too new, or it was started
        with ``dashboard=False``. Nothing else depends on it.
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
    """What serves the scheduler's HTTP; Bokeh's are among these when there are pages."""
    return list(getattr(getattr(scheduler, "http_application", None), "applications", ()))
