"""How what a process knows looks in terminals and notebooks: titles, lines and tables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from html import escape
from typing import Any

SHOWN = 20
"""Lines of one list that are shown; the attributes have all."""


@dataclass(frozen=True)
class Section:
    """A part of what is shown: words and what belongs to them, or a table with a header."""

    title: str
    rows: list[tuple[str, ...]]
    header: tuple[str, ...] = ()

    def shown(self) -> tuple[list[tuple[str, ...]], str]:
        """The rows to show, and a word on those left out."""
        left = len(self.rows) - SHOWN
        return self.rows[:SHOWN], f"... and {left:,d} more" if left > 0 else ""

    def lines(self) -> list[str]:
        """As text."""
        rows, more = self.shown()
        if not self.header:
            return [", ".join([*(" ".join(row) for row in rows), *([more] if more else [])])]
        table = [self.header, *rows]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
        return [*lines, more] if more else lines

    def html(self) -> str:
        """As a table."""
        rows, more = self.shown()
        lines = [cells("th", self.header)] if self.header else []
        for row in rows:
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
    """Cells of one line of a table."""
    return "".join(
        f'<{tag} style="text-align: left;{style}">{escape(word)}</{tag}>' for word in words
    )


def counted(counts: dict[str, int]) -> list[tuple[str, ...]]:
    """Names with their numbers."""
    return [(name.replace("_", " "), f"{count:,d}") for name, count in counts.items()]


def worded(values: dict[str, Any] | None) -> list[tuple[str, ...]]:
    """Names with what they stand for, without those that stand for nothing."""
    return [
        (name.replace("_", " "), value if isinstance(value, str) else repr(value))
        for name, value in (values or {}).items()
        if value not in (None, 0, (), [], {})
    ]


def clock(when: float) -> str:
    """The time of day."""
    return datetime.fromtimestamp(when).strftime("%H:%M:%S.%f")[:-3]


class Shown:
    """How snapshots look in terminals and notebooks."""

    def to_dict(self) -> dict[str, Any]:
        """Everything as one dict of plain values, which shares nothing with this object."""
        return asdict(self)  # type: ignore[call-overload]

    def _head(self) -> tuple[str, str]:
        """What it is, and of what."""
        raise NotImplementedError

    def _sections(self) -> Iterable[Section]:
        raise NotImplementedError

    def __repr__(self) -> str:
        kind, name = self._head()
        sections = [(s.title.lower(), s.lines()) for s in self._sections() if s.rows]
        width = max(len(title) for title, _ in sections)
        text = [f"{kind} {name}".rstrip()]
        for title, lines in sections:
            for index, line in enumerate(lines):
                text.append(f"  {title if not index else '':{width}}  {line}")
        return "\n".join(text)

    def _repr_html_(self) -> str:
        kind, name = self._head()
        tables = "".join(section.html() for section in self._sections() if section.rows)
        return (
            '<div><div style="width: 24px; height: 24px; background-color: #e1e1e1; '
            'border: 3px solid #9D9D9D; border-radius: 5px; position: absolute;"> </div>'
            '<div style="margin-left: 48px;">'
            f'<h3 style="margin-bottom: 0px;">{escape(kind)}</h3>'
            f'<p style="color: #9D9D9D; margin-bottom: 0px;">{escape(name)}</p>'
            f"{tables}</div></div>"
        )
