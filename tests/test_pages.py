"""What the pages about ownership show of what happened."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

from dask_ownership import Client

pytestmark = pytest.mark.skipif(find_spec("bokeh") is None, reason="bokeh is not installed")


def opened(client: Client, name: str, look: Any) -> Any:
    """What ``look`` returns of one page that is opened now, in the scheduler's process."""

    def open_page(dask_scheduler: Any) -> Any:
        from dask_ownership.monitoring.pages.server import PAGES

        page = PAGES[name](dask_scheduler)
        page.update()
        return look(page)

    return client.run_on_scheduler(open_page)


def legend(fig: Any) -> dict[str, str]:
    """The color of each name in the legend of a figure."""
    return {
        item.label.value: getattr(glyph, "fill_color", None) or glyph.line_color
        for item in fig.legend[0].items
        for glyph in (item.renderers[0].glyph,)
    }


def test_a_color_means_the_same_on_all_pages(client: Client) -> None:
    from dask_ownership.monitoring.pages import look

    objects = opened(client, "objects", lambda page: legend(page.states))
    assert objects["error"] == look.ERROR
    assert [state for state, color in objects.items() if color == look.ERROR] == ["error"]
    where = opened(client, "latency", lambda page: legend(page.where))
    assert where["with owners"] == objects["waiting"]
    assert where["queued at workers"] == objects["ready"]
    assert where["running"] == objects["handed out"]
    stored = opened(client, "objects", lambda page: legend(page.bytes))
    assert stored["of one owner"] == objects["stored"]
    costs = opened(client, "failures", lambda page: dict(page.losses_source.data))
    shown = dict(zip(costs["kind"], costs["color"], strict=True))
    # Red are only errors: a worker that died may have cost nothing.
    assert shown["tasks: KilledWorker"] == shown["values lost"] == look.ERROR
    assert shown["workers died"] == shown["owners gone"] == look.AGAIN
