"""How cells of tables are written, and the functions that make Bokeh's formatters for them."""

from __future__ import annotations

from functools import partial
from typing import Any


def formatter(kind: str, **options: Any) -> Any:
    """Return one of Bokeh's formatters for the cells of a column, by its name."""
    import bokeh.models

    return getattr(bokeh.models, kind)(**options)


WHOLE = partial(formatter, "NumberFormatter", format="0,0")
BYTES = partial(formatter, "NumberFormatter", format="0.0 b")
RATE = partial(formatter, "NumberFormatter", format="0,0.0")
CLOCK = partial(formatter, "DateFormatter", format="%H:%M:%S")
CODE = partial(
    formatter, "HTMLTemplateFormatter", template='<code title="<%- value %>"><%- value %></code>'
)
PROCESS = partial(
    formatter,
    "HTMLTemplateFormatter",
    template="""
<code title="<%- value %>"><% if (value == "scheduler") { %><a target="_blank"
href="info/main/logs.html"><%- value %></a><% } else if (value.includes("://")) { %><a
target="_blank" href="info/logs/<%= encodeURIComponent(value.trim()) %>.html"><%- value %></a><%
} else { %><%- value %><% } %></code>
""",
)
"""A worker or the scheduler, with a link to its logs; a client has none."""
FRAMES = partial(
    formatter,
    "HTMLTemplateFormatter",
    template='<code title="<%- traceback %>"><%- value %></code>',
)
"""The last line of a traceback; the column ``traceback`` has all of it, under the pointer."""
WORDS = partial(
    formatter, "HTMLTemplateFormatter", template='<span title="<%- value %>"><%- value %></span>'
)
"""Text that may be longer than its cell: the browser displays all of it under the pointer."""
