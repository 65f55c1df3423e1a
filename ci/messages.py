"""Writes the tables of messages into ``docs/protocol.md``, from the code.

``python ci/messages.py`` writes them; a test checks that they are as this gives them.

A module of messages has a comment ``# ---- from whom to whom ----`` above the messages of one
direction. The text below the name of a message begins with the form of the message, as
``(KIND, field, ...)`` in double backquotes. The way of the message may follow, if the module has
messages of several directions side by side. After a colon the text says what the message means.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType

from marks import filled

from dask_ownership.core.protocol import messages, peer_messages
from dask_ownership.runtime.comm import scheduler_ops
from dask_ownership.runtime.executor.server import Server

PAGE = Path(__file__).parent.parent / "docs" / "protocol.md"

HEADING = re.compile(r"^# ---- (.*) ----$")
FORM = re.compile(r"``\(\w+,\s*(?P<fields>[^`]*)\)``(?:, (?P<way>[^:]*))?:?\s+(?P<text>.*)", re.S)
OPTION = re.compile(r"\n- ``(\w+)``: ")
HANDLER = re.compile(r"Handle ``(?P<name>\w+)``: (?P<text>.*)", re.S)

ADDED = ("self", "comm", "sender")
"""Parameters of handlers that do not travel: Dask's servers add the connection and the sender."""


@dataclass(frozen=True)
class Entry:
    """A name of a module of messages, with the text below the name.

    Attributes
    ----------
    section : str
        The text of the comment above the section of the module; empty before the first one.
    name : str
    text : str
        What the name means: of a message without its form.
    fields : str or None
        The fields of a message, by commas. None for a name that is no message.
    way : str
        From whom or to whom the message goes, if the text of the message says so.
    """

    section: str
    name: str
    text: str
    fields: str | None = None
    way: str = ""


def entries(module: ModuleType) -> Iterator[Entry]:
    """Yield the constants and types of a module with a text below, in the order of the source."""
    source = inspect.getsource(module)
    headings = {
        number: found[1]
        for number, line in enumerate(source.splitlines(), 1)
        if (found := HEADING.match(line))
    }
    for statement, below in pairwise(ast.parse(source).body):
        if isinstance(statement, ast.AnnAssign):
            target: ast.expr = statement.target
        elif isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant):
            target = statement.targets[0]
        else:
            continue
        if not isinstance(below, ast.Expr) or not isinstance(below.value, ast.Constant):
            continue
        above = [text for number, text in headings.items() if number < statement.lineno]
        section, text = above[-1] if above else "", str(below.value.value)
        if form := FORM.match(text):
            fields, way = " ".join(form["fields"].split()), " ".join((form["way"] or "").split())
            yield Entry(section, ast.unparse(target), form["text"], fields, way)
        else:
            yield Entry(section, ast.unparse(target), text)


def section(module: ModuleType, title: str = "") -> str:
    """Return the table of the messages of one section of a module.

    A section without any message is a list of values, such as reasons. Elsewhere a name without
    the form of a message is left out.
    """
    found = [entry for entry in entries(module) if entry.section == title]
    said = [entry for entry in found if entry.fields is not None]
    if not said:
        return _table(("name", "what it means"), [(_code(e.name), _cell(e.text)) for e in found])
    if not any(entry.way for entry in said):
        rows = [(_code(e.name), _names(e.fields), _cell(e.text)) for e in said]
        return _table(("message", "fields", "what it says"), rows)
    rows = [(_code(e.name), e.way, _names(e.fields), _cell(e.text)) for e in said]
    return _table(("message", "way", "fields", "what it says"), rows)


def options() -> str:
    """Return the table of the options that a `PUSH` may have."""
    (push,) = (entry for entry in entries(messages) if entry.name == "PUSH")
    pairs = OPTION.split(push.text)[1:]
    rows = [(_code(name), _cell(text)) for name, text in zip(pairs[::2], pairs[1::2], strict=True)]
    return _table(("option", "what it says"), rows)


def fields_of(handler: Callable[..., object]) -> list[str]:
    """Return the names of the arguments that a message has for its handler."""
    return [
        name
        for name, parameter in inspect.signature(handler).parameters.items()
        if name not in ADDED and parameter.kind is not parameter.VAR_KEYWORD
    ]


def of_workers() -> str:
    """Return the table of the operations of a worker, from the handlers and their docstrings."""
    handlers: tuple[Callable[..., object], ...] = (
        Server.link, Server.get, Server.put, Server.leave,
    )  # fmt: skip
    rows = []
    for handler in handlers:
        found = HANDLER.match(inspect.getdoc(handler) or "")
        assert found is not None, handler
        summary = found["text"].split("\n\nParameters\n")[0]
        rows.append((_code(found["name"]), _names(", ".join(fields_of(handler))), _cell(summary)))
    return _table(("operation", "fields", "what it does"), rows)


def written(page: str) -> str:
    """Return the page with the tables as they are to be."""
    return filled(
        page,
        {
            "parts of messages": section(messages),
            "from owner to executor": section(messages, "owner to executor"),
            "options of a push": options(),
            "dependencies": section(messages, "dependencies inside a PUSH"),
            "from executor to owner": section(messages, "executor to owner"),
            "reasons of GIVEN_BACK": section(messages, "reasons of GIVEN_BACK"),
            "either way": section(messages, "either way"),
            "between owners": section(peer_messages),
            "to the scheduler, with an answer": section(
                scheduler_ops, "owner to scheduler, with an answer"
            ),
            "from clients to the scheduler": section(
                scheduler_ops, "client to scheduler, on the stream"
            ),
            "from the scheduler": section(scheduler_ops, "scheduler to owners, on the stream"),
            "operations of workers": of_workers(),
        },
    )


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    made = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return made.replace("| --- ", "|---").replace("|--- |", "|---|").replace(" |---", "|---") + "\n"


def _code(name: str) -> str:
    return f"`{name}`"


def _names(fields: str | None) -> str:
    """Return fields as code; square brackets stay, which say that fields may be left out."""
    return re.sub(r"\w+", lambda name: _code(name[0]), fields or "")


def _cell(text: str) -> str:
    """Return a text for a cell of a table: on one line, without options, with a capital letter."""
    said = " ".join(OPTION.split(text)[0].split()).replace("``", "`").replace("|", "\\|")
    if said.endswith(":"):
        said = f"{said[:-1]} below."
    said = said if said.endswith(".") else f"{said}."
    return said[0].upper() + said[1:]


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
