"""What the pages have in common: the source of their numbers, and the parts they are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import nan
from typing import Any

from dask_ownership.monitoring.pages.look import INPUT, TABLE, TABS, TEXT, WORDS
from dask_ownership.monitoring.rounds import HISTORY

INTERVAL = 500
"""Milliseconds between two updates."""


SHOWN = 300_000
"""Milliseconds that plots over time show, at most."""


class Page:
    """One page: `root` is its Bokeh model, `update` brings it up to date.

    Parameters
    ----------
    scheduler : distributed.Scheduler

    Attributes
    ----------
    feed : Feed
        Activity of all owners and workers.
    root : bokeh.models.UIElement
        Set by the subclass.
    """

    def __init__(self, scheduler: Any, **kwargs: Any) -> None:
        """Count the page as a viewer, before any report is here."""
        self.feed = scheduler.extensions["dask-ownership"].feed
        self.feed.looked()
        self.root: Any = None
        self._round = -1

    def update(self) -> None:
        """Show the latest round, unless the page shows it already."""
        from bokeh.core.properties import validate

        if self.feed.rounds.number != self._round:
            self._round = self.feed.rounds.number
            # Bokeh need not check the values; Dask's own pages skip that as well.
            with validate(False):
                self.show(self.feed.now())

    def show(self, told: dict[str, Any]) -> None:
        """Show the activity, in the form that `Feed.activity` documents."""
        raise NotImplementedError


def plot(title: str, x: str, y: str, **options: Any) -> Any:
    """Return a figure with labelled axes."""
    from bokeh.plotting import figure

    fig = figure(
        title=title,
        x_axis_label=x,
        y_axis_label=y,
        sizing_mode="stretch_both",
        min_height=180,
        **{"tools": "", "toolbar_location": None, **options},
    )
    fig.title.text_color = TEXT
    for axis in fig.axis:
        axis.axis_label_text_color = TEXT
        axis.axis_label_text_font_style = "normal"
        axis.major_label_text_color = TEXT
        axis.axis_line_color = axis.major_tick_line_color = TEXT
        axis.minor_tick_line_color = None
    fig.grid.grid_line_color = TEXT
    fig.grid.grid_line_alpha = 0.25
    fig.outline_line_color = None
    fig.background_fill_color = fig.border_fill_color = None
    return fig


def last_minutes() -> Any:
    """Return the range of times of all plots of one page: what they have, at most `SHOWN`."""
    from bokeh.models import DataRange1d

    return DataRange1d(follow="end", follow_interval=SHOWN, range_padding=0.0)


def over_time(
    title: str, y: str, source: Any, lines: dict[str, tuple[str, str]], **options: Any
) -> Any:
    """Return a figure with lines over the time of day.

    ``lines`` maps names of columns to the names in the legend and the colors.
    """
    from bokeh.models import FixedTicker

    fig = plot(title, "time of day (UTC)", y, x_axis_type="datetime", **options)
    if options.get("y_axis_type") == "log":
        # Bokeh's own ticks are written over each other, or are at one end of the axis only.
        ticks = [m * 10.0**power for power in range(-6, 4) for m in (1, 3)]
        fig.yaxis.ticker = FixedTicker(ticks=ticks)
    for column, (name, color) in lines.items():
        fig.line("time", column, source=source, color=color, line_width=2, legend_label=name)
    with_legend(fig)
    return fig


def with_legend(fig: Any) -> None:
    """Move the legend beside the plot, where the legend covers nothing."""
    legend = fig.legend[0]
    fig.add_layout(legend, "right")
    legend.label_text_color = TEXT
    legend.background_fill_alpha = 0.0
    legend.border_line_color = None


def hover(fig: Any, *tips: tuple[str, str]) -> None:
    """Have a figure display the values under the pointer."""
    from bokeh.models import HoverTool

    fig.add_tools(HoverTool(tooltips=list(tips), point_policy="follow_mouse"))


def words(text: str = "", **styles: str) -> Any:
    """Return a text above plots or tables."""
    from bokeh.models import Div

    return Div(text=text, styles=styles, stylesheets=[WORDS])


def table(columns: dict[str, tuple[str, int, Any]], **options: Any) -> tuple[Any, Any]:
    """Return the source of a table, and the table.

    Parameters
    ----------
    columns : dict of str to tuple
        For each name a title, a width, and a function that makes a formatter (or None).
    """
    from bokeh.models import ColumnDataSource, CustomJS, DataTable, TableColumn

    source = ColumnDataSource({name: [] for name in columns})
    shown = [
        TableColumn(field=name, title=title, width=width, **({"formatter": form()} if form else {}))
        for name, (title, width, form) in columns.items()
    ]
    made = DataTable(
        source=source,
        columns=shown,
        index_position=None,
        sizing_mode="stretch_both",
        min_height=150,
        stylesheets=[TABLE],
        **options,
    )
    # Bokeh 3.9 renders a table again only when its number of rows changes. This triggers it.
    written = CustomJS(args={"view": made.view}, code="view.change.emit()")
    source.js_on_change("data", written)
    return source, made


def tabs(named: dict[str, Any]) -> Any:
    """Return tabs, from titles to the models behind them."""
    from bokeh.models import TabPanel, Tabs

    panels = [TabPanel(child=child, title=title) for title, child in named.items()]
    return Tabs(tabs=panels, sizing_mode="stretch_both", stylesheets=[TABS])


def search(changed: Callable[[], None]) -> Any:
    """Return a field for words; ``changed`` is called with each letter.

    `matching` takes the ``value_input`` of the field.
    """
    from bokeh.models import TextInput

    field = TextInput(
        placeholder="filter: words that a line contains", width=320, stylesheets=[INPUT]
    )
    field.on_change("value_input", lambda attribute, old, new: changed())
    return field


def matching(rows: Iterable[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    """Return the rows that contain all words of a text, in any column and in any case."""
    wanted = text.lower().split()
    if not wanted:
        return list(rows)
    found = []
    for row in rows:
        written = " ".join(map(str, row.values())).lower()
        if all(word in written for word in wanted):
            found.append(row)
    return found


def put(source: Any, rows: list[dict[str, Any]], names: Any = None) -> None:
    """Replace the rows of a source."""
    from distributed.dashboard.utils import update

    names = list(source.data) if names is None else names
    update(source, {name: [row[name] for row in rows] for name in names})


def later(source: Any, history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rounds that a source does not show yet."""
    times = source.data["time"]
    last = times[-1] if len(times) else 0.0
    return [one for one in history if milliseconds(one["time"]) > last]


def append(source: Any, rows: list[dict[str, Any]]) -> None:
    """Add rows to a source; only the new rows are sent to the browser.

    A row with ``after_gap`` comes after a row without numbers, over which no line is drawn.
    """
    added: list[dict[str, Any]] = []
    for row in rows:
        if row["after_gap"]:
            added.append({**dict.fromkeys(source.data, nan), "time": row["time"] - 1.0})
        added.append(row)
    if added:
        new = {name: [row[name] for row in added] for name in source.data}
        source.stream(new, rollover=HISTORY)


def milliseconds(seconds: float) -> float:
    """Return a time in the unit of Bokeh's time axes."""
    return seconds * 1000.0


def short(name: str) -> str:
    """Return a name of an owner or worker that fits into little room."""
    name = name.partition("://")[2] or name
    return name if len(name) <= 24 else f"{name[:14]}…{name[-8:]}"


def unique(names: Iterable[str]) -> list[str]:
    """Return each name once, because the factors of a range must be unique."""
    return list(dict.fromkeys(names))


def age(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds."""
    minutes, rest = divmod(max(0, int(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
