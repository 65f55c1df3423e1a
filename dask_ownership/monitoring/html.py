"""How snapshots look in terminals and notebooks: titles, lines and tables."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from html import escape
from typing import Any

SHOWN = 20
"""Lines of one list that are displayed; the attributes of a snapshot have all entries."""


@dataclass(frozen=True)
class Section:
    """A part of a snapshot's text: names with values, or a table with a header.

    Attributes
    ----------
    title : str
    rows : list of tuple of str
    header : tuple of str
        Titles of the columns; empty for names with values.
    """

    title: str
    rows: list[tuple[str, ...]]
    header: tuple[str, ...] = ()

    def shown(self) -> tuple[list[tuple[str, ...]], str]:
        """Return the rows to display, and a note on the number of rows left out."""
        left = len(self.rows) - SHOWN
        return self.rows[:SHOWN], f"... and {left:,d} more" if left > 0 else ""

    def lines(self) -> list[str]:
        """Return the section as lines of text."""
        rows, more = self.shown()
        if not self.header:
            return [", ".join([*(" ".join(row) for row in rows), *([more] if more else [])])]
        # The widest cell of a column decides its width.
        table = [self.header, *rows]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
        return [*lines, more] if more else lines

    def html(self) -> str:
        """Return the section as an HTML table that can be folded."""
        rows, more = self.shown()
        lines = [cells("th", self.header)] if self.header else []
        for row in rows:
            # Without a header the first word of a row is the name of the rest.
            if self.header or len(row) == 1:
                lines.append(cells("td", row))
            else:
                lines.append(cells("th", row[:1], " width: 150px;") + cells("td", row[1:]))
        if more:
            lines.append(cells("td", (more,)))
        return (
            f'<details open="open"><summary><h4 style="display: inline;">{escape(self.title)}</h4>'
            '</summary><table style="width: 100%; text-align: left;">'
            + "".join(f"<tr>{line}</tr>" for line in lines)
            + "</table></details>"
        )


def cells(tag: str, words: Iterable[str], style: str = "") -> str:
    """Return the cells of one row of an HTML table; words are escaped."""
    return "".join(
        f'<{tag} style="text-align: left;{style}">{escape(word)}</{tag}>' for word in words
    )


def counted(counts: dict[str, int]) -> list[tuple[str, ...]]:
    """Return names with their numbers, as rows of a section; zeros are left out."""
    return [(name.replace("_", " "), f"{count:,d}") for name, count in counts.items() if count]


def worded(values: dict[str, Any] | None) -> list[tuple[str, ...]]:
    """Return names with their values, as rows of a section; empty and zero values are left out."""
    return [
        (name.replace("_", " "), value if isinstance(value, str) else repr(value))
        for name, value in (values or {}).items()
        # False equals 0, and is left out as well.
        if value not in (None, 0, "", (), [], {})
    ]


def clock(when: float) -> str:
    """Return the local time of day with milliseconds."""
    return datetime.fromtimestamp(when).strftime("%H:%M:%S.%f")[:-3]


class Shown:
    """Base of the snapshots: text for terminals, and HTML for notebooks.

    A subclass is a dataclass with `_head` and `_sections`.
    """

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as a dict of plain values that shares nothing with the snapshot."""
        return asdict(self)  # type: ignore[call-overload]

    def __await__(self) -> Generator[None, None, Any]:
        """Return the snapshot itself: asynchronous programs may await it, and need not."""
        return self
        yield  # so that this is a generator

    def _head(self) -> tuple[str, str]:
        """Return the kind of snapshot and the name of its subject, for the title."""
        raise NotImplementedError

    def _sections(self) -> Iterable[Section]:
        """Return the parts of the text; parts without rows are not displayed."""
        raise NotImplementedError

    def __repr__(self) -> str:
        kind, name = self._head()
        sections = [(s.title.lower(), s.lines()) for s in self._sections() if s.rows]
        width = max(len(title) for title, _ in sections)
        text = [f"{kind} {name}".rstrip()]
        for title, lines in sections:
            # Only the first line of a section has the title; the lines below are indented by its
            # width.
            for index, line in enumerate(lines):
                text.append(f"  {title if not index else '':{width}}  {line}")
        return "\n".join(text)

    def _repr_html_(self) -> str:
        kind, name = self._head()
        tables = "".join(section.html() for section in self._sections() if section.rows)
        # The same colours and sizes as Dask's own representations of clients and futures.
        return (
            '<div><div style="width: 24px; height: 24px; background-color: #e1e1e1; '
            'border: 3px solid #9D9D9D; border-radius: 5px; position: absolute;"> </div>'
            '<div style="margin-left: 48px;">'
            f'<h3 style="margin-bottom: 0px;">{escape(kind)}</h3>'
            f'<p style="color: #9D9D9D; margin-bottom: 0px;">{escape(name)}</p>'
            f"{tables}</div></div>"
        )
