"""How the pages look: one meaning for each color on all pages, and the theme of the browser.

Tables, tabs and texts take their colors from the theme that the browser asks for. What Bokeh draws
on canvases cannot: its text and lines have a grey that can be read on white and on black.
"""

from __future__ import annotations

from dask_ownership.core.protocol.states import STATE_NAMES
from dask_ownership.monitoring.census import COUNTED

TEXT = "#808080"
"""Text and lines of plots."""

WAITING = "#9a9a9a"
READY = "#c4c4c4"
RUNNING = "#4c9be8"
INLINE = "#9ad3a0"
STORED = "#3f9e56"
ERROR = "#d9453d"
DORMANT = "#a99bc4"
AGAIN = "#e8a33d"
"""What is worth a look and is no error: a task that is handed out again, a value on disk."""

STATES = [STATE_NAMES[state] for state in COUNTED]

STATE_COLORS = dict(
    zip(STATES, (WAITING, READY, RUNNING, INLINE, STORED, ERROR, DORMANT), strict=True)
)
"""Grey waits, blue runs, green is a value, red is an error; violet is a value that was freed."""

STATE_LABELS = {state: "handed out" if state == "pushed" else state for state in STATES}
"""States as the pages word them."""

LITTLE = (0x70, 0x85, 0x9B)
MUCH = (0x0B, 0x62, 0xC4)
"""Red, green and blue of a little and of much: one hue, on which white numbers can be read."""


def amount(part: float) -> str:
    """Return the color of an amount, as a part of the largest."""
    mixed = (round(low + part * (high - low)) for low, high in zip(LITTLE, MUCH, strict=True))
    return "#{:02x}{:02x}{:02x}".format(*mixed)


SHADES = ("#9cc8f2", "#4c9be8", "#1f5fa8")
"""Three shades of one hue, for the percentiles of one thing."""

VARIABLES = """
html {
  color-scheme: light dark;
  --ownership-text: #333333; --ownership-line: #d5d5d5; --ownership-mark: #ececec;
  --ownership-link: #1f5fa8; background: #ffffff; color: var(--ownership-text);
}
@media (prefers-color-scheme: dark) {
  html {
    --ownership-text: #d6d6d6; --ownership-line: #444444; --ownership-mark: #333333;
    --ownership-link: #7fb8f0; background: #1b1b1b;
  }
  .navbar ul, .dropdown-content { background-color: #2d2d2d; }
  .navbar li a { color: #dddddd; }
}
"""
"""Style of the document. What Bokeh builds inside inherits the variables."""

TABLE = """
:host { color: var(--ownership-text); z-index: 0; }
.slick-header-column, .slick-row, .slick-cell {
  background: transparent !important; color: var(--ownership-text);
}
.slick-header-column, .slick-cell, .slick-header-columns, .slick-pane-header {
  border-color: var(--ownership-line) !important;
}
.slick-row:hover, .slick-cell.selected { background: var(--ownership-mark) !important; }
a { color: var(--ownership-link); }
"""

TABS = """
.bk-header { border-color: var(--ownership-line) !important; }
.bk-tab { color: var(--ownership-text); border-color: var(--ownership-line) !important; }
.bk-tab.bk-active { background: var(--ownership-mark); color: var(--ownership-text); }
"""

WORDS = """
:host { color: var(--ownership-text); }
a { color: var(--ownership-link); }
"""
"""Style of texts above plots and tables."""

INPUT = """
:host, label { color: var(--ownership-text); }
.bk-input {
  background: transparent; color: var(--ownership-text); border-color: var(--ownership-line);
}
"""

TOGETHER = f"""
{{% extends "simple.html" %}}
{{% block extra_resources %}}<style>{VARIABLES}</style>{{% endblock %}}
"""
"""Template of the page with all pages as tabs, below Dask's navigation bar."""

ALONE = f"""
{{% extends base %}}
{{% block postamble %}}<style>{VARIABLES}</style>{{% endblock %}}
"""
"""Template of one page by itself. Bokeh passes its own template as ``base``."""
